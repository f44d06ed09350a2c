"""Time of each scheme: of a training step beside one of standard training, and between two epochs.

python -m benchmarks.schemes [--rounds 10] [--steps 1] [--threads 1] [--device cuda] [--only NAME ...]: every round
trains a step of standard training right before one of each scheme. On a CPU the time is CPU time, on which other
programs have little influence; on a GPU it is wall time. The overhead is that of an epoch of 50,000 images: all steps
of a scheme over those of standard training, and start_epoch and end_epoch over the steps of an epoch. Schemes act as
often as they can: what is done every few epochs is done in every one here. `--only` measures some schemes again and
keeps the other rows of the last table.

The table of schemes, docs/schemes.md, is made again from their settings and the last figures; `--page` does nothing
else.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from pydantic import BaseModel

from benchmarks.tables import RESULTS, device_named, spread, table, write
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.components import Component
from repr_ray.method.loss_settings import LossSettings
from repr_ray.method.settings import SchemeSettings
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import validate
from repr_ray.training.setup import build_model
from repr_ray.training.teacher import teach

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
    "redo": {"kind": "redo"},
    "loss: label_smoothing": {"kind": "standard", "loss": {"kind": "label_smoothing"}},
    "loss: orthogonality": {"kind": "standard", "loss": {"kind": "orthogonality"}},
    "loss: srip": {"kind": "standard", "loss": {"kind": "srip"}},
    "loss: ocnn": {"kind": "standard", "loss": {"kind": "ocnn"}},
    "loss: distillation": {"kind": "standard", "loss": {"kind": "distillation"}},
    "loss: distillation, no augmentation": {"kind": "standard", "loss": {"kind": "distillation"}},
}
EPOCHS = 2 * 10**6 + 2
"""Epochs of the settings; fewer are trained."""

IMAGES = 50_000
"""Images of an epoch of CIFAR-10."""

PAGE = Path(__file__).parents[1] / "docs" / "schemes.md"

BETWEEN = 3
"""Repetitions of the measurement between two epochs."""


class Arm:
    """A scheme on ResNet-20, its hooks and steps timed."""

    def __init__(self, trial: Trial, device: torch.device, clock: Callable[[], float]) -> None:
        if "no augmentation" in trial.scheme:  # nothing is augmented in a step that is timed: its batch is given
            plain = trial.data.model_copy(update={"crop_padding": 0, "flip": False})
            trial = dataclasses.replace(trial, data=plain)
        batch_size = trial.train.batch_size
        self.setup = set_up_on(trial, random_images(batch_size), "fp32", device)
        if trial.teacher:
            teach(self.setup, trial.teacher, build_model(trial.teacher).state_dict())
        self.clock, self.number = clock, iter(range(EPOCHS))
        [self.batch] = self.setup.train.shuffled(batch_size, torch.Generator().manual_seed(0), 0)
        for _ in range(2):  # warms up; the second one begins S2, or what is done in every epoch but the first
            self.between()
            self.steps(1)

    def between(self) -> float:
        """Seconds between two epochs."""
        began = self.clock()
        if (epoch := next(self.number)) > 0:
            self.setup.scheme.end_epoch()
        self.setup.scheme.start_epoch(epoch)
        return self.clock() - began

    def steps(self, count: int) -> float:
        """Seconds of a step, of some in a row."""
        with self.setup.step.epoch():
            began = self.clock()
            for _ in range(count):
                self.setup.step(self.batch, 0.01)
            return (self.clock() - began) / count


def main() -> None:
    """Measure every scheme on ResNet-20 and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[n for n in SCHEMES if n != "standard"])
    parser.add_argument("--page", action="store_true", help="make docs/schemes.md again, and measure nothing")
    args = parser.parse_args()
    if args.page:
        PAGE.write_text(page())
        return
    torch.set_num_threads(args.threads)
    device = device_named(args.device)

    def on_gpu() -> float:
        torch.cuda.synchronize(device)
        return perf_counter()

    clock = on_gpu if device.type == "cuda" else process_time
    base = cifar_trial({"kind": "resnet", "depth": 20})
    raw = {
        "name": "schemes",
        "seeds": [0],
        "data": base.data.model_dump(),
        "model": base.model.model_dump(),
        "train": base.train.model_dump() | {"epochs": EPOCHS},
        "schemes": {name: SCHEMES[name] for name in ("standard", *(args.only or SCHEMES))},
    }
    arms = {trial.scheme: Arm(trial, device, clock) for trial in plan(validate(raw, "benchmark"))}
    standard = arms.pop("standard")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, arm in arms.items():
            times[name].append((standard.steps(args.steps), arm.steps(args.steps)))
    in_epoch = IMAGES / base.train.batch_size
    rows = []
    for name, arm in arms.items():
        before, own = np.array(times[name]).T
        between = float(np.median([arm.between() for _ in range(BETWEEN)]))
        over, each = own.sum() / before.sum() - 1, own / before - 1
        total = over + between / (in_epoch * before.mean())
        steps = f"{over:+.1%} ({np.quantile(each, 0.25):+.1%} to {np.quantile(each, 0.75):+.1%})"
        rows.append((name, spread(1000 * own), steps, f"{1000 * between:,.0f}", f"{total:+.1%}"))
    kind = "wall" if device.type == "cuda" else "CPU"
    count = args.rounds * args.steps
    lines = [
        f"ResNet-20, fp32, batches of {base.train.batch_size}, {kind} time; n = {count} steps,"
        " each beside one of standard training: median and range, overhead of all steps with the quartiles of single"
        " ones."
        f" An epoch is {in_epoch:.0f} steps."
    ]
    if args.only:
        path = RESULTS / f"schemes-{device.type}.md"
        lines = [line for line in path.read_text().splitlines()[4:] if line and not line.startswith("|")]
        lines.append(f"Measured again, with n = {count}: {', '.join(args.only)}.")
        again = {row[0]: row for row in rows}
        kept = [tuple(row) for row in _rows(path)[1:]]
        rows = [again.pop(row[0], row) for row in kept] + list(again.values())
    names = ("scheme", "ms a step", "overhead of steps", "ms between epochs", "overhead of an epoch")
    write("schemes", "What schemes cost", [*lines, "", *table(names, rows)], device, args.threads)
    PAGE.write_text(page())


