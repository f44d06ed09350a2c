"""Estimates for the pending trials: disk space, and hours from the measured speed of finished trials.

The size of the paper's networks is computed without torch, for a quick dry run.
"""

import json
import shlex
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from repr_ray.data.cache import cache_folder
from repr_ray.data.describe import copy_bytes
from repr_ray.data.shape import shape_is_known, shape_of, steps_per_epoch
from repr_ray.method.rivals.settings import RenewalSettings
from repr_ray.method.settings import RePrSettings, SchemeSettings
from repr_ray.models.settings import ConvNet, ModelSettings
from repr_ray.plug_ins import digests
from repr_ray.results.settings import whole as with_defaults
from repr_ray.storage.folder import redact
from repr_ray.storage.foreign import read_json, read_mapping
from repr_ray.study.config import Train
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder

FLOAT = 4  # bytes of a weight, and of a momentum
EPOCH = 1_200  # bytes that an epoch adds to a trial (tables, events, checkpoints); measured
LAYER = 290  # bytes that each convolution adds to an epoch's; measured
NEWEST = 20  # finished trials that the speed is estimated from
LOW = 0.2  # share of the highest learning rate below which what is re-initialised hardly trains
SMALL = 1e12  # weights x pixels x images that one core trains while Ray starts, in about ten seconds; measured


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


def late_lines(trials: Iterable[Trial]) -> list[str]:
    """Warnings about parts of a schedule that come after the end, and about re-initialisation at a rate near zero.

    Schemes that re-initialise lost by far where the rate falls to zero once (studies/plain_or_regularised).
    """
    lines = {}
    for trial in trials:
        if unreached := trial.train.schedule.unreached(trial.train.epochs):
            lines[unreached] = f"WARNING: train.schedule.{unreached} never comes in train.epochs={trial.train.epochs}"
        built_in = trial.train.schedule.kind not in trial.plug_ins
        if built_in and isinstance(trial.settings, RePrSettings | RenewalSettings):
            known = shape_is_known(trial.data)  # if not, a dry run knows the rates of schedules by epochs only
            steps = steps_per_epoch(trial.data, trial.train.batch_size) if known else 1
            last, share = _last_return(trial.settings, trial.train, steps)
            if share < LOW:
                where = " ".join(filter(None, [trial.scheme, trial.variant]))
                lines[where] = (
                    f"WARNING: {where}: its last re-initialisation, after epoch {last} of {trial.train.epochs},"
                    f" trains at {share:.1%} of the highest learning rate; end its cycles earlier, or restart the"
                    " rate with train.schedule.kind=cosine_restarts"
                )
    return list(lines.values())


@cache
def _last_return(settings: SchemeSettings, train: Train, steps: int) -> tuple[int, float]:
    """The number of epochs before the last re-initialisation, and the share of the highest rate after it."""
    epochs = train.epochs
    last = max((e for e in range(1, epochs) if settings.place(e, epochs) == ("full", 0)), default=0)
    rates = [train.schedule.rate(1.0, epoch * steps, steps, epochs) for epoch in range(epochs)]
    return last, rates[last] / max(rates)


@cache
def size(model: ModelSettings, data: Data) -> Size:
    """The size of a network for a data set; others than convnets are built, without memory unless a plug-in."""
    images = shape_of(data)
    if isinstance(model, ConvNet):
        return _convnet(model, images.classes, images.channels, images.size)
    import torch
    from torch import nn

    with torch.device("cpu" if digests(model.model_dump()) else "meta"):  # a plug-in may read values
        built = model.network(images.classes, images.channels, images.size)
    return Size(
        sum(p.numel() for p in built.parameters()),
        sum(b.numel() for b in built.buffers()),
        sum(isinstance(module, nn.Conv2d) for module in built.modules()),
    )


def _convnet(net: ConvNet, classes: int, channels: int, pixels: int) -> Size:
    """The size of what repr_ray.models.convnet builds; a test compares them."""
    # To build it on the meta device, like the others, a dry run would import torch: 4 s of CPU time beside its 1 s.
    parameters = 0
    for _ in range(net.depth):
        parameters += net.width * (channels * net.kernel**2 + 1) + 2 * net.width * net.batch_norm
        channels = net.width
        pixels //= 1 if net.pool == "none" else 2
    parameters += classes * (net.width * pixels**2 + 1)
    return Size(parameters, net.depth * (2 * net.width + 1) * net.batch_norm, net.depth)


def starts_longer_than_it_trains(trials: Sequence[Trial]) -> bool:
    """Whether one core trains these trials in about the time that Ray takes to start."""
    return sum(map(_work, trials)) < SMALL and trials[0].resources.workers == 1


def _work(trial: Trial) -> float:
    """Weights times pixels times images: an upper bound on the work of training a convolutional network."""
    shape = shape_of(trial.data)
    return float(size(trial.model, trial.data).parameters) * shape.size**2 * shape.train_images * trial.train.epochs


def disk(trial: Trial) -> int:
    """Bytes of a finished trial, without the records of drops and the few MB of the report."""
    net, momenta = size(trial.model, trial.data), trial.train.optimizer.momenta
    weights = FLOAT * (net.parameters + net.buffers)
    may_validate = trial.data.validation_images or not trial.data.facts  # an unknown source may have a split for it
    best = weights if may_validate else 0
    average = weights if trial.train.ema else 0
    return (
        checkpoint.KEPT * (weights + average + FLOAT * momenta * net.parameters)
        + best
        + trial.train.epochs * (EPOCH + LAYER * net.convolutions)
    )


