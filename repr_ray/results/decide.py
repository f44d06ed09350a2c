"""Verdicts on schemes, look by look: better, worse, practically equal, or cannot tell yet.

A scheme is tested after the numbers of seeds that the study named in advance, until there is a verdict:

- **better** or **worse**: the difference to the baseline is not zero;
- **practically equal**: the difference is within the margin, whether it is zero or not. It takes precedence
  over the other verdicts: differences within the margin do not matter.

Two kinds of error are each held to 5%, over all looks and all schemes together: that some scheme without a
difference is called better or worse, and that some scheme whose difference reaches the margin is called practically
equal. A single scheme is practically equal if its interval lies within the margin, and better or worse if it excludes
zero. Reasons:

1. Over looks. `Bounds.overall` makes the p value of a look a p value over all looks: under no difference the smallest
   of a scheme's over the looks is at most x with probability x.
2. Over schemes. Holm's correction of these smallest p values would be valid after the last look, however the schemes
   depend on each other (they share the baseline's trials). A look compares with Holm's correction p values that are
   no smaller: of an earlier look, of this one, or of the look at which a scheme stopped. Holm's correction rejects
   no less where p values are smaller, so whatever is decided at some look would be decided after the last one with
   all data: the error rate is that of a single Holm test, for any rule of stopping. (The general form is in Maurer
   and Bretz, Statistics in Biopharmaceutical Research 5, 2013.) The family is every scheme that was planned, also
   those without results yet.
3. Equality. |difference| >= margin is rejected at a look by two t-tests, one against each end (Schuirmann 1987), each
   two-sided as above, so that it agrees with the interval. Only one side of each can err: at the margin a scheme
   alone is called equal in 2.5% of studies.

The t-test takes differences to be normal. Where two schemes do not differ their paired differences are symmetric,
and symmetric heavy tails (a collapsed run) make it more conservative. Results are in `docs/statistics.md`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repr_ray.results.sequential import Array, Bounds, holm, two_sided

LEVEL = 0.05
FEWEST_FOR_INTERVAL = 3  # pairs below which no interval is computed
FEWEST = 6  # of a fixed list, pairs below which there is no verdict: no exact two-sided test reaches 0.05 with five
VERDICTS = ("cannot tell", "better", "worse", "practically equal")
_OPEN, _BETTER, _WORSE, _EQUAL = range(4)


@dataclass(frozen=True)
class Decisions:
    """The last look at each scheme; arrays of shape (..., schemes), in the unit of the differences.

    A scheme with a verdict is not looked at again. `seeds` is the number of seeds of its last look, 0 before the
    first; `n` is how many of them have a pair. The interval from `low` to `high` holds with 95% at all looks of the
    scheme together. `p` and `p_equal` hold over all looks, `p_holm` and `p_equal_holm` over all schemes as well.
    Figures are NaN before the first look; interval and p values also while fewer than three of a look's seeds have a
    pair.
    """

    verdict: NDArray[np.int64]  # place in VERDICTS
    seeds: NDArray[np.int64]
    n: NDArray[np.int64]
    mean: Array
    low: Array
    high: Array
    p: Array
    p_equal: Array
    p_holm: Array
    p_equal_holm: Array

    @property
    def verdicts(self) -> list[str]:
        """The verdicts in words, of one study."""
        return [VERDICTS[code] for code in self.verdict]


def decide(
    differences: Array, bounds: Bounds, margin: float | None = None, ended: NDArray[np.int64] | None = None
) -> Decisions:
    """Test the schemes of one study or of many at once, at every look that their seeds have reached.

    `differences` has shape (..., schemes, seeds): a scheme less the baseline, seeds in the order in which they were
    planned, NaN where there is no pair. `ended`, shape (..., schemes), says how many of the first seeds have ended
    for a scheme and its baseline, well or not; all by default. A look that not all of its seeds have reached is not
    taken. `margin` is in the unit of the differences; without one nothing is called practically equal.
    """
    from scipy import special

    shape = differences.shape[:-1]
    ended = np.full(shape, differences.shape[-1]) if ended is None else ended
    verdict, seeds, n = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    last = {name: np.full(shape, np.nan) for name in ("mean", "low", "high", "p", "p_equal")} | {"n": n}
    tail = 1 - bounds.nominal(LEVEL) / 2
    for look in bounds.looks:
        looked = (verdict == _OPEN) & (ended >= look)
        if not looked.any():
            continue
        now = _moments(differences[..., :look])
        quantile = special.stdtrit(np.maximum(now["n"] - 1, 1), tail)
        now["low"], now["high"] = (now["mean"] + side * quantile * now["error"] for side in (-1, 1))
        now["p"] = bounds.overall(two_sided(now["mean"], now["error"], now["n"]))
        if margin is not None:
            ends = [two_sided(now["mean"] - end, now["error"], now["n"]) for end in (-margin, margin)]
            now["p_equal"] = np.where(np.abs(now["mean"]) < margin, bounds.overall(np.maximum(*ends)), 1.0)
        for name in last.keys() & now.keys():
            last[name][looked] = now[name][looked]
        seeds[looked] = look
        sure, equal = holm(last["p"]) <= LEVEL, holm(last["p_equal"]) <= LEVEL
        verdict[looked & sure] = np.where(last["mean"] > 0, _BETTER, _WORSE)[looked & sure]
        verdict[looked & equal] = _EQUAL
    return Decisions(verdict, seeds, **last, p_holm=holm(last["p"]), p_equal_holm=holm(last["p_equal"]))


def _moments(values: Array) -> dict[str, Any]:
    """Number, mean and standard error along the last axis, NaN left out.

    The error of equal values is exactly 0, that of too few for an interval NaN.
    """
    there = ~np.isnan(values)
    n = there.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(axis=-1) / n
        deviations = np.where(there, values - mean[..., None], 0)
        error = np.sqrt((deviations**2).sum(axis=-1) / (n - 1) / n)
    equal = np.where(there, values, -np.inf).max(axis=-1) == np.where(there, values, np.inf).min(axis=-1)
    return {"n": n, "mean": mean, "error": np.where(n < FEWEST_FOR_INTERVAL, np.nan, np.where(equal, 0.0, error))}
