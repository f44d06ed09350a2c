"""A trial's folder: its log stays small."""

from pathlib import Path

import pytest
from support import tiny

from repr_ray.training import checkpoint
from repr_ray.training import folder as module
from repr_ray.training.folder import TrialFolder


def test_a_log_keeps_its_head_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LOG", 5_000)
    folder = TrialFolder(tmp_path, tiny()[0])
    folder.announce()
    path = folder.path / "log.txt"
    for number in range(1_000):
        folder.log(f"line {number} é")
        assert path.stat().st_size <= 5_000
    lines = path.read_text().splitlines()
    assert lines[0].endswith("  line 0 é")
    assert lines[-1].endswith("  line 999 é")
    assert lines.count("... lines left out ...") == 1
    folder.log("x" * 100_000)
    assert path.stat().st_size <= 5_000 + module.LONGEST_LINE


def test_files_of_odd_names_are_no_checkpoints(tmp_path: Path) -> None:
    names = ["checkpoint-0002.pt", "checkpoint-0010-000003.pt", "checkpoint-0010.pt", "checkpoint-12345.pt"]
    odd = ["0008 (1)", "", "-1", "٠٠٠٩", "0009-", "0009-x", "0009_1", "1e4", "00" * 500, "0009-000001-2"]
    for name in [*names, *(f"checkpoint-{text}.pt" for text in odd if len(text) < 200)]:
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-9999.pt").symlink_to(tmp_path / "checkpoint-0002.pt")
    (tmp_path / "checkpoint-9998.pt").mkdir()
    assert [path.name for path in checkpoint.newest_first(tmp_path) if path.is_file()] == [
        "checkpoint-12345.pt",
        "checkpoint-0010-000003.pt",
        "checkpoint-0010.pt",
        "checkpoint-0002.pt",
    ]
    assert checkpoint.load_newest(tmp_path, lambda text: None) is None  # all of them empty


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path, tiny()[0])
    folder.announce()
    (folder.path / "log.txt").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic"):
        folder.log("text")
    assert not (tmp_path / "theirs").exists()
