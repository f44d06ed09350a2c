"""The points that tuning tried and chose, from trials whose seeds the comparison never uses."""

import json

import numpy as np
import pandas as pd

from repr_ray.records import STOPPED_EARLY
from repr_ray.results.compare import points, records
from repr_ray.results.sequential import Array
from repr_ray.results.store import Tables
from repr_ray.results.tables import NONE, Cell, Column, Sheet
from repr_ray.results.tuning import sensitivity

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


def tried(tables: Tables) -> pd.DataFrame:
    """A row for every point of every scheme: its `tuned` values (JSON) and `accuracy`, a mean over its seeds.

    Accuracies are fractions of validation images, 0 for a trial that diverged, NaN while one has not ended, and those
    of the last epoch that was trained for a point that was `stopped` early.
    """
    trials = tables.trials[tables.trials["stage"] == "tuning"]
    accuracy = trials["val_accuracy"].where(trials["status"].isin(("done", STOPPED_EARLY)))
    accuracy = accuracy.mask(trials["status"] == "diverged", 0.0)
    status = {"failed": trials["status"] == "diverged", "stopped": trials["status"] == STOPPED_EARLY}
    frame = trials[CELL].assign(tuned=trials["tuned"], accuracy=accuracy, **status)
    grouped = frame.groupby([*CELL, "tuned"], sort=False)
    accuracy_of = {"accuracy": ("accuracy", lambda a: a.mean(skipna=False))}
    found = grouped.agg(**accuracy_of, **{name: (name, "any") for name in status})
    return found.reset_index()


def accuracies(points_: pd.DataFrame) -> dict[tuple[str, ...], Array]:
    """Validation accuracies of the points of each scheme whose tuning has ended, all at full length, by `CELL`."""
    groups = {tuple(map(str, key)): group for key, group in points_.groupby(CELL, sort=False)}
    return {
        key: group["accuracy"].to_numpy(dtype=float)
        for key, group in groups.items()
        if group["accuracy"].notna().all() and not group["stopped"].any()
    }


def tuned_sheet(points_: pd.DataFrame) -> Sheet:
    """The chosen settings of every scheme, and its sensitivity to them."""
    columns = [
        Column("Scheme", number=False),
        Column("Points"),
        Column("Chosen", number=False),
        Column("Val., %"),
        Column("Median, %", 2),
        Column("Worst, %", 3),
        Column("Near best", 1),
        Column("Diverged", 4),
    ]
    any_stopped = bool(points_["stopped"].any())
    if any_stopped:
        columns.append(Column("Stopped", 1))
    rows = []
    for key, group in points_.groupby(CELL, sort=False):
        name = " ".join(str(part) for part in key[1:] if part)
        whole = group[~group["stopped"]]
        known = whole["accuracy"].dropna().to_numpy(dtype=float)
        if not len(known):
            rows.append([Cell(name, name), Cell(str(len(group)), len(group)), *[Cell(NONE, "")] * (len(columns) - 2)])
            continue
        found = sensitivity(known)
        best = records(whole.loc[[whole["accuracy"].idxmax()]])[0]
        chosen = ", ".join(
            f"{field.rpartition('.')[2]}={f'{value:.4g}' if isinstance(value, float) else value}"
            for field, value in json.loads(best["tuned"]).items()
        )
        missing = int(np.isnan(group["accuracy"]).sum())
        chosen = f"{missing} of {len(group)} points not tried yet" if missing else chosen or "nothing to tune"
        failed, stopped = int(group["failed"].sum()), len(group) - len(whole)
        if stopped:
            found = {"best": found["best"]}
        rows.append(
            [
                Cell(name, name),
                Cell(str(len(group)), len(group)),
                Cell(chosen, chosen),
                *(
                    Cell(points(found[part]), found[part]) if part in found else Cell(NONE, "")
                    for part in ("best", "median", "worst")
                ),
                Cell(f"{found['near_best']:.0%}", found["near_best"]) if "near_best" in found else Cell(NONE, ""),
                Cell(str(failed), failed),
                *([Cell(str(stopped), stopped)] if any_stopped else []),
            ]
        )
    legend = [TUNED_LEGEND, *([STOPPED_LEGEND] if any_stopped else [])]
    return Sheet(columns, rows, [""] * len(rows), legend if rows else [])
