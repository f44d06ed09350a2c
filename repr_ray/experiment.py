"""The folder of an experiment: made once, refused to a different experiment, held by one launch at a time."""

import os
import platform
import signal
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

import yaml
from filelock import FileLock, Timeout

from repr_ray.storage.atomic import write_atomic
from repr_ray.storage.folder import Folder, Remote, StorageError, shown
from repr_ray.storage.foreign import Unusable, obstacles, read_bytes, read_mapping
from repr_ray.storage.text import line
from repr_ray.study.config import ConfigError, Experiment, Looks
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial
from repr_ray.study.reading import validate
from repr_ray.training.folder import TrialFolder

FILE = "experiment.yaml"
HOLDER = ".holder"

BEAT = 10.0
"""Seconds between two signs of life of a launch whose results are on object storage."""

SILENT = 60.0
"""Seconds after the last sign of life when another launch takes over."""

SETTLE = 2.0
"""Seconds for which a launch waits whether another one claimed the folder in the same moment."""


def merge(folder: Path, experiment: Experiment, storage: Folder | None = None) -> Experiment:
    """The experiment together with the seeds and schemes that `folder` holds of it already.

    Raises ConfigError when the folder, or the `storage` that it mirrors, holds something else.
    """
    storage = storage or Folder(folder)
    _refuse_links(folder)
    storage.pull(FILE)
    stored = read(folder)
    if stored is None:
        if storage.names():
            raise ConfigError(f"{folder}: holds files but no {FILE}; choose another name=... or --results")
        return experiment
    _refuse_other(folder, stored, experiment)
    return experiment.model_copy(
        update={
            "seeds": _seeds(folder, stored, experiment),
            "schemes": stored.schemes | experiment.schemes,
        }
    )


def _seeds(folder: Path, stored: Experiment, new: Experiment) -> tuple[int, ...] | Looks:
    """The seeds of both; looks stay as they were named before the first result."""
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
def claim(folder: Path, experiment: Experiment, storage: Folder | None = None) -> Iterator[None]:
    """Hold `folder`, or the `storage` that it mirrors, for this launch and store the experiment in it.

    Raises ConfigError when the folder holds something else, or another launch is at work in it.
    """
    storage = storage or Folder(folder)
    experiment = merge(folder, experiment, storage)
    with _held(storage) if isinstance(storage, Remote) else _locked(folder):
        experiment = merge(folder, experiment, storage)  # again: now nobody else changes it
        text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(folder / FILE, text.encode())
        storage.push(FILE)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder of a file system, by a lock that goes with this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--results: {folder} cannot be made: {error.strerror}") from None
    holder = folder / HOLDER
    try:
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise _refusal(folder, _read_holder(holder)) from None
    except OSError as error:
        raise ConfigError(f"--results: {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            write_atomic(holder, _ourselves().encode())
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def _held(remote: Remote) -> Iterator[None]:
    """Hold a folder of a storage without locks, by a file that is stored again every `BEAT` seconds.

    Of launches that write it at the same time the last one has it. One that finds another's name there, because it
    was silent for too long, is terminated.
    """
    ours = f"{_ourselves()} ({uuid.uuid4().hex[:8]})"

    def holder() -> str:
        try:
            return remote.read(HOLDER).decode()
        except FileNotFoundError:
            return ours

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(StorageError):  # the next time, perhaps
                if (other := holder()) != ours:
                    print(f"{shown(remote.path)}: {other} has taken over this experiment", file=sys.stderr)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                remote.write(HOLDER, ours.encode())

    try:
        silence = remote.now() - remote.time(HOLDER)
        if silence < SILENT and (other := holder()) != ours:
            raise _refusal(remote.path, other, f"; after {SILENT:.0f} s without a sign of life it counts as dead")
        for _ in range(2):  # twice: storage that cannot replace a file had better say so now
            remote.write(HOLDER, ours.encode())
        sleep(SETTLE)
        if (other := holder()) != ours:
            raise _refusal(remote.path, other)
    except StorageError as error:
        raise ConfigError(f"--results: {error}") from None
    ended = Event()
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(StorageError):
            if holder() == ours:
                remote.delete(HOLDER)


def _refuse_links(folder: Path) -> None:
    for path, reason in obstacles(folder, (FILE, HOLDER, ".lock", "trials")):
        raise ConfigError(
            f"{path}: {reason}, and nothing in a results folder may lead out of it; remove it, or choose another"
            " name=... or --results"
        )


def _read_holder(path: Path) -> str:
    try:
        return line(read_bytes(path).decode(errors="replace")) or "another process"
    except (FileNotFoundError, Unusable):
        return "another process"


def _ourselves() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _refusal(folder: Path, holder: str, more: str = "") -> ConfigError:
    return ConfigError(f"{folder}: {holder} is running this experiment; wait for it, or stop it first{more}")


def read(folder: Path) -> Experiment | None:
    """The experiment stored in a folder, or None where there is none yet."""
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
    """What changes a result must be the same; seeds, schemes and grid values may be added."""
    before, after = _flat(stored), _flat(new)
    shared_schemes = stored.schemes.keys() & new.schemes.keys()
    differences = [
        f"{'.'.join(path)} is {before.get(path)} there and {after.get(path)} here"
        for path in {**before, **after}
        if before.get(path) != after.get(path) and (path[0] != "schemes" or path[1] in shared_schemes)
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ConfigError(
            f"{folder}: holds a different experiment: {'; '.join(differences[:3])}{more};"
            " choose another name=... or --results"
        )


def has_other_source(folder: Path, experiment: Experiment) -> bool:
    """Whether the images of the experiment stored in a folder came from elsewhere."""
    stored = read(folder)
    return stored is not None and stored.data.source != experiment.data.source


def refuse_other_data(folder: Path, trials: Iterable[Trial], digests: Mapping[Data, str]) -> None:
    """Raise ConfigError when a trial in the folder has trained on other images than it would now."""
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


def refuse_other_plug_ins(folder: Path, trials: Iterable[Trial]) -> None:
    """Raise ConfigError when a trial in the folder has trained with another version of a plug-in."""
    for found in (TrialFolder(folder, trial) for trial in trials if trial.plug_ins):
        known = found.stored.get("plug_ins") if found.done or found.begun else None
        for name, digest in found.trial.plug_ins.items():
            if isinstance(known, dict) and known.get(name, digest) != digest:
                raise ConfigError(
                    f"plug-in {name}: its source has changed since {found.trial.name} in {folder} was trained (digest"
                    f" {known[name]} there, {digest} here); bring the former source back, or choose another name=..."
                )


def _flat(experiment: Experiment) -> dict[tuple[str, ...], Any]:
    raw = experiment.model_dump(mode="json", include={"data", "model", "train", "schemes", "tuning"})
    del raw["data"]["source"], raw["data"]["partial"]
    return dict(_leaves(raw, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value
