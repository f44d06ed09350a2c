"""A trial that was killed, at any moment, ends like one that was not."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import results_of, rows, tiny
from torch import nn

from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint, loop, setup
from repr_ray.training import trial as trial_module
from repr_ray.training.folder import TrialFolder
from repr_ray.training.messages import Preempted
from repr_ray.training.step import Setup
from repr_ray.training.trial import _Pace, _Run, run_trial

CPU = torch.device("cpu")

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["repr_ray.training.trial", "torch._dynamo"])  # once for all processes


def run_and_die(trial: Trial, results: Path, when: tuple[str, int]) -> None:
    """Run a trial that kills its process before an epoch, or within the n-th atomic write, of which half is there."""
    kind, count = when
    original, writes = trial_module.run_epoch, itertools.count(1)

    def run_epoch(setup: Setup, epoch: int, *rest: Any) -> Any:
        if epoch == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(setup, epoch, *rest)

    def replace(path: Path, target: Path) -> None:
        if next(writes) == count:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace(path, target)  # noqa: PTH105 - Path.replace is this function

    if kind == "epoch":
        trial_module.run_epoch = run_epoch
    else:
        Path.replace = replace  # type: ignore[method-assign, assignment]
    run(trial, results)


def run(trial: Trial, results: Path) -> dict[str, object]:
    run_trial(trial, results, CPU, lambda message: None, {})
    return results_of(results)[trial.name]


def final_state(results: Path, trial: Trial) -> dict[str, object]:
    state = checkpoint.load_newest(TrialFolder(results, trial).path, warn=pytest.fail)
    assert state is not None
    return state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Path]:
    trial, results = tiny()[1], tmp_path_factory.mktemp("undisturbed")
    run(trial, results)
    return trial, results


def assert_same_end(trial: Trial, results: Path, expected: Path) -> None:
    """Same weights, masks, optimizer state and tables."""
    assert results_of(results)[trial.name]["checksum"] == results_of(expected)[trial.name]["checksum"]
    for table in ("epochs", "cycles"):
        assert rows(results, trial.name, table) == rows(expected, trial.name, table)
    ours, theirs = final_state(results, trial), final_state(expected, trial)
    assert ours["scheme"].pop("settings", None) == theirs["scheme"].pop("settings", None)  # texts
    for part in ("model", "optimizer", "scheme"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


@pytest.mark.parametrize(
    "when",
    [("epoch", 1), ("epoch", 3), ("epoch", 4), ("write", 8), ("write", 9), ("write", 10)],
    ids=lambda when: f"{when[0]}-{when[1]}",
)
def test_killed_and_resumed_equals_undisturbed(
    undisturbed: tuple[Trial, Path], tmp_path: Path, when: tuple[str, int]
) -> None:
    """Epochs: in S1, in S2, at the re-initialisation, in the last phase. Writes: tables and checkpoints."""
    trial, expected = undisturbed
    process = PROCESSES.Process(target=run_and_die, args=(trial, tmp_path / "results", when))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = TrialFolder(tmp_path / "results", trial)
    assert not folder.done
    for table in folder.path.glob("*.jsonl"):
        assert all(json.loads(line) for line in table.read_text().splitlines())
    run(trial, tmp_path / "results")
    assert_same_end(trial, tmp_path / "results", expected)
    assert not list(folder.path.glob(".*"))
    if when[0] == "epoch":
        assert f"resumes at epoch {when[1] + 1}" in (folder.path / "log.txt").read_text()


def test_a_damaged_checkpoint_is_passed_over_and_said(undisturbed: tuple[Trial, Path], tmp_path: Path) -> None:
    trial, expected = undisturbed
    folder = TrialFolder(tmp_path, trial)
    folder.path.mkdir(parents=True)
    newest, previous = checkpoint.newest_first(TrialFolder(expected, trial).path)
    (folder.path / newest.name).write_bytes(newest.read_bytes()[:1000])
    (folder.path / previous.name).write_bytes(previous.read_bytes())
    run(trial, tmp_path)
    assert_same_end(trial, tmp_path, expected)
    log = (folder.path / "log.txt").read_text()
    assert f"{newest.name} is damaged" in log
    assert "resumes at epoch 8" in log


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the entries of a checkpoint are, containers too, but for what stands in rows of tables."""
    yield path
    if path[:1] not in (("epochs",), ("cycles",)):
        inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
        for key, value in inner:
            yield from leaves(value, (*path, key))


def may_lack(path: tuple[Any, ...]) -> bool:
    """Older versions left some out, and a parameter without a gradient has no momentum."""
    return (
        path in (("data_digest",), ("part",))
        or path[:2] == ("scheme", "settings")
        or (path[:2] == ("optimizer", "state") and len(path) == 3)
    )


