"""Processes, nodes and launches are killed while trials train: all trials finish, and none loses a checkpoint."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from support import epochs_for, results_of, write_config
from test_faults import assert_same_end

from repr_ray.runners import local
from repr_ray.study.plan import plan
from repr_ray.study.reading import load
from repr_ray.training import checkpoint

pytestmark = pytest.mark.slow

KILLS = ("process", "launch", "node", "process", "launch", "node", "process")
"""What is killed, one after the other, each after a trial has got further since the last."""

EIGHT = {
    "seeds": list(range(4)),
    "data": {"name": "digits", "train_images": 1200, "validation_images": 100},
    "model": {"kind": "convnet", "depth": 3, "width": 32},
    "train": {"epochs": 90, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "schemes": {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 6, "s2": 3, "prune_ratio": 0.3}},
}

Place = tuple[int, int]


class Books:
    """The newest checkpoint that every trial has been seen to have; it never goes on from an older one."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.places: dict[str, Place] = {}
        self.resumes: dict[str, int] = {}

    def look(self) -> None:
        for folder in self.results.glob("trials/*"):
            before = self.places.get(folder.name, (0, 0))
            log = folder / "log.txt"
            lines = re.findall(r"resumes at epoch (\d+)(?:, step (\d+))?", log.read_text() if log.exists() else "")
            for epoch, step in lines[self.resumes.get(folder.name, 0) :]:
                assert (int(epoch), int(step or 0)) >= before, f"{folder.name} had {before}, and goes on at {epoch}"
            self.resumes[folder.name] = len(lines)
            self.places[folder.name] = max(before, checkpoint.newest_place(folder))

    def progress(self) -> int:
        self.look()
        return sum(epochs for epochs, _ in self.places.values())

    def await_progress(self, launch: "subprocess.Popen[str]") -> None:
        before, until = self.progress(), time.monotonic() + 240
        while self.progress() == before:
            assert launch.poll() is None, "the trials are too short: all have ended"
            assert time.monotonic() < until, "no trial gets any further"
            time.sleep(0.2)


def test_chaos(cluster: LocalCluster, tmp_path: Path) -> None:
    raw = EIGHT | {"train": EIGHT["train"] | {"epochs": epochs_for(20, tmp_path, **EIGHT)}}
    config = write_config(tmp_path, **raw)
    arguments = ("--config", config, "--results", tmp_path)
    results, rng, began = tmp_path / "tiny", random.Random(0), time.monotonic()
    books, launch = Books(results), cluster.launch(*arguments)
    for kind in KILLS:
        books.await_progress(launch)
        trains = cluster.processes("convnet-")
        assert trains, "the trials are too short: all have ended"
        if kind == "process":
            os.kill(rng.choice(list(trains)), signal.SIGKILL)
        elif kind == "node":
            cluster.kill(rng.choice(list(trains.values())))
            cluster.add("--num-cpus=2")
        else:
            launch.kill()
            launch.communicate(timeout=60)
            launch = cluster.launch(*arguments)
    out = launch.communicate(timeout=400)[0]
    books.look()
    print(f"{sum(books.resumes.values())} resumes, {time.monotonic() - began:.0f} s")
    assert launch.returncode == 0, out
    assert sum(books.resumes.values()) >= len(KILLS) - 2, "hardly anything was hit"
    assert len(results_of(results)) == 8
    some = plan(load(config, ["seeds=[0]"]))
    local.run(some, tmp_path / "undisturbed", lambda message: None, {})
    assert_same_end(results, tmp_path / "undisturbed")
