"""The trials of an experiment that its results so far require: tuning first, then the comparison, look by look.

A launch runs the required trials and calls `called_for` again, until no new trial is required. Choices and decisions
are read from the results, so that a resumed launch comes to the same ones.
"""

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from repr_ray import looks
from repr_ray.records import STOPPED_EARLY
from repr_ray.storage.folder import Folder
from repr_ray.storage.foreign import Unusable, read_json, read_tail
from repr_ray.study.config import ConfigError, Experiment
from repr_ray.study.plan import Arm, Trial, arms, distinct, plan
from repr_ray.study.tuning import Point, Tuning, best
from repr_ray.training.folder import TrialFolder

TUNING = "tuning"


def called_for(experiment: Experiment, folder: Path) -> list[Trial]:
    """The trials that the results in `folder` require, including those that are done."""
    if experiment.tuning is None:
        return looks.trials_due(experiment, plan(experiment), folder)
    tried: list[Trial] = []
    compared: list[list[Trial]] = []
    for arm in arms(experiment):
        trials, chosen = _tune(arm, experiment.tuning, folder)
        tried += trials
        if chosen is not None:
            compared.append(arm.trials(experiment.every_seed, chosen))
    if len(compared) < len(arms(experiment)):
        return distinct(tried)
    by_seed = [trial for of_seed in zip(*compared, strict=True) for trial in of_seed]
    return distinct(tried + looks.trials_due(experiment, by_seed, folder))


def ready(pending: Sequence[Trial], folder: Path) -> list[Trial]:
    """The trials without a teacher, and those whose teacher is done."""
    return [trial for trial in pending if not trial.teacher or TrialFolder(folder, trial.teacher).done]


def ended(folder: TrialFolder) -> bool:
    """Whether a trial needs no more training: it is done, or a point of the search space that diverged or pauses."""
    return folder.done or (folder.trial.stage == TUNING and (_diverged(folder) or _pauses(folder)))


def why(experiment: Experiment, pending: Sequence[Trial]) -> str:
    """Why more trials are required, in words."""
    if all(trial.teacher for trial in pending):
        return "their teachers have ended"
    if experiment.tuning and pending[0].stage == TUNING:
        return "not tuned yet" if not experiment.tuning.halve_after else "the better half trains on"
    first = experiment.tuning is not None and any(trial.seed == experiment.every_seed[0] for trial in pending)
    return "settings are chosen" if first else "not decided yet"


def most(experiment: Experiment, compared: list[Trial]) -> list[Trial]:
    """As many trials as the experiment can take, those that are `compared` included, for an estimate.

    What tuning will choose is not known yet.
    """
    tuning = experiment.tuning
    if tuning is None:
        return compared
    anywhere = tuning.model_copy(update={"searcher": "quasi_random"})  # as many points as optuna will ask for
    tried = [
        trial
        for arm in arms(experiment)
        for point in anywhere.points(arm.scheme, [])
        for trial in arm.trials(tuning.seeds, point, TUNING)
    ]
    return tried + compared


def mark_stopped(trials: Sequence[Trial], storage: Folder) -> None:
    """Write error.json for the trials that pause for good: another point of their scheme trains on."""
    reach: dict[tuple[str, str], int] = {}
    tried = [trial for trial in trials if trial.stage == TUNING]
    for trial in tried:
        arm = trial.variant, trial.scheme
        reach[arm] = max(trial.last_epoch, reach.get(arm, 0))
    for trial in tried:
        if trial.last_epoch < reach[trial.variant, trial.scheme]:
            message = f"not in the better half of its scheme's points after epoch {trial.until}"
            TrialFolder(storage.path, trial, storage).fail(
                {"status": STOPPED_EARLY, "message": message, "traceback": message}
            )


