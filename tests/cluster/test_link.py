"""The link between two nodes is cut until Ray gives one up; the result equals that of an undisturbed run."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import BIN
from paced import Leash
from support import ROOT, TINY, write_config
from test_faults import PATIENCE, assert_same_end, await_epoch, await_resumed

from repr_ray.runners import local
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

pytestmark = pytest.mark.slow

CUT = 90.0
"""Ray gives a node up after five checks that fail, 13 s apart: within 65 s, and it survives a shorter cut."""

HEAD, WORKER = "10.99.7.1", "10.99.7.2"
PORT = "26479"


class TwoHosts:
    """Two network namespaces joined by a pair of virtual interfaces, a Ray node in each."""

    def __init__(self) -> None:
        self.names = tuple(f"repr{os.getpid()}{end}" for end in "ab")
        self.started: list[subprocess.Popen[bytes]] = []
        self.base = Path(tempfile.mkdtemp(prefix="rr", dir="/tmp"))
        a, b = self.names
        for name in self.names:
            self.ip("netns", "add", name)
        self.ip("link", "add", "va", "netns", a, "type", "veth", "peer", "name", "vb", "netns", b)
        for name, device, address in ((a, "va", HEAD), (b, "vb", WORKER)):
            self.ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            for up in (device, "lo"):
                self.ip("-n", name, "link", "set", up, "up")

    @staticmethod
    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def link(self, state: str) -> None:
        self.ip("-n", self.names[0], "link", "set", "va", state)

    def popen(self, host: int, *command: str | Path) -> "subprocess.Popen[bytes]":
        inside = ["ip", "netns", "exec", self.names[host], *map(str, command)]
        with (self.base / f"{len(self.started)}.log").open("wb") as log:
            process = subprocess.Popen(
                inside,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": f"{HEAD}:{PORT}", "PYTHONPATH": str(Path(__file__).parent)},
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def node(self, host: int, address: str, *options: str) -> None:
        place = self.base / str(len(self.started))
        ray = (BIN / "ray", "start", "--block", f"--node-ip-address={address}", f"--temp-dir={place}", *options)
        log = self.base / f"{len(self.started)}.log"
        self.popen(host, *ray)
        deadline = time.monotonic() + 200
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.base, ignore_errors=True)


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs the command `ip` to make network namespaces")
    try:
        hosts = TwoHosts()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"may not make network namespaces: {error.stderr.decode().strip()}")
    yield hosts
    hosts.close()


def test_a_cut_link(hosts: TwoHosts, tmp_path: Path) -> None:
    """The trial is still at work when the link is back."""
    leash = Leash(tmp_path)
    train = TINY["train"] | {"epochs": 30, "schedule": leash.schedule()}
    schemes = {"repr": {"kind": "repr", "s1": 9, "s2": 9, "prune_ratio": 0.3}}
    config = write_config(tmp_path, train=train, schemes=schemes)
    local.run(plan(load(config)), tmp_path / "undisturbed", lambda message: None, {})
    hosts.node(0, HEAD, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
    hosts.node(1, WORKER, f"--address={HEAD}:{PORT}", "--num-cpus=1")
    log = hosts.base / f"{len(hosts.started)}.log"
    leash.allow(12)
    launch = hosts.popen(0, sys.executable, "-m", "repr_ray.launch", "--config", config, "--results", tmp_path)
    await_epoch(tmp_path / "tiny", 12)
    hosts.link("down")
    time.sleep(CUT)
    hosts.link("up")
    assert launch.poll() is None, log.read_text()
    hosts.node(1, WORKER, f"--address={HEAD}:{PORT}", "--num-cpus=1")  # Ray ends a node that it lost sight of
    await_resumed(tmp_path / "tiny", 1)
    leash.free()
    assert launch.wait(timeout=PATIENCE) == 0, log.read_text()
    out = log.read_text()
    assert "its process died" in out
    assert "resumes at epoch" in out
    assert_same_end(tmp_path / "tiny", tmp_path / "undisturbed")
