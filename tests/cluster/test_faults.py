"""Things die; the weights and tables at the end are those of a run that nobody disturbed."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from local_cluster import RANK, LocalCluster
from support import epochs_for, results_of, rows, tiny, write_config

from repr_ray.runners import local

pytestmark = pytest.mark.slow

LONG = {"epochs": 400, "batch_size": 64, "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}}


SLOWER: dict[str, Any] = {
    "train": LONG | {"optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "model": {"kind": "convnet", "depth": 3, "width": 24},
    "schemes": {
        "standard": {"kind": "standard"},
        "repr": {"kind": "repr", "s1": 40, "s2": 20, "prune_ratio": 0.3},
    },
}


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Long enough to be disturbed three times, with a quarter of a minute each to come back."""
    epochs = epochs_for(50, tmp_path_factory.mktemp("pace"), **SLOWER)
    return SLOWER | {"train": SLOWER["train"] | {"epochs": epochs}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, slower: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    local.run(tiny(**slower), folder, lambda message: None, {})
    return folder


def assert_same_end(results: Path, expected: Path) -> None:
    """Same weights and tables of every expected trial, to the last bit."""
    found, wanted = results_of(results), results_of(expected)
    assert wanted
    assert {t: found[t]["checksum"] for t in wanted} == {t: r["checksum"] for t, r in wanted.items()}
    for trial in wanted:
        for table in ("epochs", "cycles"):
            assert rows(results, trial, table) == rows(expected, trial, table)


def await_epoch(results: Path, epoch: int, everywhere: bool = False) -> None:
    """Wait until a trial, or every trial, has a checkpoint of that epoch."""
    deadline = time.monotonic() + 300
    while True:
        trials = list(results.glob("trials/*"))
        reached = [any(int(p.stem.split("-")[1]) >= epoch for p in trial.glob("checkpoint-*.pt")) for trial in trials]
        if reached and (all(reached) if everywhere else any(reached)):
            return
        assert time.monotonic() < deadline, reached
        time.sleep(0.1)


def await_resumed(results: Path, times: int) -> None:
    """Wait until trials have gone on from a checkpoint that often."""
    deadline = time.monotonic() + 300
    while sum(log.read_text().count("resumes at epoch") for log in results.glob("trials/*/log.txt")) < times:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_a_node_and_the_driver_die(
    cluster: LocalCluster, tmp_path: Path, slower: dict[str, Any], undisturbed: Path
) -> None:
    """A trial's process and later its node under the same launch; then the driver; then every node."""
    arguments = ("--config", write_config(tmp_path, **slower), "--results", tmp_path)
    results = tmp_path / "tiny"
    first = cluster.launch(*arguments)
    await_epoch(results, 20, everywhere=True)
    os.kill(min(cluster.processes("convnet-")), signal.SIGKILL)
    await_resumed(results, 1)
    cluster.kill(next(iter(cluster.processes("convnet-").values())))
    await_resumed(results, 2)
    first.kill()
    out = first.communicate(timeout=60)[0]
    assert out.count("its process died") >= 2, out
    assert len(results_of(results)) < 2, "too fast to be disturbed"

    second = cluster.launch(*arguments)
    await_resumed(results, 3)
    cluster.stop()  # the head and every node; the launch may notice or not
    second.kill()
    second.communicate(timeout=60)
    assert len(results_of(results)) < 2, "too fast to be disturbed"

    cluster.start(1, "--num-cpus=2")
    third = cluster.launch(*arguments)
    out = third.communicate(timeout=300)[0]
    assert third.returncode == 0, out
    assert "resumes at epoch" in out
    assert_same_end(results, undisturbed)


def test_a_trial_that_always_dies_is_given_up_and_named(cluster: LocalCluster, tmp_path: Path) -> None:
    """Its process is killed before its first checkpoint, every time; the launch ends and says so."""
    arguments = (
        "--config",
        write_config(tmp_path, schemes={"standard": {"kind": "standard"}}),
        "--results",
        tmp_path,
    )
    launch = cluster.launch(
        *arguments, "data.train_images=1300", "train.epochs=2", "model.width=512", "model.depth=4"
    )
    deadline = time.monotonic() + 300
    log = tmp_path / "tiny"
    killed = 0
    while launch.poll() is None and time.monotonic() < deadline:
        if sum(path.read_text().count("starts") for path in log.glob("trials/*/log.txt")) > killed:
            for process in cluster.processes("convnet-"):
                os.kill(process, signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    out = launch.communicate(timeout=60)[0]
    assert launch.returncode == 1, out
    assert killed == 3
    assert "its process died 3 times in a row between epoch 0 and the next" in out


def test_a_rank_dies(cluster: LocalCluster, tmp_path: Path) -> None:
    """Two ranks, one killed: the survivor's broken connection is not taken for an error of the trial."""
    scheme = {"repr": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.3}}
    ends = []
    for name in ("disturbed", "undisturbed"):
        config = write_config(tmp_path, name=name, train=LONG | {"epochs": 150}, schemes=scheme)
        launch = cluster.launch("--config", config, "--results", tmp_path, "resources.workers=2")
        if name == "disturbed":
            await_epoch(tmp_path / name, 20)
            os.kill(max(cluster.processes(RANK)), signal.SIGKILL)
        out = launch.communicate(timeout=400)[0]
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
    out = done.communicate(timeout=300)[0]
    cluster.kill("blind")
    cluster.blind.wait(timeout=60)
    assert done.returncode == 2, out
    assert "cannot read what the launcher wrote to" in out
    assert "mount that folder on every node" in out
    assert not list(results.glob("tiny/trials/*/epochs.jsonl"))
