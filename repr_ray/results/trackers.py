"""What trackers are given about trials that have ended, from stored results: the same for each of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from repr_ray.records import CURVES, SUMMARY, tracked_settings
from repr_ray.results.compare import records
from repr_ray.results.store import UNFINISHED, gather
from repr_ray.storage.text import line, lines

_TAGS = (
    *("dataset", "model", "scheme", "variant", "fingerprint"),
    *("status", "commit", "precision", "versions", "hardware"),
)


@dataclass(frozen=True)
class Tracked:
    """A trial that has ended: `curves` has the numbers of every epoch (from 0) by column, `figures` those of the end.

    Texts have no control characters.
    """

    experiment: str
    name: str
    done: bool
    started: str | None
    finished: str | None
    tags: dict[str, str]
    parameters: dict[str, Any]
    curves: list[tuple[int, dict[str, float]]]
    figures: dict[str, float]


def ended(folders: Sequence[Path], skip: Callable[[str, str, bool], bool]) -> Iterator[Tracked]:
    """The trials of results folders that have ended, but those that `skip(experiment, name, done)` holds of.

    Raises ValueError where there is no trial.
    """
    with TemporaryDirectory() as work:
        tables = gather(folders, Path(work))
        trials = tables.trials[~tables.trials["status"].isin(UNFINISHED)]
        for trial in records(trials):
            experiment, name, done = line(trial["experiment"]), line(trial["trial"]), trial["status"] == "done"
            if skip(experiment, name, done):
                continue
            epochs = tables.read("epochs", ["epoch", *CURVES], [trial["trial"]])
            settings = json.loads(trial["settings"] or "{}")
            parameters = tracked_settings(trial["scheme"], trial["seed"], settings)
            yield Tracked(
                experiment=experiment,
                name=name,
                done=done,
                started=None if pd.isna(trial["started"]) else trial["started"],
                finished=None if pd.isna(trial["finished"]) else trial["finished"],
                tags={key: lines(trial[key]) for key in _TAGS if not pd.isna(trial[key]) and trial[key] != ""},
                parameters={line(name): value for name, value in parameters.items()},
                curves=[
                    (int(row["epoch"]), {key: float(row[key]) for key in CURVES if not pd.isna(row[key])})
                    for row in records(epochs)
                ],
                figures={key: float(trial[key]) for key in SUMMARY if not pd.isna(trial[key])},
            )
