"""Messages of a running trial, and the exception that ends it early."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repr_ray.records import Epoch


@dataclass(frozen=True)
class Note:
    """A line of text about one trial, or, without `trial`, about all of them."""

    text: str
    trial: str | None = None


@dataclass(frozen=True)
class EpochEnded:
    """A trial after one epoch of `epochs`."""

    trial: str
    epochs: int
    row: Epoch


@dataclass(frozen=True)
class Done:
    """A trial has reached its end."""

    trial: str


@dataclass(frozen=True)
class Failed:
    """A trial has ended in an error; `reason` is its first line."""

    trial: str
    reason: str


@dataclass(frozen=True)
class Stopped:
    """A trial has saved its state at `place` and stopped, to be resumed later."""

    trial: str
    place: str


RETRIES = 2
"""New starts of a trial from one checkpoint after which it is given up."""

Message = Note | EpochEnded | Done | Failed | Stopped

Tell = Callable[[Message], Any]
"""Called with a message; must not block. Short epochs are skipped, but for the last."""


class Preempted(Exception):
    """A trial stops before its end: its process has to stop, or another process runs the trial.

    `part` is the interrupted epoch, for a checkpoint; see `repr_ray.training.loop.PartialEpoch`.
    """

    def __init__(self, message: str, part: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.part = part
