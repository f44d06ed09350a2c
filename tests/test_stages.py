"""Every scheme is tuned with the same budget, by validation accuracy, with seeds of its own; then compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TINY, results_of, rows, write_config

from repr_ray import launch, stages
from repr_ray.results import store, tuned
from repr_ray.runners import local
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import arms, plan
from repr_ray.study.reading import load, validate
from repr_ray.study.tuning import Range, Tuning, best
from repr_ray.training.folder import TrialFolder
from repr_ray.training.setup import set_up

RATE = "train.optimizer.learning_rate"
TUNING: dict[str, Any] = {
    "space": {RATE: {"log_uniform": [0.005, 0.5]}},
    "schemes": {"repr": {"prune_ratio": {"uniform": [0.1, 0.5]}}},
    "budget": 3,
    "seeds": [77],
}
SHORT = TINY["train"] | {"epochs": 5}
HALVED: dict[str, Any] = {"budget": 4, "halve_after": [3]}
LONG = SHORT | {"epochs": 8}


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
        ({"halve_after": [4, 2]}, "epochs that increase"),
        ({"halve_after": [8]}, "an epoch before the last, train.epochs=8"),
        ({"halve_after": [2], "searcher": "optuna"}, "full-length trials; set searcher"),
        ({"halve_after": [2], "space": {"train.epochs": {"choice": [8, 9]}}}, "differ in train.epochs"),
    ],
)
def test_bad_tuning_is_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TINY | {"tuning": TUNING | change}, "tiny")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"set data\.validation_images"):
        validate(TINY | {"tuning": TUNING, "data": {"name": "digits"}}, "tiny")


@pytest.mark.parametrize(
    ("epoch", "own", "said"),
    [
        (3, {}, "filters or weights of repr are dropped then"),
        (4, {}, "filters or weights of repr are dropped then"),
        (5, {"s1": {"choice": [2, 3]}}, "the points of repr are in different phases of a cycle"),
        (6, {"cycles": {"choice": [1, 2]}, "s1": {"choice": [1, 1]}, "s2": {"choice": [2, 2]}}, "different phases"),
    ],
)
def test_points_are_compared_in_the_same_phase_of_a_cycle_or_the_launch_is_refused(
    tmp_path: Path, epoch: int, own: dict[str, Any], said: str
) -> None:
    """S1 and S2 are 2 epochs long, so that filters are dropped in epochs 3 and 4."""
    tuning = TUNING | HALVED | {"halve_after": [epoch], "schemes": {"repr": own}}
    with pytest.raises(ConfigError, match=f"tuning.halve_after: {epoch}: .*{said}"):
        stages.called_for(validate(TINY | {"tuning": tuning, "train": LONG}, "tiny"), tmp_path)


@pytest.mark.parametrize("kind", ["repr", "dsd", "soft_filter_pruning", "shrink_perturb", "rifle", "standard"])
def test_the_place_in_a_cycle_is_that_of_the_running_scheme(kind: str) -> None:
    """Against the phase and cycle that the scheme itself reports for every epoch."""
    epochs = 12
    short = {"s1": 3, "s2": 2} if kind == "repr" else {}
    raw = TINY | {"train": SHORT | {"epochs": epochs}, "schemes": {kind: {"kind": kind, **short}}}
    [trial] = plan(validate(raw, "tiny"))
    scheme = set_up(trial, torch.device("cpu")).scheme
    before: tuple[str, int] | None = None
    passed = 0
    for epoch in range(epochs):
        scheme.start_epoch(epoch)
        here = scheme.phase, scheme.cycle if kind != "repr" else 0
        passed = passed + 1 if here == before else 0
        before = here
        assert trial.settings.place(epoch, epochs) == (scheme.phase, passed)
        scheme.end_epoch()


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


def test_the_worse_half_of_the_points_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every scheme stops the two points that are worse after epoch 3; the others go on to the bits of a whole run."""
    tuning = TUNING | HALVED | {"schemes": {}}
    schemes = {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 3, "s2": 2}}
    config = write_config(tmp_path, tuning=tuning, train=LONG, schemes=schemes)
    assert launched(config) == 0
    results, out = tmp_path / "r" / "tiny", " ".join(capsys.readouterr().out.split())
    assert "8 of 8 trials to run" in out and "the better half trains on: 4 more trials to run" in out
    trials = stages.called_for(load(config), results)
    (tmp_path / "whole").mkdir()
    whole = write_config(tmp_path / "whole", tuning=tuning | {"halve_after": []}, train=LONG, schemes=schemes)
    assert launched(whole) == 0
    for scheme in schemes:
        tried = [t for t in trials if t.stage == "tuning" and t.scheme == scheme]
        paths = {t.name: TrialFolder(results, t) for t in tried}
        after = {name: stages._validation(folder)[3] for name, folder in paths.items()}
        stopped = {t.name for t in tried if t.until == 3}
        assert len(stopped) == 2 and {name for name, folder in paths.items() if folder.done} == after.keys() - stopped
        assert max(after[name] for name in stopped) <= min(after[name] for name in after.keys() - stopped)
        for name, folder in paths.items():
            assert folder.failed == (name in stopped)
            there = rows(tmp_path / "whole" / "r" / "tiny", name, "epochs")
            assert rows(results, name, "epochs") == there[: 3 if name in stopped else 8]
        best_of = max(
            (t for t in tried if t.until is None), key=lambda t: stages._validation(paths[t.name])[t.train.epochs]
        )
        assert {t.tuned for t in trials if not t.stage and t.scheme == scheme} == {best_of.tuned}
    found = tuned.tried(store.gather([results], tmp_path))
    sheet = tuned.tuned_sheet(found)
    assert [row[-1].text for row in sheet.rows] == ["2", "2"] and "Stopped" in " ".join(sheet.footnotes)
    assert tuned.accuracies(found) == {} and store.failures(results) == []
    assert launched(config) == 0
    assert "trials are done already" in capsys.readouterr().out