def stages_line(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """The number of trials that tuning and looks add, for a dry run; empty without either."""
    said = looks.bounds_line(experiment, trials)
    if not experiment.tuning:
        return said
    tuning, count = experiment.tuning, len(arms(experiment))
    most = count * tuning.budget * len(tuning.seeds)
    text = (
        f"tuning: {tuning.budget} points for each of {count} schemes, {len(tuning.seeds)} seeds a point, {most}"
        f" trials at most, chosen by validation accuracy; then {len(trials)} trials at the chosen settings"
    )
    if tuning.halve_after:
        epochs = ", ".join(map(str, tuning.halve_after))
        text += f"; after epoch {epochs} the better half of a scheme's points trains on"
    return f"{text}; {said}" if said else text


def _tune(arm: Arm, tuning: Tuning, folder: Path) -> tuple[list[Trial], Point | None]:
    """The trials of a scheme's tuning that are known so far, and the chosen point when all have ended."""
    accuracies: list[float | None] = []
    while True:
        points = tuning.points(arm.scheme, accuracies)
        trials = _halved([arm.trials(tuning.seeds, point, TUNING) for point in points], tuning.halve_after, folder)
        found = [_accuracy([TrialFolder(folder, trial) for trial in of_point]) for of_point in trials]
        if found == accuracies or None in found:
            break
        accuracies = found
    flat: dict[str, Trial] = {}
    for trial in itertools.chain(*trials):
        if trial.last_epoch >= flat.setdefault(trial.name, trial).last_epoch:  # points may be equal
            flat[trial.name] = trial
    ended = None not in found and any(trial.until is None for trial in flat.values())
    return list(flat.values()), best(points, found) if ended else None


def _halved(points: list[list[Trial]], epochs: Sequence[int], folder: Path) -> list[list[Trial]]:
    """The trials of each point; those of the worse half pause for good, and all where they have to be compared next.

    Raises ConfigError where the points are not in the same phase of a cycle, with all filters.
    """
    points, alive = list(points), list(range(len(points)))
    for epoch in epochs:
        _assert_comparable([trial for of_point in points for trial in of_point], epoch)
    for epoch in epochs if len(points) > 1 else ():
        known = {place: _accuracy([TrialFolder(folder, t) for t in points[place]], epoch) for place in alive}
        decided = None not in known.values()
        better = sorted(alive, key=lambda place: -(known[place] or 0))[: -(-len(alive) // 2)] if decided else []
        for place in set(alive) - set(better):
            points[place] = [replace(trial, until=epoch) for trial in points[place]]
        if not decided:
            break
        alive = sorted(better)
    return points


def _assert_comparable(trials: Sequence[Trial], epoch: int) -> None:
    places = {trial.settings.place(epoch - 1, trial.train.epochs) for trial in trials}
    scheme = trials[0].scheme
    if len(places) > 1:
        raise ConfigError(
            f"tuning.halve_after: {epoch}: the points of {scheme} are in different phases of a cycle then; do not"
            " tune when the scheme acts, or leave halve_after out"
        )
    if next(iter(places))[0] != "full":
        raise ConfigError(
            f"tuning.halve_after: {epoch}: filters or weights of {scheme} are dropped then; choose an epoch in which"
            " the whole network trains, best the last one before a drop"
        )


def _accuracy(folders: Sequence[TrialFolder], epoch: int | None = None) -> float | None:
    """Mean validation accuracy after an epoch (from 1), or in the last; None while a trial is not that far.

    It is 0 for a trial that diverged before, or that stopped early.
    """
    found = [_accuracy_of(folder, epoch) for folder in folders]
    return None if None in found else sum(filter(None, found)) / len(found)


def _accuracy_of(folder: TrialFolder, epoch: int | None) -> float | None:
    if epoch is None and not folder.done:
        return 0.0 if ended(folder) else None
    known = _validation(folder)
    if folder.done and len(known) < folder.trial.train.epochs:
        raise ConfigError(
            f"{folder.path}: done, but epochs.jsonl has {len(known)} of {folder.trial.train.epochs} epochs; delete"
            " the folder to train the trial again"
        )
    after = epoch or folder.trial.train.epochs
    return known[after] if after in known else 0.0 if _diverged(folder) else None


def _validation(folder: TrialFolder) -> dict[int, float]:
    """Validation accuracy by epoch, counted from 1; lines that cannot be read are left out."""
    known = {}
    with contextlib.suppress(FileNotFoundError):
        for line in read_tail(folder.path / "epochs.jsonl", 1 << 30).splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                known[row["epoch"] + 1] = row["val_accuracy"]
    return known


def _pauses(folder: TrialFolder) -> bool:
    return folder.trial.until is not None and len(_validation(folder)) >= folder.trial.until


def _diverged(folder: TrialFolder) -> bool:
    with contextlib.suppress(FileNotFoundError, Unusable):
        return read_json(folder.path / "error.json").get("status") == "diverged"
    return False
