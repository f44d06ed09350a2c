"""Pages of the studies, made from their stored tables. No number in them is typed by hand.

python -m studies.build                     # every page and the index again, from the stored tables
python -m studies.build STUDY RESULTS ...   # first take over the tables and pictures of these results folders
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from repr_ray.report import report
from repr_ray.results import claims, store, tables, tuned
from repr_ray.results.compare import BLOCK, Comparison, compare, records
from repr_ray.results.design import AS_FIXED
from repr_ray.results.effects import device_hours
from repr_ray.results.grids import grid_sheets
from repr_ray.results.tables.sheet import bounded

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
IN_README = "rivals_tuned_alike"
"""The study whose table is on the README's first screen, between two comments."""
BEGIN, END = "<!-- the table of a study, by studies.build -->", "<!-- end of the table -->"
COLUMNS_IN_README = ("Scheme", "n", "Test, %", "Difference [95%]", "p", "Holm p")
COLUMNS_TUNED = ("Scheme", "Points", "Chosen", "Val., %", "Median, %", "Near best", "Diverged")
COLUMNS_ON_PAGE = (*COLUMNS_IN_README, "Test at best val. epoch, %", "Gap")
BEGINNING = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline, paired"
    " by seed"
)
P_OF_FIXED_SEEDS = (
    ". p, and p after Holm's correction over all comparisons: see docs/statistics.md; *: n is too small for the exact"
    " test to reach 0.05, from six pairs on a verdict is that of the corrected paired t-test."
)
P_BY_LOOKS = (
    ", at the last look, with an interval that holds at all looks together. p: over all looks; Holm p: over all"
    " comparisons as well, see docs/statistics.md; ≈: of a t-test, corrected by simulation."
)
ENDING = (
    " Test at best val. epoch: test accuracy in the epoch of best validation accuracy. Gap: training less test"
    " accuracy in the last epoch, points."
)
MARKS = {
    "*": " \\*: n is too small for the exact test to reach 0.05.",
    "≈": " ≈: of a t-test, corrected over the looks by simulation.",
}
"""What marks in the README's table mean."""
MOST_DIFFERENCES = 3
"""Settings in which a published figure on a page may differ from ours."""
TABLES = ("trials", "epochs", "cycles")
PICTURES = ("differences", "curves", "filters")


@dataclass(frozen=True)
class Study:
    """A study's folder: `about.yaml` is written by hand, `tables/` has what was measured."""

    folder: Path

    @property
    def about(self) -> dict[str, Any]:
        """`title`, `question`, `limits` (a list), and perhaps `claims` (sources whose claims it is held against)."""
        return dict(yaml.safe_load((self.folder / "about.yaml").read_text()))

    @contextmanager
    def compared(self) -> Iterator[tuple[store.Tables, Comparison]]:
        """The stored tables and their comparison."""
        with tempfile.TemporaryDirectory() as work:
            gathered = store.gather([self.folder / "tables"], Path(work))
            yield gathered, compare(gathered, self.about.get("baseline"))

    def take(self, results: Sequence[Path]) -> None:
        """Store the tables and pictures of results folders here."""
        with tempfile.TemporaryDirectory() as work:
            report(results, formats=("html",), output=work, baseline=self.about.get("baseline"))
            (self.folder / "tables").mkdir(exist_ok=True)
            for name in TABLES:
                table = pq.read_table(Path(work, f"{name}.parquet"))
                pq.write_table(_without_places(table), self.folder / "tables" / f"{name}.parquet", compression="zstd")
            for picture in filter(_is_shown, self.folder.glob("*.png")):  # of an earlier take
                picture.unlink()
            for picture in filter(_is_shown, Path(work, "plots").glob("*.png")):
                shutil.copyfile(picture, self.folder / picture.name)
        with self.compared() as (_, comparison):  # of a grid the page shows differences alone
            for picture in self.folder.glob("*.png") if grid_sheets(comparison) else ():
                if not picture.stem.endswith("-differences"):
                    picture.unlink()

    def page(self) -> str:
        """The page as Markdown."""
        about = self.about
        with self.compared() as (gathered, comparison):
            lines = [f"# {about['title']}", "", f"**Question.** {about['question']}", ""]
            lines += [f"**Answer.** {answer(comparison)}", ""]
            legend = BEGINNING + (P_BY_LOOKS if comparison.design else P_OF_FIXED_SEEDS) + ENDING
            sheets = [*grid_sheets(comparison).values()] or [_sheet(comparison, COLUMNS_ON_PAGE, [legend])]
            for sheet in sheets:
                lines += [tables.markdown_sheet(sheet), ""]
            if AS_FIXED in gathered.notes:
                lines += [f"**Note.** {AS_FIXED}.", ""]
            if len(points := tuned.tried(gathered)):
                lines += ["Chosen for each scheme by validation accuracy, with seeds of their own:"]
                lines += [tables.markdown_sheet(_only(tuned.tuned_sheet(points), COLUMNS_TUNED)), ""]
            if dropped := _where_dropped(gathered, comparison.trials):
                lines += ["Filters dropped, a mean over drops and seeds:", "", *dropped, ""]
            if claimed := _claims(comparison, about.get("claims", [])):
                lines += ["Beside what was published:", "", claimed, ""]
            for picture in sorted(self.folder.glob("*.png")):
                lines += [f"![{picture.stem}]({picture.name})", ""]
            lines += ["**What this does not show.**", "", *(f"- {limit}" for limit in about["limits"]), ""]
            command = f"python -m repr_ray.launch --config studies/{self.folder.name}/config.yaml"
            lines += [f"**Run.** {_provenance(gathered.trials)} What was run: `{command}`."]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")