@settings(max_examples=40, deadline=None)
@given(
    after=st.lists(st.none() | st.integers(0, 3), min_size=4, max_size=4),
    later=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_halves_are_decided_by_results_alone(
    tmp_path_factory: pytest.TempPathFactory, after: list[int | None], later: list[int]
) -> None:
    """Points that have not come to the epoch leave it undecided; the first of equals trains on."""
    experiment = validate(TINY | {"tuning": TUNING | HALVED | {"schemes": {}}, "train": LONG}, "tiny")
    experiment = experiment.model_copy(update={"schemes": {"standard": experiment.schemes["standard"]}})
    folder = tmp_path_factory.mktemp("r")
    for trial, early, late in zip(stages.called_for(experiment, folder), after, later, strict=True):
        path = TrialFolder(folder, trial).path
        path.mkdir(parents=True)
        known = [0, 0] if early is None else [0, 0, early, 0, 0, 0, 0, late]
        rows = [json.dumps({"epoch": epoch, "val_accuracy": value}) for epoch, value in enumerate(known)]
        (path / "epochs.jsonl").write_text("\n".join(rows))
    until = [trial.until for trial in stages.called_for(experiment, folder)]
    if None in after:
        assert until == [3] * 4
    else:
        order = sorted(range(4), key=lambda place: (-(after[place] or 0), place))
        assert until == [None if place in order[:2] else 3 for place in range(4)]


def test_a_point_that_lost_epochs_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line is not its last epoch."""
    experiment = validate(TINY | {"tuning": TUNING}, "tiny")
    for trial in stages.called_for(experiment, tmp_path):
        path = TrialFolder(tmp_path, trial).path
        path.mkdir(parents=True)
        (path / "epochs.jsonl").write_text('{"epoch": 0, "val_accuracy": 0.5}\n{"epoch": 1, "val_a')
    monkeypatch.setattr(TrialFolder, "done", True)
    with pytest.raises(ConfigError, match=r"done, but epochs\.jsonl has 1 of 8 epochs; delete the folder"):
        stages.called_for(experiment, tmp_path)


def test_equal_points_stop_only_together(tmp_path: Path) -> None:
    """Two values for four points: whichever is better trains on, and is chosen; one point alone has no half."""
    own = {"repr": {"prune_ratio": {"choice": [0.2, 0.4]}}}
    tuning = TUNING | HALVED | {"space": {}, "schemes": own}
    schemes = {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 3, "s2": 2}}
    config = write_config(tmp_path, tuning=tuning, train=LONG, schemes=schemes)
    assert launched(config) == 0
    trials = stages.called_for(load(config), tmp_path / "r" / "tiny")
    assert {t.until for t in trials if t.scheme == "standard"} == {None}
    assert any(not t.stage for t in trials) and all(
        stages.ended(TrialFolder(tmp_path / "r" / "tiny", t)) for t in trials
    )


def test_both_runners_and_a_dry_run_know_the_same_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points are the experiment's: no runner is asked."""
    monkeypatch.setattr(local, "run", pytest.fail)
    assert launched(write_config(tmp_path, tuning=TUNING), "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "tuning: 3 points for each of 2 schemes, 1 seeds a point, 6 trials at most" in out
    experiment = validate(TINY | {"tuning": TUNING}, "tiny")
    assert len(arms(experiment)) == 2 and len(stages.called_for(experiment, tmp_path / "none")) == 6


def test_tuning_is_not_changed_once_there_are_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, tuning=TUNING, train=SHORT)
    assert launched(config) == 0
    assert launched(config, "tuning.budget=4") == 2
    assert "tuning.budget is 3 there and 4 here" in capsys.readouterr().err


def test_optuna_may_choose_augmentation(tmp_path: Path) -> None:
    """Points that come later have settings of their images that were not known when the launch began."""
    tuning = TUNING | {"space": {"data.augment.mixup": {"uniform": [0.1, 1.0]}}, "schemes": {}}
    tuning |= {"searcher": "optuna", "budget": 3, "together": 1}
    schemes = {"standard": {"kind": "standard"}}
    assert launched(write_config(tmp_path, tuning=tuning, train=SHORT, schemes=schemes)) == 0


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
