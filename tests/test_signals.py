"""A launch that is told to end leaves in order, whatever it does: with a message, its status, nothing behind."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT, tiny, write_config

from repr_ray.runners import local
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder

# A launch that sends itself a signal when the n-th file of its report takes its place, and one a moment later.
IN_THE_REPORT = """
import os, signal, sys, runpy
from pathlib import Path
number, count, *arguments = sys.argv[1:]
left, replace = [int(count)], Path.replace
def counted(path, target):
    if "trials" not in path.parts and not path.name.endswith(".partial"):
        left[0] -= 1
        if left[0] in (0, -1):
            os.kill(os.getpid(), int(number))
    return replace(path, target)
Path.replace = counted
sys.argv[1:] = arguments
runpy.run_module("repr_ray.launch", run_name="__main__")
"""


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the tiny experiment, which are not reported yet."""
    results = tmp_path_factory.mktemp("trained")
    local.run(tiny(), results / "tiny", lambda message: None, {})
    (results / "tiny" / "experiment.yaml").write_text((write_config(results)).read_text())
    return results


@pytest.mark.parametrize("count", [1, 6])
def test_a_signal_while_the_report_is_written(trained: Path, tmp_path: Path, count: int) -> None:
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["--config", str(trained / "tiny.yaml"), "--results", str(trained), "--runner", "local"]
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_REPORT, str(int(signal.SIGTERM)), str(count), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(work), "MPLCONFIGDIR": str(tmp_path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 143, done.stdout + done.stderr
    assert done.stderr.strip().splitlines() == ["terminated; the same command resumes from the last checkpoints"]
    assert "all 2 trials are done already" in done.stdout
    assert not [path for path in (trained / "tiny").rglob(".*") if path.name != ".lock"]
    assert not list(work.iterdir())


def test_a_closed_terminal(tmp_path: Path) -> None:
    """SIGHUP saves and leaves like SIGTERM, though nobody reads what is printed any more."""
    arguments = ["--config", str(write_config(tmp_path)), "--results", str(tmp_path), "--runner", "local"]
    ours, theirs = pty.openpty()
    launch = subprocess.Popen(
        [sys.executable, "-m", "repr_ray.launch", *arguments, "train.epochs=5000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def trains() -> object:
        assert launch.poll() is None
        with contextlib.suppress(OSError):
            os.read(ours, 1 << 16)  # else the terminal is full, and whoever writes to it waits
        return list(tmp_path.glob("tiny/trials/*/checkpoint-*.pt"))

    try:
        wait_for(trains)
    finally:
        launch.send_signal(signal.SIGHUP)  # as the kernel does, then the terminal is gone
        os.close(ours)
    assert launch.wait(timeout=60) == 129
    [log] = tmp_path.glob("tiny/trials/*/log.txt")
    assert log.read_text().splitlines()[-1].endswith("and stopped, as asked")
    assert checkpoint.newest_place(log.parent)[0] > 0
    assert not TrialFolder(tmp_path / "tiny", tiny(train={"epochs": 5000})[0]).failed
    assert not (tmp_path / "tiny" / ".holder").exists()
