"""Details beside the verdicts: odds of a run, time to the baseline's accuracy, cost, and seeds for a verdict."""

import numpy as np
import pandas as pd

from repr_ray.results.across import Across
from repr_ray.results.compare import GROUP, Comparison, points, records
from repr_ray.results.effects import beats, beats_of_same_seed, device_hours, median, reaching
from repr_ray.results.power import MOST, POWER, seeds_needed
from repr_ray.results.store import Tables
from repr_ray.results.tables import NONE, Cell, Column, Row, Sheet, bounded, heading, rounded_time

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
    trials = comparison.trials
    done = trials[(trials["status"] == "done") & trials["test_accuracy"].notna()]
    done = done.assign(device_hours=device_hours(done))
    groups = dict(iter(done.groupby(GROUP, sort=False)))
    epochs = tables.read("epochs", ["epoch", "test_accuracy", "seconds"], done["trial"])
    curves = dict(iter(epochs.groupby(epochs["trial"].astype(str))))
    rows = [row for row in records(comparison.table) if not row["is_baseline"] and not pd.isna(row["pairs"])]
    still_open = sum(row["verdict"] == "cannot tell" for row in rows)
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
        line["beats_same_seed"] = beats_of_same_seed(*accuracies)[0]
        target = float(theirs["test_accuracy"].mean())
        for prefix, group in (("", ours), ("baseline_", theirs)):
            frames = [curves[name] for name in group["trial"] if name in curves]
            reached = reaching(pd.concat(frames), target) if frames else pd.DataFrame(columns=["epochs", "seconds"])
            line |= {f"{prefix}{name}_to_baseline": median(reached[name].to_numpy(dtype=float)) for name in reached}
            line |= {f"{prefix}reached": int(reached["epochs"].notna().sum()), f"{prefix}trials": len(reached)}
        line["device_hours"] = float(both["device_hours"].mean())
        line["cost"] = float(both["device_hours"].sum() / (both["device_hours_base"].sum() or np.nan))
        line |= seeds_needed(row, still_open, comparison.design)
        found.append(line)
    return pd.DataFrame(found)


def details_sheet(found: pd.DataFrame) -> Sheet:
    """Size of the effect, time and cost, one row per scheme."""
    columns = [
        Column("Scheme", number=False),
        Column("n"),
        Column("Beats a baseline run [95%]"),
        Column("Same seed", 2),
        Column("Epochs to baseline's accuracy"),
        Column("Time to it"),
        Column("Baseline itself", 3),
        Column("Device hours", 4),
        Column("Cost"),
    ]
    rows = []
    for row in records(found):
        said = f"{row['beats']:.0%}"
        if not pd.isna(row["beats_low"]):
            said += f" [{row['beats_low']:.0%}, {row['beats_high']:.0%}]"
        own = f"{_count(row['baseline_epochs_to_baseline'])}, {rounded_time(row['baseline_seconds_to_baseline'])}"
        reached = f" ({row['reached']}/{row['trials']})"
        rows.append(
            [
                Cell(row["scheme"], row["scheme"]),
                Cell(str(row["n"]), row["n"]),
                Cell(said, row["beats"]),
                Cell(f"{row['beats_same_seed']:.0%}", row["beats_same_seed"]),
                Cell(_count(row["epochs_to_baseline"]) + reached, row["epochs_to_baseline"]),
                Cell(rounded_time(row["seconds_to_baseline"]), row["seconds_to_baseline"]),
                Cell(own, row["baseline_epochs_to_baseline"]),
                Cell(_figure(row["device_hours"], "{:.3g}"), row["device_hours"]),
                Cell(_figure(row["cost"], "{:.2f}"), row["cost"]),
            ]
        )
    return Sheet(columns, rows, [heading(row) for row in records(found)], [DETAILS_LEGEND])


def power_sheet(comparison: Comparison) -> Sheet:
    """Seeds that a verdict would need, one row per scheme without one."""
    names = ("Scheme", "Pairs", "Difference", "sd", "Seeds to differ", "Seeds to be practically equal", "More seeds")
    rows, headings = [], []
    open_rows = [row for row in records(comparison.table) if row["verdict"] == "cannot tell" and row["pairs"] > 1]
    for row in open_rows:
        needed = seeds_needed(row, len(open_rows), comparison.design)
        least = np.nanmin([*needed.values(), np.inf])
        more = max(0.0, least - row["pairs"])
        equal = NONE if pd.isna(row["margin"]) else _seeds(needed["seeds_to_equal"])
        cells = [
            (row["scheme"], row["scheme"]),
            (str(row["pairs"]), row["pairs"]),
            (points(row["difference_mean"], True), row["difference_mean"]),
            (f"{100 * row['difference_sd']:.2f}", row["difference_sd"]),
            (_seeds(needed["seeds_to_differ"]), needed["seeds_to_differ"]),
            (equal, needed["seeds_to_equal"]),
            (_seeds(more if np.isfinite(more) else np.nan), more),
        ]
        rows.append([Cell(*cell) for cell in cells])
        headings.append(heading(row))
    return Sheet([Column(name, number=name != "Scheme") for name in names], rows, headings, [POWER_LEGEND])


def across_sheet(found: Across) -> Sheet:
    """Schemes over data sets and networks, the best mean rank first."""
    names = ("Scheme", "Mean rank", "Difference [95%]", "Ahead of the baseline", "p")
    rows = []
    for row in records(found.table):
        is_baseline = row["scheme"] == found.baseline
        difference = bounded(row["difference_mean"], row["difference_low"], row["difference_high"])
        rows.append(
            [
                Cell(row["scheme"], row["scheme"]),
                Cell(f"{row['rank']:.2f}", row["rank"]),
                Cell("baseline" if is_baseline else difference, row["difference_mean"]),
                Cell(NONE if is_baseline else f"{row['ahead']} of {row['of']}", row["ahead"]),
                Cell(_figure(row["p_baseline"], "{:.2g}"), row["p_baseline"]),
            ]
        )
    tested = f"{found.test} over {len(found.accuracies)} data sets and networks: p={found.p:.2g}."
    if not np.isnan(found.critical):
        tested += f" Mean ranks differ at 5% from {found.critical:.2f} on (Nemenyi)."
    columns = [Column(name, number=name != "Scheme") for name in names]
    return Sheet(columns, rows, [""] * len(rows), [tested, ACROSS_LEGEND, *found.notes])


def _count(value: float) -> str:
    return _figure(value, "{:.0f}")


def _figure(value: float, form: str) -> str:
    return NONE if pd.isna(value) else form.format(value)


def _seeds(value: float) -> str:
    return f">{MOST}" if pd.isna(value) else f"{value:.0f}"
