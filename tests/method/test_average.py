"""The average of the weights: its definition, what a scheme writes into it, resuming, and what its columns say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import results_of, rows, tiny
from table import EPOCHS, SCHEMES, make
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repr_ray import RePr
from repr_ray.distributed import checksum
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.average import Average
from repr_ray.training.folder import TrialFolder
from repr_ray.training.loop import evaluate, run_epoch
from repr_ray.training.messages import Preempted
from repr_ray.training.setup import Setup, set_up
from repr_ray.training.trial import run_trial

from networks import batches  # isort: skip

CPU = torch.device("cpu")
DECAY = 0.9
BN = {"kind": "convnet", "depth": 2, "width": 8, "batch_norm": True}


def averaged(scheme: str) -> Trial:
    """A tiny trial with an average of its weights."""
    every = {
        "standard": {"kind": "standard"},
        "repr": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.3, "selection": {"scope": "layer"}},
        "redo": {"kind": "redo", "every": 3, "threshold": 0.9},
        "soft_filter_pruning": {"kind": "soft_filter_pruning"},
    }
    trials = tiny(train={"ema": DECAY}, model=BN, schemes={scheme: every[scheme]})
    return next(trial for trial in trials if trial.scheme == scheme)


def everything(module: torch.nn.Module) -> dict[str, Tensor]:
    """All but the counts of batches, which torch's own average rounds."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def average_of(setup: Setup) -> Average:
    assert setup.average is not None
    return setup.average


def test_it_is_the_average_of_its_definition() -> None:
    """From the weights after the first step, by hand after each one, in float64; batch norms' statistics too."""
    setup = set_up(averaged("standard"), CPU)
    average, seen = average_of(setup), list[dict[str, Tensor]]()
    update = average.update

    def watched() -> None:
        seen.append(everything(setup.model))
        update()

    average.update = watched  # type: ignore[method-assign]
    row = run_epoch(setup, 0)
    assert len(seen) == 4
    for name, found in everything(average.network).items():
        expected = seen[0][name].double()
        for weights in seen[1:]:
            expected = DECAY * expected + (1 - DECAY) * weights[name].double()
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)
    assert average.network.norm1.num_batches_tracked == 4
    assert (row["ema_val_loss"], row["ema_val_accuracy"]) == evaluate(setup, setup.validation, average.network)
    assert row["ema_test_loss"] != row["test_loss"] == evaluate(setup, setup.test)[0]


