"""Filters that are zero at the end though nothing dropped them: a note in the report, in every format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import make_trial

from repr_ray.report import report

Make = Callable[..., Path]


def with_zeros(trial: Path, zeros: dict[str, Any], epochs: slice) -> None:
    """The layers of some epochs of a trial with so many filters that are zero beside the dropped ones."""
    path = trial / "epochs.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[epochs]:
        for layer, values in line["layers"].items():
            values["zero"] = values["dropped"] + zeros.get(layer, 0)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_zero_filters_of_the_last_epoch_are_named(experiment: Make) -> None:
    results = experiment({"standard": [0.7, 0.71], "repr": [0.7, 0.72]})
    trials = {path.name.split("convnet-3x32-cifar10-")[1][:-9]: path for path in (results / "trials").iterdir()}
    with_zeros(trials["standard-s0"], {"features.0.conv": 3}, slice(0, -1))  # not in the last epoch
    with_zeros(trials["repr-s0"], {"features.0.conv": 3}, slice(None))
    with_zeros(trials["repr-s1"], {"features.0.conv": 2, "features.2.conv": 5}, slice(None))
    [note] = [note for note in report([results]).notes if "all zeros" in note]
    assert note.startswith("cifar10 convnet-3x32: repr: ")
    assert "5 of 8 in features.2.conv, 3 of 8 in features.0.conv (at most; in 2 of 2 trials)" in note
    for name in ("comparison.md", "report.html"):
        assert "5 of 8 in features.2.conv" in (results / name).read_text()


def test_only_trials_that_have_ended_are_counted(experiment: Make) -> None:
    """The last epoch of the others is still to come."""
    results = experiment({"standard": [0.7], "repr": [0.7]})
    running = make_trial(results, scheme="repr", seed=1, done=5)
    failed = make_trial(results, scheme="repr", seed=2, done=5, error="boom")
    for trial in (running, failed):
        with_zeros(trial, {"features.0.conv": 3}, slice(None))
    assert not [note for note in report([results], formats=()).notes if "all zeros" in note]
    [first] = results.glob("trials/*-repr-s0-*")
    with_zeros(first, {"features.0.conv": 3}, slice(None))
    [note] = [note for note in report([results], formats=()).notes if "all zeros" in note]
    assert "3 of 8 in features.0.conv (at most; in 1 of 1 trials)" in note


@pytest.mark.parametrize("zeros", [None, 0])
def test_dropped_filters_and_results_without_the_count_are_no_zero_filters(
    experiment: Make, zeros: int | None
) -> None:
    results = experiment({"standard": [0.7], "repr": [0.7]})
    if zeros is not None:
        for trial in (results / "trials").iterdir():
            with_zeros(trial, {}, slice(None))
    assert not [note for note in report([results], formats=()).notes if "all zeros" in note]
