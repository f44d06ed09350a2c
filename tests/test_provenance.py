"""The commit stored with a result is that of this package's own checkout, or none."""

import os
import subprocess
from pathlib import Path

import pytest

from repr_ray.training import provenance


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package in it."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_the_commit_of_a_checkout_and_whether_it_was_changed(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert provenance.commit(checkout / "package") == head
    (checkout / "package" / "__init__.py").write_text("x = 1")
    assert provenance.commit(checkout / "package") == f"{head}-dirty"


def test_the_checkout_is_only_read(checkout: Path) -> None:
    os.utime(checkout / "package" / "__init__.py", (0, 0))  # as git would note in its index
    before = (checkout / ".git" / "index").stat()
    assert provenance.commit(checkout / "package")
    after = (checkout / ".git" / "index").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_package_installed_inside_a_repository_has_none(checkout: Path) -> None:
    """As in a virtual environment inside another project, ignored by git or not."""
    for place in ("venv/lib/site-packages/package", "vendored/package"):
        installed = checkout / place
        installed.mkdir(parents=True)
        (installed / "__init__.py").write_text("")
        assert provenance.commit(installed) is None
    (checkout / "beside").mkdir()
    (checkout / "beside" / "__init__.py").write_text("")
    assert provenance.commit(checkout / "beside") is None, "not in the repository"


def test_without_a_repository_or_git_there_is_none(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    assert provenance.commit(outside) is None
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))  # as in a hook
    monkeypatch.setenv("GIT_WORK_TREE", str(outside.parent))
    assert provenance.commit(outside) is None
    monkeypatch.setenv("PATH", str(outside))
    assert provenance.commit(checkout / "package") is None
