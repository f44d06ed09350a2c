"""A launch that is told to end leaves in order, whatever it does: with a message, its status, nothing behind."""

import contextlib
import getpass
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT, tiny, write_config

from repr_ray.progress import Progress
from repr_ray.report import job_console
from repr_ray.runners import local
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder
from repr_ray.training.messages import Note

# A launch that sends itself a signal when the n-th file of its report takes its place, and one a moment later; with 0
# when it is about to end the processes of its own Ray.
IN_THE_REPORT = """
import os, signal, sys, time, runpy
from pathlib import Path
number, count, *arguments = sys.argv[1:]
left, replace = [int(count)], Path.replace
REPORT = (".parquet", ".csv", ".tex", ".md", ".html", ".png", ".svg")
def counted(path, target):
    target = Path(target)
    if os.environ["MARK"] in target.parts and "trials" not in target.parts and target.suffix in REPORT:
        left[0] -= 1
        if left[0] in (0, -1):
            os.kill(os.getpid(), int(number))
    return replace(path, target)
Path.replace = counted
if count == "0":
    from ray._private.node import Node
    end = Node.kill_all_processes
    def told(node, **options):
        time.sleep(0.1)
        os.kill(os.getpid(), int(number))
        return end(node, **options)
    Node.kill_all_processes = told
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


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A path short enough for the sockets of Ray."""
    with tempfile.TemporaryDirectory(prefix="rr", dir="/tmp") as folder:
        yield Path(folder) / "t"


def told_to_end(number: signal.Signals, count: int, results: Path, work: Path, runner: str) -> str:
    """What a launch prints that gets a signal after its trials; it ends like any other, and nothing stays behind."""
    work.mkdir()
    arguments = ["--config", str(results / "tiny.yaml"), "--results", str(results), "--runner", runner]
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_REPORT, str(int(number)), str(count), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(work), "MPLCONFIGDIR": str(work.parent), "MARK": results.name},
        timeout=240,
        check=False,
    )
    assert done.returncode == 128 + number, done.stdout + done.stderr
    said = {signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}[number]
    assert done.stderr.strip().splitlines() == [f"{said}; the same command resumes from the last checkpoints"]
    assert not [path for path in (results / "tiny").rglob(".*") if path.name != ".lock"]
    left = {path.name for path in work.iterdir()}
    assert left <= {"ray", f"torchinductor_{getpass.getuser()}"}, "these two hold Ray's logs and PyTorch's cache"
    return done.stdout


@pytest.mark.parametrize("count", [1, 6])
def test_a_signal_while_the_report_is_written(trained: Path, tmp_path: Path, count: int) -> None:
    assert "all 2 trials are done already" in told_to_end(signal.SIGTERM, count, trained, tmp_path / "work", "local")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGHUP, 2)])
def test_a_signal_after_a_run_on_ray(tmp_path: Path, number: signal.Signals, count: int) -> None:
    """Ray, when it ends, takes SIGTERM's handler away in C."""
    write_config(tmp_path)
    with short_folder() as work:
        assert "done: epoch 8/8" in told_to_end(number, count, tmp_path, work, "ray")
    assert not list((tmp_path / "tiny").glob("*.parquet*")) or count == 2


def test_a_handler_that_c_code_takes_away() -> None:
    script = """
import ctypes, signal, time
from repr_ray.runners.signals import sigterm_kept
signal.signal(signal.SIGTERM, lambda number, frame: print("told"))
libc = ctypes.CDLL(None)
with sigterm_kept():
    libc.signal(signal.SIGTERM, None)
    time.sleep(0.5)
    signal.raise_signal(signal.SIGTERM)
    libc.signal(signal.SIGTERM, None)
signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "told\ntold\n"), done.stderr


def test_what_is_written_to_a_closed_terminal_is_lost_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the handler of SIGHUP has run."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", buffering=1) as terminal:  # noqa: PTH123 - a handle, not a path
        monkeypatch.setattr(sys, "stdout", terminal)
        console = job_console()
        assert console.is_terminal
        console.print("before")
        os.close(ours)
        with pytest.raises(OSError, match="Input/output"):
            os.write(theirs, b"x")
        with Progress(console, {"a": 1}, 0) as progress:
            progress.update(Note("starts", "a"))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, theirs)  # as the handler does
        os.close(nowhere)


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
