"""Checkpoints of a trial: whole or not there, the newest two kept, a damaged one passed over."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from repr_ray.storage import write_atomic

KEPT = 2


def save(folder: Path, epochs_done: int, state: dict[str, Any]) -> None:
    """Write `checkpoint-0007.pt` and remove all but the newest two."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(folder / f"checkpoint-{epochs_done:04}.pt", buffer.getvalue())
    for path in newest_first(folder)[KEPT:]:
        path.unlink(missing_ok=True)


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read (tensors on the CPU), or None; `warn` hears of damaged ones."""
    for path in newest_first(folder):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file raises whatever its reader stumbles over
            warn(f"WARNING: {path.name} is damaged ({type(error).__name__}); going back to the one before it")
    return None


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints in a trial's folder."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def newest_epoch(folder: Path) -> int:
    """How many epochs the newest checkpoint has behind it, damaged or not; 0 without one."""
    newest = newest_first(folder)[:1]
    return int(newest[0].stem.removeprefix("checkpoint-")) if newest else 0
