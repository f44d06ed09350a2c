"""Verdicts of experiments with looks (`seeds: {looks, margin}`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from repr_ray.results.blocks import GROUP
from repr_ray.results.decide import LEVEL, decide
from repr_ray.results.sequential import bounds
from repr_ray.results.store import UNFINISHED
from repr_ray.study.config import Looks


def judge(
    rows: Sequence[dict[str, Any]], pairs: pd.DataFrame, trials: pd.DataFrame, baseline: str, design: Looks
) -> None:
    """Add intervals, p values and verdicts over all looks and schemes to the rows of a comparison.

    `rows` are those with a baseline, `pairs` has the `difference` of each scheme and seed. A seed has ended for a
    scheme when its trial and the baseline's are done or failed.
    """
    if not rows:
        return
    count = max(design.looks)
    differences = np.full((len(rows), count), np.nan)
    ended = np.zeros(len(rows), dtype=np.int64)
    over = trials[~trials["status"].isin(UNFINISHED)]
    seeds_over = {key: set(seeds) for key, seeds in over.groupby(GROUP, sort=False)["seed"]}
    found = dict(iter(pairs.groupby(GROUP, sort=False)))
    for place, row in enumerate(rows):
        key = tuple(row[name] for name in GROUP)
        both = seeds_over.get(key, set()) & seeds_over.get((*key[:3], baseline), set())
        ended[place] = next((seed for seed in range(count) if seed not in both), count)
        if key in found:
            within = found[key][found[key]["seed"].between(0, count - 1)]
            differences[place, within["seed"].to_numpy(dtype=int)] = within["difference"]
    margin = None if design.margin is None else design.margin / 100
    result = decide(differences, bounds(design.looks), margin, ended)
    for place, row in enumerate(rows):
        row |= {"looked": int(result.seeds[place]), "p_exact": False, "p_smallest": 0.0, "p_holm_smallest": 0.0}
        row |= {"verdict": result.verdicts[place], "margin": np.nan if margin is None else margin}
        row |= {f"difference_{end}": float(getattr(result, end)[place]) for end in ("low", "high")}
        if seeds := result.seeds[place]:
            seen = differences[place, :seeds]
            sd = float(np.nanstd(seen, ddof=1)) if result.n[place] > 1 else np.nan
            row |= {"pairs": int(result.n[place]), "difference_mean": float(result.mean[place]), "difference_sd": sd}
        row |= {name: float(getattr(result, name)[place]) for name in ("p", "p_holm", "p_equal_holm")}


def note_on(design: Looks) -> str:
    """The looks and their bounds, in a sentence."""
    level = bounds(design.looks).nominal(LEVEL)
    margin = "" if design.margin is None else f", margin {design.margin:g} points"
    return (
        f"seeds until decided: looks after {', '.join(map(str, design.looks))} seeds{margin}; the t-test of every"
        f" look has level {level:.4f}, with which p and the intervals hold at all looks together"
    )
