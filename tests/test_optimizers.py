"""Optimizers that torch lacks, from a config: they train, resume, move no dropped filter; asked for by name."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from support import results_of, rows, tiny

from repr_ray.study.config import ConfigError
from repr_ray.training.check import check
from repr_ray.training.loop import run_epoch
from repr_ray.training.messages import Preempted
from repr_ray.training.setup import set_up
from repr_ray.training.trial import run_trial

CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "lars": {"kind": "lars", "learning_rate": 5.0},
    "lion": {"kind": "lion", "learning_rate": 3e-3, "weight_decay": 0.1},
    "rmsprop": {"kind": "rmsprop", "learning_rate": 1e-3, "momentum": 0.5},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_trains_and_resumes_and_leaves_dropped_filters_alone(tmp_path: Path, kind: str) -> None:
    trial = tiny(train={"epochs": 6, "optimizer": SETTINGS[kind]})[1]
    run_trial(trial, tmp_path / "whole", CPU, lambda message: None, {})
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: next(calls) == 7)
    run_trial(trial, tmp_path, CPU, lambda message: None, {})
    ends = [results_of(folder)[trial.name]["checksum"] for folder in (tmp_path, tmp_path / "whole")]
    assert ends[0] == ends[1]
    curve = rows(tmp_path, trial.name, "epochs")
    assert curve[-1]["train_loss"] < 0.9 * curve[0]["train_loss"]
    assert [row["filters_dropped"] > 0 for row in curve] == [False, False, True, True, False, False]
    setup = set_up(trial, CPU)
    for epoch in range(3):
        run_epoch(setup, epoch)
    for name, mask in setup.scheme.dropped.items():
        assert not setup.model.get_submodule(name).weight[mask].any()
    assert type(setup.optimizer).__name__.lower() == kind
    kept = {value.shape for state in setup.optimizer.state.values() for value in state.values() if value.dim()}
    assert kept == {parameter.shape for parameter in setup.model.parameters()}


@pytest.mark.parametrize("kind", ["lars", "lion"])
def test_without_timm_it_is_one_line_before_anything_is_trained(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = tiny(train={"optimizer": SETTINGS[kind]})[0]
    find = importlib.util.find_spec
    monkeypatch.setattr("repr_ray.optim.optimizers.find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(ConfigError, match=rf"standard: train\.optimizer\.kind={kind}: needs timm; pip install"):
        check(trial)
