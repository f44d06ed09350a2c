"""Learning-rate schedules. `train.schedule: {kind: my_module:rate}` takes a plug-in function.

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

    def unreached(self, epochs: int) -> str:
        """The field, and what of it a training of `epochs` does not reach; empty if it reaches all."""
        return ""


class Constant(RateSettings):
    """The learning rate stays as it is."""

    kind: Literal["constant"] = "constant"

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        return base


class Steps(RateSettings):
    """The learning rate is multiplied by `factor` at each of `epochs`, or every `every_steps` optimizer steps."""

    kind: Literal["steps"]
    epochs: tuple[Count, ...] = ()
    """numbers of epochs after which the rate changes"""
    every_steps: Count | None = None
    """optimizer steps between two changes"""
    factor: Annotated[float, Field(gt=0)] = 0.1
    """factor of the rate at each change"""

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        passed = sum(step >= epoch * steps_per_epoch for epoch in self.epochs)
        if self.every_steps:
            passed += step // self.every_steps
        return base * self.factor**passed

    def unreached(self, epochs: int) -> str:
        late = [str(epoch) for epoch in self.epochs if epoch >= epochs]
        return f"epochs: the change after epoch {', '.join(late)}" if late else ""


class Cosine(RateSettings):
    """Half a cosine down to zero over the whole training, after a linear warm-up."""

    kind: Literal["cosine"]
    warmup_epochs: Natural = 0
    """epochs of linear warm-up"""

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        warmup, total = self.warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
        if step < warmup:
            return base * (step + 1) / warmup
        return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def unreached(self, epochs: int) -> str:
        return f"warmup_epochs: the end of {self.warmup_epochs} epochs" if self.warmup_epochs >= epochs else ""


class CosineRestarts(RateSettings):
    """Cosines down to zero, with warm restarts (arXiv 1608.03983, eq. 5).

    The first lasts `first` epochs, each later one `factor` times as long as the one before.
    """

    kind: Literal["cosine_restarts"]
    first: Count = 10
    """epochs of the first cosine, T_0"""
    factor: Annotated[int, Field(ge=1, le=1_000)] = 2
    """growth of the next cosine, T_mult"""

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        length = self.first * steps_per_epoch
        while step >= length:
            step, length = step - length, length * self.factor
        return base * 0.5 * (1 + math.cos(math.pi * step / length))


class OneCycle(RateSettings):
    """One cycle (arXiv 1708.07120), as in torch's OneCycleLR: up to `base`, then down to almost zero.

    Both parts are half a cosine. The first rate is `base` / `start`, the last one that divided by `end`.
    """

    kind: Literal["one_cycle"]
    rising: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of steps in which the rate rises"""
    start: Annotated[float, Field(ge=1)] = 25.0
    """ratio of the highest rate to the first"""
    end: Annotated[float, Field(ge=1)] = 1e4
    """ratio of the first rate to the last"""

    def rate(self, base: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        last = steps_per_epoch * epochs - 1
        top = self.rising * (last + 1) - 1
        low, lowest = base / self.start, base / self.start / self.end
        if step < top:
            return _cosine(low, base, step / top)
        return _cosine(base, lowest, (step - top) / (last - top) if last > top else 1.0)


def _cosine(begin: float, end: float, share: float) -> float:
    """Half a cosine from `begin` to `end`."""
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * share))


Rate = Annotated[RateSettings, ByKind()]
