"""How costs grow: training with width and depth, ranking with filters a layer, a launch with its number of trials.

python -m benchmarks.growth [--rounds 3] [--images 256] [--threads N] [--trials 10000]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import yaml

from benchmarks.tables import CPU, interleaved, spread, table, write
from benchmarks.training import epoch_rate, training_flops
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.method.scores import orthogonality
from repr_ray.training.precision import resolve_precision

ROOT = Path(__file__).parent.parent
SHAPES = [(3, width) for width in (16, 32, 64, 128, 256)] + [(depth, 32) for depth in (8, 13, 18)]
FILTERS = (64, 128, 256, 512, 1024, 2048, 4096)
FAN_IN = 576


def main() -> None:
    """Measure and write the four tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--trials", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = ["## A launch", "", *launches(args.trials, args.rounds)]
    lines += ["", "## Ranking", "", *ranking(args.rounds)]
    lines += ["", "## Training", "", *training(args.images, args.rounds)]
    write("growth", "How costs grow", lines, CPU, args.threads)


def training(images: int, rounds: int) -> list[str]:
    """Time per image against depth x width, beside the floating-point operations it takes."""
    split, precision = random_images(images), resolve_precision(cifar_trial({"kind": "convnet"}).train, CPU)
    trials = {f"{d}x{w}": cifar_trial({"kind": "convnet", "depth": d, "width": w}) for d, w in SHAPES}
    rates = {name: epoch_rate(set_up_on(trial, split, precision, CPU)) for name, trial in trials.items()}
    arms = interleaved(rates, rounds, precision)
    first = np.median(arms[0].values), training_flops(trials[arms[0].name])
    rows = []
    for arm in arms:
        flops = training_flops(trials[arm.name])
        rate = np.median(arm.values)
        cells = (f"{1000 / rate:.3g}", f"{first[0] / rate:.1f}", f"{flops / first[1]:.1f}")
        rows.append((arm.name, spread(arm.values), *cells, f"{rate * flops / 1e9:,.0f}"))
    columns = ("convolutions x width", "images/s", "ms an image", "times 3x16", "its operations", "GFLOP/s")
    return [f"Vanilla nets without pooling, {precision}, n = {rounds}.", "", *table(columns, rows)]


def ranking(rounds: int) -> list[str]:
    """Time of one layer's orthogonality score against its number of filters."""
    kernels = {str(j): torch.randn(j, FAN_IN // 9, 3, 3) for j in FILTERS}
    generator = torch.Generator()

    def seconds(kernel: torch.Tensor) -> float:
        started = perf_counter()
        orthogonality(kernel, generator)
        return perf_counter() - started

    arms = interleaved({j: lambda k=k: 1000 * seconds(k) for j, k in kernels.items()}, rounds, "")
    medians = np.array([np.median(arm.values) for arm in arms])
    half = len(FILTERS) // 2
    exponent = np.polyfit(np.log(FILTERS[half:]), np.log(medians[half:]), 1)[0]
    growth = ["", *(f"{after / before:.1f}" for before, after in pairwise(medians))]
    rows = [(arm.name, spread(arm.values), g) for arm, g in zip(arms, growth, strict=True)]
    return [
        f"One layer of J filters of {FAN_IN} weights: every filter is compared with every other. From {FILTERS[half]}"
        f" filters on the time grows with J to the power {exponent:.2f}.",
        "",
        *table(("filters J", "ms", "times the one above"), rows),
    ]


def launches(trials: int, rounds: int) -> list[str]:
    """Time and memory of commands that train nothing, each in its own process."""
    many = {
        "name": "many",
        "seeds": list(range(trials // 100)),
        "data": {"name": "cifar10"},
        "train": {"epochs": 100},
        "schemes": {"standard": {"kind": "standard"}, "repr": {"kind": "repr"}},
        "grid": {
            "schemes.repr.prune_ratio": [k / 100 for k in range(5, 50, 5)],
            "train.optimizer.learning_rate": [k / 100 for k in range(1, 11)],
        },
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        yaml.safe_dump(many, config)
        config.flush()
        commands = {
            "--help": ["--help"],
            "--config configs/cifar10.yaml --dry-run": ["--config", "configs/cifar10.yaml", "--dry-run"],
            f"--dry-run of {trials:,} trials": ["--config", config.name, "--dry-run"],
        }
        measured = {name: [_run(arguments) for _ in range(rounds)] for name, arguments in commands.items()}
    rows = [(f"`{n}`", spread([s for s, _ in m]), f"{max(b for _, b in m):,.0f}") for n, m in measured.items()]
    return [f"`python -m repr_ray.launch`, n = {rounds}.", "", *table(("arguments", "seconds", "MB at most"), rows)]


# A child that is forked from a large process counts that process's memory as its own peak; VmHWM does not.
_LAUNCH = """
import atexit, re, runpy, sys
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
runpy.run_module("repr_ray.launch", run_name="__main__")
"""


def _run(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds and megabytes of one call of the command."""
    started = perf_counter()
    command = [sys.executable, "-c", _LAUNCH, *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return perf_counter() - started, int(done.stderr) / 1024


if __name__ == "__main__":
    main()
