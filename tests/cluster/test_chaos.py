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
from paced import Leash
from support import TINY, results_of, write_config
from test_faults import PATIENCE, assert_same_end

from repr_ray.runners import local
from repr_ray.study.plan import plan
from repr_ray.study.reading import load
from repr_ray.training import checkpoint

pytestmark = pytest.mark.slow

KILLS = ("process", "launch", "node", "launch", "process")
"""What is killed, one after the other."""

BETWEEN = 5
"""Epochs that every trial may train from one kill to the next."""

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
                place = int(epoch) - 1, int(step or 0)
                assert place >= before, f"{folder.name} had saved {before}, and goes on from {place}"
            self.resumes[folder.name] = len(lines)
            self.places[folder.name] = max(before, checkpoint.newest_place(folder))

    def training(
        self, cluster: LocalCluster, launch: "subprocess.Popen[str]", before: dict[str, Place]
    ) -> dict[int, str]:
        """Processes and nodes of the trials that train, once every one of them has got further than before."""
        until = time.monotonic() + PATIENCE
        while True:
            time.sleep(0.2)
            self.look()
            found = {name: cluster.processes(name) for name in self.places}
            running = {name: process for name, process in found.items() if process}
            if running and all(self.places[name] > before.get(name, (0, 0)) for name in running):
                return {pid: node for process in running.values() for pid, node in process.items()}
            assert launch.poll() is None, "the launch has ended"
            assert time.monotonic() < until, f"trials get no further than {self.places}"


def test_chaos(cluster: LocalCluster, tmp_path: Path) -> None:
    """Four trials at a time, of eight. They train while something is killed, and cannot end before the last kill."""
    leash, results = Leash(tmp_path), tmp_path / "tiny"
    train = TINY["train"] | {"epochs": (len(KILLS) + 1) * BETWEEN, "schedule": leash.schedule(0.05)}
    schemes = {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 6, "s2": 3, "prune_ratio": 0.3}}
    config = write_config(tmp_path, train=train, schemes=schemes, seeds=list(range(4)))
    arguments = ("--config", config, "--results", tmp_path)
    rng, began = random.Random(0), time.monotonic()
    leash.allow(BETWEEN)
    books, launch, before = Books(results), cluster.launch(*arguments), dict[str, Place]()
    for number, kind in enumerate(KILLS, start=2):
        trains, before = books.training(cluster, launch, before), dict(books.places)
        leash.allow(number * BETWEEN)
        if kind == "process":
            os.kill(rng.choice(list(trains)), signal.SIGKILL)
        elif kind == "node":
            cluster.kill(rng.choice(list(trains.values())))
            cluster.add("--num-cpus=2")
        else:
            launch.kill()
            launch.communicate(timeout=PATIENCE)
            launch = cluster.launch(*arguments)
    leash.free()
    out = launch.communicate(timeout=PATIENCE)[0]
    books.look()
    print(f"{sum(books.resumes.values())} resumes, {time.monotonic() - began:.0f} s")
    assert launch.returncode == 0, out
    assert sum(books.resumes.values()) >= len(KILLS), "hardly anything was hit"
    assert len(results_of(results)) == 8
    some = plan(load(config, ["seeds=[0]"]))
    local.run(some, tmp_path / "undisturbed", lambda message: None, {})
    assert_same_end(results, tmp_path / "undisturbed")
