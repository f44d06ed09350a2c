"""A process that decodes images for a rank is killed: the launch goes on, to the bits of an undisturbed one."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from local_cluster import RANK, LocalCluster
from paced import Leash
from support import write_config
from test_faults import PATIENCE, SGD, assert_same_end, await_epoch
from test_stream_ranks import jpegs

pytestmark = pytest.mark.slow


def test_a_loader_of_a_rank_dies(cluster: LocalCluster, tmp_path: Path) -> None:
    """In the middle of a trial, with more batches to come than are decoded ahead; its rank stays alive."""
    leash = Leash(tmp_path)
    images = {"name": "own", "source": str(jpegs(tmp_path / "images")), "size": 16, "store": "stream", "flip": True}
    data = images | {"augment": {"random_resized_crop": {}}}
    train = {"epochs": 4, "batch_size": 10, "optimizer": SGD, "schedule": leash.schedule()}
    scheme = {"repr": {"kind": "repr", "s1": 1, "s2": 1, "prune_ratio": 0.3}}
    ends = []
    for name in ("disturbed", "undisturbed"):
        config = write_config(tmp_path, name=name, data=data, train=train, schemes=scheme)
        leash.allow(2)
        launch = cluster.launch("--config", config, "--results", tmp_path, "resources.workers=2")
        if name == "disturbed":
            await_epoch(tmp_path / name, 2)
            os.kill(loader(max(cluster.processes(RANK))), signal.SIGKILL)
        leash.free()
        out = launch.communicate(timeout=PATIENCE)[0]
        assert launch.returncode == 0, out
        said = " ".join(out.split())  # lines are wrapped
        if name == "disturbed":
            assert "a rank died: StreamStopped: a process that decodes images has died" in said, out
            assert "resumes at epoch 3" in said, out
            [log] = tmp_path.glob("disturbed/trials/*/log.txt")
            assert "FAILED" not in said + log.read_text(), out
            assert not list(tmp_path.glob("disturbed/trials/*/error.json"))
        ends.append(tmp_path / name)
    assert_same_end(*ends)


def loader(rank: int) -> int:
    """The process that decodes images for a rank, once it has started."""
    until = time.monotonic() + PATIENCE
    while True:
        ps = subprocess.run(["ps", "--ppid", str(rank), "-o", "pid="], capture_output=True, text=True, check=False)
        if children := [int(child) for child in ps.stdout.split()]:
            return max(children)
        assert time.monotonic() < until, "the rank has no other process"
        time.sleep(0.1)
