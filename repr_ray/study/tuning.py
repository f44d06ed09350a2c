"""Tuning before the comparison, with the same number of points of the search space for every scheme.

A point is a full-length trial of its own seeds, which the comparison never uses; the point with the highest
validation accuracy is chosen for a scheme. Points depend on the experiment and on the accuracy of earlier
points, never on the runner or the order in which trials end, so that a resumed launch has the same trials.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from repr_ray.components import Count, Settings

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Pair = tuple[float, float]
Point = dict[str, Any]
"""The values of dotted fields, as in `key=value`."""


class Range(Settings):
    """The values that a field is tuned over: one of a uniform or log-uniform range, whole numbers, or a choice."""

    uniform: Pair | None = None
    """smallest and largest number"""
    log_uniform: Pair | None = None
    """smallest and largest number, above 0, drawn evenly on a logarithmic scale"""
    integer: tuple[int, int] | None = None
    """whole numbers, both ends included"""
    choice: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    """one of these values"""

    @model_validator(mode="after")
    def _one(self) -> "Range":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of {', '.join(type(self).model_fields)}, for example {{log_uniform: [0.001, 0.1]}}"
            )
        if given[0] != "choice":
            low, high = getattr(self, given[0])
            if not low < high:
                raise ValueError(f"{given[0]}: the first number is the smaller one")
            if given[0] == "log_uniform" and low <= 0:
                raise ValueError("log_uniform: numbers above 0")
        return self

    @property
    def extremes(self) -> tuple[Any, ...]:
        """The values of a choice, or the smallest and the largest number."""
        return self.choice or (self.at(0.0), self.at(math.nextafter(1.0, 0.0)))

    def at(self, share: float) -> Any:
        """The value at a share of the range, from 0 (included) to 1 (excluded)."""
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.integer is not None:
            first, last = self.integer
            return first + int(share * (last - first + 1))
        if self.log_uniform is not None:
            low, high = self.log_uniform
            return float(f"{low * (high / low) ** share:.4g}")
        low, high = self.uniform or (0.0, 1.0)
        return float(f"{low + share * (high - low):.4g}")


class Tuning(Settings):
    """Settings that are chosen for every scheme by validation accuracy, before the comparison.

    Every scheme is tried at `budget` points, each with all `seeds`, in full-length trials; with `halve_after` only
    the better points reach the full length.
    """

    space: dict[str, Range] = Field(default_factory=dict)
    """search space of all schemes: dotted fields of train, model or data"""
    schemes: dict[str, dict[str, Range]] = Field(default_factory=dict)
    """further search space of a scheme, by its name: its own fields"""
    budget: Annotated[int, Field(ge=2, le=10_000)]
    """number of points of each scheme"""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (1_000_000,)
    """seeds of each point; none may be a seed of the comparison"""
    searcher: Literal["quasi_random", "optuna"] = "quasi_random"
    """a scrambled Sobol sequence, or Optuna's sampler, whose points depend on earlier ones"""
    together: Count = 4
    """points that optuna proposes at once, before their accuracy is known"""
    halve_after: tuple[Count, ...] = ()
    """epochs after which only the better half of a scheme's points trains on, by validation accuracy; there the
    points must be in the same phase of a cycle, with all filters, because RePr loses accuracy at each drop on
    purpose. Not with optuna, which learns from full-length trials. None by default"""

    @model_validator(mode="after")
    def _halves(self) -> "Tuning":
        if self.halve_after and self.searcher == "optuna":
            raise ValueError("halve_after: optuna learns from full-length trials; set searcher: quasi_random")
        if list(self.halve_after) != sorted(set(self.halve_after)):
            raise ValueError("halve_after: epochs that increase, such as [20, 50]")
        if self.halve_after and (varied := [f for f in self.space if f.startswith(_TIMING)]):
            raise ValueError(f"halve_after: points that differ in {varied[0]} cannot be compared before the end")
        return self

    def check(self, validation_images: int, epochs: int, evaluate_every: int) -> None:
        """Raise ValueError unless a training has the validation accuracies that settings are chosen by."""
        if not validation_images:
            raise ValueError("tuning: settings are chosen by validation accuracy; set data.validation_images")
        for epoch in self.halve_after:
            if epoch >= epochs or epoch % evaluate_every:
                raise ValueError(
                    f"tuning.halve_after: {epoch}: an epoch before the last, train.epochs={epochs}, after"
                    f" which the network is evaluated, train.evaluate_every={evaluate_every}"
                )

    def of(self, scheme: str) -> dict[str, Range]:
        """The search space of a scheme by dotted field."""
        own = {f"schemes.{scheme}.{field}": values for field, values in self.schemes.get(scheme, {}).items()}
        return self.space | own

    def points(self, scheme: str, accuracies: Sequence[float | None]) -> list[Point]:
        """The points of a scheme that are known so far, `budget` in the end.

        `accuracies` are those of the first points, in their order: validation accuracy in [0, 1], a mean over seeds,
        and None for one that has not ended.
        """
        space = self.of(scheme)
        if not space:
            return [{}]  # nothing to tune: a single point
        return self._quasi_random(space) if self.searcher == "quasi_random" else self._optuna(space, accuracies)

    def _quasi_random(self, space: Mapping[str, Range]) -> list[Point]:
        from scipy.stats import qmc

        sobol = qmc.Sobol(len(space), rng=0)
        shares = sobol.random_base2((self.budget - 1).bit_length())[: self.budget]
        return [
            {field: values.at(float(share)) for (field, values), share in zip(space.items(), row, strict=True)}
            for row in shares
        ]

    def _optuna(self, space: Mapping[str, Range], accuracies: Sequence[float | None]) -> list[Point]:
        """Points come in batches of `together`, so that they do not depend on which trial ends first."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction="maximize")
        distributions = {field: _distribution(values) for field, values in space.items()}
        points: list[Point] = []
        while len(points) < self.budget:
            known = accuracies[len(points) : min(len(points) + self.together, self.budget)]
            batch = [study.ask(distributions) for _ in range(min(self.together, self.budget - len(points)))]
            points += [trial.params for trial in batch]
            if len(known) < len(batch) or None in known:
                break
            for trial, accuracy in zip(batch, known, strict=True):
                study.tell(trial, accuracy)
        return points


_TIMING = ("train.epochs", "train.schedule", "train.evaluate_every")


def best(points: Sequence[Point], accuracies: Sequence[float | None]) -> Point:
    """The point with the highest validation accuracy, the first of equals. Raises ValueError when one is missing."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) < len(points):
        raise ValueError(f"{len(points) - len(known)} of {len(points)} points have not been tried")
    return points[known.index(max(known))]


def _distribution(values: Range) -> Any:
    from optuna import distributions

    if values.choice is not None:
        return distributions.CategoricalDistribution(values.choice)
    if values.integer is not None:
        return distributions.IntDistribution(*values.integer)
    low, high = values.log_uniform or values.uniform or (0.0, 1.0)
    return distributions.FloatDistribution(low, high, log=values.log_uniform is not None)
