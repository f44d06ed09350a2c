"""The points that tuning tried and chose, from trials whose seeds the comparison never uses, and the gain from it.

The tuning curve of Dodge et al. (EMNLP 2019) is the expected best validation accuracy of a budget of k trials; its
bands are those of Lourie et al. (NAACL 2024, arXiv 2311.09480), computed by their library opda. They hold for all
budgets together, for trials at independent random points. Quasi-random points cover a search space more evenly than
random points, so that a curve from them is slightly conservative.
"""

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd

from repr_ray.records import STOPPED_EARLY
from repr_ray.results.decide import LEVEL
from repr_ray.results.sequential import Array
from repr_ray.results.store import UNFINISHED, Tables
from repr_ray.results.tables.sheet import NONE, Column, Row, Sheet, Shown, number, text
from repr_ray.results.words import in_percent

TUNED_LEGEND = (
    "Every scheme was tried at as many points of its search space, in full-length trials with seeds of their own; the"
    " point with the highest validation accuracy in the last epoch is chosen. Test images were not used. A trial that"
    " diverged counts as 0. Near best: share of points within one point of the best."
)
STOPPED_LEGEND = (
    "Stopped: points of the worse half of their scheme's when all were in the same phase of a cycle. Their accuracy"
    " is of that epoch, so there is no spread over all points and no tuning curve."
)
CELL = ["experiment", "variant", "scheme"]
NEAR = 0.01  # trials whose accuracy is within one point of the best are near it


def tried(tables: Tables) -> pd.DataFrame:
    """A row for every point of every scheme: its `tuned` values (JSON) and `accuracy`, a mean over its seeds.

    A point is `chosen` if trials of the comparison have its values. Accuracies are fractions of validation images, 0
    for a trial that diverged, NaN while one has not ended, and those of the last epoch that was trained for a point
    that was `stopped` early. A point is `diverged`, `stopped` or `failed` if one of its trials is.
    """
    trials = tables.trials[tables.trials["stage"] == "tuning"]
    accuracy = trials["val_accuracy"].where(trials["status"].isin(("done", STOPPED_EARLY)))
    accuracy = accuracy.mask(trials["status"] == "diverged", 0.0)
    status = {"diverged": trials["status"] == "diverged", "stopped": trials["status"] == STOPPED_EARLY}
    status["failed"] = accuracy.isna() & ~trials["status"].isin(UNFINISHED)
    frame = trials[CELL].assign(tuned=trials["tuned"], accuracy=accuracy, **status)
    grouped = frame.groupby([*CELL, "tuned"], sort=False)
    accuracy_of = {"accuracy": ("accuracy", lambda a: a.mean(skipna=False))}
    found = grouped.agg(**accuracy_of, **{name: (name, "any") for name in status}).reset_index()
    compared = tables.trials[tables.trials["stage"] != "tuning"]
    used = set(compared[[*CELL, "tuned"]].itertuples(index=False, name=None))
    return found.assign(chosen=[row in used for row in found[[*CELL, "tuned"]].itertuples(index=False, name=None)])


def accuracies(points: pd.DataFrame) -> dict[tuple[str, ...], Array]:
    """Validation accuracies of the points of each scheme whose tuning has ended, all at full length, by `CELL`."""
    groups = {tuple(map(str, key)): group for key, group in points.groupby(CELL, sort=False)}
    return {
        key: group["accuracy"].to_numpy(dtype=float)
        for key, group in groups.items()
        if group["accuracy"].notna().all() and not group["stopped"].any()
    }


