"""The size of a difference: the probability that a run beats another, time to the baseline's accuracy, cost."""

from typing import Any

import numpy as np
import pandas as pd

from repr_ray.results.sequential import Array

RESAMPLES = 4000


def beats(ours: Array, theirs: Array) -> tuple[float, float, float]:
    """The probability that a run of ours beats a run of theirs, and the ends of its 95% bootstrap interval.

    Both have shape (seeds,), with the same seed at each place. Every run of ours is compared with each of theirs,
    ties count half (the Mann-Whitney statistic over the number of comparisons): a user's single run shares no seed.
    The bootstrap draws seeds, each with both of its runs, because these are not independent. Percentiles, from a
    fixed random seed; NaN for fewer than two seeds.
    """
    from scipy import stats

    def share(ours: Array, theirs: Array, axis: int = -1) -> Any:
        return (1 + np.sign(ours[..., :, None] - theirs[..., None, :]).mean(axis=(-2, -1))) / 2

    if len(ours) < 2:
        return (float(share(ours, theirs)) if len(ours) else np.nan, np.nan, np.nan)
    found = stats.bootstrap(
        (ours, theirs),
        share,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        rng=0,
    ).confidence_interval
    return float(share(ours, theirs)), float(found.low), float(found.high)


def beats_of_same_seed(ours: Array, theirs: Array) -> float:
    """The share of seeds whose run of ours beats theirs, ties half; NaN for no seed."""
    return float((1 + np.sign(ours - theirs).mean()) / 2) if len(ours) else np.nan


def reaching(epochs: pd.DataFrame, target: float) -> pd.DataFrame:
    """Epochs and seconds until trials first reach a test accuracy of `target`; NaN if they never do.

    `epochs` has columns trial, epoch, test_accuracy and seconds; a row of the result is a trial, by name.
    """
    # Categories would differ in the width of their codes where a study has more than 127 trials.
    ordered = epochs.astype({"trial": str}).sort_values(["trial", "epoch"], kind="stable")
    ordered = ordered.assign(seconds=ordered.groupby("trial")["seconds"].cumsum())
    high = ordered["test_accuracy"] >= target - 1e-12  # a mean of equal accuracies may be rounded up
    reached = ordered[high].groupby("trial").first()
    reached = reached.reindex(ordered["trial"].unique())
    return pd.DataFrame({"epochs": reached["epoch"] + 1, "seconds": reached["seconds"]}).rename_axis("trial")


def median(values: Array) -> float:
    """The median, with NaN as the longest time: NaN if half of the trials or more never reach the target."""
    middle = float(np.median(np.where(np.isnan(values), np.inf, values))) if len(values) else np.inf
    return middle if np.isfinite(middle) else np.nan


def device_hours(trials: pd.DataFrame) -> pd.Series:
    """Device hours of each trial: of GPUs if it had any, else of CPU threads, over all its workers.

    The hours of its teacher are included.
    """
    gpus = trials["gpus"].fillna(0).astype(float)
    devices = gpus.where(gpus > 0, trials["threads"].fillna(1).astype(float))
    seconds = trials["wall_seconds"].astype(float)
    if "teacher_seconds" in trials:
        seconds = seconds + trials["teacher_seconds"].fillna(0).astype(float)
    return seconds * trials["workers"].fillna(1).astype(float) * devices / 3600
