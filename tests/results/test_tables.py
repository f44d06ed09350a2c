"""The tables of a comparison: every width, every format, unusual names."""

import csv
import io
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from studies import make_trial

from repr_ray.report import report
from repr_ray.results import claims, store, tables
from repr_ray.results.compare import Comparison, compare
from repr_ray.results.words import in_percent

Make = Callable[..., Path]
NAMES = [
    "a|b_<script>alert(1)</script>",
    "100% $x$ & {y}^2 ~ \\z #1",
    "[x](y) *b* `c`",
    'comma, "quote"',
    "\x1b[31mred",
    '=HYPERLINK("http://x")',
]


@pytest.fixture
def awkward(experiment: Make, tmp_path: Path) -> Comparison:
    base = [0.70, 0.71, 0.72]
    results = experiment({"standard": base} | dict.fromkeys(NAMES, base), settings={"scheme.kind": "x"})
    make_trial(results, scheme=NAMES[0], seed=3, done=2, settings={"scheme.kind": "x"})
    (tmp_path / "work").mkdir()
    return compare(store.gather([results], tmp_path / "work"))


def printed(comparison: Comparison, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=width)
    exact, others = claims.by_match(claims.check(comparison, claims.load()))
    schemes, claimed = tables.comparison_sheet(comparison), tables.claims_sheet(exact)
    tables.print_comparison(console, comparison, schemes, claimed, len(others))
    console.file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_terminal_table_fits(awkward: Comparison, width: int) -> None:
    text = printed(awkward, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text  # neither colours in a job log nor a user's control characters
    words = " ".join(text.split())
    for column in tables.comparison_sheet(awkward).columns:
        assert column.name.split(",")[0].split()[0] in words, f"{column.name} is not shown"


@pytest.mark.parametrize("width", [80, 100])
def test_words_are_wrapped_and_never_cut(experiment: Make, tmp_path: Path, width: int) -> None:
    long = "repr ranking.score=magnitude selection.scope=layer"
    results = experiment({"standard": [0.7, 0.71, 0.72], long: [0.7, 0.71, 0.72]}, epochs=30)
    (tmp_path / "work").mkdir()
    sheet = tables.claims_sheet(claims.check(compare(store.gather([results], tmp_path / "work")), claims.load()))
    shown = []
    for console in (Console(file=io.StringIO(), width=w) for w in (width, 400)):
        tables.print_sheet(console, sheet)
        shown.append(Counter("".join(console.file.getvalue().split())))
    assert shown[0] == shown[1]


def test_claims_of_other_settings_are_folded(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.71], "repr": [0.7, 0.71]})
    checked = report([results], formats=["md", "tex", "html"], pictures=0)
    (tmp_path / "work").mkdir()
    text = " ".join(printed(checked, 100).split())
    assert "Claimed" not in text
    assert "published figures of other settings, without a verdict: see comparison.md" in text
    page, notes, tex = ((results / name).read_text() for name in ("report.html", "comparison.md", "comparison.tex"))
    for document in (page, notes):
        folded = document[document.index("<details><summary>", document.index("of other settings") - 60) :]
        assert folded.index("approximate") < folded.index("</details>")
        assert "approximate" not in document[: document.index("of other settings")]
    assert "approximate" not in tex


def test_validation_stands_beside_test_in_every_format(experiment: Make) -> None:
    results = experiment({"standard": [0.7, 0.71, 0.72], "repr": [0.7, 0.71, 0.72]})
    report([results], formats=["md", "tex", "csv", "html"], pictures=0)
    for name in ("report.html", "comparison.md", "comparison.tex"):
        text = (results / name).read_text()
        assert "Val., " in text, name
        assert "Test at best val. epoch, " in text, name
        assert "Best val." not in text, name
    with (results / "comparison.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["val_accuracy_mean"]) == pytest.approx(0.711)  # the fixture's lies 0.001 above the test's
    short = (results / "comparison-short.tex").read_text()
    assert [cell.strip() for cell in short.split("\\toprule")[1].split(r"\\")[0].split("&")] == [
        "Scheme",
        "n",
        r"Test, \%",
        r"Difference [95\%]",
        "Holm p",
    ]


def test_two_pairs_show_the_seeds_instead_of_an_interval(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.70, 0.71], "repr": [0.686, 0.701]})
    (tmp_path / "work").mkdir()
    sheet = tables.comparison_sheet(compare(store.gather([results], tmp_path / "work")))
    assert sheet.rows[1][3].text == "−1.4; −0.9"  # noqa: RUF001


def test_a_terminal_without_unicode(awkward: Comparison) -> None:
    text = printed(awkward, 100, "ascii")
    assert "71.0 +/- 1.0" in text


