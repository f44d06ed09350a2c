"""Trials: names, fingerprints, grids."""

from time import process_time
from typing import Any

import pytest
from support import TINY, tiny

from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial


def only(**changes: Any) -> Trial:
    """The tiny experiment's RePr trial."""
    return tiny(**changes)[1]


def test_names_are_readable() -> None:
    trial = only()
    assert trial.name == f"convnet-2x8-digits-repr-s0-{trial.fingerprint}"


def test_the_fingerprint_is_stable_across_versions() -> None:
    """A change would invalidate all existing results."""
    assert [trial.fingerprint for trial in tiny()] == ["c9d72bb4", "40e76018"]


@pytest.mark.parametrize(
    ("scheme", "fingerprint"),
    [
        ({"kind": "dsd", "exclude": []}, "93a46839"),
        ({"kind": "dsd"}, "50b80bee"),
        ({"kind": "later_layer_forgetting", "every": 1, "batch_norm": "reset"}, "69e0c49c"),
        ({"kind": "later_layer_forgetting", "every": 1}, "711e68ce"),
        (
            {"kind": "standard", "loss": {"kind": "srip", "decay": [[20, 1e-3], [50, 1e-4], [70, 1e-6], [120, 0.0]]}},
            "64c3e7e1",
        ),
        ({"kind": "standard", "loss": {"kind": "srip"}}, "9dd0d5c9"),
    ],
)
def test_a_default_that_changed_does_not_take_over_old_results(scheme: dict[str, Any], fingerprint: str) -> None:
    """Stated, the value that was the default has the fingerprint that it had when it was left out."""
    assert only(schemes={"repr": scheme}).fingerprint == fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"source": "digits", "partial": True}},
        {"resources": {"workers": 2, "cpus_per_worker": 4, "gpus_per_worker": 0}},
        {"name": "other"},
    ],
)
def test_where_a_trial_runs_is_not_in_its_fingerprint(changes: dict[str, Any]) -> None:
    assert only(**changes).fingerprint == only().fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"flip": True}},
        {"data": {"train_images": 255}},
        {"model": {"width": 9}},
        {"train": {"epochs": 9}},
        {"train": {"batch_size": 63}},
        {"train": {"optimizer": {"kind": "adam", "learning_rate": 0.05}}},
        {"train": {"precision": "fp32"}},
        {"schemes": {"repr": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.4}}},
        {"schemes": {"repr": {"kind": "standard"}}},
        {"seeds": [1]},
    ],
)
def test_what_changes_the_result_is(changes: dict[str, Any]) -> None:
    assert only(**changes).fingerprint != only().fingerprint


def test_a_grid_crosses_and_a_scheme_field_leaves_other_schemes_alone() -> None:
    trials = tiny(
        seeds=[0, 1],
        grid={"train.optimizer.learning_rate": [0.1, 0.01], "schemes.repr.prune_ratio": [0.2, 0.3, 0.4]},
    )
    assert len(trials) == 2 * 2 * (1 + 3)
    assert {t.scheme for t in trials} == {"standard", *(f"repr prune_ratio={r}" for r in (0.2, 0.3, 0.4))}
    assert {t.variant for t in trials} == {f"train.optimizer.learning_rate={r}" for r in (0.1, 0.01)}
    assert {t.train.optimizer.learning_rate for t in trials} == {0.1, 0.01}
    assert len({t.name for t in trials}) == len(trials)
    assert [t.seed for t in trials] == sorted(t.seed for t in trials)


ARMS = {"plain": {}, "regularised": {"data.flip": True, "train.schedule": {"kind": "cosine"}}}


