"""The comparison in words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from repr_ray.results.decide import FEWEST, FEWEST_FOR_INTERVAL, LEVEL


def in_percent(fraction: float, signed: bool = False) -> str:
    """A fraction in percentage points with one decimal and a true minus sign.

    Of one that would be shown as 0.0, but is not zero, the first digit is shown: it may decide a verdict.
    """
    value = round(100 * fraction, 9) + 0.0  # no -0.0, also for the mean of differences that cancel
    kind = ".1f" if value == 0 or abs(value) >= 0.05 else ".1g"
    return f"{value:{'+' if signed else ''}{kind}}".replace("-", "\N{MINUS SIGN}")


def sentence(row: dict[str, Any], baseline: str, block: Sequence[str], seeds: Sequence[float]) -> str:
    """The verdict on a row of the comparison, with its evidence; `block` says where, `seeds` are its differences."""
    where = f" on {', '.join(block)}" if block else ""
    scheme, verdict = row["scheme"], row["verdict"]
    if not row["n"]:
        which = "that is done has accuracies" if row["done"] else "has finished yet"
        return f"No trial of {scheme}{where} {which} ({row['status']})."
    if pd.isna(row["pairs"]):
        return f"There is no {baseline} to compare {scheme} with{where}."
    unsure = f"Cannot tell yet whether {scheme} is better or worse than {baseline}{where}"
    if row["pairs"] < 2:
        return f"{unsure}: {'a single paired seed' if row['pairs'] else 'no paired seed'}."
    fallen = f" {row['collapsed']} of {row['n']} {scheme} trials collapsed." if row["collapsed"] else ""
    if row["pairs"] < FEWEST_FOR_INTERVAL:
        return f"{unsure}: {' and '.join(in_percent(value, True) for value in seeds)} points in two seeds.{fallen}"
    difference = in_percent(row["difference_mean"], True)
    if not pd.isna(row["looked"]) and not row["looked"]:
        return f"{unsure}: {difference} points in {row['pairs']} seeds, the first look is still to come."
    found = f"{difference} points ({_evidence(row)}).{fallen}"
    if verdict == "cannot tell" and not pd.isna(row["margin"]):
        what = "better or worse than, or practically equal to,"
        return f"Cannot tell yet whether {scheme} is {what} {baseline}{where}: {found}"
    if verdict == "cannot tell":
        return f"{unsure}: {found}"
    if verdict == "practically equal":
        margin = 100 * row["margin"]
        return f"{scheme} is practically equal to {baseline}{where}, within {margin:g} points: {found}"
    size = in_percent(abs(row["difference_mean"]))
    return f"{scheme} is {size} points {verdict} than {baseline}{where} ({_evidence(row)}).{fallen}"


def _evidence(row: dict[str, Any]) -> str:
    """Interval, number of seeds and p values in words."""
    looks = not pd.isna(row["looked"])
    over, seen = (" over all looks", f"look at {row['looked']} seeds") if looks else ("", f"n={row['pairs']}")
    low, high = in_percent(row["difference_low"], True), in_percent(row["difference_high"], True)
    said = f"95% interval{over} {low} to {high}, {seen}, p={row['p']:.2g}"
    if row["p_holm"] > row["p"]:
        said += f", {row['p_holm']:.2g} after Holm's correction{'' if looks else ' over all comparisons'}"
    if row["p_holm_smallest"] > LEVEL:
        said += f"; n is too small to reach {LEVEL}"
        if row["pairs"] >= FEWEST:
            said += " in the exact test, judged by the interval's t-test"
    return said


def seeds_text(needed: dict[str, float]) -> str:
    """The total number of seeds that a verdict would need; empty if none is needed or known."""
    differ, equal = needed["seeds_to_differ"], needed["seeds_to_equal"]
    said = [] if np.isnan(differ) else [f"{differ:.0f} for a difference of this size"]
    said += [] if np.isnan(equal) else [f"{equal:.0f} for practical equality, if there is none"]
    return f" Seeds that this would take: about {' or '.join(said)}." if said else ""
