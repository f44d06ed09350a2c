"""Building a trial from its settings: equal seeds give equal initial weights, for every scheme."""

import ctypes
import hashlib
import platform
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.data.batches import Batches
from repr_ray.data.decoded import Decoded, Split, load
from repr_ray.data.shape import shape_of
from repr_ray.method.measurement import RankingBatches
from repr_ray.models.settings import Library
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial
from repr_ray.training.average import Average
from repr_ray.training.precision import padded_kernel, resolve_precision
from repr_ray.training.step import Setup, data_parallel


def set_up(trial: Trial, device: torch.device, precision: str | None = None, decoded: Decoded | None = None) -> Setup:
    """Build a trial in this process; every rank calls it. `precision` overrides `auto` when resuming.

    `decoded` replaces the images that the trial names.
    """
    if device.type == "cpu":
        keep_freed_memory()
    torch.set_num_threads(trial.resources.cpus_per_worker)
    torch.use_deterministic_algorithms(trial.train.deterministic)
    torch.manual_seed(derive_seed(trial.seed, "initial weights"))
    network = build_model(trial)
    precision, note = _precision(trial, device, network, precision)
    model = network.to(device).to(memory_format=torch.channels_last)
    average = Average(model, trial.train.ema) if trial.train.ema else None  # before schemes put hooks on the model
    optimizer = trial.train.optimizer.optimizer(model.parameters())
    seed = derive_seed(trial.seed, "scheme")
    scheme = trial.settings.scheme(model, optimizer, trial.train.epochs, seed, example_of(trial))
    scheme.fresh = partial(build_model, _untrained(trial))
    decoded = decoded or load(trial.data, seed=derive_seed(trial.seed, "data"))
    return Setup(
        trial=trial,
        device=device,
        precision=precision,
        model=model,
        forward=data_parallel(model, trial.train),
        optimizer=optimizer,
        scheme=scheme,
        train=_batches(decoded, decoded.train, trial, device),
        validation=_batches(decoded, decoded.validation, trial, device),
        test=_batches(decoded, decoded.test, trial, device),
        ranking=_ranking_batches(decoded, trial, device),
        chance=int(np.bincount(decoded.train.targets).max()) / len(decoded.train),
        data_digest=decoded.digest,
        data_notes=(*decoded.notes, *filter(None, [decoded.warning])),
        average=average,
        note=note,
    )


def keep_freed_memory() -> None:
    """Keep freed memory in the process for the next step, where the C library is glibc.

    By default it returns large blocks to the system, and each step takes page faults to get them again: up to a
    fifth of a training step on a CPU (benchmarks/README.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def build_model(trial: Trial) -> nn.Module:
    """The trial's network, on the CPU."""
    images = shape_of(trial.data)
    network: nn.Module = trial.model.network(images.classes, images.channels, images.size)
    return network


def _untrained(trial: Trial) -> Trial:
    """The trial without a file of weights: layers that are re-initialised become random, not pretrained."""
    given = {"weights": None} if isinstance(trial.model, Library) else {}
    return replace(trial, model=trial.model.model_copy(update=given))


def example_of(trial: Trial) -> Tensor:
    """Two images in the shape of the trial's, on the meta device."""
    images = shape_of(trial.data)
    return torch.empty(2, images.channels, images.size, images.size, device="meta")


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """An independent 31-bit seed for each purpose and epoch, so that resuming needs no generator state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _precision(trial: Trial, device: torch.device, network: nn.Module, resumed: str | None) -> tuple[str, str]:
    """The precision, and a note if `auto` is fp32 because bf16 would give wrong gradients.

    Raises ConfigError if the settings ask for bf16 all the same.
    """
    precision = resumed or resolve_precision(trial.train, device)
    if precision == "fp32" or device.type != "cpu":
        return precision, ""
    where = padded_kernel(network, torch.zeros(example_of(trial).shape))
    if not where:
        return precision, ""
    why = f"{where} reads nothing but padding with some of its weights, and PyTorch's bf16 gradients are wrong there"
    if trial.train.precision == "bf16":
        raise ConfigError(f"train.precision: bf16: {why} on a CPU; set fp32, or a larger data.size")
    return "fp32", f"trains in fp32: {why} on a CPU"


def _batches(decoded: Decoded, split: Split, trial: Trial, device: torch.device) -> Batches:
    return Batches(
        split,
        decoded.mean,
        decoded.std,
        trial.data,
        device,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        classes=decoded.classes,
        loaders=trial.resources.cpus_per_worker,
    )


def _ranking_batches(decoded: Decoded, trial: Trial, device: torch.device) -> RankingBatches | None:
    """The images of a ranking that needs data, evenly spread over its split, not augmented; None without one."""
    if trial.settings.ranking_images is None:
        return None
    name, images = trial.settings.ranking_images
    split = {"train": decoded.train, "validation": decoded.validation}[name]
    total = len(split)
    cap = images or min(10_000, total if name == "validation" else -(-total // 4))
    index = np.arange(min(cap, total)) * total // min(cap, total)
    batches = _batches(decoded, split.take(index), trial, device)
    return lambda: ((b.images, b.labels) for b in batches.in_order(trial.train.batch_size))