def mutated(tree: Any, path: tuple[Any, ...], how: str) -> Any:
    """A checkpoint with one entry gone, of another type, another shape, or another number format."""
    if path:
        *_, key = path[:1]
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        if how == "gone" and len(path) == 1:
            del copy[key]
        else:
            copy[key] = mutated(tree[key], path[1:], how)
        return copy
    if isinstance(tree, torch.Tensor) and how == "shape":
        return torch.cat([tree.reshape(-1), tree.reshape(-1)[:1]])
    if isinstance(tree, torch.Tensor) and how == "format":
        return tree.to(torch.float64 if tree.dtype != torch.float64 else torch.int32)
    return "text" if not isinstance(tree, str) else [tree]


@pytest.mark.parametrize("middle", [False, True], ids=["between-epochs", "in-an-epoch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_checkpoint_that_this_trial_cannot_have_saved_is_passed_over(
    tmp_path: Path, optimizer: str, middle: bool
) -> None:
    """Whatever one entry is changed to, the trial sets out from the checkpoint before, and says so."""
    settings: dict[str, Any] = {"kind": optimizer} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    trial = tiny(train={"optimizer": settings})[1]
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: next(calls) == 10)
    folder = TrialFolder(tmp_path, trial)
    newest, before = checkpoint.newest_first(folder.path)
    if not middle:
        newest.unlink()
        newest, before = before, newest.parent / "checkpoint-0002.pt"
        before.write_bytes(b"damaged")
    good = torch.load(newest, weights_only=True)
    paths = [*leaves(good)]
    cases = [(path, how) for path in paths for how in ("gone", "type", "shape", "format") if path or how == "type"]
    cases = [(path, how) for path, how in cases if how != "gone" or not may_lack(path)]
    for path, how in random.Random(0).sample(cases, 15):
        torch.save(mutated(good, path, how), newest)
        (folder.path / "log.txt").unlink()
        run = _Run(trial, folder, CPU, lambda message: None)
        run.board.close()
        assert len(run.epochs) < 3 or run.part is None, (path, how)
        warning, *_ = [text for text in (folder.path / "log.txt").read_text().splitlines() if newest.name in text]
        assert "WARNING" in warning and "going back to the one before it" in warning, (path, how)
    torch.save(good, newest)
    run = _Run(trial, folder, CPU, lambda message: None)
    assert len(run.epochs) == 3 and bool(run.part) == middle
    run.board.close()


def test_checkpoints_every_k_epochs(undisturbed: tuple[Trial, Path], tmp_path: Path) -> None:
    trial = tiny(resources={"checkpoint_every": 3})[1]
    assert trial.name == undisturbed[0].name
    run(trial, tmp_path)
    kept = [path.name for path in checkpoint.newest_first(TrialFolder(tmp_path, trial).path)]
    assert kept == ["checkpoint-0008.pt", "checkpoint-0006.pt"]
    assert_same_end(trial, tmp_path, undisturbed[1])


