"""What a trial does when things go right, and when they do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import results_of, rows, tiny
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from repr_ray.method.events import LayerEvent
from repr_ray.optim.rates import Constant
from repr_ray.records import EpochLine, LayerState, Result, columns
from repr_ray.runners import local
from repr_ray.study.config import Train
from repr_ray.training import loop, trial
from repr_ray.training.folder import TrialFolder
from repr_ray.training.messages import Failed, Message, Note
from repr_ray.training.trial import collapsed_epoch, failure


def run(results: Path, *trials: Any) -> list[Message]:
    messages: list[Message] = []
    local.run(trials, results, messages.append, {"command": "test"})
    return messages


def test_a_trial_learns_and_leaves_everything(tmp_path: Path) -> None:
    repr_ = tiny()[1]
    messages = run(tmp_path, repr_)
    result = results_of(tmp_path)[repr_.name]
    epochs = rows(tmp_path, repr_.name, "epochs")
    assert [row["epoch"] for row in epochs] == list(range(8))
    assert [row["phase"] for row in epochs] == ["full"] * 2 + ["sub"] * 2 + ["full"] * 4
    assert [row["filters_dropped"] for row in epochs] == [0, 0, 4, 4, 0, 0, 0, 0]
    assert epochs[-1]["test_accuracy"] > 0.6
    assert result["status"] == "done"
    assert result["collapsed_epoch"] is None
    assert result["command"] == "test"
    cycles = rows(tmp_path, repr_.name, "cycles")
    always = {name for name in columns(EpochLine) if not name.startswith("ema_")}  # no average of weights is kept
    assert {*epochs[0], "seconds", "images_per_second"} == always  # `rows` leaves times out
    assert epochs[0]["layers"]["conv1"].keys() == columns(LayerState).keys()
    assert cycles[0].keys() == columns(LayerEvent).keys()
    assert result.keys() <= columns(Result).keys()
    assert [(c["event"], c["layer"], c["epoch"]) for c in cycles] == [
        (event, layer, epoch) for event, epoch in (("drop", 2), ("reinit", 4)) for layer in ("conv1", "conv2")
    ]
    assert sum(sum(c["dropped"]) for c in cycles if c["event"] == "drop") == 4
    notes = [m.text for m in messages if isinstance(m, Note)]
    assert any(note.startswith("epoch 3: cycle 1: dropped 4 of 16 filters: conv1 ") for note in notes)
    assert any(note.startswith("epoch 5: cycle 1: brought back 4 of 16 filters") for note in notes)


def test_tensorboard_events_can_be_read(tmp_path: Path) -> None:
    trial = tiny()[1]
    run(tmp_path, trial)
    [path] = TrialFolder(tmp_path, trial).path.glob("events.*")
    data = path.read_bytes()
    steps: dict[str, list[int]] = {}
    values: dict[str, float] = {}
    plugins: dict[str, HParamsPluginData] = {}
    while data:  # TFRecord: length (8), crc (4), payload, crc (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            steps.setdefault(value.tag, []).append(event.step)
            values[value.tag] = value.simple_value
            if value.metadata.plugin_data.plugin_name == "hparams":
                plugins[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            if value.HasField("image"):
                width, height = value.image.width, value.image.height
    assert steps["test_accuracy"] == list(range(8))
    assert steps["dropped_filters"] == [2]
    assert (width, height) == (8 * 12, 2 * 12)
    assert {"train_loss", "filters_dropped", "overlap/conv1"} <= set(steps)
    # The HParams tab: settings of the trial, and that it is done; metrics are the last values of scalars
    assert set(plugins) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    shown = plugins["_hparams_/session_start_info"].session_start_info.hparams
    assert (shown["scheme"].string_value, shown["scheme.prune_ratio"].number_value) == ("repr", 0.3)
    assert shown["seed"].number_value == 0 and "data.train_images" in shown and "train.ema" not in shown
    assert plugins["_hparams_/session_end_info"].session_end_info.status == 1  # success
    curve = rows(tmp_path, trial.name, "epochs")
    best = max(curve, key=lambda row: row["val_accuracy"])["test_accuracy"]
    assert values["best_val_test_accuracy"] == pytest.approx(best) and steps["wall_seconds"] == [7]
    assert values["test_accuracy"] == pytest.approx(curve[-1]["test_accuracy"])
    assert "collapsed_epoch" not in values and values["parameters"] == results_of(tmp_path)[trial.name]["parameters"]


def test_same_seed_same_start_for_every_scheme(tmp_path: Path) -> None:
    """Schemes differ in nothing before the first drop: the baseline is paired."""
    standard, repr_ = tiny()
    run(tmp_path, standard, repr_)
    first, second = (rows(tmp_path, t.name, "epochs")[:2] for t in (standard, repr_))
    assert first == second


def test_divergence_is_marked_and_the_next_trial_runs(tmp_path: Path) -> None:
    wild = tiny(train={"optimizer": {"kind": "sgd", "learning_rate": 1e6}})[0]
    tame = tiny()[0]
    messages = run(tmp_path, wild, tame)
    error = json.loads((TrialFolder(tmp_path, wild).path / "error.json").read_text())
    assert error["status"] == "diverged"
    assert "lower train.optimizer.learning_rate" in error["message"]
    assert "Traceback" in error["traceback"]
    assert [m.trial for m in messages if isinstance(m, Failed)] == [wild.name]
    assert TrialFolder(tmp_path, tame).done


POISON = [
    ("conv1.weight", float("nan")),
    ("norm1.weight", float("inf")),
    ("norm2.running_var", float("nan")),
    ("linear.bias", float("-inf")),
]


@pytest.mark.parametrize("scheme", [0, 1], ids=["standard", "repr"])
@pytest.mark.parametrize(("name", "value"), POISON, ids=[name for name, _ in POISON])
def test_what_blows_up_in_the_last_step_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: int, name: str, value: float
) -> None:
    """The losses of all steps were finite; never is an accuracy of such a network a result."""
    wild = tiny(train={"epochs": 5}, model={"batch_norm": True})[scheme]
    train = loop.train_epoch

    def poison(setup: Any, epoch: int, *rest: Any) -> Any:
        sums = train(setup, epoch, *rest)
        if epoch == 4:
            setup.model.state_dict()[name].view(-1)[0] = value
        return sums

    monkeypatch.setattr(loop, "train_epoch", poison)
    messages = run(tmp_path, wild)
    folder = TrialFolder(tmp_path, wild)
    assert json.loads((folder.path / "error.json").read_text())["status"] == "diverged"
    assert not folder.done
    assert isinstance(messages[-1], Failed)
    assert len(rows(tmp_path, wild.name, "epochs")) == 4


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_loss_of_evaluation_that_is_no_number_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, loss: float
) -> None:
    """The weights are finite, what they give for held-out images is not."""
    trial = tiny()[0]
    evaluate = loop.evaluate

    def spoiled(setup: Any, images: Any) -> Any:
        found = evaluate(setup, images)
        return (loss, found[1]) if images is getattr(setup, split) and setup.train.taken > 5 else found

    def counted(setup: Any, epoch: int, *rest: Any) -> Any:
        setup.train.taken = epoch
        return train(setup, epoch, *rest)

    train = loop.train_epoch
    monkeypatch.setattr(loop, "train_epoch", counted)
    monkeypatch.setattr(loop, "evaluate", spoiled)
    run(tmp_path, trial)
    error = json.loads((TrialFolder(tmp_path, trial).path / "error.json").read_text())
    assert error["status"] == "diverged"
    assert f"the {split} loss of epoch 7 is {loss}" in error["message"]
    assert len(rows(tmp_path, trial.name, "epochs")) == 6


@pytest.mark.parametrize("name", [name for name, _ in POISON])
def test_weights_that_are_no_numbers_at_the_end_have_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where no loss shows it: behind a last epoch that was resumed, for example."""
    wild = tiny(train={"epochs": 5}, model={"batch_norm": True})[0]
    epoch = trial.run_epoch

    def poison(setup: Any, number: int, *rest: Any) -> Any:
        row = epoch(setup, number, *rest)
        if number == 4:
            setup.model.state_dict()[name].view(-1)[0] = float("nan")
        return row

    monkeypatch.setattr(trial, "run_epoch", poison)
    run(tmp_path, wild)
    error = json.loads((TrialFolder(tmp_path, wild).path / "error.json").read_text())
    assert error["status"] == "diverged"
    assert name in error["message"]


