"""What a trial tells those who wait for it, and the one exception by which it leaves before its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from repr_ray.records import Epoch


@dataclass(frozen=True)
class Note:
    """A line for a person: about one trial, or, without `trial`, about all of them."""

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
    """A trial has saved at `place` and left, to go on later."""

    trial: str
    place: str


Message = Note | EpochEnded | Done | Failed | Stopped

Tell = Callable[[Message], Any]
"""Takes a message; must not block. Not every short epoch is told of, the last one is."""


class Preempted(Exception):
    """A trial leaves its process before its end: the process was asked to stop, or another one runs the trial.

    `part` is where it was in an epoch, for a checkpoint; see `repr_ray.training.loop.PartialEpoch`.
    """

    def __init__(self, message: str, part: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.part = part
