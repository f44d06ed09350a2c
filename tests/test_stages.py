"""Every scheme is tuned with the same budget, by validation accuracy, with seeds of its own; then compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import TINY, results_of, write_config

from repr_ray import launch, stages
from repr_ray.runners import local
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import cells
from repr_ray.study.reading import load, validate
from repr_ray.study.tuning import Range, Tuning, best
from repr_ray.training.folder import TrialFolder

RATE = "train.optimizer.learning_rate"
TUNING: dict[str, Any] = {
    "space": {RATE: {"log_uniform": [0.005, 0.5]}},
    "schemes": {"repr": {"prune_ratio": {"uniform": [0.1, 0.5]}}},
    "budget": 3,
    "seeds": [77],
}
SHORT = TINY["train"] | {"epochs": 5}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these trials; tests/results holds the report of a tuned experiment."""
    monkeypatch.setattr(launch, "_report", lambda *_: None)


def launched(config: Path, *overrides: str) -> int:
    """The exit status of a launch in this process."""
    return launch.main(
        ["--runner", "local", "--config", str(config), "--results", str(config.parent / "r"), *overrides]
    )


@given(
    share=st.floats(0, 1, exclude_max=True),
    values=st.sampled_from(
        [{"uniform": [-1, 2]}, {"log_uniform": [1e-4, 10]}, {"integer": [3, 9]}, {"choice": ["a", "b", 3]}]
    ),
)
def test_values_lie_in_their_range(share: float, values: dict[str, Any]) -> None:
    found, given_ = Range.model_validate(values).at(share), next(iter(values.values()))
    if "choice" in values:
        assert found in given_
    else:
        low, high = given_
        assert low - 1e-3 * abs(low) <= found <= high + 1e-3 * abs(high)
        assert isinstance(found, int if "integer" in values else float)


def test_quasi_random_points_are_spread_and_the_same_every_time() -> None:
    """Of 8 points each eighth of a log-uniform range has exactly one; a smaller budget takes the first of them."""
    tuning = Tuning.model_validate(TUNING | {"budget": 8})
    points = tuning.points("standard", [])
    rates = sorted(point[RATE] for point in points)
    for k, rate in enumerate(rates):
        assert 0.005 * 100 ** (k / 8) * 0.999 <= rate <= 0.005 * 100 ** ((k + 1) / 8) * 1.001
    assert points == tuning.points("standard", [0.5, None])
    assert Tuning.model_validate(TUNING).points("standard", []) == points[:3]
    assert all(set(p) == {RATE, "schemes.repr.prune_ratio"} for p in tuning.points("repr", []))


def test_optunas_points_depend_on_what_was_found_and_on_nothing_else() -> None:
    tuning = Tuning.model_validate(TUNING | {"budget": 7, "searcher": "optuna", "together": 3})
    first = tuning.points("repr", [])
    assert len(first) == 3 and tuning.points("repr", [0.5, None, 0.4]) == first
    second = tuning.points("repr", [0.5, 0.3, 0.4])
    assert second[:3] == first and len(second) == 6 and tuning.points("repr", [0.5, 0.3, 0.4]) == second
    assert len(tuning.points("repr", [0.5, 0.3, 0.4, 0.1, 0.2, 0.3])) == 7


def test_the_best_point_is_the_first_of_the_best() -> None:
    points = [{"a": 1}, {"a": 2}, {"a": 3}]
    assert best(points, [0.1, 0.7, 0.7]) == {"a": 2}
    with pytest.raises(ValueError, match="1 of 3 points"):
        best(points, [0.1, None, 0.7])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {RATE: {"log_uniform": [0, 1]}}}, "log_uniform: numbers above 0"),
        ({"space": {RATE: {"uniform": [1, 1]}}}, "the first number is the smaller"),
        ({"space": {RATE: {}}}, "one of uniform, log_uniform"),
        ({"space": {"schemes.repr.s1": {"integer": [1, 2]}}}, "fields of data, model and train"),
        ({"schemes": {"rper": {}}}, "no scheme 'rper'"),
        ({"seeds": [0]}, "0 is a seed of the comparison too"),
        ({"budget": 1}, "tuning.budget=1"),
        ({"serch": 1}, "tuning.serch: unknown field"),
    ],
)
def test_bad_tuning_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TINY | {"tuning": TUNING | change}, "tiny")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"set data\.validation_images"):
        validate(TINY | {"tuning": TUNING, "data": {"name": "digits"}}, "tiny")


