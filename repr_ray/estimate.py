"""What the trials still to run will take: disk, and GPU hours as finished trials tell.

The paper's nets are sized without torch, so that a dry run answers at once.
"""

import shlex
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import yaml

from repr_ray.data.shape import shape_of
from repr_ray.models.settings import ConvNet, ModelSettings
from repr_ray.storage.foreign import read_json
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder

FLOAT = 4
"""Bytes of a weight, and of a momentum."""

EPOCH, LAYER = 1_200, 290
"""Bytes an epoch adds to a trial (tables, events, both checkpoints), and each convolution adds to that; measured."""

NEWEST = 20
"""Finished trials that are asked for their speed."""


SMALL = 1e12
"""Weights times pixels times images that one core trains in the ten seconds that Ray takes to start; measured."""


@dataclass(frozen=True)
class Size:
    """Elements of a network's parameters and buffers, and the number of its convolutions."""

    parameters: int
    buffers: int
    convolutions: int


@dataclass(frozen=True)
class Speed:
    """Device seconds per training image, evaluation included; `device` is GPU or CPU, `hardware` its name."""

    per_image: float
    device: str
    hardware: str
    trials: int


@cache
def size(model: ModelSettings, data: Data) -> Size:
    """The size of a network for a data set; all but the paper's nets are built, without memory."""
    images = shape_of(data)
    if isinstance(model, ConvNet):
        return _convnet(model, images.classes, images.channels, images.size)
    import torch
    from torch import nn

    with torch.device("meta"):
        built = model.network(images.classes, images.channels, images.size)
    return Size(
        sum(p.numel() for p in built.parameters()),
        sum(b.numel() for b in built.buffers()),
        sum(isinstance(module, nn.Conv2d) for module in built.modules()),
    )


def _convnet(net: ConvNet, classes: int, channels: int, pixels: int) -> Size:
    """What repr_ray.models.convnet builds, which a test compares."""
    parameters = 0
    for _ in range(net.depth):
        parameters += net.width * (channels * net.kernel**2 + 1) + 2 * net.width * net.batch_norm
        channels = net.width
        pixels //= 1 if net.pool == "none" else 2
    parameters += classes * (net.width * pixels**2 + 1)
    return Size(parameters, net.depth * (2 * net.width + 1) * net.batch_norm, net.depth)


def starts_longer_than_it_trains(trials: Sequence[Trial]) -> bool:
    """Whether a core trains these trials in about the time that Ray takes to start."""
    return sum(map(_work, trials)) < SMALL and trials[0].resources.workers == 1


def _work(trial: Trial) -> float:
    """Weights times pixels times images: what training takes of a network of convolutions, or less."""
    shape = shape_of(trial.data)
    return float(size(trial.model, trial.data).parameters) * shape.size**2 * shape.train_images * trial.train.epochs


def disk(trial: Trial) -> int:
    """Bytes of a trial at its end. Not in it: what RePr notes of each drop, and the experiment's few MB of report."""
    net, momenta = size(trial.model, trial.data), trial.train.optimizer.momenta
    weights = FLOAT * (net.parameters + net.buffers)
    best = weights if trial.data.validation_images else 0
    average = weights if trial.train.ema else 0
    return (
        checkpoint.KEPT * (weights + average + FLOAT * momenta * net.parameters)
        + best
        + trial.train.epochs * (EPOCH + LAYER * net.convolutions)
    )