def test_a_warning_is_told_once_and_logged_each_time(tmp_path: Path) -> None:
    """And a line fits a job log, whatever the network."""
    repr_ = tiny(
        schemes={"repr": {"kind": "repr", "s1": 1, "s2": 1, "prune_ratio": 0.001}},
        model={"depth": 20},
        train={"epochs": 6},
        baseline="repr",
    )[-1]
    messages = run(tmp_path, repr_)
    told = [m.text for m in messages if isinstance(m, Note)]
    log = (TrialFolder(tmp_path, repr_).path / "log.txt").read_text()
    assert sum("WARNING: epoch" in text for text in told) == 1 < log.count("WARNING: epoch")
    drops = [text for text in told if "filters" in text]
    assert len(drops) == 4
    assert all(len(f"{repr_.name}  {text}") <= 120 for text in drops)
    assert "conv17 0/8" in log


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (MemoryError("no room for the activations"), "out of memory"),
        (ConnectionResetError("Connection reset by peer"), "failed"),  # no other rank is there to be lost
    ],
)
def test_an_exception_is_marked_and_a_second_launch_tries_again(
    raised: Exception, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standard = tiny()[0]
    epoch = trial.run_epoch

    def fail(setup: Any, number: int, *rest: Any) -> Any:
        if number == 3:
            raise raised
        return epoch(setup, number, *rest)

    monkeypatch.setattr(trial, "run_epoch", fail)
    run(tmp_path, standard)
    folder = TrialFolder(tmp_path, standard)
    error = json.loads((folder.path / "error.json").read_text())
    assert error["status"] == status
    assert error["message"] == f"{type(raised).__name__}: {raised}"
    monkeypatch.setattr(trial, "run_epoch", epoch)
    run(tmp_path, standard)
    assert folder.done
    assert not folder.failed
    assert len(rows(tmp_path, standard.name, "epochs")) == 8


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (loop.Diverged("nan"), "diverged"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "out of memory"),
        (RuntimeError("shape mismatch\nmore"), "failed"),
    ],
)
def test_failure_statuses(error: Exception, status: str) -> None:
    assert failure(error)["status"] == status
    assert "\n" not in failure(error)["message"]


