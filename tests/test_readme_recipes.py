"""The README's recipes, applied as they stand there to a copy of the package, and trained with."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support import ROOT, results_of, write_config


def apply(patch: str, root: Path) -> None:
    """Apply the README's short form of a diff: kept and removed lines must stand once in the file, as beginnings."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", patch, flags=re.M | re.S):
        lines = body.splitlines()
        anchors = [line[1:] for line in lines if line[:1] in (" ", "-") and line.strip()]
        added = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        assert len(anchors) == 1, f"{name}: one line to hold on to, found {anchors}"
        path = root / name
        text = path.read_text()
        found = re.findall(rf"^{re.escape(anchors[0])}", text, flags=re.M)
        assert len(found) == 1, f"{name}: {anchors[0]!r} stands there {len(found)} times"
        path.write_text(text.replace(anchors[0], added, 1))


def test_the_recipes_work(tmp_path: Path) -> None:
    patches = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    overrides = re.findall(r"^Then `(.*)`\.$", (ROOT / "README.md").read_text(), flags=re.M)
    assert len(patches) == len(overrides) == 4
    shutil.copytree(ROOT / "repr_ray", tmp_path / "repr_ray")
    for patch in patches:
        apply(patch, tmp_path)
    config = write_config(tmp_path)
    command = [
        "-m",
        "repr_ray.launch",
        "--runner",
        "local",
        "--config",
        str(config),
        "--results",
        str(tmp_path / "r"),
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *command, *overrides],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trials = results_of(tmp_path / "r" / "tiny")
    assert [name.rsplit("-", 2)[0] for name in trials] == [
        f"two-16-negatives-{scheme}" for scheme in ("repr", "shrink", "standard")
    ]
    stored = (tmp_path / "r" / "tiny" / "trials" / next(iter(trials)) / "config.yaml").read_text()
    assert "score: peak" in stored