def test_writing_is_kept_to_a_part_of_the_time(
    undisturbed: tuple[Trial, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a checkpoint takes as long as an epoch, the first and the last are written, and what stops is."""
    save = checkpoint.save

    def slow(*args: Any) -> None:
        time.sleep(0.05)
        save(*args)

    monkeypatch.setattr(checkpoint, "save", slow)
    trial, expected = tiny(resources={"checkpoint_every": "auto"})[1], undisturbed[1]
    run(trial, tmp_path / "whole")
    kept = [path.name for path in checkpoint.newest_first(TrialFolder(tmp_path / "whole", trial).path)]
    assert kept == ["checkpoint-0008.pt", "checkpoint-0001.pt"]
    assert_same_end(trial, tmp_path / "whole", expected)
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: next(calls) == 18)
    assert len(rows(tmp_path, trial.name, "epochs")) == 6
    run(trial, tmp_path)
    assert_same_end(trial, tmp_path, expected)
    theirs, *ours = (
        torch.load(TrialFolder(results, trial).path / "best.pt")
        for results in (expected, tmp_path, tmp_path / "whole")
    )
    for best in ours:
        torch.testing.assert_close(best, theirs, rtol=0, atol=0)


def test_tables_of_a_trial_that_fails_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Pace, "due", lambda pace, epoch: False)
    trial = tiny()[1]
    epochs = iter(range(8))

    def train(*args: Any) -> Any:
        if next(epochs) == 5:
            raise RuntimeError("no more")
        return loop.run_epoch(*args)

    monkeypatch.setattr("repr_ray.training.trial.run_epoch", train)
    with pytest.raises(RuntimeError, match="no more"):
        run(trial, tmp_path)
    assert [row["epoch"] for row in rows(tmp_path, trial.name, "epochs")] == [0, 1, 2, 3, 4]
    assert {row["event"] for row in rows(tmp_path, trial.name, "cycles")} == {"drop", "reinit"}


@pytest.mark.parametrize("steps", [1, 9, 18], ids=["S1", "S2", "after-drop"])
def test_told_to_stop_in_the_middle_of_an_epoch(undisturbed: tuple[Trial, Path], tmp_path: Path, steps: int) -> None:
    """Four steps an epoch: the trial saves after the step and goes on with the next one, to the same end."""
    trial, expected = undisturbed
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: next(calls) == steps)
    folder = TrialFolder(tmp_path, trial)
    epoch, step = checkpoint.newest_place(folder.path)
    assert (epoch, step) == (steps // 3, steps % 3 + 1)  # the last step of an epoch does not ask
    assert not folder.failed
    run(trial, tmp_path)
    assert f"resumes at epoch {epoch + 1}, step {step}" in (folder.path / "log.txt").read_text()
    assert_same_end(trial, tmp_path, expected)


def test_the_checkpoints_that_are_kept(tmp_path: Path) -> None:
    """The newest two, and one that any number of ranks can use; none that was passed over."""
    for epochs, steps, kept in (
        (1, 0, {"0001"}),
        (2, 0, {"0001", "0002"}),
        (3, 0, {"0002", "0003"}),
        (3, 100, {"0003", "0003-000100"}),
        (3, 200, {"0003", "0003-000100", "0003-000200"}),
        (4, 0, {"0003-000200", "0004"}),
        (2, 0, {"0002"}),
    ):
        checkpoint.save(tmp_path, epochs, steps, {})
        assert {path.stem.removeprefix("checkpoint-") for path in tmp_path.iterdir()} == kept


def test_an_interrupted_epoch_counts_the_time_before_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made = setup.set_up(tiny()[1], CPU)
    start_epoch = made.scheme.start_epoch

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return start_epoch(*arguments)

    monkeypatch.setattr(made.scheme, "start_epoch", slow)
    part: Any = None
    for _ in range(2):
        with pytest.raises(Preempted) as left:
            loop.run_epoch(made, 0, part=part, stop=lambda: True)
        part = left.value.part
    assert loop.run_epoch(made, 0, part=part)["seconds"] > 0.3


def test_on_a_smaller_copy_in_s2(tmp_path: Path) -> None:
    """Equal to the masked run up to floating-point order, and bit for bit after a stop in S2."""
    trial = tiny(train={"compact_sub_network": True, "precision": "fp32"})[1]
    masked = tiny(train={"precision": "fp32"})[1]
    run(trial, tmp_path / "undisturbed")
    calls = iter(range(1000))
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: next(calls) == 7)
    assert checkpoint.newest_place(TrialFolder(tmp_path, trial).path) == (2, 2)
    run(trial, tmp_path)
    assert_same_end(trial, tmp_path, tmp_path / "undisturbed")
    run(masked, tmp_path)
    for ours, theirs in zip(*(rows(tmp_path, each.name, "epochs") for each in (trial, masked)), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["filters_dropped"] == theirs["filters_dropped"]
    assert rows(tmp_path, trial.name, "epochs") != rows(tmp_path, masked.name, "epochs"), "nothing was smaller"


def test_random_numbers_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws in every step."""

    def with_dropout(trial: Trial) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(288, 10))

    monkeypatch.setattr(setup, "build_model", with_dropout)
    trial = tiny()[0]
    run(trial, tmp_path / "undisturbed")
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=lambda: True)
    run(trial, tmp_path)
    assert_same_end(trial, tmp_path, tmp_path / "undisturbed")


def test_a_process_that_was_taken_for_dead_writes_no_more(undisturbed: tuple[Trial, Path], tmp_path: Path) -> None:
    """Another one starts the trial meanwhile and ends it; the first notices at its next checkpoint."""
    trial, expected = undisturbed
    calls = iter(range(1000))

    def meanwhile() -> bool:
        if next(calls) == 7:
            run(trial, tmp_path)
        return False

    with pytest.raises(Preempted):
        run_trial(trial, tmp_path, CPU, lambda message: None, {}, stop=meanwhile)
    assert_same_end(trial, tmp_path, expected)
    assert not TrialFolder(tmp_path, trial).failed


def test_the_best_weights_on_held_out_images_are_kept(undisturbed: tuple[Trial, Path]) -> None:
    trial, results = undisturbed
    accuracies = [row["val_accuracy"] for row in rows(results, trial.name, "epochs")]
    best = torch.load(TrialFolder(results, trial).path / "best.pt", weights_only=True)
    assert best["epoch"] == accuracies.index(max(accuracies))
    assert best["val_accuracy"] == max(accuracies)
    state = setup.set_up(trial, CPU)
    state.model.load_state_dict(best["model"])
    assert loop.evaluate(state, state.validation)[1] == best["val_accuracy"]


def test_precision_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that goes on other hardware does not change its arithmetic half-way."""
    from repr_ray.training import trial

    monkeypatch.setattr(setup, "resolve_precision", lambda train, device: "fp32")
    epoch = trial.run_epoch

    def stop(state: Setup, number: int, *rest: object) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(state, number, *rest)

    monkeypatch.setattr(trial, "run_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny()[0], tmp_path)
    monkeypatch.setattr(trial, "run_epoch", epoch)
    monkeypatch.setattr(setup, "resolve_precision", lambda train, device: "bf16")
    assert run(tiny()[0], tmp_path)["precision"] == "fp32"