def test_a_collapse_is_flagged_and_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is killed after the re-initialisation: it finishes, with the epoch in its result."""
    repr_ = tiny()[1]
    epoch = trial.run_epoch

    def kill(setup: Any, number: int, *rest: Any) -> Any:
        if number >= 4:
            with torch.no_grad():
                for parameter in setup.model.parameters():
                    parameter.zero_()
        return epoch(setup, number, *rest)

    monkeypatch.setattr(trial, "run_epoch", kill)
    monkeypatch.setattr(Constant, "rate", lambda self, base, step, steps, epochs: 0.0 if step >= 4 * steps else base)
    messages = run(tmp_path, repr_)
    result = results_of(tmp_path)[repr_.name]
    assert result["status"] == "done"
    assert result["collapsed_epoch"] == 4
    assert any("collapsed" in m.text for m in messages if isinstance(m, Note))


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [
        ([0.1, 0.5, 0.9, 0.9], None),
        ([0.5, 0.6, 0.1, 0.1, 0.1], 2),
        ([0.5, 0.6, 0.1, 0.1, 0.5], None),
        ([0.5, 0.1, 0.1], None),
        ([0.1, 0.1, 0.1], 0),
        ([0.9, 0.12, 0.12, 0.12], 1),
        ([0.9, 0.14, 0.14, 0.14], None),
    ],
)
def test_what_counts_as_a_collapse(accuracies: list[float], epoch: int | None) -> None:
    assert collapsed_epoch(accuracies, chance=0.1, images=1000) == epoch


def test_evaluation_does_not_train(tmp_path: Path) -> None:
    """How often the network is evaluated changes no weight, not even with batch norm."""
    often, seldom = (tiny(train={"evaluate_every": every}, model={"batch_norm": True})[1] for every in (1, 8))
    run(tmp_path, often, seldom)
    results = results_of(tmp_path)
    assert results[often.name]["checksum"] == results[seldom.name]["checksum"]
    assert [row["test_accuracy"] is None for row in rows(tmp_path, seldom.name, "epochs")] == [True] * 7 + [False]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant"}, [1.0] * 8),
        ({"kind": "steps", "epochs": [1, 3]}, [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"kind": "steps", "every_steps": 3, "factor": 0.5}, [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"kind": "cosine"}, [1.0, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        ({"kind": "cosine", "warmup_epochs": 2}, [0.25, 0.5, 0.75, 1.0, 1.0, 0.8536, 0.5, 0.1464]),
    ],
)
def test_learning_rates(schedule: dict[str, Any], expected: list[float]) -> None:
    train = Train.model_validate(
        {"epochs": 4, "optimizer": {"kind": "sgd", "learning_rate": 1.0}, "schedule": schedule}
    )
    assert [train.schedule.rate(1.0, step, 2, 4) for step in range(8)] == pytest.approx(expected, abs=1e-4)


def test_no_host_synchronisation_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the step asks the device for a number; the sums are read once, at the end."""
    from repr_ray.training.setup import set_up

    setup = set_up(tiny()[1], torch.device("cpu"))
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *a: Any, _name: str = name, _original: Any = original, **k: Any) -> Any:
            reads.append(_name)
            return _original(self, *a, **k)

        monkeypatch.setattr(torch.Tensor, name, counted)
    loop.train_epoch(setup, 0)
    assert reads == ["tolist"]
