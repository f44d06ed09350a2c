"""The trials of an experiment that its results so far require: tuning first, then the comparison, look by look.

A launch runs the required trials and calls `called_for` again, until no new trial is required. Choices and decisions
are read from the results, so that a resumed launch comes to the same ones.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from repr_ray import looks
from repr_ray.storage.foreign import Unusable, read_json, read_tail
from repr_ray.study.config import Experiment
from repr_ray.study.plan import Cell, Trial, cells, distinct, plan
from repr_ray.study.tuning import Point, Tuning, best
from repr_ray.training.folder import TrialFolder

TUNING = "tuning"


def called_for(experiment: Experiment, folder: Path) -> list[Trial]:
    """The trials that the results in `folder` require, including those that are done."""
    if experiment.tuning is None:
        return looks.called_for(experiment, plan(experiment), folder)
    tried: list[Trial] = []
    compared: list[list[Trial]] = []
    for cell in cells(experiment):
        trials, chosen = _tune(cell, experiment.tuning, folder)
        tried += trials
        if chosen is not None:
            compared.append(cell.trials(experiment.every_seed, chosen))
    if len(compared) < len(cells(experiment)):
        return distinct(tried)
    by_seed = [trial for of_seed in zip(*compared, strict=True) for trial in of_seed]
    return distinct(tried + looks.called_for(experiment, by_seed, folder))


def ready(pending: Sequence[Trial], folder: Path) -> list[Trial]:
    """The trials without a teacher, and those whose teacher is done."""
    return [trial for trial in pending if not trial.teacher or TrialFolder(folder, trial.teacher).done]


def ended(folder: TrialFolder) -> bool:
    """Whether a trial needs no more training: it is done, or it diverged at a point of the search space."""
    return folder.done or (folder.trial.stage == TUNING and _diverged(folder))


def why(experiment: Experiment, pending: Sequence[Trial]) -> str:
    """Why more trials are required, in words."""
    if all(trial.teacher for trial in pending):
        return "their teachers have ended"
    if pending[0].stage == TUNING:
        return "not tuned yet"
    first = experiment.tuning is not None and any(trial.seed == experiment.every_seed[0] for trial in pending)
    return "settings are chosen" if first else "not decided yet"


def stages_line(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """The number of trials that tuning and looks add, for a dry run; empty without either."""
    said = looks.bounds_line(experiment, trials)
    if not experiment.tuning:
        return said
    tuning, count = experiment.tuning, len(cells(experiment))
    most = count * tuning.budget * len(tuning.seeds)
    text = (
        f"tuning: {tuning.budget} points for each of {count} schemes, {len(tuning.seeds)} seeds a point, {most}"
        f" trials at most, chosen by validation accuracy; then {len(trials)} trials at the chosen settings"
    )
    return f"{text}; {said}" if said else text


def _tune(cell: Cell, tuning: Tuning, folder: Path) -> tuple[list[Trial], Point | None]:
    """The trials of a scheme's tuning that are known so far, and the chosen point when all have ended."""
    accuracies: list[float | None] = []
    while True:
        points = tuning.points(cell.scheme, accuracies)
        trials = [cell.trials(tuning.seeds, point, TUNING) for point in points]
        found = [_accuracy([TrialFolder(folder, trial) for trial in of_point]) for of_point in trials]
        if found == accuracies or None in found:
            break
        accuracies = found
    flat = {trial.name: trial for of_point in trials for trial in of_point}  # points may be equal
    return list(flat.values()), best(points, found) if None not in found else None


def _accuracy(folders: Sequence[TrialFolder]) -> float | None:
    """Mean validation accuracy in the last epoch, 0 for a trial that diverged; None while one has not ended."""
    if not all(map(ended, folders)):
        return None
    return sum(_last_validation(folder) if folder.done else 0.0 for folder in folders) / len(folders)


def _last_validation(folder: TrialFolder) -> float:
    last = read_tail(folder.path / "epochs.jsonl", 1 << 20).splitlines()[-1]
    return float(json.loads(last)["val_accuracy"])


def _diverged(folder: TrialFolder) -> bool:
    with contextlib.suppress(FileNotFoundError, Unusable):
        return read_json(folder.path / "error.json").get("status") == "diverged"
    return False
