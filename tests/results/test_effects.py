"""Odds, time to the baseline's accuracy and cost, against counts by hand and by simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repr_ray.results.effects import beats, beats_of_same_seed, device_hours, median, reaching


def test_every_run_meets_every_run() -> None:
    ours, theirs = np.array([0.3, 0.5, 0.7]), np.array([0.2, 0.5, 0.6])
    # 0.3 wins once; 0.5 wins once and draws once; 0.7 wins three times
    assert beats(ours, theirs)[0] == pytest.approx(5.5 / 9)
    assert beats_of_same_seed(ours, theirs) == pytest.approx(2.5 / 3)
    u = stats.mannwhitneyu(ours, theirs).statistic
    assert beats(ours, theirs)[0] == pytest.approx(u / 9)


def test_the_baseline_against_itself_is_even() -> None:
    same = np.array([0.3, 0.5, 0.7])
    assert beats(same, same) == pytest.approx((0.5, 0.5, 0.5))
    assert beats_of_same_seed(same, same) == 0.5


def test_the_bootstrap_keeps_the_runs_of_a_seed_together() -> None:
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 5, 12)  # of the seed, shared
    ours, theirs = luck + 1 + rng.normal(0, 0.1, 12), luck
    assert beats_of_same_seed(ours, theirs) == 1
    share, low, high = beats(ours, theirs)
    assert 0.4 < low < share < high < 0.8
    assert beats(ours, theirs) == (share, low, high)  # a fixed random seed


@pytest.mark.parametrize(("n", "least"), [(10, 0.88)])
def test_coverage_of_the_bootstrap_interval(n: int, least: float) -> None:
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(0.7 / np.sqrt(2))
    found = [beats(rng.normal(0.7, 1, n), rng.normal(0, 1, n)) for _ in range(200)]
    assert np.mean([low <= truth <= high for _, low, high in found]) > least


def test_of_no_seed_and_of_one() -> None:
    assert np.isnan(beats(np.array([]), np.array([]))).all()
    share, low, high = beats(np.array([0.7]), np.array([0.6]))
    assert share == 1 and np.isnan([low, high]).all()


def test_epochs_and_seconds_until_an_accuracy_is_reached() -> None:
    epochs = pd.DataFrame(
        {
            "trial": ["b", "b", "b", "a", "a", "a", "c", "c"],
            "epoch": [0, 1, 2, 2, 0, 1, 0, 1],
            "test_accuracy": [0.5, 0.7, 0.6, 0.9, np.nan, 0.6, 0.2, 0.3],
            "seconds": [5.0, 5.0, 5.0, 2.0, 2.0, 2.0, 9.0, 9.0],
        }
    )
    found = reaching(epochs, 0.7)
    assert found.loc["b"].tolist() == [2, 10]
    assert found.loc["a"].tolist() == [3, 6]
    assert found.loc["c"].isna().all()
    assert median(found["epochs"].to_numpy()) == 3
    assert np.isnan(median(np.array([3.0, np.nan])))
    assert np.isnan(median(np.array([])))


def test_device_hours_count_workers_and_shares_of_gpus() -> None:
    trials = pd.DataFrame(
        {
            "wall_seconds": [3600.0, 3600.0, 1800.0, np.nan],
            "workers": [1, 2, 1, 1],
            "threads": [4, 4, 2, 2],
            "gpus": [0.0, 1.0, 0.25, None],
        }
    )
    assert device_hours(trials).tolist()[:3] == [4, 2, 0.125]
    assert np.isnan(device_hours(trials).iloc[3])
