"""The points that tuning tried and chose, from trials whose seeds the comparison never uses."""

import json

import numpy as np
import pandas as pd

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
CELL = ["experiment", "variant", "scheme"]


def tried(tables: Tables) -> pd.DataFrame:
    """A row for every point of every scheme: its `tuned` values (JSON) and `accuracy`, a mean over its seeds.

    Accuracies are fractions of validation images, 0 for a trial that diverged, NaN while one has not ended.
    """
    trials = tables.trials[tables.trials["stage"] == "tuning"]
    accuracy = trials["val_accuracy"].where(trials["status"] == "done")
    accuracy = accuracy.mask(trials["status"] == "diverged", 0.0)
    frame = trials[CELL].assign(tuned=trials["tuned"], accuracy=accuracy, failed=trials["status"] == "diverged")
    grouped = frame.groupby([*CELL, "tuned"], sort=False)
    found = grouped.agg(accuracy=("accuracy", lambda a: a.mean(skipna=False)), failed=("failed", "any"))
    return found.reset_index()


def accuracies(points_: pd.DataFrame) -> dict[tuple[str, ...], Array]:
    """Validation accuracies of the points of each scheme whose tuning has ended, by `CELL`."""
    groups = {tuple(map(str, key)): group["accuracy"] for key, group in points_.groupby(CELL, sort=False)}
    return {key: values.to_numpy(dtype=float) for key, values in groups.items() if values.notna().all()}


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
    rows = []
    for key, group in points_.groupby(CELL, sort=False):
        name = " ".join(str(part) for part in key[1:] if part)
        known = group["accuracy"].dropna().to_numpy(dtype=float)
        if not len(known):
            rows.append([Cell(name, name), Cell(str(len(group)), len(group)), *[Cell(NONE, "")] * (len(columns) - 2)])
            continue
        found = sensitivity(known)
        best = records(group.loc[[group["accuracy"].idxmax()]])[0]
        chosen = ", ".join(
            f"{field.rpartition('.')[2]}={value}" for field, value in json.loads(best["tuned"]).items()
        )
        missing = int(np.isnan(group["accuracy"]).sum())
        chosen = f"{missing} of {len(group)} points not tried yet" if missing else chosen or "nothing to tune"
        failed = int(group["failed"].sum())
        rows.append(
            [
                Cell(name, name),
                Cell(str(len(group)), len(group)),
                Cell(chosen, chosen),
                *(Cell(points(found[part]), found[part]) for part in ("best", "median", "worst")),
                Cell(f"{found['near_best']:.0%}", found["near_best"]),
                Cell(str(failed), failed),
            ]
        )
    return Sheet(columns, rows, [""] * len(rows), [TUNED_LEGEND] if rows else [])
