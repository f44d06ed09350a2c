"""A student learns from the baseline's network of its seed: what waits for what, what counts, what can go wrong."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support import TINY, results_of, write_config
from support import launch as launch_it

from repr_ray import launch, stages
from repr_ray.method.losses import Distillation
from repr_ray.results.effects import device_hours
from repr_ray.runners import local
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import validate
from repr_ray.training import checkpoint, teacher, trial
from repr_ray.training.folder import TrialFolder
from repr_ray.training.loop import run_epoch
from repr_ray.training.messages import Preempted
from repr_ray.training.setup import build_model, set_up

CPU = torch.device("cpu")
BAN = {"kind": "standard", "loss": {"kind": "distillation"}}
CONFIG: dict[str, Any] = {
    "train": TINY["train"] | {"epochs": 3},
    "schemes": {
        "ban": BAN,
        "standard": {"kind": "standard"},
        "ban+repr": {"kind": "repr", "s1": 1, "s2": 1, "loss": {"kind": "distillation"}},
    },
}


def trials(**changes: Any) -> dict[str, Trial]:
    return {one.scheme: one for one in plan(validate(TINY | CONFIG | changes, "tiny"))}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_report", lambda *_: None)


def launched(config: Path, *overrides: str) -> int:
    return launch.main(
        ["--runner", "local", "--config", str(config), "--results", str(config.parent / "r"), *overrides]
    )


def test_the_teacher_is_the_baseline_of_the_same_seed() -> None:
    for one in plan(validate(TINY | CONFIG | {"seeds": [3, 4], "grid": {"model.width": [4, 8]}}, "tiny")):
        if one.scheme == "standard":
            assert one.teacher is None and "teacher" not in one.record()
        else:
            assert one.teacher is not None and one.record()["teacher"] == one.teacher.name
            same = ("seed", "data", "model", "train", "variant", "resources")
            assert all(getattr(one, key) == getattr(one.teacher, key) for key in same)
            assert one.teacher.scheme == "standard"


def test_what_the_teacher_is_trained_with_changes_the_student() -> None:
    smooth = {"kind": "standard", "loss": {"kind": "label_smoothing"}}
    before, after = trials(), trials(schemes=CONFIG["schemes"] | {"standard": smooth})
    assert before["ban"].fingerprint != after["ban"].fingerprint
    assert before["ban"].settings == after["ban"].settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": {"ban": BAN}}, "there is no scheme standard; add it"),
        ({"schemes": {"ban": BAN, "other": BAN}, "baseline": "other"}, "would need a teacher itself"),
    ],
)
def test_students_without_one_teacher_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"schemes\.\w+\.loss: it learns from the baseline's run") as error:
        trials(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_teachers_train_first_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the loss is that of the teacher's last weights: one epoch by hand gives the student's first row."""
    config = write_config(tmp_path, **CONFIG)
    assert launched(config) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 trials (ban, ban+repr) learn from 1 others and wait for them" in said
    assert "their teachers have ended: 2 more trials to run" in said
    folder, known = tmp_path / "r" / "tiny", trials()
    results = results_of(folder)
    taught, student = (results[known[name].name] for name in ("standard", "ban"))
    assert student["teacher"] == known["standard"].name and student["teacher_seconds"] == taught["wall_seconds"]
    assert taught["finished"] <= student["started"] and "teacher" not in taught
    setup = set_up(known["ban"], CPU)
    state = checkpoint.load_newest(TrialFolder(folder, known["standard"]).path, pytest.fail)
    assert state is not None
    teacher.teach(setup, known["standard"], state["model"])
    row = run_epoch(setup, 0)
    path = TrialFolder(folder, known["ban"]).path / "epochs.jsonl"
    assert json.loads(path.read_text().splitlines()[0])["train_loss"] == row["train_loss"]
    assert launched(config) == 0
    assert "all 3 trials are done already" in capsys.readouterr().out


def test_hours_of_the_teacher_are_the_students_too() -> None:
    rows = pd.DataFrame({"wall_seconds": [3600.0, 3600.0], "workers": 1, "gpus": 0.0, "threads": 2})
    assert device_hours(rows).tolist() == [2, 2]
    assert device_hours(rows.assign(teacher_seconds=[None, 1800.0])).tolist() == [2, 3]


