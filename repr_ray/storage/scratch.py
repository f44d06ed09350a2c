"""Folders for what Ray must write and nobody reads: gone with their process, or with the next where it was killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time

PREFIX = "repr_ray-"

YOUNG = 60.0
"""Seconds in which a folder may not have its lock yet."""


@contextmanager
def scratch() -> Iterator[str]:
    """An empty folder below the system's temporary one, locked for as long as this process lives."""
    from filelock import FileLock  # not at the top: --help does without

    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder, FileLock(_lock(folder)):
        yield folder


def _sweep(base: Path) -> None:
    """Remove this user's folders whose process is gone: the system has dropped its lock."""
    from filelock import FileLock, Timeout

    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another user's, or at work
            status = folder.lstat()
            if status.st_uid == os.getuid() and folder.is_dir() and time() - status.st_mtime > YOUNG:
                with FileLock(_lock(folder), timeout=0):
                    shutil.rmtree(folder)


def _lock(folder: str | Path) -> Path:
    return Path(folder) / ".lock"