def _is_shown(picture: Path) -> bool:
    """Whether a picture is of a kind that pages show."""
    return picture.stem.rpartition("-")[2] in PICTURES


def _without_places(table: pa.Table) -> pa.Table:
    """The table without the folders of the machine that trained: they say nothing to others."""
    places = {
        "command": (r"(data\.source=|--results[ =])\S+", r"\1FOLDER"),
        "settings": (r'("source": )"/[^"]*"', r'\1"FOLDER"'),
    }
    for name, (pattern, replacement) in places.items():
        if name in table.column_names:
            texts = [text and re.sub(pattern, replacement, text) for text in table[name].to_pylist()]
            place = table.schema.get_field_index(name)
            table = table.set_column(
                place, table.schema.field(place), pa.array(texts).cast(table.schema.field(place).type)
            )
    return table


def studies() -> list[Study]:
    """All studies whose tables are stored, by name."""
    return [Study(path.parent) for path in sorted(HERE.glob("*/tables/"))]


def answer(comparison: Comparison) -> str:
    """The verdicts, with every difference and its interval, undecided ones included."""
    if len(comparison.answers) < 3:
        return " ".join(comparison.answers or [comparison.answer]) + _unfinished(comparison)
    rows = records(comparison.table[~comparison.table["is_baseline"]])
    varying = [name for name in BLOCK if comparison.table[name].nunique() > 1]
    lines = [comparison.answer + _unfinished(comparison), ""]
    for verdict in ("better", "worse", "practically equal", "cannot tell", ""):
        said = [
            " ".join([row["scheme"], *(f"({row[name]})" for name in varying if row[name]), _difference(row)])
            for row in rows
            if row["verdict"] == verdict
        ]
        lines += [f"- {verdict or 'nothing to compare'}: {'; '.join(said)}"] if said else []
    return "\n".join(lines)


def _unfinished(comparison: Comparison) -> str:
    """How many trials of a study are still to be trained, as a sentence; empty if it is whole."""
    return f" Trials that have not ended yet: {comparison.unfinished}." if comparison.unfinished else ""


def _difference(row: dict[str, Any]) -> str:
    """`-3.8 points [-4.8, -2.7], n=6`."""
    if pd.isna(row["difference_mean"]):
        return "(no pair)"
    said = bounded(*(row[f"difference_{part}"] for part in ("mean", "low", "high")))
    return f"{said} points, n={row['pairs']}"


def _sheet(comparison: Comparison, names: Sequence[str], footnotes: Sequence[str] = ()) -> tables.Sheet:
    """Some columns of the comparison, without headings if it has one block."""
    return _only(tables.comparison_sheet(comparison), names, footnotes)


def _only(sheet: tables.Sheet, names: Sequence[str], footnotes: Sequence[str] = ()) -> tables.Sheet:
    """Some columns of a sheet."""
    places = [[column.name for column in sheet.columns].index(name) for name in names]
    columns, *rows = ([row[place] for place in places] for row in (sheet.columns, *sheet.rows))
    headings = sheet.headings if len(set(sheet.headings)) > 1 else [""] * len(rows)
    return tables.Sheet(columns, rows, headings, list(footnotes))


_ABOUT = """All studies, positive or negative, whole or not; a folder without a page is a config that has not been
run. Every page is built from the tables beside it: `python -m studies.build`. More seeds are added by
`python -m studies.build STUDY studies/STUDY/tables RESULTS`."""


