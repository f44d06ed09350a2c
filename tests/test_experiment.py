"""The folder of an experiment: one launch at a time, and a disk that fills."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, TINY, results_of, tiny, write_config

from repr_ray.data import decoded
from repr_ray.experiment import hold, read
from repr_ray.runners import local
from repr_ray.storage.folder import Folder
from repr_ray.study.config import ConfigError
from repr_ray.study.reading import validate

EXPERIMENT = validate(TINY, "tiny")


def test_a_claimed_folder_holds_the_experiment_and_is_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    for _ in range(2):
        with hold(Folder(folder), EXPERIMENT):
            assert read(folder) == EXPERIMENT
            with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* is running this experiment"):
                hold(Folder(folder), EXPERIMENT).__enter__()
        assert not (folder / ".holder").exists()


def test_a_folder_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(Folder(tmp_path / "tiny"), EXPERIMENT):
        raise RuntimeError
    with hold(Folder(tmp_path / "tiny"), EXPERIMENT):
        pass


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "repr_ray.launch", "--runner", "local", *map(str, arguments)]


@pytest.mark.slow
def test_a_second_launch_names_the_first_and_takes_over_when_it_is_dead(tmp_path: Path) -> None:
    arguments = command("--config", write_config(tmp_path), "--results", tmp_path)
    long = [*arguments, "train.epochs=100000"]
    first = subprocess.Popen(long, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("tiny/trials/*/checkpoint-*.pt")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    second = subprocess.run(long, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert f"process {first.pid} on" in second.stderr
    assert "is running this experiment; wait for it, or stop it first" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    third = subprocess.Popen(long, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert third.stdout is not None
    try:
        assert any("resumes at epoch" in line for line in third.stdout)
    finally:
        third.kill()
        third.communicate(timeout=60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which the third checkpoint finds no room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_of_a_write(tmp_path: Path, small_disk: Path) -> None:
    arguments = command("--config", write_config(tmp_path), "--results", small_disk)
    full = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "No space left on device" in full.stdout + full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    assert not list(small_disk.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert_resumes(small_disk / "tiny", tmp_path)


@pytest.mark.slow
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same through a limit on file size, which needs no rights."""
    arguments = command("--config", write_config(tmp_path), "--results", tmp_path)
    decoded.load(tiny()[0].data)  # larger than the limit
    full = subprocess.run(
        arguments,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY)),
    )
    assert full.returncode == 1, full.stdout + full.stderr
    assert "File too large" in full.stdout + full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    assert not list(tmp_path.rglob("*.partial"))
    assert_resumes(tmp_path / "tiny", tmp_path)


def assert_resumes(results: Path, tmp_path: Path) -> None:
    """With space again, the results equal those of undisturbed trials."""
    for folder in (results, tmp_path / "undisturbed"):
        local.run(tiny(), folder, lambda message: None, {})
    found, expected = results_of(results), results_of(tmp_path / "undisturbed")
    assert found.keys() == expected.keys() == {trial.name for trial in tiny()}
    for trial in expected:
        assert found[trial]["checksum"] == expected[trial]["checksum"]


def test_a_scheme_with_a_dot_in_its_name_is_compared_like_any_other(tmp_path: Path) -> None:
    before, after = ({"kind": "repr", "s1": 2, "s2": s2} for s2 in (2, 1))
    with hold(Folder(tmp_path / "tiny"), validate(TINY | {"schemes": {"v1.5": before}}, "x")):
        pass
    with pytest.raises(ConfigError, match=r"schemes\.v1\.5\.s2 is 2 there and 1 here"):
        hold(Folder(tmp_path / "tiny"), validate(TINY | {"schemes": {"v1.5": after}}, "x")).__enter__()
