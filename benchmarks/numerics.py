"""Final test accuracy of every faster way of training beside float32, paired by seed.

python -m benchmarks.numerics [--seeds 8] [--epochs 30] [--threads N] [--device cuda]: RePr on the handwritten digits,
or with `--data cifar10 --source FOLDER` on 2,000 images of CIFAR-10.
"""

import argparse
import os
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy import stats

from benchmarks.tables import device_named, table, write
from benchmarks.trials import trials
from repr_ray.study.plan import Trial
from repr_ray.training.loop import evaluate, train_epoch
from repr_ray.training.setup import set_up


@dataclass(frozen=True)
class Way:
    """One way to train the same trial."""

    precision: str
    compact: bool = False
    cuda_graph: bool = False


WAYS = {"fp32": Way("fp32"), "bf16": Way("bf16"), "bf16, S2 on a smaller copy": Way("bf16", compact=True)}
ON_CUDA = {"fp32": Way("fp32"), "bf16": Way("bf16"), "bf16, CUDA graph": Way("bf16", cuda_graph=True)}


def main() -> None:
    """Train and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--data", default="digits", choices=("digits", "cifar10"))
    parser.add_argument("--source", default="torchvision", help="of CIFAR-10")
    args = parser.parse_args()
    device = device_named(args.device)
    ways = WAYS if args.device == "cpu" else ON_CUDA
    data = {"name": args.data, "source": args.source} | ({"train_images": 2000} if args.data == "cifar10" else {})
    accuracies = {
        name: np.array([100 * final_accuracy(t, device) for t in _trials(data, way, args)])
        for name, way in ways.items()
    }
    rows = [_row(name, values, accuracies["fp32"]) for name, values in accuracies.items()]
    lines = [
        f"RePr on {args.data}, {args.epochs} epochs, {args.seeds} seeds: test accuracy in the last epoch, percent;"
        " difference to fp32 paired by seed, with its 95% t-interval.",
        "",
        *table(("", "mean", "sd", "difference", "95% interval"), rows),
    ]
    write("numerics", "Accuracy of the faster ways", lines, device, args.threads)


def _trials(data: dict[str, object], way: Way, args: argparse.Namespace) -> list[Trial]:
    train = {
        "epochs": args.epochs,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9},
        "precision": way.precision,
        "compact_sub_network": way.compact,
    }
    scheme = {"kind": "repr", "s1": max(1, args.epochs // 5), "s2": max(1, args.epochs // 10)}
    return trials(
        {"kind": "convnet"},
        data,
        train,
        {"repr": scheme},
        baseline="repr",
        seeds=list(range(args.seeds)),
        resources={"cpus_per_worker": args.threads, "cuda_graph": way.cuda_graph},
    )


def final_accuracy(trial: Trial, device: torch.device) -> float:
    """Train a trial; test accuracy in [0, 1] after its last epoch."""
    setup = set_up(trial, device)
    for epoch in range(trial.train.epochs):
        setup.scheme.start_epoch(epoch)
        train_epoch(setup, epoch)
    return cast(float, evaluate(setup, setup.test)[1])


def _row(name: str, values: np.ndarray, base: np.ndarray) -> tuple[str, ...]:
    row = (name, f"{values.mean():.2f}", f"{values.std(ddof=1):.2f}")
    if values is base:
        return (*row, "", "")
    interval = stats.ttest_rel(values, base).confidence_interval()
    return (*row, f"{(values - base).mean():+.2f}", f"{interval.low:+.2f} to {interval.high:+.2f}")


if __name__ == "__main__":
    main()
