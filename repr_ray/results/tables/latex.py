"""Sheets as tables of LaTeX."""

from collections.abc import Sequence
from pathlib import Path

import repr_ray
from repr_ray.results.files import MARK, write_text
from repr_ray.results.tables.sheet import NONE, Sheet, blocks
from repr_ray.storage.text import line

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "\N{MINUS SIGN}": "$-$",
    NONE: "--",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Escape LaTeX's special characters; those its usual fonts lack become their code points."""
    return "".join(_TEX.get(c, c if c <= "\u017f" else f"[U+{ord(c):04X}]") for c in line(text))


SHORT = ("Scheme", "n", "Test, %", "Difference [95%]", "Holm p")  # the columns of a table for a paper


def latex_sheet(sheet: Sheet, names: Sequence[str] = ()) -> str:
    """A booktabs table of these columns, by default those that fit on a page; a longtable if the rows do not."""
    kept = [k for k, column in enumerate(sheet.columns) if (column.name in names if names else column.spare <= 5)]
    environment = "longtable" if len(sheet.rows) > 40 else "tabular"
    words = r">{\raggedright\arraybackslash}p{5.5em}"
    layout = "".join("r" if sheet.columns[place].number else words for place in kept[1:])
    lines = [r"{\footnotesize\setlength{\tabcolsep}{2.5pt}", rf"\begin{{{environment}}}{{l{layout}}}", r"\toprule"]
    lines.append(" & ".join(latex(sheet.columns[place].name) for place in kept) + r" \\")
    for heading, rows in blocks(sheet):
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(kept)}}}{{l}}{{\emph{{{latex(heading)}}}}} \\")
        # Braces keep a leading [ from being read as an option of the line break before it.
        lines += ["{}" + " & ".join(latex(row[place].text) for place in kept) + r" \\" for row in rows]
    lines += [r"\bottomrule", rf"\end{{{environment}}}"]
    lines += [rf"\par\smallskip {latex(footnote)}" for footnote in sheet.footnotes]
    return "\n".join([*lines, r"\par}"]) + "\n"


def write_latex(path: Path, sheets: Sequence[tuple[str, Sheet]], names: Sequence[str] = ()) -> None:
    """The sheets, or these columns of them, to be included with `\\input`; as wide as a page with inch margins."""
    packages = r"\usepackage{array,booktabs,longtable} \usepackage[margin=1in]{geometry}"
    head = f"% {MARK} {repr_ray.__version__}: {packages}, then \\input this file\n"
    write_text(path, head + "\n\\bigskip\n\n".join(latex_sheet(sheet, names) for _, sheet in sheets if sheet.rows))
