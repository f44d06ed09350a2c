"""Sheets as tables of GitHub's Markdown."""

import re
from collections.abc import Sequence
from pathlib import Path

import repr_ray
from repr_ray.results.compare import Comparison
from repr_ray.results.files import MARK, write_text
from repr_ray.results.tables.sheet import Sheet, blocks
from repr_ray.storage.text import line


def markdown(text: str) -> str:
    """Escape GitHub's Markdown."""
    text = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#$])", r"\\\1", text)


def markdown_sheet(sheet: Sheet) -> str:
    """One GitHub table per block."""
    lines: list[str] = []
    for heading, rows in blocks(sheet):
        lines += ["", f"**{markdown(heading)}**"] if heading else []
        lines += [
            "",
            "| " + " | ".join(markdown(column.name) for column in sheet.columns) + " |",
            "|" + "|".join("---:" if column.number else ":---" for column in sheet.columns) + "|",
            *("| " + " | ".join(markdown(cell.text) for cell in row) + " |" for row in rows),
        ]
    lines += [f"\n{markdown(footnote)}" for footnote in sheet.footnotes]
    return "\n".join(lines) + "\n"


def write_markdown(
    path: Path, comparison: Comparison, sheets: Sequence[tuple[str, Sheet]], folded: Sequence[tuple[str, Sheet]] = ()
) -> None:
    """The answer, the sheets under their titles, the notes, and sheets that are closed at first."""
    parts = [f"<!-- {MARK} {repr_ray.__version__} -->\n# Comparison with {markdown(comparison.baseline)}\n"]
    parts += [f"**{markdown(comparison.answer)}**\n"]
    if len(comparison.answers) > 1:
        parts.append("".join(f"- {markdown(answer)}\n" for answer in comparison.answers))
    parts += [f"## {markdown(title)}\n{markdown_sheet(sheet)}" for title, sheet in sheets if sheet.rows]
    if comparison.notes:
        parts.append("## Notes\n\n" + "".join(f"- {markdown(note)}\n" for note in comparison.notes))
    for title, sheet in folded:
        if sheet.rows:
            parts.append(f"<details><summary>{title}</summary>\n{markdown_sheet(sheet)}\n</details>\n")
    write_text(path, "\n".join(parts))
