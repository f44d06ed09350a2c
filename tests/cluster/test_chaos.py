"""Five minutes in which something is killed every few seconds: all trials finish, and none goes back a step."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from support import epochs_for, results_of, write_config
from test_faults import assert_same_end

from repr_ray.config import load
from repr_ray.plan import plan
from repr_ray.runners import local

pytestmark = pytest.mark.slow

SECONDS = 300.0

TWELVE = {
    "seeds": list(range(6)),
    "data": {"name": "digits", "train_images": 1200, "validation_images": 100},
    "model": {"kind": "convnet", "depth": 3, "width": 32},
    "train": {"epochs": 90, "batch_size": 16, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "schemes": {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 6, "s2": 3, "prune_ratio": 0.3}},
}


class Books:
    """What every trial has been seen to have done; it may never have less."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.epochs: dict[str, int] = {}
        self.resumes = 0

    def look(self) -> None:
        resumes = 0
        for folder in self.results.glob("trials/*"):
            log, table = folder / "log.txt", folder / "epochs.jsonl"
            before = self.epochs.get(folder.name, 0)
            at = [int(n) for n in re.findall(r"resumes at epoch (\d+)", log.read_text() if log.exists() else "")]
            resumes += len(at)
            now = table.read_text().count("\n") if table.exists() else 0
            assert now >= before, f"{folder.name} went back from epoch {before} to {now}: {at}"
            self.epochs[folder.name] = now
        self.resumes = resumes


def test_chaos(cluster: LocalCluster, tmp_path: Path) -> None:
    twelve = TWELVE | {"train": TWELVE["train"] | {"epochs": epochs_for(40, tmp_path, **TWELVE)}}
    config = write_config(tmp_path, **twelve)
    arguments = ("--config", config, "--results", tmp_path)
    results, rng = tmp_path / "tiny", random.Random(0)
    books = Books(results)
    killed = {"process": 0, "node": 0, "launch": 0}
    launch = cluster.launch(*arguments)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and launch.poll() is None:
        for _ in range(rng.randint(8, 24)):
            time.sleep(0.5)
            books.look()
        trials = cluster.processes("convnet-")
        what = rng.choices(list(killed), weights=(6, 2, 2))[0]
        if what == "launch":
            launch.kill()
            launch.communicate(timeout=60)
            launch = cluster.launch(*arguments)
        elif not trials:
            continue
        elif what == "process":
            os.kill(rng.choice(list(trials)), signal.SIGKILL)
        else:
            cluster.kill(rng.choice(list(trials.values())))
            cluster.add("--num-cpus=2")
        killed[what] += 1
    out = launch.communicate(timeout=1200)[0]
    print(f"killed {killed}, {books.resumes} times a trial went on from a checkpoint")
    assert launch.returncode == 0, out
    assert min(killed.values()) > 0
    assert books.resumes >= 5
    books.look()
    assert len(results_of(results)) == 12
    some = plan(load(config, ["seeds=[0]"]))
    local.run(some, tmp_path / "undisturbed", lambda message: None, {})
    assert_same_end(results, tmp_path / "undisturbed")
