"""Progress reads well in a log and on a terminal of 80 columns."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from repr_ray.progress import Progress, _short_names, bar, duration
from repr_ray.records import Epoch, columns
from repr_ray.training.messages import Done, EpochEnded, Failed, Note

TRIAL = "convnet-3x32-cifar10-repr-s3-1a2b3c4d"


def epoch(number: int, epochs: int = 100) -> EpochEnded:
    row: Any = dict.fromkeys(columns(Epoch)) | {"epoch": number, "phase": "sub", "train_accuracy": 0.5}
    return EpochEnded(TRIAL, epochs, row | {"test_accuracy": 0.4321, "images_per_second": 12345.6, "seconds": 2.0})


def run(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, highlight=False)
    with Progress(console, {TRIAL: 100, "other": 100}, already_done=1) as progress:
        progress.update(Note("starts", TRIAL))
        for number in range(5):
            progress.update(epoch(number))
        if terminal:
            progress.live.refresh()
        progress.update(Note("epoch 5: cycle 1: dropped 28 of 96 filters: conv1 28/32", TRIAL))
        for _ in range(2):
            progress.update(Failed("other", "Diverged: the training loss of epoch 3 is nan"))
        progress.update(Done(TRIAL))
    return out.getvalue()


def test_a_log_has_plain_lines() -> None:
    lines = run(terminal=False).splitlines()
    assert lines == [
        f"{TRIAL}  starts",
        f"{TRIAL}  epoch 1/100  sub  train 50.0%  test 43.2%  12,346 images/s  3m18s left",
        f"{TRIAL}  epoch 5: cycle 1: dropped 28 of 96 filters: conv1 28/32",
        "other  FAILED: Diverged: the training loss of epoch 3 is nan",
        f"{TRIAL}  done: epoch 5/100  sub  train 50.0%  test 43.2%  12,346 images/s  3m10s left",
    ]


def test_a_log_has_a_hundred_lines_a_trial_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repr_ray.progress.LOG_EVERY", 0.0)
    out = io.StringIO()
    with Progress(Console(file=out, width=80), {TRIAL: 5000}, already_done=0) as progress:
        for number in range(5000):
            progress.update(epoch(number, 5000))
    assert len(out.getvalue().splitlines()) == 100


def test_the_time_left_counts_epochs_not_messages() -> None:
    """Short epochs share a message; a trial that starts again repeats some."""
    with Progress(Console(file=io.StringIO(), width=80), {TRIAL: 100}, already_done=0) as progress:
        for number, seen in ((0, 1), (4, 5), (9, 10), (6, 11)):
            progress.update(epoch(number))
            assert progress.epochs_seen == seen


def test_a_terminal_has_a_live_line_a_trial() -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", run(terminal=True))
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]", text)) <= 80
    live = next(line for line in text.splitlines() if "5/100" in line and "12,346/s" in line)
    assert "sub" in live
    assert "test 43.2%" in live
    assert "3m10s" in live
    assert "1 of 3 trials ended" in text


def test_a_live_line_says_which_trial_and_which_accuracy() -> None:
    """At 80 columns, of trials that differ at the end of their names; not every epoch is evaluated."""
    names = [f"convnet-3x32-maxpool-cifar10-{scheme}-s0-0123abcd" for scheme in ("standard", "repr")]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, highlight=False)
    with Progress(console, dict.fromkeys(names, 100), already_done=0) as progress:
        for name, test in zip(names, (None, 0.4321), strict=True):
            progress.update(EpochEnded(name, 100, epoch(0).row | {"test_accuracy": test}))
        progress.update(EpochEnded(names[1], 100, epoch(1).row | {"test_accuracy": None}))
        progress.live.refresh()
        console.print("end")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    standard, repr_ = (
        next(line for line in text.splitlines() if re.search(rf"{count}/100", line)) for count in (1, 2)
    )
    assert standard.startswith("standard-s0 ") and "train 50.0%" in standard
    assert repr_.startswith("repr-s0 ") and "test 43.2%" in repr_


@pytest.mark.parametrize(
    ("trials", "short"),
    [
        (["net-a-s0-00000001", "net-a-s0-00000002"], ["00000001", "00000002"]),
        (["net-a-s0-00000001", "net-b-s0-00000001"], ["a-s0", "b-s0"]),
        (["net-a-s0-00000001", "net-a-s0-00000002", "net-b-s0-1"], ["a-s0-00000001", "a-s0-00000002", "b-s0-1"]),
        (["net-a-s0-00000001"], ["net-a-s0"]),
        (["other", "net-a"], ["other", "net"]),
        ([], []),
    ],
)
def test_short_names_tell_trials_apart(trials: list[str], short: list[str]) -> None:
    assert list(_short_names(trials).values()) == short


def test_a_bar_yields_everything() -> None:
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal)
        assert list(bar(console, range(5), 5, "decoding")) == list(range(5))


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.4, 95, 7500)] == ["0s", "59s", "1m35s", "2h05m"]


def test_done_without_another_epoch() -> None:
    """Its process died between its last checkpoint and its end."""
    out = io.StringIO()
    with Progress(Console(file=out, width=80), {TRIAL: 100}, already_done=0) as progress:
        progress.update(Note("resumes at epoch 100", TRIAL))
        progress.update(Done(TRIAL))
    assert out.getvalue().splitlines()[-1] == f"{TRIAL}  done"
