"""Trials that train as long as a test needs, on any machine: their learning rate waits for the test."""

import sys
from pathlib import Path
from time import sleep
from typing import Any


def rate(base: float, step: int, steps_per_epoch: int, epochs: int, *, leash: str, seconds: float = 0.0) -> float:
    """`base`; while the file `leash` is there, after `seconds`, and once it allows the epoch of this step.

    The launcher does not wait: it asks for the rates of all epochs when it checks the config.
    """
    if _is_launcher():
        return base
    while (allowed := _allowed(leash)) is not None and step >= allowed * steps_per_epoch:
        sleep(0.05)
    if allowed is not None:
        sleep(seconds)
    return base


def _is_launcher() -> bool:
    """Whether this process was started as `python -m repr_ray.launch`."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "repr_ray.launch"


def _allowed(leash: str) -> int | None:
    try:
        return int(Path(leash).read_text())
    except FileNotFoundError:
        return None


class Leash:
    """A file that says how many epochs trials may train; until `free`, which takes it away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "leash"

    def allow(self, epochs: int) -> None:
        """Trials may train so many epochs, and wait at the beginning of the next."""
        new = self.path.with_suffix(".new")
        new.write_text(str(epochs))
        new.replace(self.path)

    def free(self) -> None:
        """Trials train to their end, as fast as they can."""
        self.path.unlink(missing_ok=True)

    def schedule(self, seconds: float = 0.0) -> dict[str, Any]:
        """The learning-rate schedule of a config, with at least `seconds` for each optimizer step."""
        return {"kind": "paced:rate", "leash": str(self.path), "seconds": seconds}
