"""The experiment stored in a results folder: merged with the one to launch, or refused when they differ."""

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from repr_ray.records import flatten
from repr_ray.storage.atomic import write_atomic
from repr_ray.storage.folder import Folder, StorageError
from repr_ray.storage.foreign import Unusable, obstacles, read_mapping
from repr_ray.storage.lease import HOLDER, LOCK, Held, lease
from repr_ray.storage.text import line
from repr_ray.study.config import ConfigError, Experiment, Looks
from repr_ray.study.data import Data
from repr_ray.study.plan import WEIGHTS, Trial
from repr_ray.study.reading import validate
from repr_ray.training.folder import TrialFolder

FILE = "experiment.yaml"


def merge(storage: Folder, experiment: Experiment) -> Experiment:
    """The experiment, with the seeds and schemes added that a results folder already holds.

    Raises ConfigError if it holds something else.
    """
    folder = storage.path
    _refuse_links(folder)
    storage.pull(FILE)
    stored = read(folder)
    if stored is None:
        if storage.names():
            raise ConfigError(f"{folder}: holds files but no {FILE}; choose another name=... or --results")
        return experiment
    _refuse_other(folder, stored, experiment)
    return experiment.model_copy(
        update={"seeds": _seeds(folder, stored, experiment), "schemes": stored.schemes | experiment.schemes}
    )


def _seeds(folder: Path, stored: Experiment, new: Experiment) -> tuple[int, ...] | Looks:
    """The seeds of both experiments; looks and margin may not change."""
    if isinstance(stored.seeds, tuple) and isinstance(new.seeds, tuple):
        return tuple(dict.fromkeys(stored.seeds + new.seeds))
    if stored.seeds != new.seeds:
        there, here = (one.model_dump(mode="json")["seeds"] for one in (stored, new))
        raise ConfigError(
            f"{folder}: seeds is {there} there and {here} here: looks and margin are chosen before there are results;"
            " choose another name=... or --results"
        )
    return new.seeds


@contextmanager
def hold(storage: Folder, experiment: Experiment) -> Iterator[None]:
    """Hold the lease on a results folder, and store the experiment there.

    Raises ConfigError if the folder holds a different experiment, cannot be written, or another launch runs in it.
    """
    experiment = merge(storage, experiment)
    with ExitStack() as stack:
        try:
            stack.enter_context(lease(storage))
        except Held as error:
            raise ConfigError(str(error)) from None
        except StorageError as error:
            raise ConfigError(f"--results: {error}") from None
        experiment = merge(storage, experiment)  # another launch may have stored one since
        text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(storage.path / FILE, text.encode())
        storage.push(FILE)
        yield


def _refuse_links(folder: Path) -> None:
    for path, reason in obstacles(folder, (FILE, HOLDER, LOCK, "trials")):
        raise ConfigError(
            f"{path}: {reason}, but results folders have no links to other folders; remove it, or choose another"
            " name=... or --results"
        )


def read(folder: Path) -> Experiment | None:
    """The experiment stored in a folder, or None."""
    path = folder / FILE
    try:
        return validate(read_mapping(path), str(path))
    except FileNotFoundError:
        return None
    except (ConfigError, Unusable) as error:
        raise ConfigError(
            f"{path}: cannot be read, perhaps another version wrote it ({line(str(error).splitlines()[0])});"
            " choose another name=... or --results"
        ) from None


def _refuse_other(folder: Path, stored: Experiment, new: Experiment) -> None:
    """Raise ConfigError if a setting differs that changes results; seeds, schemes and grid values may be added."""
    shared = stored.schemes.keys() & new.schemes.keys()
    before, after = (_flat(experiment, shared) for experiment in (stored, new))
    differences = [
        f"{name} is {_shown(before.get(name))} there and {_shown(after.get(name))} here"
        for name in before | after
        if before.get(name) != after.get(name)
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ConfigError(
            f"{folder}: holds a different experiment: {'; '.join(differences[:3])}{more};"
            " choose another name=... or --results"
        )


def has_other_source(folder: Path, experiment: Experiment) -> bool:
    """Whether the experiment stored in a folder has another `data.source`."""
    stored = read(folder)
    return stored is not None and stored.data.source != experiment.data.source


def refuse_other_data(folder: Path, trials: Iterable[Trial], digests: Mapping[Data, str]) -> None:
    """Raise ConfigError if a trial in the folder was trained on other images."""
    there = (TrialFolder(folder, trial) for trial in trials)
    differing = [
        (found.trial, known)
        for found in there
        if (found.done or found.begun)
        and (known := found.stored.get("data_digest")) not in (None, digests[found.trial.data])
    ]
    if differing:
        trial, known = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise ConfigError(
            f"data.source={trial.data.source}: {trial.name}{more} in {folder} trained on other images (digest {known}"
            f" there, {digests[trial.data]} here); name the former source, or choose another name=... or --results"
        )


def refuse_other_sources(folder: Path, trials: Iterable[Trial]) -> None:
    """Raise ConfigError if a trial in the folder was trained with another version of a plug-in or other weights."""
    for found in (TrialFolder(folder, trial) for trial in trials if trial.source_digests):
        known = found.stored.get("plug_ins") if found.done or found.begun else None
        for name, digest in found.trial.source_digests.items():
            if isinstance(known, dict) and known.get(name, digest) != digest:
                what = f"{name}: the file" if name == WEIGHTS else f"plug-in {name}: its source"
                raise ConfigError(
                    f"{what} has changed since {found.trial.name} in {folder} was trained (digest {known[name]}"
                    f" there, {digest} here); bring the former one back, or choose another name=..."
                )


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


def _flat(experiment: Experiment, schemes: Set[str]) -> dict[str, Any]:
    """The settings that change results, by dotted name; of the schemes those named."""
    raw = experiment.model_dump(mode="json", include={"data", "model", "train", "schemes", "tuning"})
    del raw["data"]["source"], raw["data"]["partial"]
    raw["schemes"] = {name: scheme for name, scheme in raw["schemes"].items() if name in schemes}
    return flatten(raw)
