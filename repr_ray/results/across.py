"""Schemes over several data sets and networks.

Seeds are repetitions on one data set and one network: they give the uncertainty of a mean there, and no evidence for
other data. Each (data set, network) gives one number per scheme: the baseline's mean over its seeds, and for another
scheme that mean plus its mean paired difference, so that one with fewer seeds than the baseline is compared over its
own. The test is over these numbers: Wilcoxon's signed-rank test for one scheme beside the baseline, Friedman's test
with Nemenyi's critical difference for more (Demsar, JMLR 7, 2006). Variants of a data set and network, such as the
values of a grid, are not independent data sets: their means are averaged.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from repr_ray.results.sequential import Array
from repr_ray.storage.text import listed

PAIR = ["dataset", "model"]


@dataclass(frozen=True)
class Across:
    """Accuracies as fractions, one row per (data set, network) and one column per scheme, with their tests.

    `table` has one row per scheme, the best rank first: its mean rank (1 is best), its difference to the baseline as
    mean and 95% t-interval over the rows of `accuracies`, the number of these in which it is ahead, and `p_baseline`
    against the baseline alone (Nemenyi's test, or Wilcoxon's for a single scheme). `p` is that of the test over all
    schemes, `critical` Nemenyi's critical difference of mean ranks at 5%, NaN for two schemes.
    """

    baseline: str
    accuracies: pd.DataFrame
    table: pd.DataFrame
    test: str
    p: float
    critical: float
    notes: list[str]

    @property
    def differences(self) -> pd.DataFrame:
        """Differences to the baseline, shaped as `accuracies` without it."""
        others = self.accuracies.drop(columns=self.baseline)
        return others.sub(self.accuracies[self.baseline], axis=0)


def across(table: pd.DataFrame, baseline: str) -> Across | None:
    """The schemes of a comparison's table over its data sets and networks; None for fewer than two of these.

    Only schemes and rows without gaps are compared; `notes` says what is left out.
    """
    from scipy import stats

    notes: list[str] = []
    key, of_baseline = [*PAIR, "variant"], table["scheme"] == baseline
    base = table[of_baseline].set_index(key)["test_accuracy_mean"].dropna()
    others = table[~of_baseline].dropna(subset="difference_mean")
    wide = others.pivot_table("difference_mean", key, "scheme", aggfunc="first", sort=False, observed=True)
    wide = wide.reindex(base.index).add(base, axis=0)
    wide.insert(0, baseline, base)
    wide = _without_gaps(wide, baseline, notes)
    accuracies = wide.groupby(PAIR, sort=False).mean().round(12)  # equal means are equal
    n, schemes = accuracies.shape
    if n < 2 or schemes < 2:
        return None
    if len(wide) > n:
        notes.append(f"variants of a data set and network are averaged: {len(wide)} rows make {n}")
    ranks = accuracies.rank(axis=1, ascending=False).mean()
    differences = accuracies.sub(accuracies[baseline], axis=0).round(12)
    if schemes == 2:
        other = next(name for name in accuracies if name != baseline)
        test, critical, p = "Wilcoxon's signed-rank test", np.nan, _wilcoxon(differences[other].to_numpy())
        against = pd.Series({other: p})
    else:
        test, p = "Friedman's test", float(stats.friedmanchisquare(*accuracies.to_numpy().T).pvalue)
        error = np.sqrt(schemes * (schemes + 1) / (6 * n))
        critical = float(stats.studentized_range.ppf(0.95, schemes, np.inf) / np.sqrt(2) * error)
        distance = (ranks - ranks[baseline]).abs().drop(baseline)
        beyond = stats.studentized_range.sf(distance / error * np.sqrt(2), schemes, np.inf)
        against = pd.Series(np.maximum(beyond, 1e-12), index=distance.index)  # as exact as scipy's, never 0
    smallest = 2 / 2**n
    if schemes == 2 and smallest > 0.05:
        notes.append(f"{n} data sets and networks are too few: p cannot go below {smallest:.2g}")
    rows = pd.DataFrame(
        {
            "rank": ranks,
            "difference_mean": differences.mean(),
            "ahead": (differences > 0).sum(),
            "of": n,
            "p_baseline": against.reindex(ranks.index),
        }
    )
    half = stats.t.ppf(0.975, n - 1) * differences.sem()
    rows["difference_low"], rows["difference_high"] = rows["difference_mean"] - half, rows["difference_mean"] + half
    rows = rows.sort_values("rank", kind="stable").rename_axis("scheme").reset_index()
    return Across(baseline, accuracies, rows, test, float(np.nan_to_num(p, nan=1.0)), critical, notes)


def _wilcoxon(differences: Array) -> float:
    """Two-sided, exact up to 13 differences; zeros are split evenly, as Demsar does."""
    from scipy import stats

    if not differences.any():
        return 1.0
    method = stats.PermutationMethod(n_resamples=2**13, rng=np.random.default_rng(0))
    return float(stats.wilcoxon(differences, zero_method="zsplit", method=method).pvalue)


def _without_gaps(wide: pd.DataFrame, baseline: str, notes: list[str]) -> pd.DataFrame:
    """Remove the row or scheme with the largest share of gaps until none is left."""
    schemes_out, rows_out = [], []
    while (gaps := wide.isna()).to_numpy().any():
        rows, schemes = gaps.mean(axis=1), gaps.mean().drop(baseline)
        if schemes.max() >= rows.max():
            schemes_out.append(str(schemes.idxmax()))
            wide = wide.drop(columns=schemes.idxmax())
        else:
            place = int(rows.to_numpy().argmax())
            rows_out.append(" ".join(str(part) for part in wide.index[place] if part))
            wide = wide.drop(index=wide.index[place : place + 1])
    for names, lacking in ((schemes_out, "not run on all of them"), (rows_out, "not run with all schemes")):
        if names:
            notes.append(f"left out over data sets, since {lacking}: {listed(names, 6)}")
    return wide
