"""Details beside the verdicts: how often a run wins, time to the baseline's accuracy, cost, and seeds needed."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from repr_ray.results.across import Across
from repr_ray.results.blocks import GROUP
from repr_ray.results.compare import Comparison, finished, records
from repr_ray.results.decide import FEWEST_FOR_INTERVAL
from repr_ray.results.effects import beats, beats_of_same_seed, device_hours, median, reaching
from repr_ray.results.power import MOST, POWER, seeds_needed
from repr_ray.results.store import Tables
from repr_ray.results.tables.comparison import difference
from repr_ray.results.tables.sheet import NONE, Column, Entry, Row, Sheet, Shown, heading, number, rounded_time, text
from repr_ray.results.words import in_percent

DETAILS_LEGEND = (
    "A run beats one of the baseline: probability over all pairs of runs, ties half, with the 95% bootstrap interval"
    " over seeds (too narrow for few seeds); same seed: share of seeds whose run beats the baseline's. To the"
    " baseline's accuracy: median epochs and time of training until test accuracy first reaches the baseline's mean"
    " in the last epoch; in brackets how many trials reach it. Cost: device hours of a run (GPUs, else CPU threads)"
    " over those of the baseline's run of the same seed."
)
POWER_LEGEND = (
    f"Seeds in all with which {POWER:.0%} of studies would reach the verdict, at the spread seen: better or worse,"
    " if the difference is as seen; practically equal, if there is none. Levels are corrected for looks, if there are"
    f" any, and for the schemes that are still open. >{MOST}: more than that, or never."
)
ACROSS_LEGEND = (
    "Each data set and network is one observation, its mean over seeds: seeds are no further data sets. Rank: mean"
    " rank, 1 is best. Difference: mean over data sets and networks with the 95% t-interval. p: against the baseline."
)


def details(comparison: Comparison, tables: Tables) -> pd.DataFrame:
    """One row per scheme with a pair; accuracies and shares are fractions."""
    done = finished(comparison.trials)
    done = done.assign(device_hours=device_hours(done))
    groups = dict(iter(done.groupby(GROUP, sort=False)))
    epochs = tables.read("epochs", ["epoch", "test_accuracy", "seconds"], done["trial"])
    curves = dict(iter(epochs.groupby(epochs["trial"].astype(str))))
    rows = [row for row in records(comparison.table) if not row["is_baseline"] and not pd.isna(row["pairs"])]
    found = []
    for row in rows:
        key = tuple(row[name] for name in GROUP)
        ours, theirs = groups.get(key), groups.get((*key[:3], comparison.baseline))
        if ours is None or theirs is None:
            continue
        both = ours.merge(theirs, on="seed", suffixes=("", "_base")).sort_values("seed")
        accuracies = both["test_accuracy"].to_numpy(), both["test_accuracy_base"].to_numpy()
        line: Row = dict(zip(GROUP, key, strict=True)) | {"n": len(both)}
        line |= dict(zip(("beats", "beats_low", "beats_high"), beats(*accuracies), strict=True))
        line["beats_same_seed"] = beats_of_same_seed(*accuracies)
        target = float(theirs["test_accuracy"].mean())
        for prefix, group in (("", ours), ("baseline_", theirs)):
            frames = [curves[name] for name in group["trial"] if name in curves]
            reached = reaching(pd.concat(frames), target) if frames else pd.DataFrame(columns=["epochs", "seconds"])
            line |= {f"{prefix}{name}_to_baseline": median(reached[name].to_numpy(dtype=float)) for name in reached}
            line |= {f"{prefix}reached": int(reached["epochs"].notna().sum()), f"{prefix}trials": len(reached)}
        line["device_hours"] = float(both["device_hours"].mean())
        line["cost"] = float(both["device_hours"].sum() / (both["device_hours_base"].sum() or np.nan))
        line |= seeds_needed(row, comparison.still_open, comparison.design)
        found.append(line)
    return pd.DataFrame(found)


def details_sheet(found: pd.DataFrame) -> Sheet:
    """Size of the effect, time and cost, one row per scheme."""
    rows = records(found)
    return Sheet.of(_DETAILS, rows, map(heading, rows), [DETAILS_LEGEND])


def power_sheet(comparison: Comparison) -> Sheet:
    """Seeds that a verdict would need, one row per scheme without one."""
    undecided = comparison.table[comparison.table["verdict"] == "cannot tell"]
    rows = records(undecided[undecided["pairs"] >= FEWEST_FOR_INTERVAL])
    for row in rows:
        needed = seeds_needed(row, comparison.still_open, comparison.design)
        row |= needed | {"more": max(0.0, np.nanmin([*needed.values(), np.inf]) - row["pairs"])}
    return Sheet.of(_POWER, rows, map(heading, rows), [POWER_LEGEND])


def across_sheet(found: Across) -> Sheet:
    """Schemes over data sets and networks, the best mean rank first."""
    tested = f"{found.test} over {len(found.accuracies)} data sets and networks: p={found.p:.2g}."
    if not np.isnan(found.critical):
        tested += f" Mean ranks differ at 5% from {found.critical:.2f} on (Nemenyi)."
    rows = [row | {"is_baseline": row["scheme"] == found.baseline} for row in records(found.table)]
    return Sheet.of(_ACROSS, rows, footnotes=[tested, ACROSS_LEGEND, *found.notes])


def _beats(row: Row) -> Entry:
    said, share = number("beats", "{:.0%}".format)(row)
    interval: str = "" if pd.isna(row["beats_low"]) else f" [{row['beats_low']:.0%}, {row['beats_high']:.0%}]"
    return Entry(said + interval, share)


def _epochs(row: Row) -> Entry:
    said, epochs = number("epochs_to_baseline", "{:.0f}".format)(row)
    return Entry(f"{said} ({row['reached']}/{row['trials']})", epochs)


def _baseline(row: Row) -> Entry:
    said, epochs = number("baseline_epochs_to_baseline", "{:.0f}".format)(row)
    return Entry(f"{said}, {rounded_time(row['baseline_seconds_to_baseline'])}", epochs)


def _ahead(row: Row) -> Entry:
    return Entry(NONE if row["is_baseline"] else f"{row['ahead']} of {row['of']}", row["ahead"])


def _seeds(name: str) -> Callable[[Row], Entry]:
    return lambda row: Entry(f"{row[name]:.0f}" if np.isfinite(row[name]) else f">{MOST}", row[name])


def _seeds_to_equal(row: Row) -> Entry:
    return Entry(NONE, np.nan) if pd.isna(row["margin"]) else _seeds("seeds_to_equal")(row)


_DETAILS: list[Shown] = [
    (Column("Scheme", number=False), text("scheme")),
    (Column("n"), number("n", str)),
    (Column("Beats a baseline run [95%]"), _beats),
    (Column("Same seed", 2), number("beats_same_seed", "{:.0%}".format)),
    (Column("Epochs to baseline's accuracy"), _epochs),
    (Column("Time to it"), number("seconds_to_baseline", rounded_time)),
    (Column("Baseline itself", 3), _baseline),
    (Column("Device hours", 4), number("device_hours", "{:.3g}".format)),
    (Column("Cost"), number("cost", "{:.2f}".format)),
]
_POWER: list[Shown] = [
    (Column("Scheme", number=False), text("scheme")),
    (Column("Pairs"), number("pairs", str)),
    (Column("Difference"), number("difference_mean", partial(in_percent, signed=True))),
    (Column("sd"), number("difference_sd", lambda sd: f"{100 * sd:.2f}")),
    (Column("Seeds to differ"), _seeds("seeds_to_differ")),
    (Column("Seeds to be practically equal"), _seeds_to_equal),
    (Column("More seeds"), _seeds("more")),
]
_ACROSS: list[Shown] = [
    (Column("Scheme", number=False), text("scheme")),
    (Column("Mean rank"), number("rank", "{:.2f}".format)),
    (Column("Difference [95%]"), difference),
    (Column("Ahead of the baseline"), _ahead),
    (Column("p"), number("p_baseline", "{:.2g}".format)),
]