def disk_line(pending: Sequence[Trial], results: Path | str) -> tuple[str, bool]:
    """The additional disk space that the pending trials need, as a line, and whether it is free.

    Object storage counts as unlimited, and what the trials already hold there is not subtracted.
    """
    if isinstance(results, str):
        return f"storage: about {amount(sum(map(disk, pending)))} for {len(pending)} trials", True
    needed = sum(max(0, disk(trial) - _held(TrialFolder(results, trial).path)) for trial in pending)
    folder, free = _free(results)
    said = f"disk: about {amount(needed)} for {len(pending)} trials, {amount(free)} free at {folder}"
    if needed <= free:
        return said, True
    return f"WARNING: {said}: make room, or name another folder with --results", False


def data_lines(pending: Iterable[Trial]) -> dict[str, bool]:
    """The disk space that copies of the trials' images need on each machine, as lines, and whether it is free."""
    lines = {}
    for data in {trial.data: None for trial in pending}:
        needed, cache = copy_bytes(data), cache_folder()
        if needed is None and data.store == "stream":
            said = f"as much as {redact(data.source)} takes for the images of {data.name}"
            lines[f"disk: {said} (on every node)"] = True
        elif needed:
            _, free = _free(cache)
            said = f"about {amount(needed)} for the images of {data.name}, {amount(free)} free at {cache}"
            lines[f"disk: {said} (on every node)"] = needed <= free
    return lines


def time_lines(pending: Iterable[Trial], results: Path, arguments: Sequence[str]) -> list[str]:
    """GPU or CPU hours of the pending trials, one line per network, data set and size of images.

    The speed is measured on finished trials of the same network and images in any experiment beside `results`.
    Without one, the line ends with a command, made from `arguments`, that measures it.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in pending:
        groups.setdefault(_work_of(trial.record()["settings"]), []).append(trial)
    return [_time_line(trials, results, arguments) for trials in groups.values()]


def _time_line(trials: list[Trial], results: Path, arguments: Sequence[str]) -> str:
    first = trials[0]
    what = f"{len(trials)} trials of {first.model.label} on {first.data.name}"
    speed = measured(first, results.parent)
    if speed is None:
        return (
            f"time: not known for {what}: none has finished in {results.parent}; run one epoch to measure it: "
            + shlex.join(["python", "-m", "repr_ray.launch", *arguments, *_one_epoch(first)])
        )
    images = 0
    for trial in trials:
        done, _ = checkpoint.newest_place(TrialFolder(results, trial).path)
        images += (trial.train.epochs - done) * shape_of(trial.data).train_images
    hours = images * speed.per_image / 3600
    price = first.resources.hour_price
    cost = "" if price is None else f", {hours * price:,.0f} at {price:g} an hour,"
    return (
        f"time: about {hours:,.2g} {speed.device} hours{cost} for {what}"
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
    if trial.stage:
        fields["tuning"] = "null"
    if trial.variant:  # the grid may have made it
        fields |= {f"data.{name}": json.dumps(getattr(trial.data, name)) for name in ("size", "channels")}
        fields["model"] = yaml.safe_dump(trial.model.model_dump(), default_flow_style=True, width=10_000).strip()
    return [f"{key}={value}" for key, value in fields.items()]


def measured(trial: Trial, root: Path) -> Speed | None:
    """The median speed of the newest finished trials below `root` that are comparable with this one, or None.

    Comparable trials have the same network, data set and size of images, and ran on the kind of device that this
    one requests; with `auto` those on GPUs, if any. Time is taken as divided by the number of workers or threads.
    """
    gpus, work = trial.resources.gpus_per_worker, _work_of(trial.record()["settings"])
    found: dict[str, list[tuple[float, str]]] = {"GPU": [], "CPU": []}
    paths = root.glob(f"*/trials/{trial.model.label}-{trial.data.name}-*/result.json")
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime, reverse=True)[: 5 * NEWEST]:
        if sum(map(len, found.values())) == NEWEST:
            break
        try:
            if _work_of(read_mapping(path.parent / "config.yaml")["settings"]) != work:
                continue
            result = read_json(path)
            gpu = result["hardware"]["gpu"]
            devices = result["workers"] * (result["gpus"] if gpu else result["threads"])
            speed = devices / result["images_per_second"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
            continue  # of another version, or damaged: the report says so
        found["GPU" if gpu else "CPU"].append((speed, gpu or result["hardware"]["cpu"]))
    device = "GPU" if gpus != 0 and (found["GPU"] or gpus != "auto") else "CPU"
    if not found[device]:
        return None
    speeds, names = zip(*found[device], strict=True)
    return Speed(median(speeds), device, ", ".join(sorted(set(names))), len(speeds))


def _work_of(settings: dict[str, Any]) -> str:
    """The settings of a trial that say how much work an image is, as text: its network, data set and image size."""
    whole = with_defaults(settings)
    images = {name: whole["data"].get(name) for name in ("name", "size", "channels")}
    return json.dumps([whole["model"], images], sort_keys=True)


def _held(folder: Path) -> int:
    """Bytes in a folder; another launch may replace files there meanwhile."""
    held = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            held += path.stat().st_size
    return held


def _free(folder: Path) -> tuple[Path, int]:
    """The folder, or the nearest above it that exists, and the free bytes there."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there, shutil.disk_usage(there).free


def amount(size: float) -> str:
    """123456789 -> 123 MB."""
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:,.3g} TB"
