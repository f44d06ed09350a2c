"""Checkpoints of a trial, written atomically: the newest two, and the best weights; a damaged one is skipped."""

import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from repr_ray.plug_ins import first_line, in_one_line
from repr_ray.storage.atomic import write_atomic
from repr_ray.storage.foreign import obstacle

KEPT = 2
PASSED = "going back to the one before it"
_NAME = re.compile(r"checkpoint-[0-9]{4,9}(-[0-9]{6,12})?\.pt")


def save(folder: Path, epochs: int, steps: int, state: dict[str, Any], tried: bool = False) -> None:
    """Write `checkpoint-EPOCHS.pt`, or `checkpoint-EPOCHS-STEPS.pt` within an epoch; keep the newest two.

    The newest one between epochs is kept as well: one within an epoch is of use to the same number of ranks only.
    Later ones, which were passed over, are deleted. With `tried`, raises ValueError if it could not be read again;
    see `content`.
    """
    name = f"checkpoint-{epochs:04}" + (f"-{steps:06}" if steps else "")
    written = folder / f"{name}.pt"
    write_atomic(written, content(state, tried))
    every = newest_first(folder)
    usable = every[every.index(written) :]
    kept = [*usable[:KEPT], *[path for path in usable if _place(path)[1] == 0][:1]]
    for path in set(every) - set(kept):
        path.unlink(missing_ok=True)


def save_best(folder: Path, epoch: int, val_accuracy: float, model: dict[str, Any]) -> None:
    """Write `best.pt`: `model`, the weights (a state_dict) of the epoch with the best validation accuracy so far."""
    write_atomic(folder / "best.pt", content({"epoch": epoch, "val_accuracy": val_accuracy, "model": model}))


def content(state: dict[str, Any], tried: bool = False) -> bytes:
    """The bytes of a file. With `tried`, raises ValueError if they cannot be read as plain data, as files are."""
    import torch  # not at the top: the runner only needs names

    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        if tried:
            buffer.seek(0)
            torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:
        if not tried:
            raise
        raise ValueError(
            f"state_dict() cannot be saved and read again ({first_line(error)}); it may hold tensors, numbers, texts,"
            " lists and dictionaries"
        ) from error
    return buffer.getvalue()


def readable(folder: Path, warn: Callable[[str], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of usable checkpoints, newest first, tensors on the CPU; `warn` gets a line on others."""
    import torch

    for path in newest_first(folder):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file raises errors of many types
            warn(f"WARNING: {path.name} is damaged ({type(error).__name__}); {PASSED}")
            continue
        try:
            _check_content(state, *_place(path))
        except Exception as error:
            warn(misfit(path.name, error))
            continue
        yield path.name, state


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None; see `readable`."""
    return next((state for _, state in readable(folder, warn)), None)


def misfit(name: str, error: Exception) -> str:
    """The warning on a readable checkpoint that this trial cannot have saved."""
    return f"WARNING: {name} does not belong to this trial ({in_one_line(error)[:200]}); {PASSED}"


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints in a trial's folder, without links and files of other names."""
    found = [path for path in folder.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name) and not obstacle(path)]
    return sorted(found, key=_place, reverse=True)


def newest_place(folder: Path) -> tuple[int, int]:
    """Epochs done, and steps of the next one, by the name of the newest checkpoint; zeros without one."""
    return next(map(_place, newest_first(folder)), (0, 0))


def _place(path: Path) -> tuple[int, int]:
    epochs, _, steps = path.stem.removeprefix("checkpoint-").partition("-")
    return int(epochs), int(steps or 0)


class _Row(BaseModel, strict=True):
    epoch: int
    seconds: float
    train_accuracy: float
    val_accuracy: float | None


class _PartialEpoch(BaseModel, strict=True):
    steps: int
    seconds: float
    ranks: list[dict[str, Any]]


class _Content(BaseModel, strict=True):
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheme: dict[str, Any]
    average: dict[str, Any] | None = None
    precision: Literal["fp32", "bf16"]
    data_digest: str | None = None  # None in early checkpoints
    epochs: list[_Row]
    cycles: list[dict[str, Any]]
    part: _PartialEpoch | None = None
    seconds: float
    started: str


def _check_content(state: Any, epochs: int, steps: int) -> None:
    """Raise unless a checkpoint has the entries that this version writes, and the epochs and steps of its name."""
    _Content.model_validate(state)
    datetime.fromisoformat(state["started"])
    json.dumps([state["epochs"], state["cycles"]])
    part = state.get("part")
    if [row["epoch"] for row in state["epochs"]] != list(range(epochs)) or (part["steps"] if part else 0) != steps:
        raise ValueError("its epochs or steps are not those in its name")