def disk_line(pending: Sequence[Trial], results: Path | str) -> tuple[str, bool]:
    """The disk that the pending trials will take beyond what they hold, in words, and whether it is there.

    Object storage always has room, and is not asked what the trials hold already.
    """
    if isinstance(results, str):
        return f"storage: about {amount(sum(map(disk, pending)))} for {len(pending)} trials", True
    needed = sum(max(0, disk(trial) - _held(TrialFolder(results, trial).path)) for trial in pending)
    folder = next(path for path in (results, *results.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    said = f"disk: about {amount(needed)} for {len(pending)} trials, {amount(free)} free at {folder}"
    if needed <= free:
        return said, True
    return f"WARNING: {said}: make room, or name another folder with --results", False


def time_lines(pending: Iterable[Trial], results: Path, arguments: Sequence[str]) -> list[str]:
    """GPU hours (CPU hours where trials run on CPUs) of the pending trials, per network and data set.

    Speeds are those of finished trials of the same network and data set in any experiment beside `results`; where
    there is none, the line ends with the command, made from the `arguments` of this one, that measures it.
    """
    groups: dict[tuple[ModelSettings, str], list[Trial]] = {}
    for trial in pending:
        groups.setdefault((trial.model, trial.data.name), []).append(trial)
    return [_time_line(trials, results, arguments) for trials in groups.values()]


def _time_line(trials: list[Trial], results: Path, arguments: Sequence[str]) -> str:
    first = trials[0]
    what = f"{len(trials)} trials of {first.model.label} on {first.data.name}"
    speed = measured(first, results.parent)
    if speed is None:
        return f"time: not known for {what}: none has finished in {results.parent}; one epoch tells: " + shlex.join(
            ["python", "-m", "repr_ray.launch", *arguments, *_one_epoch(first)]
        )
    images = sum(_epochs_left(trial, results) * _images(trial) for trial in trials)
    hours = images * speed.per_image / 3600
    return (
        f"time: about {hours:,.2g} {speed.device} hours for {what}"
        f" (from {speed.trials} finished {'trials' if speed.trials > 1 else 'trial'}, {speed.hardware})"
    )


def _one_epoch(trial: Trial) -> list[str]:
    fields = {
        "name": f"{trial.experiment[:80]}-speed",
        "train.epochs": "1",
        "seeds": "[0]",
        "schemes": "{standard: {kind: standard}}",
        "grid": "{}",
    }
    if "model." in trial.variant:  # the grid made it
        fields["model"] = yaml.safe_dump(trial.model.model_dump(), default_flow_style=True, width=10_000).strip()
    return [f"{key}={value}" for key, value in fields.items()]


def measured(trial: Trial, root: Path) -> Speed | None:
    """The median speed of the newest finished trials below `root` that tell how fast this one will be, or None.

    Asked are trials of the same network and data set on the kind of device that this one asks for; `auto` takes
    those on GPUs where there are any. Several workers or threads are taken to divide the time by their number.
    """
    gpus = trial.resources.gpus_per_worker
    found: dict[str, list[tuple[float, str]]] = {"GPU": [], "CPU": []}
    paths = root.glob(f"*/trials/{trial.model.label}-{trial.data.name}-*/result.json")
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime, reverse=True)[:NEWEST]:
        try:
            result = read_json(path)
            gpu = result["hardware"]["gpu"]
            devices = result["workers"] * (result["gpus"] if gpu else result["threads"])
            speed = devices / result["images_per_second"]
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # another version's, or damaged: the report says so
        found["GPU" if gpu else "CPU"].append((speed, gpu or result["hardware"]["cpu"]))
    device = "GPU" if gpus != 0 and (found["GPU"] or gpus != "auto") else "CPU"
    if not found[device]:
        return None
    speeds, names = zip(*found[device], strict=True)
    return Speed(median(speeds), device, ", ".join(sorted(set(names))), len(speeds))


def _images(trial: Trial) -> int:
    return shape_of(trial.data).train_images


def _epochs_left(trial: Trial, results: Path) -> int:
    return trial.train.epochs - checkpoint.newest_place(TrialFolder(results, trial).path)[0]


def _held(folder: Path) -> int:
    """Bytes in a folder, in which another launch may be replacing files."""
    held = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            held += path.stat().st_size
    return held


def amount(size: float) -> str:
    """123456789 -> 123 MB."""
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.3g} TB"
