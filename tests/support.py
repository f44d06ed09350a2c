"""Helpers that more than one test file needs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import validate

ROOT = Path(__file__).resolve().parent.parent

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def example_override(name: str) -> str:
    """The override of a config that the first lines of an example name."""
    [override] = re.findall(r"^`repr-ray launch '(.*)'`$", (ROOT / "examples" / f"{name}.py").read_text(), re.M)
    return override


def documented(words: str) -> str:
    """The Python that follows these words in docs/own_loop.md."""
    text = (ROOT / "docs" / "own_loop.md").read_text().partition(words)[2]
    return text.partition("```python\n")[2].partition("```")[0]


STANDARD = {"standard": {"kind": "standard"}}

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0],
    "data": {"name": "digits", "train_images": 256, "validation_images": 100},
    "model": {"kind": "convnet", "depth": 2, "width": 8},
    "train": {"epochs": 8, "batch_size": 64, "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}},
    "schemes": {
        "standard": {"kind": "standard"},
        "repr": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.3},
    },
    "resources": {"checkpoint_every": 1},
}
"""Two trials that train in a second; RePr drops before epoch 2 and brings back before epoch 4. Tests that kill them
rely on a checkpoint after every epoch, which the default leaves out when epochs are this short."""


def tiny(**changes: Any) -> list[Trial]:
    """The trials of the tiny experiment with top-level blocks merged over it."""
    raw = {
        key: {**value, **changes.pop(key, {})} if isinstance(value, dict) else value for key, value in TINY.items()
    }
    return plan(validate(raw | changes, "tiny"))


def write_config(folder: Path, **changes: Any) -> Path:
    """The tiny experiment as a YAML file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def launch(
    *arguments: str | Path, timeout: float = 240, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m repr_ray.launch` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "repr_ray.launch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100"} | env,
    )


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """result.json of every finished trial below a results folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("trials/*/result.json"))}


def rows(folder: Path, trial: str, table: str) -> list[dict[str, Any]]:
    """A trial's JSON lines without what depends on the clock."""
    lines = (folder / "trials" / trial / f"{table}.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_second")} for line in lines
    ]
