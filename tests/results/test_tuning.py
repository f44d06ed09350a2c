"""Tuning curves against exact expectations and by simulation; sensitivity by hand."""

import numpy as np
import pandas as pd
import pytest

from repr_ray.results.tuned import sensitivity, tuning_curve


def test_the_curve_is_the_mean_best_of_all_draws() -> None:
    curve = tuning_curve(np.array([0.2, 0.4, 0.9]))
    assert curve["budget"].tolist() == [1, 2, 3]
    best_of_two = (1 * 0.2 + 3 * 0.4 + 5 * 0.9) / 9  # of nine ordered draws with replacement
    assert curve["mean"].tolist()[:2] == pytest.approx([0.5, best_of_two])
    assert (curve["mean"].diff().dropna() > 0).all()
    assert (curve["low"] <= curve["mean"]).all() and (curve["mean"] <= curve["high"]).all()
    assert curve["low"].min() >= 0 and curve["high"].max() <= 1


def test_a_failed_trial_is_the_worst() -> None:
    failed, zero = tuning_curve(np.array([0.6, np.nan, 0.8])), tuning_curve(np.array([0.6, 0.0, 0.8]))
    pd.testing.assert_frame_equal(failed, zero)


def test_bands_hold_for_all_budgets_together() -> None:
    rng, budgets = np.random.default_rng(0), np.arange(1, 6)
    truth = budgets / (budgets + 1)  # the best of k uniform draws
    held = 0
    for _ in range(20):
        curve = tuning_curve(rng.random(5))
        held += bool(((curve["low"] <= truth) & (truth <= curve["high"])).all())
    assert held >= 18


def test_sensitivity() -> None:
    flat = sensitivity(np.array([0.70, 0.701, 0.699, 0.702]))
    steep = sensitivity(np.array([0.70, 0.40, np.nan, 0.10]))
    assert (flat["near_best"], steep["near_best"]) == (1.0, 0.25)
    assert (steep["best"], steep["worst"]) == (0.7, 0.0)
    assert steep["median"] == pytest.approx(0.25)
