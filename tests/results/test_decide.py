"""Looks at a study: bounds beside published ones, error rates by simulation, and why they hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from repr_ray.results.decide import LEVEL, VERDICTS, Decisions, decide
from repr_ray.results.sequential import Array, bounds, holm

LOOKS = (6, 10, 15, 20)
STUDIES = 20_000


def studies(schemes: int, effect: float, seed: int = 1, count: int = STUDIES, seeds: int = 20) -> Array:
    """Differences of unit spread to a baseline that the schemes share."""
    rng = np.random.default_rng(seed)
    runs = rng.standard_normal((count, schemes + 1, seeds)) / np.sqrt(2)
    return runs[:, 1:] - runs[:, :1] + effect


def rate(decisions: Decisions, *verdicts: str) -> float:
    """The share of studies with one of the verdicts for some scheme."""
    found = np.isin(decisions.verdict, [VERDICTS.index(verdict) for verdict in verdicts])
    return float(found.any(axis=-1).mean())


@pytest.mark.parametrize(
    ("looks", "nominal"),
    [
        ((6, 10, 15, 20), 0.0175),  # by another simulation
        ((1000, 2000), 0.0294),  # Pocock 1977, table 1: statistics of known variance
        ((1000, 2000, 3000), 0.0221),
    ],
)
def test_nominal_levels_beside_known_ones(looks: tuple[int, ...], nominal: float) -> None:
    assert bounds(looks).nominal(0.05) == pytest.approx(nominal, abs=2.5e-4)


def test_a_single_look_is_the_plain_t_test() -> None:
    single = bounds((8,))
    for level in (0.05, 0.01):
        assert single.nominal(level) == pytest.approx(level, rel=0.02)
    differences = np.random.default_rng(0).normal(0.6, 1, (1, 8))
    found, test = decide(differences, single), stats.ttest_1samp(differences[0], 0)
    assert found.p[0] == pytest.approx(test.pvalue, rel=0.02)
    low, high = test.confidence_interval(0.95)
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), rel=0.01)


def test_p_over_all_looks_is_between_p_and_bonferronis() -> None:
    p = np.array([1e-12, 1e-7, 1e-4, 0.01, 0.3, 1, np.nan])
    overall = bounds(LOOKS).overall(p)
    assert np.isnan(overall[-1])
    assert (overall[:-1] >= p[:-1]).all() and (overall[:-1] <= np.minimum(1, 4 * p[:-1])).all()
    assert (np.diff(overall[:-1]) > 0).all()
    assert bounds(LOOKS).overall([bounds(LOOKS).nominal(0.05)])[0] == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("looks", [(), (1, 5), (6, 6), (10, 6)])
def test_looks_that_do_not_increase_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increasing numbers of seeds"):
        bounds(looks)


@pytest.mark.parametrize("schemes", [1, 2, 5])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_false_positives_of_20000_studies_without_a_difference(schemes: int, margin: float | None) -> None:
    found = decide(studies(schemes, 0.0), bounds(LOOKS), margin)
    assert 0.04 < rate(found, "better", "worse") <= 0.052


def test_other_looks_and_heavy_tails_keep_the_error_rate() -> None:
    assert rate(decide(studies(3, 0.0, seeds=9), bounds((3, 5, 9))), "better", "worse") <= 0.052
    rng = np.random.default_rng(2)
    collapsed = studies(3, 0.0) - 50 * (rng.random((STUDIES, 3, 20)) < 0.05)
    collapsed += 50 * (rng.random((STUDIES, 1, 20)) < 0.05)  # the baseline collapses as often
    assert rate(decide(collapsed, bounds(LOOKS)), "better", "worse") <= 0.052


def test_one_scheme_with_an_effect_leaves_the_error_rate_of_the_others() -> None:
    differences = studies(3, 0.0)
    differences[:, 0] += 2
    found = decide(differences, bounds(LOOKS), 0.3)
    others = found.verdict[:, 1:]
    assert (np.isin(others, [1, 2]).any(axis=-1)).mean() <= 0.052
    assert (found.verdict[:, 0] == 1).mean() > 0.999


@pytest.mark.parametrize(("schemes", "most"), [(1, 0.026), (3, 0.05)])
def test_practically_equal_where_the_effect_is_the_margin(schemes: int, most: float) -> None:
    found = decide(studies(schemes, 1.0), bounds(LOOKS), margin=1.0)
    assert 0.01 < rate(found, "practically equal") <= most


def test_power_at_one_standard_deviation() -> None:
    found = decide(studies(1, 1.0), bounds(LOOKS))
    assert rate(found, "better") == pytest.approx(0.97, abs=0.005)
    assert found.seeds.mean() == pytest.approx(11.3, abs=0.2)  # a fixed design takes 20
    none = decide(studies(1, 0.0), bounds(LOOKS), margin=1.0)
    assert rate(none, "practically equal") > 0.9


@pytest.mark.parametrize("effect", [0.0, 0.5, 1.0])
def test_intervals_hold_whenever_the_study_stops(effect: float) -> None:
    found = decide(studies(1, effect), bounds(LOOKS), margin=0.5)
    assert ((found.low <= effect) & (effect <= found.high)).mean() >= 0.948


def test_what_a_look_decides_all_data_would_have_decided() -> None:
    """The argument for the error rate: decisions are among those of one Holm test of the smallest p values."""
    differences = np.random.default_rng(3).normal([[0.0], [0.4], [0.8], [1.2]], 1, (3000, 4, 20))
    found = decide(differences, bounds(LOOKS), margin=0.4)
    least = np.minimum.reduce([bounds(LOOKS).overall(_t(differences[..., :look])) for look in LOOKS])
    decided = np.isin(found.verdict, [1, 2])
    assert decided.any() and (holm(least)[decided] <= LEVEL).all()


def _t(differences: Array) -> Array:
    return np.asarray(stats.ttest_1samp(differences, 0, axis=-1).pvalue)


def test_a_verdict_stands_whatever_seeds_follow() -> None:
    differences = np.random.default_rng(4).normal([[2.0], [0.0]], 0.5, (2, 20))
    early = decide(differences[:, :6], bounds(LOOKS))
    assert early.verdicts == ["better", "cannot tell"]
    differences[0, 6:] = -9
    late = decide(differences, bounds(LOOKS))
    assert (late.verdicts[0], late.seeds[0], late.low[0]) == ("better", 6, early.low[0])
    assert late.seeds[1] == 20


def test_a_look_waits_for_all_its_seeds() -> None:
    differences = np.full((2, 12), np.nan)
    differences[0], differences[1, :5] = 1 + 0.01 * np.arange(12), 1 + 0.01 * np.arange(5)
    found = decide(differences, bounds(LOOKS), ended=np.array([12, 5]))
    assert found.verdicts == ["better", "cannot tell"]
    assert found.seeds.tolist() == [6, 0]
    assert np.isnan([found.low[1], found.p[1], found.p_holm[1]]).all()
    assert found.p_holm[0] == pytest.approx(2 * found.p[0])  # the other scheme counts already


def test_a_seed_without_a_pair_is_left_out() -> None:
    differences = np.random.default_rng(5).normal(0.5, 1, (1, 6))
    differences[0, 2] = np.nan
    found = decide(differences, bounds(LOOKS))
    there = differences[0, [0, 1, 3, 4, 5]]
    assert (found.n[0], found.seeds[0]) == (5, 6)
    assert found.mean[0] == pytest.approx(there.mean())
    p = stats.ttest_1samp(there, 0).pvalue
    assert found.p[0] == pytest.approx(bounds(LOOKS).overall(p).item())
    none = decide(np.full((1, 6), np.nan), bounds(LOOKS), margin=1.0)
    assert (none.verdicts, none.n[0], none.seeds[0]) == (["cannot tell"], 0, 6)


@pytest.mark.parametrize("second", [0.03, 0.0301])
def test_two_pairs_of_a_look_decide_nothing(second: float) -> None:
    found = decide(np.array([[0.03, second, np.nan]]), bounds((3, 5)), margin=0.1)
    assert (found.verdicts, found.n[0], found.seeds[0]) == (["cannot tell"], 2, 3)
    assert np.isnan([found.low[0], found.high[0], found.p[0], found.p_equal[0]]).all()


@pytest.mark.parametrize(
    ("value", "margin", "verdict"),
    [
        (0.0, None, "cannot tell"),
        (0.0, 0.5, "practically equal"),
        (0.3, None, "better"),
        (0.3, 0.5, "practically equal"),
        (-0.6, 0.5, "worse"),
        (0.5, 0.5, "better"),
    ],
)
def test_differences_without_spread(value: float, margin: float | None, verdict: str) -> None:
    found = decide(np.full((1, 6), value), bounds(LOOKS), margin)
    assert found.verdicts == [verdict]
    assert (found.low[0], found.high[0]) == (value, value)


@given(
    st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=20, max_size=20),
    st.floats(0.01, 3),
)
@settings(max_examples=100, deadline=None)
def test_of_one_scheme_the_interval_and_the_verdict_say_the_same(values: list[float], margin: float) -> None:
    found = decide(np.array([values]), bounds(LOOKS), margin)
    low, high = found.low[0], found.high[0]
    verdict = found.verdicts[0]
    slack = 1e-6 * (1 + high - low)  # p and the interval are rounded apart
    if verdict == "practically equal":
        assert -margin - slack <= low and high <= margin + slack
    elif verdict == "better":
        assert low >= -slack
    elif verdict == "worse":
        assert high <= slack
    else:
        assert found.seeds[0] == 20
        assert low <= slack and high >= -slack
        assert low <= -margin + slack or high >= margin - slack


def test_holm_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(6).random((20, 6)) ** 3
    p[p > 0.7] = np.nan
    p[:, 1] = p[:, 0]
    expected = [multipletests(np.nan_to_num(row, nan=1.0), method="holm")[1] for row in p]
    assert holm(p) == pytest.approx(np.where(np.isnan(p), np.nan, expected), nan_ok=True)


def test_many_studies_at_once_are_decided_as_one_by_one() -> None:
    differences = studies(3, 0.5, count=50)
    together = decide(differences, bounds(LOOKS), 1.0)
    for place, study in enumerate(differences):
        alone = decide(study, bounds(LOOKS), 1.0)
        assert alone.verdict.tolist() == together.verdict[place].tolist()
        assert alone.p_equal_holm == pytest.approx(together.p_equal_holm[place])
