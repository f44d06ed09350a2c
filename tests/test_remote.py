"""Results on object storage, on a real S3 server on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from s3 import keys_needed, serve, uri
from studies import make_experiment
from support import ROOT, TINY, launch, results_of, rows, tiny, write_config

from repr_ray import experiment, report
from repr_ray import launch as launch_module
from repr_ray.runners import local
from repr_ray.storage import folder as remote
from repr_ray.storage import lease
from repr_ray.storage.folder import Remote, StorageError, filesystem, join, light, opened, redact
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import load, validate
from repr_ray.training.messages import Failed, Message, Preempted
from repr_ray.training.trial import run_trial

CPU = torch.device("cpu")
BIG = 11_000_000
"""More than an upload in one part holds."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve() as address:
        yield address


@pytest.fixture(params=["s3", "file"])
def location(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> str:
    """A folder on S3, and one where files are written beside and moved."""
    return uri(server, tmp_path.name) if request.param == "s3" else (tmp_path / "stored").as_uri()


def remote_at(location: str, mirror: Path) -> Remote:
    mirror.mkdir(exist_ok=True)
    return Remote(location, *filesystem(location), mirror)


def copy_of(location: str, mirror: Path) -> Path:
    """All that is stored."""
    there = remote_at(location, mirror)
    there.pull()
    return there.path


def read(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_a_mirror_gives_and_takes_what_changed(location: str, tmp_path: Path) -> None:
    here, there = remote_at(location, tmp_path / "here"), remote_at(location, tmp_path / "there")
    (here.path / "t").mkdir()
    for name in ("t/checkpoint-1.pt", "t/epochs.jsonl", "t/error.json", "top.yaml"):
        (here.path / name).write_text(name)
    (here.path / "t" / ".half.partial").write_text("not ours to store")
    here.push("t")
    there.pull()
    assert read(there.path) == {name: name for name in ("t/checkpoint-1.pt", "t/epochs.jsonl", "t/error.json")}

    (here.path / "t" / "checkpoint-1.pt").unlink()
    (here.path / "t" / "checkpoint-2.pt").write_text("new")
    (here.path / "t" / "error.json").unlink()
    (here.path / "t" / "epochs.jsonl").write_text("longer than before")
    order: list[str] = []
    write = here.write
    here.write = lambda name, content: (order.append(name), write(name, content))[1]  # type: ignore[method-assign]
    here.push()
    assert order[0] == "t/checkpoint-2.pt"
    assert sorted(order[1:]) == ["t/epochs.jsonl", "top.yaml"]
    here.push()
    assert len(order) == 3, "nothing has changed"
    (there.path / "t" / "epochs.jsonl").write_text("stale")
    there.pull(wanted=light)
    assert (there.path / "t" / "checkpoint-1.pt").exists(), "out of what is wanted"
    there.pull()
    assert read(there.path) == {
        "t/checkpoint-2.pt": "new",
        "t/epochs.jsonl": "longer than before",
        "top.yaml": "top.yaml",
    }
    assert there.names() == ["t", "top.yaml"]


def test_a_reader_never_sees_half_a_file(location: str, tmp_path: Path) -> None:
    writer, reader = remote_at(location, tmp_path / "w"), remote_at(location, tmp_path / "r")
    writer.write("x", b"a" * BIG)

    def replace() -> None:
        for letter in b"bcd":
            writer.write("x", bytes([letter]) * BIG)

    thread = threading.Thread(target=replace)
    thread.start()
    seen = []
    while thread.is_alive() or not seen:
        content = reader.read("x")
        assert content == content[:1] * BIG
        seen.append(content[:1])
    thread.join()
    assert reader.read("x") == b"d" * BIG
    assert seen == sorted(seen)


class _Late(BaseException):
    pass


def test_a_signal_in_the_middle_of_an_upload_stores_all_of_it_or_nothing(location: str, tmp_path: Path) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise _Late

    stored = remote_at(location, tmp_path / "here")
    stored.write("x", b"old")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for delay in (0.002, 0.02, 0.1):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with pytest.raises(_Late):
                stored.write("x", b"new" * BIG)
                time.sleep(10)
            assert len(stored.read("x")) in (3, 3 * BIG)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def cut_after(size: int, server: str) -> Iterator[str]:
    """A way to the server that breaks, for good, when so many bytes have passed."""
    host, port = server.split(":")
    listening = socket.create_server(("127.0.0.1", 0))
    left = [size]

    def forward(source: socket.socket, target: socket.socket, counted: bool) -> None:
        with source, target:
            try:
                while data := source.recv(1 << 16):
                    left[0] -= len(data) * counted
                    if left[0] < 0:
                        return
                    target.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            upstream = socket.create_connection((host, int(port)))
            for pair in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(target=forward, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_the_old_object(server: str, tmp_path: Path) -> None:
    whole = remote_at(uri(server, tmp_path.name), tmp_path / "whole")
    whole.write("x", b"old")
    with cut_after(15_000_000, server) as address:
        broken = remote_at(uri(address, tmp_path.name), tmp_path / "broken")
        with pytest.raises(StorageError, match=r"s3://bucket/.*/x cannot be written \(.*check the address"):
            broken.write("x", b"new" * BIG)
    assert whole.read("x") == b"old"


EXPERIMENT = validate(TINY, "tiny")


def test_of_two_launches_at_the_same_moment_one_goes_on(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 1.0)
    together, entered, refused = threading.Barrier(2), [], []

    def hold(name: str) -> None:
        storage = remote_at(location, tmp_path / name)
        together.wait()
        try:
            with experiment.hold(storage, EXPERIMENT):
                entered.append(name)
                time.sleep(3)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=hold, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == len(refused) == 1
    assert f"process {os.getpid()} on" in refused[0]
    assert remote_at(location, tmp_path / "one").mtime(".holder") < 0, "free again"


def test_a_launch_that_was_taken_over_is_ended(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ended(number: int, frame: object) -> None:
        raise _Late

    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    storage = remote_at(location, tmp_path / "here")
    before = signal.signal(signal.SIGTERM, ended)
    try:
        with pytest.raises(_Late), experiment.hold(storage, EXPERIMENT):
            since = storage.mtime(".holder")
            wait_for(lambda: storage.mtime(".holder") > since)
            storage.write(".holder", b"process 1 elsewhere")
            time.sleep(30)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "process 1 elsewhere has taken over" in capfd.readouterr().err
    assert storage.read(".holder") == b"process 1 elsewhere"


@pytest.mark.slow
def test_killed_refused_taken_over_and_resumed_elsewhere(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launch that resumes has only the storage; its result equals that of an undisturbed local one."""
    schemes = {"repr": {"kind": "repr", "s1": 6, "s2": 4, "prune_ratio": 0.3}}
    config = write_config(tmp_path, schemes=schemes, train=TINY["train"] | {"epochs": 30})
    [trial] = plan(load(config, []))
    results = uri(server, tmp_path.name)
    arguments = ["--config", str(config), "--results", results, "--runner", "local"]
    first = subprocess.Popen(
        [sys.executable, "-m", "repr_ray.launch", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    stored = remote_at(str(join(results, "tiny")), tmp_path / "look")
    try:
        wait_for(lambda: any("checkpoint-0007" in name for name in stored.stored()))
        first.send_signal(signal.SIGSTOP)
        assert launch_module.main(arguments) == 2
        err = capsys.readouterr().err
        assert f"s3://bucket/{tmp_path.name}/tiny: process {first.pid} on" in err
        assert "is running this experiment; wait for it, or stop it first" in err
        assert len(err.splitlines()) == 1
    finally:
        first.kill()
        first.wait(60)
    assert not any(name.endswith("result.json") for name in stored.stored()), "too fast to be disturbed"

    monkeypatch.setattr(lease, "LEASE_TIMEOUT_SECONDS", 1.0)
    time.sleep(2.5)
    assert launch_module.main(arguments) == 0
    out = capsys.readouterr().out
    assert "resumes at epoch" in out
    assert f"written to s3://bucket/{tmp_path.name}/tiny: trials.parquet" in "".join(out.splitlines())
    local.run([trial], tmp_path / "undisturbed", lambda message: None, {})
    copy = copy_of(str(join(results, "tiny")), tmp_path / "copy")
    assert results_of(copy)[trial.name]["checksum"] == results_of(tmp_path / "undisturbed")[trial.name]["checksum"]
    for table in ("epochs", "cycles"):
        assert rows(copy, trial.name, table) == rows(tmp_path / "undisturbed", trial.name, table)
    kept = {path.name for path in (copy / "trials" / trial.name).glob("*.pt")}
    assert kept == {path.name for path in (tmp_path / "undisturbed" / "trials" / trial.name).glob("*.pt")}
    assert (copy / "report.html").exists()
    assert not list(copy.glob(".*"))


def test_storage_that_comes_back_is_waited_for_and_one_that_does_not_fails_the_trial(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.1, 0.1))
    trial = tiny()[0]
    results = uri(server, tmp_path.name)
    put, failing = Remote._put, []

    def fails(self: Remote, target: str, content: bytes) -> None:
        if failing and "checkpoint-0003" in target:
            raise OSError(failing.pop())
        put(self, target, content)

    monkeypatch.setattr(Remote, "_put", fails)
    told: list[Message] = []
    run = partial(run_trial, trial, results, CPU, told.append, {})
    failing[:] = ["cut"] * 3
    with pytest.raises(StorageError):
        run()
    assert isinstance(told[-1], Failed)
    assert "checkpoint-0003.pt cannot be written (cut)" in told[-1].reason
    copy = copy_of(results, tmp_path / "copy")
    failure = json.loads((copy / "trials" / trial.name / "error.json").read_text())
    assert "cannot be written (cut)" in failure["message"]
    assert len(rows(copy, trial.name, "epochs")) == 3

    failing[:] = ["cut"] * 2
    run()
    again = copy_of(results, tmp_path / "again")
    assert not (again / "trials" / trial.name / "error.json").exists()
    assert "resumes at epoch 4" in (again / "trials" / trial.name / "log.txt").read_text()
    run_trial(trial, tmp_path / "undisturbed", CPU, lambda message: None, {})
    assert results_of(again)[trial.name]["checksum"] == results_of(tmp_path / "undisturbed")[trial.name]["checksum"]


def test_a_process_that_was_taken_for_dead_stores_no_more(server: str, tmp_path: Path) -> None:
    trial, results, calls = tiny()[0], uri(server, tmp_path.name), iter(range(1000))
    stored = remote_at(results, tmp_path / "look")
    states: list[object] = []

    def meanwhile() -> bool:
        if next(calls) == 7:
            run_trial(trial, results, CPU, lambda message: None, {})
            states.append(stored.stored())
        return False

    with pytest.raises(Preempted):
        run_trial(trial, results, CPU, lambda message: None, {}, stop=meanwhile)
    assert states == [stored.stored()]
    assert stored.mtime(f"trials/{trial.name}/.owner") < 0


def test_report_of_results_on_storage(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = uri(server, f"{tmp_path.name}/study")
    study = remote_at(location, tmp_path / "study")
    make_experiment(study.path, {"standard": [0.70, 0.71, 0.72], "repr": [0.71, 0.73, 0.74]})
    (study.path / "comparison.csv").write_text("my own")
    study.push()
    for _ in range(2):
        assert report.main([location, "--pictures", "0"]) == 0
        out = capsys.readouterr().out
        assert "Cannot tell yet whether repr is better or worse than standard" in out
        assert f"s3://bucket/{tmp_path.name}/study/comparison.csv was not written by" in " ".join(out.split())
    copy = copy_of(location, tmp_path / "copy")
    assert (copy / "comparison.csv").read_text() == "my own"
    assert (copy / "comparison.md").exists()
    assert (copy / "trials.parquet").exists()
    assert report.main([location, "--output", str(tmp_path / "tables"), "--format", "md"]) == 0
    assert (tmp_path / "tables" / "comparison.md").exists()
    assert report.main([uri(server, "nothing")]) == 2
    assert "s3://bucket/nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("foo://bucket/x", "Unrecognized filesystem type in URI"),
        ("s3:/bucket/x", "Missing bucket name in S3 URI"),
        ("s3://", "Missing bucket name in S3 URI"),
        ("s3://nobody-made-this/x?scheme=http&endpoint_override=SERVER", "NO_SUCH_BUCKET"),
        ("s3://key:secret@bucket/x?scheme=http&endpoint_override=SERVER", "ACCESS_DENIED"),
        ("s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:9", "Could not connect to server"),
    ],
)
def test_a_bad_place_for_results_costs_nothing(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], results: str, expected: str
) -> None:
    config = write_config(tmp_path)
    place = results.replace("SERVER", server)
    started = time.monotonic()
    with keys_needed(server) if "secret" in results else nullcontext():
        assert launch_module.main(["--config", str(config), "--results", place, "--runner", "local"]) == 2
    assert time.monotonic() - started < 30
    captured = capsys.readouterr()
    assert captured.err.startswith("--results: ")
    assert expected in captured.err
    assert len(captured.err.splitlines()) == 1
    assert "secret" not in captured.err
    assert "trials to run" not in captured.out


def test_other_peoples_folders_are_refused(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = uri(server, tmp_path.name)
    theirs = remote_at(str(join(results, "tiny")), tmp_path / "theirs")
    theirs.write("thesis.txt", b"mine")
    arguments = ["--config", str(write_config(tmp_path)), "--results", results, "--runner", "local"]
    assert launch_module.main(arguments) == 2
    assert f"s3://bucket/{tmp_path.name}/tiny: holds files but no experiment.yaml" in capsys.readouterr().err
    assert list(theirs.stored()) == ["thesis.txt"]


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    arguments = ["--config", str(write_config(tmp_path, schemes={"standard": {"kind": "standard"}}))]
    arguments += ["--results", (tmp_path / "results").as_uri(), "--runner", "local"]
    assert launch_module.main(arguments) == 0
    assert len(results_of(tmp_path / "results" / "tiny")) == 1
    assert report.main([(tmp_path / "results" / "tiny").as_uri(), "--format", "md"]) == 0


def test_names_of_places() -> None:
    assert join("s3://b/x/?region=eu-west-1&scheme=http", "tiny") == "s3://b/x/tiny?region=eu-west-1&scheme=http"
    assert join("results", "tiny") == Path("results").resolve() / "tiny"
    assert redact("s3://key:secret@b/x?region=y cannot be read") == "s3://b/x cannot be read"
    with opened("somewhere/local") as folder:
        assert folder.path == folder.location == Path("somewhere/local")
    wanted = ["experiment.yaml", "trials/t/epochs.jsonl", "plots/curves.png"]
    others = ["trials/t/checkpoint-0001.pt", "trials/t/best.pt", "trials/t/events.out.tfevents.1.h", "photos/1.jpg"]
    assert [name for name in wanted + others if light(name)] == wanted


@pytest.mark.slow
def test_through_ray(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial's process has a mirror of its own; the end is that of a local run.

    Seeds come look by look, and a scheme learns from the baseline's run, which another process has stored.
    """
    results = uri(server, tmp_path.name)
    student = {"kind": "standard", "loss": {"kind": "distillation"}}
    schemes, train = {**TINY["schemes"], "student": student}, {**TINY["train"], "epochs": 5}
    config = write_config(tmp_path, seeds={"looks": [3, 4]}, schemes=schemes, train=train)
    done = launch("--config", config, "--results", results, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 trials (student) learn from 3 others and wait for them" in done.stdout
    monkeypatch.setattr(launch_module, "_report", lambda *_: None)
    there = tmp_path / "there"
    assert launch_module.main(["--config", str(config), "--results", str(there), "--runner", "local"]) == 0
    copy = copy_of(str(join(results, "tiny")), tmp_path / "copy")
    ours, theirs = results_of(copy), results_of(there / "tiny")
    assert len(theirs) >= 9
    assert {t: r["checksum"] for t, r in ours.items()} == {t: r["checksum"] for t, r in theirs.items()}
    for trial, result in ours.items():
        assert rows(copy, trial, "epochs") == rows(there / "tiny", trial, "epochs")
        if teacher := ours.get(result.get("teacher", "")):
            assert teacher["finished"] <= result["started"]
            assert result["teacher_seconds"] == teacher["wall_seconds"]
    assert sum("teacher" in result for result in ours.values()) >= 3
    assert (copy / "report.html").exists()
