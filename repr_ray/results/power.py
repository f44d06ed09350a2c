"""The number of seeds that a verdict would need at the measured spread."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from repr_ray.results.decide import FEWEST, FEWEST_FOR_INTERVAL, LEVEL
from repr_ray.results.sequential import Array, bounds
from repr_ray.study.config import Looks

POWER = 0.8  # the share of studies, of the number of seeds given, that would reach the verdict
MOST = 1000  # seeds beyond which no number is given


def seeds_needed(row: Mapping[str, Any], still_open: int, design: Looks | None) -> dict[str, float]:
    """The total number of seeds that a verdict on a row needs; NaN if it has one or no number is enough."""
    found = {"seeds_to_differ": np.nan, "seeds_to_equal": np.nan}
    mean, sd = row["difference_mean"], row["difference_sd"]
    if row["verdict"] != "cannot tell" or np.isnan(sd) or row["pairs"] < FEWEST_FOR_INTERVAL:
        return found
    level = LEVEL / max(still_open, 1)
    level = bounds(design.looks).nominal(level) if design else level
    found["seeds_to_differ"] = seeds_to_differ(mean, sd, level) or np.nan
    if not np.isnan(row["margin"]):
        found["seeds_to_equal"] = seeds_to_equal(row["margin"], sd, level) or np.nan
    fewest = max(row["pairs"] + 1, 0 if design else FEWEST)  # the present seeds are too few
    return {name: np.maximum(seeds, fewest) for name, seeds in found.items()}


def seeds_to_differ(difference: float, sd: float, level: float, power: float = POWER) -> int | None:
    """Seeds with which a paired t-test at `level` finds a true `difference` of that spread; None above `MOST`."""
    if difference == 0:
        return None
    return _least(lambda n: power_to_differ(difference, sd, level, n) >= power)


def seeds_to_equal(
    margin: float, sd: float, level: float, difference: float = 0.0, power: float = POWER
) -> int | None:
    """Seeds with which the interval of a true `difference` lies within ±`margin`; None above `MOST`."""
    if abs(difference) >= margin:
        return None
    return _least(lambda n: power_to_equal(margin, sd, level, n, difference) >= power)


def power_to_differ(difference: float, sd: float, level: float, n: int) -> float:
    """The probability that the t-interval to 1 - `level` of `n` paired differences leaves out zero."""
    if sd == 0:
        return float(difference != 0)
    half, centre = _half_widths(level, n), abs(difference) * np.sqrt(n) / sd
    return float((special.ndtr(centre - half) + special.ndtr(-centre - half)).mean())


def power_to_equal(margin: float, sd: float, level: float, n: int, difference: float = 0.0) -> float:
    """The probability that the t-interval to 1 - `level` of `n` paired differences lies within ±`margin`."""
    if sd == 0:
        return float(abs(difference) < margin)
    room, centre = margin * np.sqrt(n) / sd - _half_widths(level, n), difference * np.sqrt(n) / sd
    return float(np.where(room > 0, special.ndtr(room - centre) - special.ndtr(-room - centre), 0).mean())


def _half_widths(level: float, n: int) -> Array:
    """Half-widths of t-intervals at even steps of their probability, in true standard errors of the mean.

    The mean of a normal sample does not depend on its spread: what the mean does with a half-width given is averaged
    over these. (Distribution functions of the noncentral t fail for large n.)
    """
    spread = np.sqrt(special.chdtri(n - 1, 1 - (np.arange(2000) + 0.5) / 2000) / (n - 1))
    return np.asarray(special.stdtrit(n - 1, 1 - level / 2) * spread)


def _least(enough: Callable[[int], bool]) -> int | None:
    """The least number from 2 that is enough, of numbers of which every larger one is as well."""
    if not enough(MOST):
        return None
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
