"""A trial's folder: its log stays small."""

from pathlib import Path

import pytest
from support import tiny

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
