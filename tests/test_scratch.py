"""Scratch folders go, also those of processes that were killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repr_ray.storage import scratch as module
from repr_ray.storage.scratch import scratch


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_scratch_folder_goes_with_its_block(tmp_path: Path) -> None:
    with scratch() as folder:
        (Path(folder) / "file").touch()
        assert Path(folder).parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_the_next_one_removes_what_a_killed_process_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, link = tmp_path / "somebody_else", tmp_path / "repr_ray-link"
    other.mkdir()
    link.symlink_to(other)
    code = (
        "from repr_ray.storage.scratch import scratch\nwith scratch() as folder: print(folder, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        assert theirs.is_dir()
        monkeypatch.setattr(module, "YOUNG", -1.0)
        with scratch():
            assert theirs.is_dir(), "its process is alive"
        process.send_signal(signal.SIGKILL)
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch():
        assert theirs.is_dir(), "too young to tell"
    monkeypatch.setattr(module, "YOUNG", -1.0)
    with scratch():
        assert not theirs.exists()
    assert {path.name for path in tmp_path.iterdir()} == {other.name, link.name}
