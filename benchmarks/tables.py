"""Benchmark tables: every number with n, spread, hardware and versions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from repr_ray.training.trial import hardware

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Arm:
    """What was measured of one thing in one setting: a figure per round."""

    setting: str
    name: str
    values: list[float]


def write(
    title: str, arms: list[Arm], baseline: str, device: torch.device, threads: int, unit: str = "images/s"
) -> None:
    """Print a Markdown table and write it to results/TITLE-DEVICE.md; ratios are medians within rounds."""
    machine = hardware(device)
    lines = [
        f"# {title}",
        "",
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {threads} threads; torch {torch.__version__}."
        f" Median of n rounds, lowest to highest; ratio to `{baseline}` within each round.",
        "",
        f"| setting | arm | n | {unit} | spread | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        base = next(a.values for a in arms if (a.setting, a.name) == (arm.setting, baseline))
        same_rounds = len(base) == len(arm.values)
        ratio = np.median(np.divide(arm.values, base)) if same_rounds else np.median(arm.values) / np.median(base)
        lines.append(
            f"| {arm.setting} | {arm.name} | {len(arm.values)} | {np.median(arm.values):,.4g} |"
            f" {min(arm.values):,.4g}-{max(arm.values):,.4g} | {ratio:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    Console(width=200).print(text, highlight=False, markup=False)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{title}-{device.type}.md").write_text(text)