def test_dropped_filters_are_those_that_carry_over_would_keep() -> None:
    """`RePr.carry_over`, which loops of one's own call, leads to the same average through drops and returns."""
    setup = set_up(averaged("repr"), CPU)
    average, scheme = average_of(setup), setup.scheme
    assert isinstance(scheme, RePr)
    twin = AveragedModel(setup.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    update, start = average.update, scheme.start_epoch

    def updated() -> None:
        update()
        twin.update_parameters(setup.model)
        scheme.carry_over(twin.module)

    def started(*arguments: Any) -> Any:
        events = start(*arguments)
        scheme.carry_over(twin.module)
        return events

    average.update, scheme.start_epoch = updated, started  # type: ignore[method-assign]
    dropped = 0
    for epoch in range(6):
        run_epoch(setup, epoch)
        dropped += scheme.filters_dropped
        ours, theirs = average.network, twin.module
        if scheme.phase == "sub":  # statistics of channels that are silent may differ
            torch.testing.assert_close([*ours.parameters()], [*theirs.parameters()], rtol=0, atol=0)
        else:
            torch.testing.assert_close(everything(ours), everything(theirs), rtol=0, atol=0)
    assert dropped


@pytest.mark.parametrize("case", SCHEMES)
def test_what_a_scheme_writes_is_the_averages_too(case: str) -> None:
    """All zeros of the network after an event, and all that was made anew by it, are the average's as well."""
    model, optimizer, scheme = make(case, "momentum")
    average = Average(model, DECAY)
    written = 0
    for epoch in range(EPOCHS):
        before = everything(model)
        with average.taking_over():
            scheme.start_epoch(epoch)
        written += same_where_it_changed(before, model, average)
        for images, labels in batches():
            optimizer.zero_grad()
            scheme.objective(model(images), labels, images).backward()
            optimizer.step()
            if scheme.recorded:
                scheme.after_step()
            else:
                before = everything(model)
                with average.taking_over():
                    scheme.after_step()
                written += same_where_it_changed(before, model, average)
            average.update()
            masked = getattr(scheme, "masks", None)
            if isinstance(masked, dict) and scheme.phase == "sub":
                for name, mask in masked.items():
                    assert not average.network.get_submodule(name).weight[mask].any()
        before = everything(model)
        with average.taking_over():
            scheme.end_epoch()
        written += same_where_it_changed(before, model, average)
    assert bool(written) == bool(SCHEMES[case].events)


def same_where_it_changed(before: dict[str, Tensor], model: torch.nn.Module, average: Average) -> int:
    """How many entries a hook has changed; they are the average's."""
    changed = 0
    for name, now in everything(model).items():
        entries = now != before[name]
        found = average.network.state_dict()[name]
        assert torch.equal(found[entries], now[entries]), name
        changed += int(entries.sum())
    return changed


@pytest.mark.parametrize("scheme", ["repr", "redo", "soft_filter_pruning"])
def test_a_trial_that_was_stopped_ends_with_the_same_average(tmp_path: Path, scheme: str) -> None:
    """Stopped in the middle of an epoch in every other one, and started again."""
    trial = averaged(scheme)
    run_trial(trial, tmp_path / "whole", CPU, lambda message: None, {})
    for steps in (1, 7, 6, 2):
        calls = iter(range(1000))
        with pytest.raises(Preempted):
            run_trial(trial, tmp_path, CPU, lambda _: None, {}, stop=lambda calls=calls, s=steps: next(calls) == s)
    run_trial(trial, tmp_path, CPU, lambda message: None, {})
    assert rows(tmp_path, trial.name, "epochs") == rows(tmp_path / "whole", trial.name, "epochs")
    ends = [
        checkpoint.load_newest(TrialFolder(folder, trial).path, pytest.fail)
        for folder in (tmp_path, tmp_path / "whole")
    ]
    for part in ("model", "average"):
        torch.testing.assert_close(*(end[part] for end in ends if end), rtol=0, atol=0)
    last = rows(tmp_path, trial.name, "epochs")[-1]
    assert 0 < last["ema_test_accuracy"] <= 1 and last["ema_test_loss"] != last["test_loss"]


def test_weights_are_trained_as_without_an_average(tmp_path: Path) -> None:
    """Nothing but columns, the checkpoint and the fingerprint of the trial shows that there is one."""
    plain, with_one = tiny(model=BN)[1], tiny(model=BN, train={"ema": 0.99})[1]
    for trial in (plain, with_one):
        run_trial(trial, tmp_path, CPU, lambda message: None, {})
    ends = results_of(tmp_path)
    assert ends[plain.name]["checksum"] == ends[with_one.name]["checksum"]
    assert not any(key.startswith("ema_") for key in rows(tmp_path, plain.name, "epochs")[0])


def test_a_checkpoint_without_an_average_is_passed_over(tmp_path: Path) -> None:
    trial = averaged("standard")
    run_trial(trial, tmp_path, CPU, lambda message: None, {})
    folder = TrialFolder(tmp_path, trial)
    end = results_of(tmp_path)[trial.name]["checksum"]
    (folder.path / "result.json").unlink()
    for path in checkpoint.newest_first(folder.path):
        state = torch.load(path, weights_only=True)
        del state["average"]
        torch.save(state, path)
    run_trial(trial, tmp_path, CPU, lambda message: None, {})
    assert "does not belong to this trial" in (folder.path / "log.txt").read_text()
    assert results_of(tmp_path)[trial.name]["checksum"] == end


def test_hooks_on_the_network_are_not_those_of_its_average() -> None:
    """Schemes that watch units look at the network alone."""
    setup = set_up(averaged("redo"), CPU)
    assert not any(module._forward_pre_hooks for module in average_of(setup).network.modules())
    assert any(module._forward_pre_hooks for module in setup.model.modules())
    assert checksum(average_of(setup).network) == checksum(setup.model)


def test_an_average_of_a_smaller_copy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.ema: the average is of the whole network"):
        tiny(train={"ema": 0.9, "compact_sub_network": True})
    with pytest.raises(ConfigError, match=r"train\.ema=1"):
        tiny(train={"ema": 1.0})
