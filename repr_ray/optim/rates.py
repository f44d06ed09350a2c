"""Learning-rate schedules. `train.schedule: {kind: my_module:rate}` takes a function of one's own.

To add one: a class here with its settings and `rate`.
"""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from repr_ray.components import ByKind, Component, Count, Natural


class RateSettings(Component):
    """A schedule of the learning rate."""

    family: ClassVar[str] = "schedule"
    given: ClassVar[frozenset[str]] = frozenset({"base", "step", "steps_per_epoch", "epochs"})

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of an optimizer step, counted from 0 over the whole training of `epochs`."""
        return float(self.builds(base, step, steps_per_epoch, epochs, **self.own))


class Constant(RateSettings):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = "constant"

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """`base`."""
        return base


class Steps(RateSettings):
    """The learning rate is multiplied by `factor` at each of `epochs`, or every `every_steps` optimizer steps."""

    kind: Literal["steps"]
    epochs: tuple[Count, ...] = Field(default=(), description="epochs at which the rate changes")
    every_steps: Count | None = Field(default=None, description="optimizer steps between two changes")
    factor: Annotated[float, Field(gt=0)] = Field(default=0.1, description="what the rate is multiplied by")

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """`base` times `factor` for each change that has passed."""
        passed = sum(step >= epoch * steps_per_epoch for epoch in self.epochs)
        if self.every_steps:
            passed += step // self.every_steps
        return base * self.factor**passed


class Cosine(RateSettings):
    """Half a cosine down to zero over the whole training, after a linear warm-up."""

    kind: Literal["cosine"]
    warmup_epochs: Natural = Field(default=0, description="epochs of linear warm-up")

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Up to `base` in the warm-up, then down to zero."""
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return base * (step + 1) / warmup
        return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


Rate = Annotated[RateSettings, ByKind()]
