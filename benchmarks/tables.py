"""Benchmark tables: every number with n, spread, hardware and versions."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from repr_ray.training.provenance import hardware

RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")


def device_named(name: str) -> torch.device:
    """The device of `--device`; exits with a line if there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "--device cuda: PyTorch sees no CUDA device on this machine; leave --device away for the CPU"
        )
    return torch.device(name)


@dataclass(frozen=True)
class Arm:
    """The measurements of one way in one setting: a figure per round."""

    setting: str
    name: str
    values: list[float]


def interleaved(arms: Mapping[str, Callable[[], float]], rounds: int, setting: str) -> list[Arm]:
    """Every round measures each arm once, so that a drift of the machine touches all; the first one warms up."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, measure in arms.items():
            values[name].append(measure())
    return [Arm(setting, name, measured[1:]) for name, measured in values.items()]


def spread(values: Sequence[float]) -> str:
    """Median and range of repeated measurements."""
    return f"{np.median(values):,.4g} ({min(values):,.4g}-{max(values):,.4g})"


def ratio_table(arms: Sequence[Arm], baseline: str, unit: str) -> list[str]:
    """Markdown: median and spread of every arm, and its ratio to an arm of the same setting.

    Where both have as many rounds the ratio is the median of those within a round.
    """
    lines = [f"| setting | arm | n | {unit} | spread | ratio |", "|---|---|---:|---:|---:|---:|"]
    for arm in arms:
        base = next(a.values for a in arms if (a.setting, a.name) == (arm.setting, baseline))
        same_rounds = len(base) == len(arm.values)
        ratio = np.median(np.divide(arm.values, base)) if same_rounds else np.median(arm.values) / np.median(base)
        lines.append(
            f"| {arm.setting} | {arm.name} | {len(arm.values)} | {np.median(arm.values):,.4g} |"
            f" {min(arm.values):,.4g}-{max(arm.values):,.4g} | {ratio:.2f} |"
        )
    return [
        f"Median of n rounds, lowest to highest; ratio to `{baseline}`, within a round where there are several.",
        "",
        *lines,
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Markdown: text on the left, everything after the first column on the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)]


def write(name: str, title: str, lines: Sequence[str], device: torch.device, threads: int, show: bool = True) -> None:
    """Write Markdown below its title and the machine to results/NAME-DEVICE.md, and print it if `show`."""
    machine = hardware(device)
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "ray", "numpy"))
    machine_line = (
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {threads} thread{'s' * (threads > 1)};"
        f" {versions}. Load average at the end {os.getloadavg()[0]:.1f}."
    )
    text = "\n".join([f"# {title}", "", machine_line, "", *lines]) + "\n"
    if show:
        Console(width=200).print(text, highlight=False, markup=False)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}-{device.type}.md").write_text(text)
