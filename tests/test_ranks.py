"""Two ranks take the steps that one process takes; a difference between ranks stops the trial."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import results_of, rows, tiny

from repr_ray.runners import local
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder
from repr_ray.training.loop import evaluate
from repr_ray.training.setup import set_up

# 63 does not divide by two: slices of unequal size. 253 leaves a last batch of one image, and one rank without any;
# there is one validation image too
UNEVEN = {
    "data": {"crop_padding": 1, "flip": True, "train_images": 253, "validation_images": 1, "partial": True},
    "train": {"batch_size": 63, "precision": "fp32", "optimizer": {"kind": "sgd", "learning_rate": 0.05}},
}
STANDARD = tiny(**UNEVEN)[0]
STUDENT = {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.3, "loss": {"kind": "distillation"}}
REPR = tiny(**UNEVEN, schemes={"repr": STUDENT})[1]
REPR = dataclasses.replace(REPR, train=REPR.train.model_copy(update={"ema": 0.9}))  # its teacher is STANDARD
COMPACT = tiny(**UNEVEN | {"train": UNEVEN["train"] | {"compact_sub_network": True}})[1]
SHORT = {"train": UNEVEN["train"] | {"epochs": 3}, "schemes": {"repr": STUDENT | {"s1": 1, "s2": 1}}}
NORMED, STREAMED = (
    tiny(**SHORT, model={"batch_norm": True}, data=UNEVEN["data"] | {"store": store})[0]
    for store in ("auto", "stream")
)
PLAIN = UNEVEN | {"data": UNEVEN["data"] | {"crop_padding": 0, "flip": False}}  # the teacher's logits are stored
STUDENTS = {"student": {"kind": "standard", "loss": {"kind": "distillation"}}}
KNOWN = [trial for trial in tiny(**PLAIN, schemes=STUDENTS) if trial.scheme != "repr"]
TRIALS = [STANDARD, COMPACT, NORMED, STREAMED, *KNOWN, REPR]
SPOILED = tiny(**UNEVEN, seeds=[5])[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same trials on one process and on two ranks."""
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (1, 2)}
    job = folders[2] / "job"
    job.write_bytes(pickle.dumps((TRIALS, folders[2], SPOILED)))
    script = str(Path(__file__).with_name("ranks.py"))
    ranks = [subprocess.Popen([sys.executable, script, str(job), str(r)], env=os.environ) for r in range(2)]
    local.run(TRIALS, folders[1], lambda message: None, {})
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return folders


def weights(folder: Path, trial: Trial, part: str) -> dict[str, torch.Tensor]:
    state = checkpoint.load_newest(TrialFolder(folder, trial).path, warn=pytest.fail)
    assert state is not None
    found: dict[str, torch.Tensor] = state[part]["network"] if part == "average" else state[part]
    return found


@pytest.mark.parametrize(
    "trial", [STANDARD, COMPACT, KNOWN[1], REPR], ids=["standard", "compact", "stored logits", "repr"]
)
def test_one_and_two_workers_take_the_same_steps(results: dict[int, Path], trial: Trial) -> None:
    for ours, theirs in zip(*(rows(results[w], trial.name, "epochs") for w in (1, 2)), strict=True):
        for column in ("train_loss", "train_accuracy", "val_loss", "test_loss", "test_accuracy"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-3, abs=2e-3), (ours["epoch"], column)
        for column in ("ema_val_loss", "ema_test_accuracy") if trial.train.ema else ():
            assert ours[column] == pytest.approx(theirs[column], rel=1e-3, abs=2e-3), (ours["epoch"], column)
    for part in ("model", "average") if trial.train.ema else ("model",):
        ends = [weights(results[world], trial, part) for world in (1, 2)]
        for (name, one), two in zip(ends[0].items(), ends[1].values(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    result = results_of(results[2])[trial.name]
    assert result["workers"] == 2 and result.get("teacher") == (trial.teacher.name if trial.teacher else None)


@pytest.mark.parametrize("world", [1, 2])
def test_the_tables_say_what_one_rank_measures_on_the_weights_that_are_left(
    results: dict[int, Path], world: int
) -> None:
    """With batch norm whose statistics are not synchronised, and a rank that had no image of each last batch."""
    setup = set_up(NORMED, torch.device("cpu"))
    setup.model.load_state_dict(weights(results[world], NORMED, "model"))
    last = rows(results[world], NORMED.name, "epochs")[-1]
    for name in ("val", "test"):
        measured = evaluate(setup, setup.validation if name == "val" else setup.test)
        assert [last[f"{name}_loss"], last[f"{name}_accuracy"]] == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_images_that_stream_give_the_bits_of_decoded_ones(results: dict[int, Path], world: int) -> None:
    """With a last batch and a validation set of one image, on more ranks than that."""
    streamed, decoded = (results_of(results[world])[trial.name] for trial in (STREAMED, NORMED))
    assert streamed["checksum"] == decoded["checksum"] and streamed["workers"] == world
    ours, theirs = (rows(results[world], trial.name, "epochs") for trial in (STREAMED, NORMED))
    assert ours == theirs


@pytest.mark.parametrize("trial", [COMPACT, REPR], ids=["compact", "repr"])
def test_ranks_drop_the_same_filters(results: dict[int, Path], trial: Trial) -> None:
    one, two = ([c["dropped"] for c in rows(results[w], trial.name, "cycles")] for w in (1, 2))
    assert one == two


def test_one_rank_is_asked_to_stop_and_both_go_on_later(results: dict[int, Path]) -> None:
    """Bit for bit the end of the trial that was left alone."""
    stopped, trial = results[2] / "stopped", TRIALS[-1]
    assert results_of(stopped)[trial.name]["checksum"] == results_of(results[2])[trial.name]["checksum"]
    ends = [weights(folder, trial, "average") for folder in (stopped, results[2])]
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    for table in ("epochs", "cycles"):
        assert rows(stopped, trial.name, table) == rows(results[2], trial.name, table)
    log = (TrialFolder(stopped, trial).path / "log.txt").read_text()
    assert [line.split("  ")[1] for line in log.splitlines() if "resumes" in line] == [
        "resumes at epoch 1, step 3",
        "resumes at epoch 3, step 1",
    ]


def test_a_difference_between_ranks_stops_the_trial(results: dict[int, Path]) -> None:
    error = json.loads((TrialFolder(results[2], SPOILED).path / "error.json").read_text())
    assert error["status"] == "ranks differ"
    assert "after epoch 2: the parameters on rank 1 differ from those on rank 0" in error["message"]