def test_schemes_are_tuned_and_then_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: equal budgets, the point of the highest validation accuracy, fresh seeds, and nothing twice."""
    config = write_config(tmp_path, tuning=TUNING, seeds=[0, 1], train=SHORT)
    assert launched(config) == 0
    results, experiment = (
        tmp_path / "r" / "tiny",
        validate(TINY | {"tuning": TUNING, "seeds": [0, 1], "train": SHORT}, "tiny"),
    )
    trials = stages.called_for(experiment, results)
    tried, compared = ([t for t in trials if (t.stage == "tuning") is is_tuning] for is_tuning in (True, False))
    assert {(t.scheme, t.seed) for t in tried} == {("standard", 77), ("repr", 77)} and len(tried) == 6
    assert {(t.scheme, t.seed) for t in compared} == {(s, seed) for s in ("standard", "repr") for seed in (0, 1)}
    assert set(results_of(results)) == {t.name for t in trials}

    def accuracy(trial: Any) -> float:
        lines = (TrialFolder(results, trial).path / "epochs.jsonl").read_text().splitlines()
        return float(json.loads(lines[-1])["val_accuracy"])

    for scheme in ("standard", "repr"):
        chosen = max((t for t in tried if t.scheme == scheme), key=accuracy)
        assert {t.tuned for t in compared if t.scheme == scheme} == {chosen.tuned}
        assert all(
            t.train.optimizer.learning_rate == dict(chosen.tuned)[RATE] for t in compared if t.scheme == scheme
        )
    out = " ".join(capsys.readouterr().out.split())
    assert "6 of 6 trials to run" in out and "settings are chosen: 4 more trials to run" in out
    assert launched(config) == 0
    assert "all 10 trials are done already" in capsys.readouterr().out


def test_a_point_that_diverges_counts_as_worst(tmp_path: Path) -> None:
    """It is not run again, and a launch with it succeeds."""
    tuning = TUNING | {"space": {RATE: {"choice": [1e6, 0.05]}}, "schemes": {}, "budget": 4}
    config = write_config(tmp_path, tuning=tuning, train=SHORT)
    assert launched(config) == 0
    experiment = validate(TINY | {"tuning": tuning, "train": SHORT}, "tiny")
    compared = [t for t in stages.called_for(experiment, tmp_path / "r" / "tiny") if not t.stage]
    assert {t.train.optimizer.learning_rate for t in compared} == {0.05}


def test_both_runners_and_a_dry_run_know_the_same_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are the experiment's: no runner is asked."""
    monkeypatch.setattr(local, "run", pytest.fail)
    assert launched(write_config(tmp_path, tuning=TUNING), "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "tuning: 3 points for each of 2 schemes, 1 seeds a point, 6 trials at most" in out
    experiment = validate(TINY | {"tuning": TUNING}, "tiny")
    assert len(cells(experiment)) == 2 and len(stages.called_for(experiment, tmp_path / "none")) == 6


def test_tuning_is_not_changed_once_there_are_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, tuning=TUNING, train=SHORT)
    assert launched(config) == 0
    assert launched(config, "tuning.budget=4") == 2
    assert "tuning.budget is 3 there and 4 here" in capsys.readouterr().err


def test_the_report_shows_what_was_tried_and_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Chosen settings, the curve and its band; the trials that tried points are in no comparison."""
    from repr_ray.report import main

    config = write_config(tmp_path, tuning=TUNING, seeds=[0, 1, 2], train=SHORT)
    assert launched(config) == 0
    results = tmp_path / "r" / "tiny"
    assert main([str(results)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    chosen = next(t for t in stages.called_for(load(config), results) if not t.stage and t.scheme == "repr")
    for field, value in chosen.tuned:
        assert f"{field.rpartition('.')[2]}={value}" in out
    comparison = (results / "comparison.md").read_text()
    assert "Test images were not used" in comparison and "| repr | 3 |" in comparison
    assert (results / "plots" / "tuning.png").exists() and "tuning.png" not in out
    assert "Tuning" in (results / "report.html").read_text()
