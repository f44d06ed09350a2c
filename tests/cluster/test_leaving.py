"""Preempted trials save in the middle of an epoch; the result equals that of an undisturbed run."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from local_cluster import RANK, LocalCluster
from paced import Leash
from support import write_config
from test_faults import PATIENCE, assert_same_end

from repr_ray.runners import local
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

pytestmark = pytest.mark.slow

TITLE = "convnet-2x8-digits-repr-s0"


@pytest.fixture(scope="module")
def leash(tmp_path_factory: pytest.TempPathFactory) -> Leash:
    leash = Leash(tmp_path_factory.mktemp("leash"))
    leash.allow(1000)
    return leash


@pytest.fixture(scope="module")
def config(leash: Leash) -> Path:
    """Epochs of nine seconds: saving only between epochs would lose steps."""
    return write_config(
        leash.path.parent,
        data={"name": "digits", "train_images": 1400, "flip": True},
        train={
            "epochs": 5,
            "batch_size": 8,
            "optimizer": {"kind": "sgd", "learning_rate": 0.01},
            "schedule": leash.schedule(0.05),
        },
        schemes={"repr": {"kind": "repr", "s1": 1, "s2": 1, "prune_ratio": 0.3}},
    )


@pytest.fixture(scope="module")
def undisturbed(config: Path, leash: Leash) -> Path:
    leash.free()
    local.run(plan(load(config)), config.parent / "undisturbed", lambda message: None, {})
    return config.parent / "undisturbed"


def log(results: Path) -> str:
    """The messages of the trial so far."""
    return "".join(path.read_text() for path in results.glob("trials/*/log.txt"))


def await_log(results: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in log(results):
        assert time.monotonic() < deadline, f"{text!r} is not in {log(results)!r}"
        time.sleep(0.05)


def finish(launch: "subprocess.Popen[str]") -> str:
    """What a launch that succeeds prints."""
    out = launch.communicate(timeout=PATIENCE)[0]
    assert launch.returncode == 0, out
    return out


def test_a_signal_saves_within_three_seconds(
    cluster: LocalCluster, config: Path, leash: Leash, tmp_path: Path, undisturbed: Path
) -> None:
    """And the process's title is the trial's name, which the dashboard shows."""
    leash.allow(1000)
    arguments = ("--config", config, "--results", tmp_path)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        launch = cluster.launch(*arguments)
        before = log(tmp_path / "tiny")
        deadline = time.monotonic() + PATIENCE
        while log(tmp_path / "tiny") == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        assert cluster.processes(TITLE), (log(tmp_path / "tiny"), cluster.processes(""))
        launch.send_signal(number)
        told = time.monotonic()
        out = launch.communicate(timeout=PATIENCE)[0]
        seconds = time.monotonic() - told
        assert launch.returncode == status, out
        assert "stopped" in out.splitlines()[-3]
        assert "the same command resumes" in out
        assert not list((tmp_path / "tiny").glob(".probe*"))
        print(f"{number.name}: left after {seconds:.1f} s")
    assert log(tmp_path / "tiny").count("and stopped, as asked") == 2
    leash.free()
    finish(cluster.launch(*arguments))
    assert_same_end(tmp_path / "tiny", undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drained_node_is_left_in_time(
    cluster: LocalCluster, config: Path, leash: Leash, tmp_path: Path, undisturbed: Path, workers: int
) -> None:
    """The trial saves in the middle of its epoch and goes on, within the same launch, on the other node."""
    arguments = ("--config", config, f"resources.workers={workers}", "--results")
    if workers > 1:
        cluster.stop()  # a node stays drained
        cluster.start(2, "--num-cpus=2")
        finish(cluster.launch(*arguments, tmp_path / "undisturbed"))
        undisturbed = tmp_path / "undisturbed" / "tiny"
    leash.allow(1000)
    launch = cluster.launch(*arguments, tmp_path)
    await_log(tmp_path / "tiny", "starts")
    time.sleep(2)
    title = TITLE if workers == 1 else RANK
    [node] = set(cluster.processes(title).values())
    cluster.drain(node)
    await_log(tmp_path / "tiny", "and stopped, as asked")
    await_log(tmp_path / "tiny", "resumes at epoch")
    leash.free()
    assert set(cluster.processes(title).values()) - {node}
    out = finish(launch)
    assert "1 node will be removed" in out
    assert "died" not in out
    assert "Traceback" not in out
    assert_same_end(tmp_path / "tiny", undisturbed)
