"""A real cluster of several raylets on this machine, started the way a user would."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support import ROOT

BIN = Path(sys.executable).parent
RANK = "RayTrainWorker"
"""The title of a rank's process, which Ray sets anew with every task."""


class LocalCluster:
    """cluster/local.sh, with ports and a folder of its own."""

    count = 0

    def __init__(self) -> None:
        LocalCluster.count += 1
        self.base = Path(tempfile.mkdtemp(prefix="rr", dir="/tmp"))  # short: Ray's sockets lie in it
        self.folder = self.base / "c"
        self.launches: list[subprocess.Popen[str]] = []
        port = 20000 + os.getpid() % 225 * 40 + LocalCluster.count * 10
        self.env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "LOCAL_CLUSTER": str(self.folder),
            "LOCAL_CLUSTER_PORT": str(port),
            "LOCAL_CLUSTER_TIMEOUT": "300",
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port + 1}",
            "COLUMNS": "100",
            "PYTHONPATH": str(Path(__file__).parent),  # the schedule in paced.py
        }

    def start(self, nodes: int, *options: str) -> None:
        self.run("cluster/local.sh", "start", str(nodes), *options, check=True)

    def add(self, *options: str) -> None:
        self.run("cluster/local.sh", "add", *options, check=True)

    def stop(self) -> None:
        self.run("cluster/local.sh", "stop", check=True)

    def run(self, *command: str | Path, check: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the cluster's addresses; output and errors together, as on a screen."""
        done = subprocess.run(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            cwd=ROOT,
            env=self.env | env,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    def launch(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start a launch and do not wait for it."""
        launch = subprocess.Popen(
            [sys.executable, "-m", "repr_ray.launch", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self.env,
        )
        self.launches.append(launch)
        return launch

    def end_launches(self) -> None:
        """End what a test that failed has left behind."""
        for launch in self.launches:
            if launch.poll() is None:
                launch.kill()
                launch.communicate(timeout=60)
        self.launches.clear()

    def processes(self, title: str) -> dict[int, str]:
        """The cluster's worker processes of this title, such as a trial's name: id and node."""
        table = _ps()
        raylet = re.compile(rf"--raylet_socket_name={self.folder}/(\w+)/")
        nodes = {pid: found[1] for pid, _, args in table if (found := raylet.search(args))}
        return {int(p): nodes[parent] for p, parent, a in table if parent in nodes and a.startswith(f"ray::{title}")}

    def drain(self, node: str) -> None:
        """Announce, as a cloud does two minutes ahead, that a node will be removed."""
        raylet = re.compile(rf"--raylet_socket_name={self.folder}/{node}/.* --node_id=(\w+)")
        node_id = next(found[1] for _, _, args in _ps() if (found := raylet.search(args)))
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
        deadline = ("--deadline-remaining-seconds", "120")
        self.run(BIN / "ray", "drain-node", "--node-id", node_id, *reason, *deadline, check=True)

    def kill(self, node: str) -> None:
        """A node drops dead: its raylet and everything below it."""
        os.killpg(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)

    def start_blind_node(self, hidden: Path) -> None:
        """A node that sees an empty folder where the others see `hidden`; needs the right to mount."""
        node = self.folder / "blind"
        node.mkdir()
        script = 'mount -t tmpfs none "$1" && shift && exec ray start --block --num-cpus=2 "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", hidden]
        command += [f"--address={self.env['RAY_ADDRESS']}", f"--temp-dir={node}"]
        with (self.folder / "blind.log").open("wb") as log:
            port = int(self.env["LOCAL_CLUSTER_PORT"]) + 9
            self.blind = subprocess.Popen(  # kept: Python warns of one that is forgotten while it runs
                [*map(str, command), f"--dashboard-agent-listen-port={port}"],
                stdout=log,
                stderr=log,
                env=self.env,
                start_new_session=True,
            )
        (self.folder / "blind.pid").write_text(str(self.blind.pid))
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (self.folder / "blind.log").read_text():
            assert time.monotonic() < deadline, (self.folder / "blind.log").read_text()
            time.sleep(0.2)


def _ps() -> list[list[str]]:
    """Id, parent and command line of every process."""
    ps = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=2) for line in ps.stdout.splitlines()]