def test_a_value_of_a_grid_may_set_several_fields() -> None:
    trials = tiny(grid={"training": ARMS, "data.label_noise": [0.0, 0.2], "schemes.repr.prune_ratio": [0.2, 0.3]})
    assert {t.variant for t in trials} == {
        f"training={arm} data.label_noise={noise}" for arm in ARMS for noise in (0.0, 0.2)
    }
    for trial in trials:
        assert trial.data.flip is (trial.train.schedule.kind == "cosine") is ("regularised" in trial.variant)
    names = {t.name for t in trials if t.variant == "training=plain data.label_noise=0.0"}
    assert names == {t.name for t in tiny(grid={"schemes.repr.prune_ratio": [0.2, 0.3]})}  # and their fingerprints


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"training": {"a": {"schemes.repr.s1": 1}}}, r"grid\.training\.a: schemes\.repr\.s1: only fields of data"),
        ({"training": {"a": {"train": {}}}}, r"grid\.training\.a: train: only fields of data"),
        ({"training": {"a": {"train.epocs": 1}}}, r"train\.epocs: unknown field; did you mean epochs"),
        ({"model.width": {"a": {}}}, r"grid\.model\.width: expected a list of values"),
        ({"training": ARMS, "data.flip": [True]}, r"grid: data\.flip varies twice"),
        ({"training": {}}, r"grid\.training"),
        ({"training": {"a b": {}}}, r"grid\.training: 'a b' cannot be a name in labels"),
        ({"my training": {"a": {}}}, r"grid\.my training: 'my training' cannot be a name in labels"),
        ({"training": {"a": 3}}, r"grid\.training=\{'a': 3\}: expected a mapping"),
        ({"training": ["a"]}, r"grid\.training: only fields of data, model, train and schemes can vary"),
        ({"training": {"a": {}, "b": {}}}, "have the same settings"),
    ],
)
def test_what_cannot_be_an_axis_of_a_grid_is_said(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(grid=grid)


TUNED = {"budget": 2, "space": {"train.optimizer.learning_rate": {"choice": [0.1, 0.2]}}, "seeds": [77]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "repr", "grid": {"schemes.repr.s1": [1, 2]}}, r"grid\.schemes\.repr\.s1: repr is the baseline"),
        (
            {"grid": {"data.validation_images": [0, 200]}, "tuning": TUNED},
            r"validation_images \(at data\.valid.*=0\)",
        ),
        (
            {"grid": {"train.epochs": [8, 20]}, "train": TINY["train"] | {"epochs": 20}}
            | {"tuning": TUNED | {"halve_after": [11]}},
            r"tuning\.halve_after: 11: an epoch before the last, train\.epochs=8",
        ),
        (
            {"tuning": TUNED | {"space": {"model.width": {"integer": [8, 9]}}}},
            r"space: model\.width: .*other|networks",
        ),
        ({"tuning": TUNED | {"space": {"data.label_noise": {"uniform": [0, 0.5]}}}}, r"data\.label_noise: .* images"),
    ],
)
def test_what_could_never_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before it is trained."""
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_names_are_safe_file_names() -> None:
    trial = tiny(schemes={"a|b/<script>": {"kind": "standard"}})[-1]
    assert not set(trial.name) & set('/|<>:"\\ ')


def test_schemes_with_dots_in_their_names() -> None:
    """Each has its own grid, also where one's name begins another's."""
    repr_ = {"kind": "repr", "s1": 2, "s2": 2}
    schemes = {"standard": {"kind": "standard"}, "v1": repr_, "v1.5": repr_ | {"s2": 1}}
    trials = tiny(
        schemes=schemes, grid={"schemes.v1.5.prune_ratio": [0.1, 0.2], "schemes.v1.ranking.order": ["worst"]}
    )
    assert [t.scheme for t in trials if t.scheme.startswith("v")] == [
        "v1 ranking.order=worst",
        "v1.5 prune_ratio=0.1",
        "v1.5 prune_ratio=0.2",
    ]
    assert [t.settings.prune_ratio for t in trials if t.scheme.startswith("v1.5")] == [0.1, 0.2]


def test_ten_thousand_trials_take_no_longer_each_than_a_thousand() -> None:
    def seconds_each(side: int) -> float:
        rates, widths = [rate / 100 for rate in range(1, side + 1)], list(range(1, side + 1))
        started = process_time()
        trials = tiny(grid={"train.optimizer.learning_rate": rates, "model.width": widths})
        assert len(trials) == 2 * side * side
        return (process_time() - started) / len(trials)

    assert seconds_each(70) < 3 * seconds_each(22)


def test_a_grid_is_counted_before_it_is_built() -> None:
    many = list(range(1, 1001))
    grid = {"model.width": many, "train.evaluate_every": many, "train.batch_size": many, "schemes.repr.s1": many}
    started = process_time()
    with pytest.raises(
        ConfigError, match=r"grid: 1,001,000,000,000 trials, more than most_trials=10,000; raise that"
    ):
        tiny(grid=grid)
    assert process_time() - started < 1
    assert len(tiny(seeds=many, most_trials=2000)) == 2000
    with pytest.raises(ConfigError, match="2,000 trials, more than most_trials=1,999"):
        tiny(seeds=many, most_trials=1999)