def page() -> str:
    """docs/schemes.md: every built-in scheme and loss, what it does, its source, its defaults, its cost."""
    costs = _costs(RESULTS / "schemes-cpu.md")
    parts = [
        "# Schemes and losses",
        "Made by `python -m benchmarks.schemes --page` from the settings classes and"
        " [the last figures](../benchmarks/results/schemes-cpu.md): the overhead of an epoch of ResNet-20 in float32"
        " on a CPU, of a scheme that acts in every epoch (ReDo: every 1,000 steps, its default); a difference of 1.5%"
        " is within the spread. Distillation's is the teacher's forward pass where"
        " images are augmented. `schemes.NAME: {kind: ...}` names a scheme,"
        " `schemes.NAME.loss: {kind: ...}` a loss that any scheme can carry; [settings](settings.md) says what each"
        " field means.",
    ]
    families: tuple[tuple[str, type[Component], str], ...] = (
        ("Schemes", SchemeSettings, ""),
        ("Losses", LossSettings, "loss: "),
    )
    for title, family, prefix in families:
        rows = [
            (f"`{kind}`", *_described(settings), costs.get(f"{prefix}{kind}", "none"))
            for kind, settings in sorted(family.kinds.items())
            if ":" not in kind
        ]
        parts += [f"## {title}", "\n".join(table(("kind", "what it does", "source", "defaults", "cost"), rows))]
    return "\n\n".join(parts).replace("|---|---:|---:|---:|---:|", "|---|---|---|---|---:|") + "\n"


def _described(settings: type[Component]) -> tuple[str, str, str]:
    """The descriptions of settings, their sources and their defaults."""
    text = " ".join((settings.__doc__ or "").split())
    sources = dict.fromkeys(re.findall(r"\d{4}\.\d{5}", text))
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in sources)
    own = {name: field for name, field in settings.model_fields.items() if name not in ("kind", "loss")}
    plain = {name: field.default for name, field in own.items() if not isinstance(field.default, BaseModel)}
    defaults = ", ".join(f"`{name}: {_yaml(value)}`" for name, value in plain.items() if value is not None)
    return text.replace("|", "\\|"), links, defaults.replace("|", "\\|")


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rows(path: Path) -> list[list[str]]:
    """The rows of a written table, the header first."""
    return [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")]


def _costs(path: Path) -> dict[str, str]:
    """The overhead of an epoch by scheme; of RePr the slower phase, of distillation both."""
    found: dict[str, str] = {}
    for name, *_, overhead in _rows(path)[1:]:
        kind, _, case = name.partition(", ")
        if case == "no augmentation":
            found[kind] += f"; {overhead} without augmentation"
        elif kind not in found or float(overhead.rstrip("%")) > float(found[kind].rstrip("%")):
            found[kind] = overhead
    return found


if __name__ == "__main__":
    main()
