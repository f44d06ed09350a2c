"""Processes and nodes are killed; final weights and tables equal those of an undisturbed run."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from local_cluster import RANK, LocalCluster
from paced import Leash
from support import results_of, rows, tiny, write_config

from repr_ray.runners import local
from repr_ray.training import checkpoint

pytestmark = pytest.mark.slow

PATIENCE = 600.0
"""Seconds after which something will never come, on a machine with other work too."""

SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module")
def leash(tmp_path_factory: pytest.TempPathFactory) -> Leash:
    """Holds the trials of `paced`."""
    return Leash(tmp_path_factory.mktemp("leash"))


@pytest.fixture(scope="module")
def paced(leash: Leash) -> dict[str, Any]:
    """A hundred epochs, with filters dropped from 20, 50 and 80 on."""
    return {
        "train": {"epochs": 100, "batch_size": 64, "optimizer": SGD, "schedule": leash.schedule()},
        "schemes": {
            "standard": {"kind": "standard"},
            "repr": {"kind": "repr", "s1": 20, "s2": 10, "prune_ratio": 0.3},
        },
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, leash: Leash, paced: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    leash.free()
    local.run(tiny(**paced), folder, lambda message: None, {})
    return folder


def assert_same_end(results: Path, expected: Path) -> None:
    """Same weights and tables of every expected trial, to the last bit."""
    found, wanted = results_of(results), results_of(expected)
    assert wanted
    assert {t: found[t]["checksum"] for t in wanted} == {t: r["checksum"] for t, r in wanted.items()}
    for trial in wanted:
        for table in ("epochs", "cycles"):
            assert rows(results, trial, table) == rows(expected, trial, table)


def await_epoch(results: Path, epoch: int, trials: int = 1) -> None:
    """Wait until so many trials have a checkpoint of that epoch."""
    deadline = time.monotonic() + PATIENCE
    while sum(checkpoint.newest_place(trial)[0] >= epoch for trial in results.glob("trials/*")) < trials:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def await_resumed(results: Path, times: int) -> None:
    """Wait until trials have gone on from a checkpoint that often."""
    deadline = time.monotonic() + PATIENCE
    while sum(log.read_text().count("resumes at epoch") for log in results.glob("trials/*/log.txt")) < times:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_a_node_and_the_driver_die(
    cluster: LocalCluster, tmp_path: Path, leash: Leash, paced: dict[str, Any], undisturbed: Path
) -> None:
    """A trial's process and later its node under the same launch; then the driver; then every node."""
    arguments = ("--config", write_config(tmp_path, **paced), "--results", tmp_path)
    results = tmp_path / "tiny"
    leash.allow(20)
    first = cluster.launch(*arguments)
    await_epoch(results, 20, trials=2)
    leash.allow(40)
    os.kill(min(cluster.processes("convnet-")), signal.SIGKILL)
    await_resumed(results, 1)
    await_epoch(results, 40, trials=2)
    leash.allow(55)
    cluster.kill(next(iter(cluster.processes("convnet-").values())))
    await_resumed(results, 2)
    await_epoch(results, 55, trials=2)
    first.kill()
    out = first.communicate(timeout=PATIENCE)[0]
    assert out.count("its process died") >= 2, out

    leash.allow(70)
    second = cluster.launch(*arguments)
    await_epoch(results, 60)
    cluster.stop()  # the head and every node; the launch may notice or not
    second.kill()
    second.communicate(timeout=PATIENCE)

    cluster.start(1, "--num-cpus=2")
    leash.free()
    third = cluster.launch(*arguments)
    out = third.communicate(timeout=PATIENCE)[0]
    assert third.returncode == 0, out
    assert "resumes at epoch" in out
    assert_same_end(results, undisturbed)


def test_a_trial_that_always_dies_is_given_up_and_named(
    cluster: LocalCluster, tmp_path: Path, leash: Leash, paced: dict[str, Any]
) -> None:
    """Its process is killed before its first checkpoint, every time; the launch ends and says so."""
    leash.allow(0)
    config = write_config(tmp_path, train=paced["train"], schemes={"standard": {"kind": "standard"}})
    launch = cluster.launch("--config", config, "--results", tmp_path)
    deadline = time.monotonic() + PATIENCE
    killed = 0
    while launch.poll() is None and time.monotonic() < deadline:
        if sum(path.read_text().count("starts") for path in tmp_path.glob("tiny/trials/*/log.txt")) > killed:
            for process in cluster.processes("convnet-"):
                os.kill(process, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    out = launch.communicate(timeout=60)[0]
    assert launch.returncode == 1, out
    assert killed == 3
    assert "its process died 3 times in a row between epoch 0 and the next" in out


def test_a_rank_dies(cluster: LocalCluster, tmp_path: Path, leash: Leash) -> None:
    """Two ranks, one killed: the survivor's broken connection is not taken for an error of the trial."""
    scheme = {"repr": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.3}}
    train = {"epochs": 40, "batch_size": 64, "optimizer": SGD, "schedule": leash.schedule()}
    ends = []
    for name in ("disturbed", "undisturbed"):
        config = write_config(tmp_path, name=name, train=train, schemes=scheme)
        leash.allow(20)
        launch = cluster.launch("--config", config, "--results", tmp_path, "resources.workers=2")
        if name == "disturbed":
            await_epoch(tmp_path / name, 20)
            os.kill(max(cluster.processes(RANK)), signal.SIGKILL)
        leash.free()
        out = launch.communicate(timeout=PATIENCE)[0]
        assert launch.returncode == 0, out
        if name == "disturbed":
            assert "a rank died" in out
            assert "resumes at epoch" in out
            assert "FAILED" not in out
        ends.append(tmp_path / name)
    assert_same_end(*ends)


def test_a_node_that_does_not_see_the_results(cluster: LocalCluster, tmp_path: Path) -> None:
    """One line names the node and what to set; nothing is trained."""
    if shutil.which("unshare") is None or cluster.run("unshare", "--mount", "true").returncode:
        pytest.skip("needs the right to make a mount namespace")
    results = tmp_path / "results"
    results.mkdir()
    cluster.start_blind_node(results)
    done = cluster.launch("--config", write_config(tmp_path), "--results", results)
    out = done.communicate(timeout=PATIENCE)[0]
    cluster.kill("blind")
    cluster.blind.wait(timeout=60)
    assert done.returncode == 2, out
    assert "cannot read what the launcher wrote to" in out
    assert "mount that folder on every node" in out
    assert not list(results.glob("tiny/trials/*/epochs.jsonl"))
