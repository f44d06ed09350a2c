"""Speed of one trial beside the usual training loop and beside the machine's limit.

python -m benchmarks.training [--rounds 7] [--images 2560] [--threads N] [--models ...] [--device cuda]: every round
runs each arm once, so that a drift of the machine's speed touches all of them; ratios are taken within a round.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline import BaselineProcess
from benchmarks.tables import device_named, interleaved, ratio_table, spread, write
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.study.plan import Trial
from repr_ray.training.loop import train_epoch
from repr_ray.training.setup import build_model
from repr_ray.training.step import Setup

MODELS = {
    "convnet-3x32": {"kind": "convnet"},
    "convnet-3x32, 5x5, pooled": {"kind": "convnet", "kernel": 5, "pool": "max3"},
    "resnet20": {"kind": "resnet", "depth": 20},
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_named(args.device)
    split = random_images(args.images)
    arms = []
    for name in args.models:
        trial = cifar_trial(MODELS[name])
        rates = {"DataLoader loop, fp32": BaselineProcess(trial, split, device, args.threads).images_per_second}
        for precision in PRECISIONS:
            rates[f"repr_ray, {precision}"] = epoch_rate(set_up_on(trial, split, precision, device))
        if device.type == "cuda":
            graphed = replace(trial, resources=trial.resources.model_copy(update={"cuda_graph": True}))
            rates["repr_ray, bf16, CUDA graph"] = epoch_rate(set_up_on(graphed, split, "bf16", device))
        flops = training_flops(trial)
        for precision, dtype in PRECISIONS.items():
            rates[f"limit: {precision} matrix products"] = matrix_products(dtype, device, flops)
        arms += interleaved(rates, args.rounds, name)
    copies = [copy_bandwidth(device) / 1e9 for _ in range(args.rounds)]
    lines = ratio_table(arms, "DataLoader loop, fp32", "images/s")
    lines += ["", "The limit is the rate of square matrix products over the floating-point operations of an image."]
    lines += [f"Copying memory: {spread(copies)} GB/s, read and written bytes together."]
    write("training", "How fast one trial trains", lines, device, args.threads)


def epoch_rate(setup: Setup, epoch: int = 0) -> Callable[[], float]:
    """Trains an epoch at each call: images per second, with augmentation and metrics."""

    def rate() -> float:
        started = perf_counter()
        train_epoch(setup, epoch)
        return len(setup.train) / (perf_counter() - started)

    return rate


def training_flops(trial: Trial) -> float:
    """Floating-point operations of one image's forward and backward pass."""
    model = build_model(trial)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    return 3.0 * counter.get_total_flops()


def matrix_products(dtype: torch.dtype, device: torch.device, flops: float, size: int = 2048) -> Callable[[], float]:
    """The best of three square matrix products at each call: how often `flops` operations are done in a second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def rate() -> float:
        return 2 * size**3 / flops / min(_seconds(lambda: (a @ b)[0, 0].item()) for _ in range(3))

    return rate


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes read and written a second by copying a tensor, the best of three."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    return 2 * (megabytes << 20) / min(_seconds(lambda: target.copy_(source)[0].item()) for _ in range(4))


def _seconds(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


if __name__ == "__main__":
    main()
