"""Tables, statistics and pictures from stored results: `python -m repr_ray.report RESULTS [RESULTS ...]`."""

import argparse
import contextlib
import errno
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from repr_ray.storage.folder import Folder, Remote, light, opened, redact
from repr_ray.storage.foreign import obstacle

if TYPE_CHECKING:
    from rich.console import Console

    from repr_ray.results.compare import Comparison

FORMATS = ("md", "csv", "tex", "html")


def report(
    folders: Sequence[str | Path],
    *,
    baseline: str | None = None,
    claims: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    output: str | Path | None = None,
    pictures: int = 30,
    workers: int = 1,
    power: bool = False,
    console: "Console | None" = None,
) -> "Comparison":
    """Gather results folders, compare the schemes, write tables and pictures, print them to `console`.

    `output` is the output folder: the results folder itself, or `joined` beside the first of several. `baseline`
    is a scheme's name, else the experiment's own. `claims` is a CSV file of published numbers, else the one that
    comes with the package. Parquet tables are always written; `html` stands for the pictures and the page, with the
    trials' curves, filters and scores for blocks (a data set, model and variant each) of up to `pictures` schemes in
    all, drawn by up to `workers` processes. With `power` the seeds that a verdict would need are printed. A foreign
    file is never replaced, which a note says. Raises ValueError, one line per folder, if no folder holds a trial, and
    for a file of claims that cannot be read.
    """
    if console:
        console.print("reading the results, drawing tables and pictures")
    from repr_ray.results import claims as published
    from repr_ray.results import details as beside
    from repr_ray.results import store, tables, tuned
    from repr_ray.results.across import across
    from repr_ray.results.compare import compare
    from repr_ray.results.grids import grid_sheets
    from repr_ray.results.zeros import zero_filters

    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    target = Path(output) if output else paths[0] if len(paths) == 1 else paths[0].parent / "joined"
    known = published.load(Path(claims) if claims else None)
    with tempfile.TemporaryDirectory() as work:
        gathered = store.gather(paths, Path(work))
        comparison = compare(gathered, baseline)
        comparison.notes.extend(map(redact, [*zero_filters(gathered, comparison), *gathered.notes]))
        claimed = published.check(comparison, known)
        failed = [f for path in paths for f in store.failures(path) if gathered.counts(path, f.trial)]
        schemes, failures = tables.comparison_sheet(comparison), tables.failures_sheet(failed)
        exact, others = (tables.claims_sheet(part) for part in published.by_match(claimed))
        details = beside.details(comparison, gathered)
        overall = across(comparison.table, comparison.baseline)
        needed, grids = beside.power_sheet(comparison), grid_sheets(comparison)
        printed = dict(grids)  # after the comparison
        main = {}
        if overall:
            main["Over data sets and networks"] = printed["overall"] = beside.across_sheet(overall)
        main |= {"Schemes": schemes, **grids}
        if len(details):
            main["How large, how fast, at what cost"] = beside.details_sheet(details)
        if len(points := tuned.tried(gathered)):
            main["Tuning"] = printed["tuning"] = tuned.tuned_sheet(points)
        main["Seeds that a verdict would take"] = needed
        sheets = [*main.items(), ("Claimed against measured", exact)]
        folded = [(f"{len(others.rows)} published figures of other settings, without a verdict", others)]
        written: list[str] = []

        def write(name: str, make: Callable[..., Any], *content: Any) -> None:
            try:
                if reason := obstacle(target / name):
                    raise FileExistsError(f"{target / name} {reason}: left as it is")
                make(target / name, *content)
                written.append(name)
            except FileExistsError as error:
                comparison.notes.append(redact(error))

        for name in store.SCHEMAS:
            write(f"{name}.parquet", gathered.publish)
        write("comparison.parquet", tables.write_parquet, comparison.table)
        if len(details):
            write("details.parquet", tables.write_parquet, details)
            if "csv" in formats:
                write("details.csv", tables.write_csv, details)
        if len(claimed):
            write("claims.parquet", tables.write_parquet, claimed)
        if "csv" in formats:
            write("comparison.csv", tables.write_csv, comparison.table)
        if "tex" in formats:
            write("comparison.tex", tables.write_latex, sheets)
            write("comparison-short.tex", tables.write_latex, [("Schemes", schemes)], tables.SHORT)
        if "html" in formats:
            logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home that is read-only
            from repr_ray.results import html, plots

            drawn: list[plots.Picture] = []
            write("plots", lambda path: drawn.extend(plots.draw(gathered, comparison, path, pictures, workers)))
            command = html.report_command(paths, comparison.baseline)
            write("report.html", html.write_page, gathered, comparison, claimed, failed, drawn, command, main)
        if "md" in formats:
            everything = [*sheets, ("Failed trials", failures)]
            write("comparison.md", tables.write_markdown, comparison, everything, folded)
    if console:
        tables.print_comparison(console, comparison, schemes, exact, len(others.rows))
        for sheet in printed.values():
            tables.print_sheet(console, sheet)
        if power and needed.rows:
            tables.print_sheet(console, needed)
        elif power:
            tables.print_text(console, "no scheme with two pairs or more is still open")
        tables.print_text(console, f"written to {redact(target)}: {', '.join(written)}")
        if failed:
            console.print()
            tables.print_sheet(console, failures)
    return comparison


