"""What each scheme costs: the seconds of an epoch beside those of standard training.

python -m benchmarks.schemes [--rounds 5] [--images 768] [--threads N] [--device cuda]: every round trains an epoch
with each scheme, so that a drift of the machine's speed touches all of them; ratios are taken within a round. The
seconds are those of an epoch of 50,000 images: its steps, by those over `--images`, and what is done once before and
after it. Schemes act as often as they can: what is done every few epochs is done in every one here.
"""

import argparse
import os
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from benchmarks.tables import device_named, interleaved, spread, table, write
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate
from repr_ray.training.loop import train_epoch
from repr_ray.training.setup import build_model, teach
from repr_ray.training.step import Setup

SCHEMES = {
    "standard": {"kind": "standard"},
    "repr, S1": {"kind": "repr", "s1": 10**6, "s2": 1},
    "repr, S2": {"kind": "repr", "s1": 1, "s2": 10**6},
    "dsd, sparse": {"kind": "dsd", "sparse_at": 1, "dense_at": 10**6},
    "soft_filter_pruning": {"kind": "soft_filter_pruning"},
    "shrink_perturb": {"kind": "shrink_perturb", "every": 1},
    "later_layer_forgetting": {"kind": "later_layer_forgetting", "every": 1},
    "rifle": {"kind": "rifle", "every": 1},
    "continual_backprop": {"kind": "continual_backprop", "maturity": 1},
    "redo": {"kind": "redo", "every": 100},
    "loss: label_smoothing": {"kind": "standard", "loss": {"kind": "label_smoothing"}},
    "loss: orthogonality": {"kind": "standard", "loss": {"kind": "orthogonality"}},
    "loss: srip": {"kind": "standard", "loss": {"kind": "srip"}},
    "loss: ocnn": {"kind": "standard", "loss": {"kind": "ocnn"}},
    "loss: distillation": {"kind": "standard", "loss": {"kind": "distillation"}},
}
EPOCHS = 2 * 10**6 + 2
"""More than are trained: room for phases that do not end."""


IMAGES = 50_000
"""Of an epoch of CIFAR-10."""


def main() -> None:
    """Measure every scheme on ResNet-20 and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_named(args.device)
    split = random_images(args.images)
    base = cifar_trial({"kind": "resnet", "depth": 20})
    raw = {
        "name": "schemes",
        "seeds": [0],
        "data": base.data.model_dump(),
        "model": base.model.model_dump(),
        "train": base.train.model_dump() | {"epochs": EPOCHS},
        "schemes": SCHEMES,
    }
    trials = {trial.scheme: trial for trial in plan(validate(raw, "benchmark"))}
    epochs = {}
    for name, trial in trials.items():
        setup = set_up_on(trial, split, "fp32", device)
        if trial.teacher:
            teach(setup, trial.teacher, build_model(trial.teacher).state_dict())
        epochs[name] = epoch_seconds(setup)
    arms = {arm.name: arm.values for arm in interleaved(epochs, args.rounds, "resnet20")}
    rows = []
    for name, values in arms.items():
        over = np.divide(values, arms["standard"]) - 1
        rows.append((name, spread(values), f"{np.median(over):+.1%} ({over.min():+.1%} to {over.max():+.1%})"))
    lines = [
        f"ResNet-20, fp32, batches of {base.train.batch_size}; an epoch of {IMAGES:,} images, by {args.images} of"
    ]
    lines[0] += f" them; n = {args.rounds}, median and range; overhead within a round."
    lines += ["", *table(("scheme", "seconds an epoch", "overhead"), rows)]
    write("schemes", "What schemes cost", lines, device, args.threads)


def epoch_seconds(setup: Setup) -> Callable[[], float]:
    """Trains a part of an epoch at each call: seconds of a whole one."""
    numbers = iter(range(EPOCHS))

    def seconds() -> float:
        epoch, started = next(numbers), perf_counter()
        setup.scheme.start_epoch(epoch)
        between = perf_counter() - started
        started = perf_counter()
        train_epoch(setup, epoch)
        steps = perf_counter() - started
        started = perf_counter()
        setup.scheme.end_epoch()
        return steps * IMAGES / len(setup.train) + between + perf_counter() - started

    return seconds


if __name__ == "__main__":
    main()
