"""The report as one self-contained page: no network, no other file, under 5 MB for large grids too."""

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup
from PIL import Image

import repr_ray
from repr_ray.results import claims as published
from repr_ray.results import tables as sheets
from repr_ray.results.blocks import GROUP
from repr_ray.results.compare import Comparison, records
from repr_ray.results.files import write_text
from repr_ray.results.plots import Picture
from repr_ray.results.store import UNFINISHED, Failure, Tables
from repr_ray.results.words import in_percent
from repr_ray.storage.foreign import Unusable, read_tail
from repr_ray.storage.text import lines

_PAGE = 4_800_000  # bytes of the page, of its logs
_LOGS = 600_000
_ROOM = 2_000  # for what is written about a picture
_LOG = 4_000  # bytes of a log at most
_FACTS = ("commit", "versions", "hardware", "precision", "workers", "threads", "gpus")
_SHOWN = ["trial", "seed", "status", "epochs", "epochs_done", "test_accuracy", "collapsed_epoch", "wall_seconds"]
_FAILED = 20  # tracebacks shown


def write_page(
    path: Path,
    tables: Tables,
    comparison: Comparison,
    claims: pd.DataFrame,
    failures: Sequence[Failure],
    pictures: Iterable[Picture],
    command: str,
    main: Mapping[str, sheets.Sheet],
) -> None:
    """Write report.html; `command` writes it again, `main` has the sheets of results by title."""
    loader = jinja2.PackageLoader("repr_ray.results", "data")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_without_control_characters
    )
    own = (loader.get_source(environment, f"report.{end}")[0] for end in ("css", "js"))
    css, script = (Markup(text) for text in own)  # noqa: S704 - files of this package, nothing from results
    exact, others = published.by_match(claims)
    render = partial(
        environment.get_template("report.html").render,
        version=repr_ray.__version__,
        name=", ".join(sorted(filter(None, comparison.trials["experiment"].unique()))) or path.parent.name,
        comparison=comparison,
        main={title: sheet for title, sheet in main.items() if sheet.rows},
        claims=sheets.claims_sheet(exact),
        others=sheets.claims_sheet(others),
        failures=sheets.failures_sheet(failures),
        tracebacks=[{"trial": f.trial, "text": f.traceback} for f in failures[:_FAILED]],
        sources=[row for row in records(published.sources()) if row["source"] in set(claims["source"])],
        groups=list(_groups(tables, comparison)),
        commands=sorted(comparison.trials["command"].dropna().unique()),
        report_command=command,
        facts=_facts(comparison.trials),
        css=css,
        script=script,
    )
    room = _PAGE - len(render(pictures=[]).encode())
    page = render(pictures=list(_embedded(pictures, path.parent, room)))
    write_text(path, page)


def _without_control_characters(value: Any) -> Any:
    return lines(value) if type(value) is str else value  # markup is the template's own


def _embedded(pictures: Iterable[Picture], folder: Path, room: int) -> Iterable[dict[str, Any]]:
    """Pictures as base64 up to a size limit; the others are linked."""
    for picture in pictures:
        with Image.open(picture.png) as image:
            width, height = image.size
        data = base64.b64encode(picture.png.read_bytes()).decode()
        data = data if len(data) + _ROOM <= room else ""
        room -= len(data) + _ROOM
        where = picture.png.relative_to(folder).with_suffix("").as_posix()
        shown = {"data": data, "width": width, "height": height, "path": where}
        yield {"title": picture.title, "alt": picture.alt} | shown


def _groups(tables: Tables, comparison: Comparison) -> Iterable[dict[str, Any]]:
    """Every trial under its data set, model and scheme, failures first."""
    room = min(_LOG, _LOGS // max(1, len(comparison.trials)))
    status = comparison.table.set_index(GROUP)["status"]
    trials = comparison.trials.assign(well=comparison.trials["status"].isin(("done", *UNFINISHED)))
    trials = trials.sort_values("well", kind="stable")  # groups go by their first trial
    for key, rows in trials.groupby(GROUP, sort=False):
        first = rows.iloc[0]
        config = json.loads(first["settings"] or "{}") | {"resources": json.loads(first["resources"] or "{}")}
        yield {
            "name": " · ".join(str(part) for part in key if part),
            "status": status.get(key, ""),
            "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
            "trials": [
                {"name": row["trial"], "said": _status(row), "log": _tail(tables.sources.get(row["trial"]), room)}
                for row in records(rows[_SHOWN])
            ],
        }


def _status(row: dict[str, Any]) -> str:
    said = [f"seed {row['seed']}", row["status"]]
    if row["status"] in UNFINISHED and not pd.isna(row["epochs"]):
        said.append(f"epoch {row['epochs_done']} of {row['epochs']:.0f}")
    if not pd.isna(row["test_accuracy"]):
        said.append(f"test accuracy {in_percent(row['test_accuracy'])}%")
    if not pd.isna(row["collapsed_epoch"]):
        said.append(f"collapsed in epoch {row['collapsed_epoch'] + 1:.0f}")
    if not pd.isna(row["wall_seconds"]):
        said.append(sheets.rounded_time(row["wall_seconds"]))
    return ", ".join(said)


def _tail(folder: Path | None, size: int) -> str:
    """The last whole lines of a trial's log, `size` bytes at most."""
    try:
        content = read_tail(folder / "log.txt", size + 1) if folder else b""
    except FileNotFoundError:
        content = b""
    except Unusable as problem:
        return f"The log {problem}."
    text = content[-size:].decode("utf-8", "replace")
    return (text if len(content) <= size else text.partition("\n")[2] or text) or "There is no log."


def _facts(trials: pd.DataFrame) -> dict[str, list[str]]:
    """The commits, versions and hardware the trials ran with, and how many trials each."""
    facts: dict[str, list[str]] = {}
    for name in _FACTS:
        counts = trials[name].dropna().value_counts()
        if len(counts):
            said = [value if isinstance(value, str) else f"{value:g}" for value in counts.index]
            plain = [_plain(text) if name in ("versions", "hardware") else text for text in said]
            label = "GPUs of a worker" if name == "gpus" else name.capitalize()
            facts[label] = [f"{text} ({n} trial{'s' * (n > 1)})" for text, n in zip(plain, counts, strict=True)][:10]
    return facts


def _plain(text: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in json.loads(text).items() if value is not None)


def report_command(folders: Sequence[Path], baseline: str) -> str:
    """The command that writes the report again."""
    return shlex.join(["python", "-m", "repr_ray.report", *map(str, folders), "--baseline", baseline])