class _Output:
    """A stream. What is written to a closed terminal is lost without an error: its SIGHUP ends the program."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """As a stream's."""
        with _unless_closed():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        with _unless_closed():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def job_console() -> "Console":
    """Standard output; in a job log of a fixed width, unless COLUMNS is set."""
    from rich.console import Console

    output: Any = _Output(sys.stdout)  # stays the terminal when Ray's output is muted
    console = Console(file=output, highlight=False, markup=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = 100
    return console


def add_trackers(parser: argparse.ArgumentParser) -> None:
    """The options that name a tracker."""
    ended = "log the trials that have ended to"
    parser.add_argument("--mlflow", metavar="URI", help=f"{ended} an MLflow store as well")
    parser.add_argument("--wandb", metavar="PROJECT", help=f"{ended} Weights & Biases as well: [ENTITY/]PROJECT")


def to_trackers(folders: Sequence[Path], options: argparse.Namespace, console: "Console") -> None:
    """Log the trials that have ended where `--mlflow` and `--wandb` say."""
    from repr_ray.results.mlflow import log_to_mlflow
    from repr_ray.results.wandb import log_to_wandb

    for log, where in ((log_to_mlflow, options.mlflow), (log_to_wandb, options.wandb)):
        if where:
            console.print(f"{log(folders, where)} trials logged to {redact(where)}", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m repr_ray.report") -> int:
    """The command, called `prog` in its help; returns 0, 2 for input it cannot use, 130 when interrupted."""
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    formats = [name for name in options.format.split(",") if name]
    if unknown := [name for name in formats if name not in FORMATS]:
        parser.error(f"--format {','.join(unknown)}: known are {','.join(FORMATS)}")

    console = job_console()
    stack = contextlib.ExitStack()
    try:
        folders = [stack.enter_context(opened(folder, waits=())) for folder in dict.fromkeys(options.results)]
        output = _output(options.output, folders, stack)
        while True:
            for folder in {*folders, output}:
                folder.pull(wanted=light)
            comparison = report(
                [folder.path for folder in folders],
                baseline=options.baseline,
                claims=options.claims,
                formats=formats,
                output=output.path,
                pictures=options.pictures,
                power=options.power,
                workers=os.cpu_count() or 1,
                console=console,
            )
            output.push()
            to_trackers([folder.path for folder in folders], options, console)
            if options.watch is None or not comparison.unfinished:
                return 0
            time.sleep(options.watch)
            console.clear()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(redact(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        stack.close()


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="a results folder, results/NAME or s3://...")
    parser.add_argument("--baseline", help="the scheme the others are compared with (the experiment's own)")
    parser.add_argument("--claims", metavar="FILE", help="published numbers, CSV (those of the package)")
    parser.add_argument("--format", default=",".join(FORMATS), help="some of md,csv,tex,html (all)")
    parser.add_argument("--output", metavar="DIR", help="where files go (the results folder; `joined` for several)")
    parser.add_argument("--power", action="store_true", help="print how many seeds a verdict would take")
    parser.add_argument("--pictures", type=int, default=30, metavar="N", help="curves of N schemes at most (30)")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=15.0, metavar="SECONDS", help="again and again while trials run (15)"
    )
    add_trackers(parser)
    return parser


def _output(asked: str | None, folders: Sequence[Folder], stack: contextlib.ExitStack) -> Folder:
    """The folder of the output, also by default: see `report`."""
    if asked:
        return stack.enter_context(opened(asked, waits=()))
    if len(folders) == 1:
        return folders[0]
    if isinstance(folders[0], Remote):
        raise ValueError(
            "--output: say where the tables of several folders go, the first of which is on object storage"
        )
    return Folder(folders[0].path.parent / "joined")


if __name__ == "__main__":
    sys.exit(main())
