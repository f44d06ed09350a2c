"""Seeds that a verdict takes, against published tables and simulation."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from repr_ray.results.power import MOST, power_to_differ, power_to_equal, seeds_to_differ, seeds_to_equal


@pytest.mark.parametrize(
    ("effect", "power", "seeds"),
    [(0.5, 0.8, 34), (0.8, 0.8, 15), (1.0, 0.8, 10), (0.2, 0.95, 327)],  # G*Power 3.1, paired t-test, two-sided
)
def test_seeds_to_find_a_difference(effect: float, power: float, seeds: int) -> None:
    assert seeds_to_differ(effect, 1.0, 0.05, power) == seeds
    assert seeds_to_differ(-3 * effect, 3.0, 0.05, power) == seeds


@pytest.mark.parametrize(("effect", "n", "level"), [(0.0, 6, 0.05), (0.3, 20, 0.05), (1.5, 6, 0.01), (0.9, 3, 0.05)])
def test_power_to_find_a_difference_is_that_of_statsmodels(effect: float, n: int, level: float) -> None:
    assert power_to_differ(effect, 1, level, n) == pytest.approx(TTestPower().power(effect, n, level), abs=1e-3)


@pytest.mark.parametrize("difference", [0.0, 0.3])
@pytest.mark.parametrize("n", [6, 15])
def test_power_to_find_equality_by_simulation(n: int, difference: float) -> None:
    values = np.random.default_rng(n).normal(difference, 1, (40_000, n))
    low, high = stats.ttest_1samp(values, 0, axis=-1).confidence_interval(0.95)
    assert power_to_equal(1.2, 1, 0.05, n, difference) == pytest.approx(
        ((low > -1.2) & (high < 1.2)).mean(), abs=0.008
    )


def test_seeds_to_find_equality() -> None:
    n = seeds_to_equal(0.5, 0.6, 0.05)
    assert n is not None
    assert power_to_equal(0.5, 0.6, 0.05, n) >= 0.8 > power_to_equal(0.5, 0.6, 0.05, n - 1)
    assert (seeds_to_equal(0.5, 0.6, 0.01) or 0) > n
    assert (seeds_to_equal(0.5, 0.6, 0.05, difference=0.2) or 0) > n


def test_what_no_number_of_seeds_decides() -> None:
    assert seeds_to_differ(0.0, 1.0, 0.05) is None
    assert seeds_to_differ(0.001, 1.0, 0.05) is None  # more than are offered
    assert seeds_to_equal(0.5, 1.0, 0.05, difference=0.5) is None
    assert seeds_to_equal(0.001, 1.0, 0.05) is None
    assert MOST == 1000


def test_without_spread_two_seeds_do() -> None:
    assert seeds_to_differ(0.1, 0.0, 0.05) == 2
    assert seeds_to_equal(0.1, 0.0, 0.05) == 2