def index() -> str:
    """The index: a line per answer."""
    lines = ["# Studies", "", _ABOUT, "", "| study | question | answer |", "|:---|:---|:---|"]
    for study in studies():
        with study.compared() as (_, comparison):
            name = study.folder.name
            said = comparison.answer + _unfinished(comparison)
            lines.append(f"| [{study.about['title']}]({name}/README.md) | {study.about['question']} | {said} |")
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    """The README with the table of its study, once that is stored."""
    [study] = [study for study in studies() if study.folder.name == IN_README] or [None]
    if study is None:
        return text
    with study.compared() as (gathered, comparison):
        table = tables.markdown_sheet(_sheet(comparison, COLUMNS_IN_README))
        marked = "".join(said for mark, said in MARKS.items() if mark in table)
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        return f"{before}{BEGIN}\n{table}\n{_provenance(gathered.trials)}{marked}\n{END}{after}"


def _where_dropped(gathered: store.Tables, trials: pd.DataFrame) -> list[str]:
    """Filters dropped from each layer in some trials, per scheme and network, as a Markdown table; empty if none."""
    events = gathered.read("cycles", ["cycle", "event", "layer", "filter", "dropped"], trials["trial"])
    drops = events[events["event"] == "drop"].astype({"trial": str, "layer": str})
    if drops.empty:
        return []
    several = trials["model"].nunique() > 1  # networks, whose layers differ
    names = trials["scheme"] + (" (" + trials["model"] + ")" if several else "")
    each = drops.groupby(["trial", "cycle", "layer"], sort=False)["dropped"].agg(["sum", "size"]).reset_index()
    each["name"] = each["trial"].map(dict(zip(trials["trial"], names, strict=True)))
    layers = list(dict.fromkeys(each["layer"]))
    mean = each.groupby(["name", "layer"], sort=False)[["sum", "size"]].mean()
    said = {place: f"{c['sum']:.1f} of {c['size']:.0f}" for place, c in mean.iterrows()}
    lines = ["| scheme | " + " | ".join(layers) + " |", "|:---|" + "---:|" * len(layers)]
    for name in dict.fromkeys(names):
        if name in mean.index.get_level_values(0):
            cells = [said.get((name, layer), tables.NONE) for layer in layers]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _claims(comparison: Comparison, sources: Sequence[str]) -> str:
    """The claims of some sources beside what was measured, as a Markdown table; empty where there is none."""
    claimed = claims.check(comparison, claims.load())
    claimed = _nearest(claimed[claimed["source"].isin(sources)])
    return tables.markdown_sheet(tables.claims_sheet(claimed)) if len(claimed) else ""


def _nearest(claimed: pd.DataFrame) -> pd.DataFrame:
    """For each published figure the schemes whose settings are nearest to it, if few settings differ."""
    differ = claimed["remark"].map(lambda remark: len([part for part in remark.split("; ") if part]))
    least = differ.groupby([claimed[name] for name in ("source", "dataset", "quantity", "claimed")]).transform("min")
    return claimed[(differ == least) & (differ <= MOST_DIFFERENCES)]


def _provenance(trials: pd.DataFrame) -> str:
    """How many trials on what hardware, with which versions, from which commit."""
    done = trials[trials["status"] == "done"]
    hardware = {(h.get("gpu") or h.get("cpu")) for h in map(json.loads, done["hardware"].dropna())}
    versions: dict[str, set[str]] = {}
    for used in map(json.loads, done["versions"].dropna()):
        for name, version in used.items():
            versions.setdefault(name, set()).add(str(version))
    said = ", ".join(f"{name} {'/'.join(sorted(found))}" for name, found in versions.items())
    commits = ", ".join(sorted(set(done["commit"].dropna())))
    hours = device_hours(done).sum()
    precision = ", ".join(sorted(set(done["precision"].dropna())))
    return (
        f"{len(done)} of {len(trials)} trials done, {hours:.1f} device hours on {', '.join(sorted(hardware))},"
        f" {precision}; {said}; commit {commits}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m studies.build", description=__doc__)
    parser.add_argument("study", nargs="?", help="the folder below studies/")
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="results folders, all of one study")
    options = parser.parse_args(arguments)
    if options.study:
        Study(HERE / options.study).take(options.results)
    for study in studies():
        (study.folder / "README.md").write_text(study.page())
    (HERE / "README.md").write_text(index())
    README.write_text(readme(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
