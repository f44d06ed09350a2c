"""The folder of an experiment: made once, refused to a different experiment, held by one launch at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from repr_ray.config import ConfigError, Experiment, validate
from repr_ray.storage import write_atomic

FILE = "experiment.yaml"


def merge(folder: Path, experiment: Experiment) -> Experiment:
    """The experiment together with the seeds and schemes that `folder` holds of it already.

    Raises ConfigError when the folder holds something else.
    """
    stored = read(folder)
    if stored is None:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: holds files but no {FILE}; choose another name=... or --results")
        return experiment
    _refuse_other(folder, stored, experiment)
    return experiment.model_copy(
        update={
            "seeds": tuple(dict.fromkeys(stored.seeds + experiment.seeds)),
            "schemes": stored.schemes | experiment.schemes,
        }
    )


@contextmanager
def claim(folder: Path, experiment: Experiment) -> Iterator[None]:
    """Hold `folder` for this launch and store the experiment in it.

    Raises ConfigError when the folder holds something else, or another launch is at work in it.
    """
    experiment = merge(folder, experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--results: {folder} cannot be made: {error.strerror}") from None
    holder = folder / ".holder"
    try:
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise ConfigError(f"{folder}: {who} is running this experiment; wait for it, or stop it first") from None
    except OSError as error:
        raise ConfigError(f"--results: {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            holder.write_text(f"process {os.getpid()} on {platform.node()}")
            text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_atomic(folder / FILE, text.encode())
            yield
        finally:
            holder.unlink(missing_ok=True)


def read(folder: Path) -> Experiment | None:
    """The experiment stored in a folder, or None where there is none yet."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return validate(yaml.safe_load(path.read_text()), str(path))
    except (ConfigError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: cannot be read, perhaps another version wrote it ({str(error).splitlines()[0]});"
            " choose another name=... or --results"
        ) from None


def _refuse_other(folder: Path, stored: Experiment, new: Experiment) -> None:
    """What changes a result must be the same; seeds, schemes and grid values may be added."""
    before, after = _flat(stored), _flat(new)
    shared_schemes = stored.schemes.keys() & new.schemes.keys()
    differences = [
        f"{key} is {before.get(key)} there and {after.get(key)} here"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and (not key.startswith("schemes.") or key.split(".")[1] in shared_schemes)
    ]
    if differences:
        more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
        raise ConfigError(
            f"{folder}: holds a different experiment: {'; '.join(differences[:3])}{more};"
            " choose another name=... or --results"
        )


def _flat(experiment: Experiment) -> dict[str, Any]:
    raw = experiment.model_dump(mode="json", include={"data", "model", "train", "schemes"})
    del raw["data"]["source"]
    return dict(_leaves(raw, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value
