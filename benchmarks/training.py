"""How fast one trial trains, beside the loop people write today and beside the machine's limit.

python -m benchmarks.training [--rounds 5] [--images 6400] [--threads N]: every round runs each arm once, so that a
drift of the machine's speed touches all of them; ratios are taken within a round. Random images: speed does not
depend on what is in them. Prints a table and writes benchmarks/results/training-DEVICE.md.
"""

import argparse
import os
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline import Baseline
from benchmarks.tables import Arm, write
from repr_ray.config import validate
from repr_ray.data.batches import Batches
from repr_ray.data.sources import Split
from repr_ray.method.schemes import Scheme
from repr_ray.plan import Trial, plan
from repr_ray.training.loop import train_epoch
from repr_ray.training.optimizers import build_optimizer
from repr_ray.training.setup import Setup, build_model

MODELS = {
    "convnet-3x32": {"kind": "convnet"},
    "convnet-3x32, 5x5, pooled": {"kind": "convnet", "kernel": 5, "pool": "max3"},
}


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    data = Split(rng.integers(0, 256, (args.images, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, args.images))
    arms: list[Arm] = []
    for model, settings in MODELS.items():
        trial = _trial(settings)
        baseline = Baseline(build_model(trial), data.images, data.labels, device)
        rates: dict[str, Callable[[], float]] = {"DataLoader loop, fp32": baseline.images_per_second}
        for precision in ("fp32", "bf16"):
            rates[f"repr_ray, {precision}"] = _ours(trial, data, precision, device)
        flops = 3 * _forward_flops(trial)
        limits = {name: _matmul_rate(dtype, device) / flops for name, dtype in _PRECISIONS.items()}
        measured: dict[str, list[float]] = {name: [] for name in rates}
        for rate in rates.values():
            rate()  # warm-up: worker processes, kernel selection
        for _ in range(args.rounds):
            for name, rate in rates.items():
                measured[name].append(rate())
        arms += [Arm(model, name, values) for name, values in measured.items()]
        arms += [Arm(model, f"limit: {name} matrix products", [value]) for name, value in limits.items()]
    write("training", arms, "DataLoader loop, fp32", device, args.threads)


_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _trial(model: dict[str, object]) -> Trial:
    raw = {
        "name": "benchmark",
        "seeds": [0],
        "data": {"name": "cifar10", "crop_padding": 4, "flip": True},
        "model": model,
        "train": {"epochs": 1, "batch_size": 128},
        "schemes": {"standard": {"kind": "standard"}},
    }
    return plan(validate(raw, "benchmark"))[0]


def _ours(trial: Trial, data: Split, precision: str, device: torch.device) -> Callable[[], float]:
    model = build_model(trial).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(trial.train, model.parameters())
    batches = Batches(data, np.full(3, 0.5), np.full(3, 0.25), trial.data, device)
    setup = Setup(
        trial=trial,
        device=device,
        precision=precision,
        model=model,
        forward=model,
        optimizer=optimizer,
        scheme=Scheme(model, optimizer, epochs=1),
        train=batches,
        validation=batches,
        test=batches,
        ranking=None,
        chance=0.1,
    )

    def rate() -> float:
        started = perf_counter()
        train_epoch(setup, 0)
        return len(batches) / (perf_counter() - started)

    return rate


def _forward_flops(trial: Trial) -> float:
    """Floating-point operations of one image's forward pass."""
    model = build_model(trial)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    return float(counter.get_total_flops())


def _matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Best of ten: floating-point operations per second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        started = perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * size**3 / (perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