def tuning_curve(accuracies: Array) -> pd.DataFrame:
    """Expected best validation accuracy by budget, with a simultaneous 95% band.

    `accuracies`, fractions of shape (trials,), are those of full-length trials at points of the search space; a trial
    that failed is NaN and counts as 0, the worst. A row of the result is a budget from 1 to the number of trials.
    """
    from opda.nonparametric import EmpiricalDistribution

    values = np.nan_to_num(np.asarray(accuracies, dtype=np.float64), nan=0.0)
    budgets = np.arange(1, len(values) + 1)
    with warnings.catch_warnings():  # accuracies are counts of images: equal ones are expected
        warnings.filterwarnings("ignore", "Duplicates detected", RuntimeWarning)
        low, point, high = EmpiricalDistribution.confidence_bands(
            values, 1 - LEVEL, a=0.0, b=1.0, method="ld_equal_tailed", generator=np.random.default_rng(0), n_jobs=1
        )
    # The lower band of the distribution function is that of the larger accuracies.
    curves = {"mean": point, "low": high, "high": low}
    return pd.DataFrame(
        {"budget": budgets} | {name: curve.average_tuning_curve(budgets) for name, curve in curves.items()}
    )


def sensitivity(accuracies: Array) -> dict[str, float]:
    """The sensitivity of a scheme to its settings, from trials over its search space; see `tuning_curve`.

    `best`, `median` and `worst` validation accuracy, and the share of trials within a point of the best, which is
    large for a scheme that needs no tuning.
    """
    values = np.nan_to_num(np.asarray(accuracies, dtype=np.float64), nan=0.0)
    return {
        "best": float(values.max()),
        "median": float(np.median(values)),
        "worst": float(values.min()),
        "near_best": float(((values.max() - values).round(12) <= NEAR).mean()),
    }


def tuned_sheet(points: pd.DataFrame) -> Sheet:
    """The chosen settings of every scheme, and its sensitivity to them."""
    rows = [_row(key, group) for key, group in points.groupby(CELL, sort=False)]
    stopped = any(row["stopped"] for row in rows)
    legend = [TUNED_LEGEND, *([STOPPED_LEGEND] if stopped else [])]
    return Sheet.of([*_COLUMNS, *([_STOPPED] if stopped else [])], rows, footnotes=legend if rows else [])


def _row(key: Any, group: pd.DataFrame) -> Row:
    """The figures of the points of one scheme; after early stops there is no spread over all points."""
    missing = int((group["accuracy"].isna() & ~group["failed"]).sum())
    counts = {"failed": int(group["failed"].sum()), "not tried yet": missing}
    unknown = ", ".join(f"{count} of {len(group)} points {what}" for what, count in counts.items() if count)
    row = {"name": " ".join(str(part) for part in key[1:] if part), "points": len(group), "chosen": unknown or NONE}
    row |= {"diverged": int(group["diverged"].sum()), "stopped": int(group["stopped"].sum())}
    row |= dict.fromkeys(("best", "median", "worst", "near_best"), np.nan)
    tried = group[~group["stopped"]].dropna(subset="accuracy")
    if not len(tried):
        return row
    found = sensitivity(tried["accuracy"].to_numpy(dtype=float))
    row |= {"best": found["best"]} if row["stopped"] else found
    best = tried[tried["chosen"]] if tried["chosen"].any() else tried  # the first of equals was chosen
    chosen = json.loads(best["tuned"].iloc[int(best["accuracy"].argmax())]).items()
    said = (f"{f.rpartition('.')[2]}={f'{value:.4g}' if isinstance(value, float) else value}" for f, value in chosen)
    return row | {"chosen": unknown or ", ".join(said) or "nothing to tune"}


_COLUMNS: list[Shown] = [
    (Column("Scheme", number=False), text("name")),
    (Column("Points"), number("points", str)),
    (Column("Chosen", number=False), text("chosen")),
    (Column("Val., %"), number("best", in_percent)),
    (Column("Median, %", 2), number("median", in_percent)),
    (Column("Worst, %", 3), number("worst", in_percent)),
    (Column("Near best", 1), number("near_best", "{:.0%}".format)),
    (Column("Diverged", 4), number("diverged", str)),
]
_STOPPED: Shown = (Column("Stopped", 1), number("stopped", str))