@pytest.mark.parametrize("data", [{}, {"flip": True}, {"crop_padding": 1}, {"augment": {"mixup": 0.2}}])
def test_logits_of_images_that_stay_the_same_are_computed_once(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the student learns what it learns from a teacher that is asked in every step."""
    student = trials(data=TINY["data"] | data)["ban"]
    assert student.teacher is not None
    weights = build_model(student.teacher).state_dict()
    ends = []
    for largest in (teacher.LARGEST, 0):
        monkeypatch.setattr(teacher, "LARGEST", largest)
        setup = set_up(student, CPU)
        teacher.teach(setup, student.teacher, weights)
        assert (setup.stored is not None) == (not data and largest > 0)
        row = run_epoch(setup, 0)
        ends.append([torch.tensor(row["train_loss"]), *setup.model.state_dict().values()])
    torch.testing.assert_close(*ends)


def test_a_loss_of_ones_own_asks_its_teacher_in_every_step() -> None:
    """It may change the images first."""
    student = trials()["ban"]
    setup = set_up(student, CPU)
    setup.scheme.term = type("Mine", (Distillation,), {})(setup.model, 0.5, 1.0)
    assert student.teacher is not None
    teacher.teach(setup, student.teacher, build_model(student.teacher).state_dict())
    assert setup.stored is None


@pytest.mark.parametrize("data", [{}, {"flip": True}])
def test_a_student_that_was_stopped_ends_as_one_that_was_not(data: dict[str, Any], tmp_path: Path) -> None:
    known = trials(data=TINY["data"] | data)
    for folder in ("whole", "stopped"):
        local.run([known["standard"]], tmp_path / folder, lambda message: None, {})
    trial.run_trial(known["ban"], tmp_path / "whole", CPU, print, {})
    calls = iter(range(100))
    with pytest.raises(Preempted):
        trial.run_trial(known["ban"], tmp_path / "stopped", CPU, print, {}, stop=lambda: next(calls) == 4)
    trial.run_trial(known["ban"], tmp_path / "stopped", CPU, print, {})
    ends = [results_of(tmp_path / folder)[known["ban"].name]["checksum"] for folder in ("whole", "stopped")]
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_students_of_two_workers_on_ray(tmp_path: Path) -> None:
    """Rank 0 reads the teacher, which two other ranks have trained before; both get it."""
    arguments = ("--config", write_config(tmp_path, **CONFIG), "--results", tmp_path, "resources.workers=2")
    done = launch_it(*arguments, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    results, known = results_of(tmp_path / "tiny"), trials()
    taught = results[known["standard"].name]
    for name in ("ban", "ban+repr"):
        student = results[known[name].name]
        assert (student["teacher"], student["workers"]) == (known["standard"].name, 2)
        assert student["teacher_seconds"] == taught["wall_seconds"] and taught["finished"] <= student["started"]
        log = (TrialFolder(tmp_path / "tiny", known[name]).path / "log.txt").read_text()
        assert log.count(f"learns from {known['standard'].name}") == 1
    table = (tmp_path / "tiny" / "comparison.md").read_text()
    assert "ban" in table


def test_a_failed_teacher_fails_its_students_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only those, and a launch that repairs it trains them."""
    config = write_config(tmp_path, **CONFIG | {"seeds": [0, 1]})
    run = local.run_trial if hasattr(local, "run_trial") else trial.run_trial

    def breaks(one: Trial, results: Any, *rest: Any, **more: Any) -> None:
        if one.scheme == "standard" and one.seed == 0:
            folder = TrialFolder(Path(results), one)
            folder.fail({"status": "failed", "message": "OSError: broken", "traceback": ""})
            raise OSError("broken")
        run(one, results, *rest, **more)

    monkeypatch.setattr(trial, "run_trial", breaks)
    assert launched(config) == 1
    folder = tmp_path / "r" / "tiny"
    every = plan(validate(TINY | CONFIG | {"seeds": [0, 1]}, "tiny"))
    assert {one.name for one in every if one.seed == 1} == set(results_of(folder))
    for one in every:
        if one.seed == 0 and one.teacher:
            assert TrialFolder(folder, one).message == f"its teacher {one.teacher.name} failed: OSError: broken"
    monkeypatch.setattr(trial, "run_trial", run)
    assert launched(config) == 0
    assert set(results_of(folder)) == {one.name for one in every}


def test_a_teacher_without_weights_is_named(tmp_path: Path) -> None:
    known = trials()
    with pytest.raises(ConfigError, match=f"the teacher {known['standard'].name} has no weights"):
        trial.run_trial(known["ban"], tmp_path, CPU, print, {})


def test_only_students_wait(tmp_path: Path) -> None:
    every = list(trials().values())
    assert [one.scheme for one in stages.ready(every, tmp_path)] == ["standard"]
