"""Checkpoints of a trial, whole or not there: the newest two, a damaged one passed over, and the best weights."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repr_ray.foreign import obstacle
from repr_ray.storage import write_atomic

KEPT = 2
_NAME = re.compile(r"checkpoint-[0-9]{4,9}(-[0-9]{6,12})?\.pt")


def save(folder: Path, epochs: int, steps: int, state: dict[str, Any]) -> None:
    """Write `checkpoint-EPOCHS.pt`, or `checkpoint-EPOCHS-STEPS.pt` in an epoch's middle; keep the newest two."""
    name = f"checkpoint-{epochs:04}" + (f"-{steps:06}" if steps else "")
    _write(folder / f"{name}.pt", state)
    for path in newest_first(folder)[KEPT:]:
        path.unlink(missing_ok=True)


def save_best(folder: Path, epoch: int, val_accuracy: float, model: dict[str, Any]) -> None:
    """Write `best.pt`: `model`, the weights (a state_dict) of the epoch that was best on held-out images so far."""
    _write(folder / "best.pt", {"epoch": epoch, "val_accuracy": val_accuracy, "model": model})


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read (tensors on the CPU), or None; `warn` hears of damaged ones."""
    import torch

    for path in newest_first(folder):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file raises whatever its reader stumbles over
            warn(f"WARNING: {path.name} is damaged ({type(error).__name__}); going back to the one before it")
    return None


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints in a trial's folder; files of other names are none of ours, nor are links."""
    found = [path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name) and not obstacle(path)]
    return sorted(found, key=_place, reverse=True)


def newest_place(folder: Path) -> tuple[int, int]:
    """Epochs, and steps of the next one, that the newest checkpoint (damaged or not) has behind it; else zeros."""
    return next(map(_place, newest_first(folder)), (0, 0))


def _place(path: Path) -> tuple[int, int]:
    epochs, _, steps = path.stem.removeprefix("checkpoint-").partition("-")
    return int(epochs), int(steps or 0)


def _write(path: Path, state: dict[str, Any]) -> None:
    import torch  # not at the top: the runner only asks for names

    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())