def test_markdown_is_what_it_was(awkward: Comparison, tmp_path: Path) -> None:
    sheet = tables.comparison_sheet(awkward)
    tables.write_markdown(tmp_path / "c.md", awkward, [("Schemes", sheet)])
    html = MarkdownIt("commonmark").enable("table").render((tmp_path / "c.md").read_text())
    assert "<script>" not in html
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
    assert len(cells) == len(sheet.rows) * len(sheet.columns)
    assert "a|b_&lt;script&gt;alert(1)&lt;/script&gt;" in cells
    assert "[x](y) *b* `c`" in cells
    assert "<em>" not in html


def test_csv_reads_back(awkward: Comparison, tmp_path: Path) -> None:
    tables.write_csv(tmp_path / "c.csv", awkward.table)
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scheme"] for row in rows] == ["standard", *NAMES[:-2], "[31mred", f"'{NAMES[-1]}"]
    assert float(rows[1]["test_accuracy_mean"]) == pytest.approx(0.71)


def test_parquet_reads_back(awkward: Comparison, tmp_path: Path) -> None:
    tables.write_parquet(tmp_path / "c.parquet", awkward.table)
    back = pd.read_parquet(tmp_path / "c.parquet")
    pd.testing.assert_frame_equal(back, awkward.table, check_dtype=False)


def test_latex_escapes(awkward: Comparison, tmp_path: Path) -> None:
    tables.write_latex(tmp_path / "c.tex", [("Schemes", tables.comparison_sheet(awkward))])
    text = (tmp_path / "c.tex").read_text()
    assert r"a\textbar{}b\_\textless{}script\textgreater{}" in text
    assert r"100\% \$x\$ \& \{y\}\textasciicircum{}2 \textasciitilde{} \textbackslash{}z \#1" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(awkward: Comparison, tmp_path: Path) -> None:
    sheet = tables.comparison_sheet(awkward)
    long = tables.Sheet(sheet.columns, sheet.rows * 10, sheet.headings * 10)
    claimed = tables.claims_sheet(claims.check(awkward, claims.load()))
    tables.write_latex(tmp_path / "c.tex", [("Schemes", sheet), ("Claims", claimed), ("Long", long)])
    text = (tmp_path / "c.tex").read_text()
    packages = text.split(": ", 1)[1].split(", then")[0]  # as the file's first line says
    (tmp_path / "main.tex").write_text(
        f"\\documentclass{{article}}{packages}\\begin{{document}}\\input{{c.tex}}\\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").exists()


def test_too_few_seeds_are_marked_and_the_test_set_column_is_labelled(awkward: Comparison) -> None:
    sheet = tables.comparison_sheet(awkward)
    texts = [
        dict(zip([c.name for c in sheet.columns], [cell.text for cell in row], strict=True)) for row in sheet.rows
    ]
    assert texts[0]["Difference [95%]"] == "baseline"
    assert texts[2]["p"] == "1*"
    assert "n too small for this test to reach 0.05" in tables.LEGEND
    assert "Best on test (selection on test set), %" in texts[0]


def test_durations_and_points() -> None:
    assert [tables.rounded_time(s) for s in (5, 130, 7200, float("nan"))] == ["5 s", "2.2 min", "2.0 h", tables.NONE]
    assert tables.bounded(0.012, -0.004, 0.028) == "+1.2 [\N{MINUS SIGN}0.4, +2.8]"
    assert tables.bounded(0.004, 0.0003, 0.0077) == "+0.4 [+0.03, +0.8]"
    assert tables.bounded(0.0, -0.0, -1e-18) == "+0.0 [+0.0, +0.0]"
    assert [in_percent(x) for x in (-0.0, -0.0004, 0.00049, 0.0005, 0.9996)] == [
        "0.0",
        "\N{MINUS SIGN}0.04",
        "0.05",
        "0.1",
        "100.0",
    ]


def test_a_small_difference_is_not_shown_as_none(experiment: Make) -> None:
    base = [0.9952, 0.9955, 0.9950, 0.9957, 0.9953, 0.9951]
    gains = [0.0003, 0.0004, 0.0002, 0.0003, 0.0005, 0.0004]
    results = experiment({"standard": base, "repr": [b + g for b, g in zip(base, gains, strict=True)]})
    answer = report([results], pictures=0).answer
    assert answer.startswith("repr is 0.04 points better than standard (95% interval +0.02 to +0.05")
    for name in ("comparison.md", "comparison.tex", "comparison-short.tex", "report.html"):
        text = (results / name).read_text().replace("\\", "")
        assert "+0.04 [+0.02, +0.05]" in text and "99.5 ± 0.03" in text.replace("$pm$", "±"), name
