"""A student's process and its launch are killed while it learns: its result equals that of an undisturbed run."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from local_cluster import LocalCluster
from paced import Leash
from support import results_of, write_config
from test_faults import assert_same_end

from repr_ray.runners import local
from repr_ray.study.plan import plan
from repr_ray.study.reading import load
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder

pytestmark = pytest.mark.slow

BORN_AGAIN: dict[str, Any] = {
    "data": {"name": "digits", "train_images": 1200, "validation_images": 100},
    "train": {"epochs": 12, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "schemes": {
        "standard": {"kind": "standard"},
        "born-again": {"kind": "repr", "s1": 2, "s2": 2, "loss": {"kind": "distillation"}},
    },
}


def test_killed_and_resumed(cluster: LocalCluster, tmp_path: Path) -> None:
    """The teacher is trained once, before it; its seconds are counted once, however often the student begins."""
    leash = Leash(tmp_path)
    leash.allow(12)
    config = write_config(tmp_path, **BORN_AGAIN | {"train": BORN_AGAIN["train"] | {"schedule": leash.schedule()}})
    [student] = [trial for trial in plan(load(config)) if trial.teacher]
    teacher = student.teacher
    assert teacher is not None
    results, arguments = tmp_path / "tiny", ("--config", config, "--results", tmp_path)
    launch = cluster.launch(*arguments)
    _await(lambda: teacher.name in results_of(results))
    leash.allow(3)
    _await(lambda: _epochs(results, student) >= 2)
    [process] = cluster.processes(student.name)
    os.kill(process, signal.SIGKILL)
    before = _epochs(results, student)
    leash.allow(before + 2)
    _await(lambda: _epochs(results, student) > before)
    launch.kill()
    launch.communicate(timeout=60)
    assert student.name not in results_of(results)
    leash.free()
    again = cluster.launch(*arguments)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    local.run([teacher, student], tmp_path / "undisturbed", lambda message: None, {})
    assert_same_end(results, tmp_path / "undisturbed")
    found = results_of(results)
    assert found[student.name]["teacher_seconds"] == found[teacher.name]["wall_seconds"]
    assert found[teacher.name]["finished"] <= found[student.name]["started"]
    logs = [(TrialFolder(results, trial).path / "log.txt").read_text() for trial in (teacher, student)]
    assert logs[0].count("  starts") == 1 and logs[1].count("  resumes") == 2


def _epochs(results: Path, trial: Any) -> int:
    return checkpoint.newest_place(TrialFolder(results, trial).path)[0]


def _await(condition: Any) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)
