"""Temporary folders that are deleted with their process, or by the next one if it was killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import time

PREFIX = "repr_ray-"

YOUNG = 60.0  # seconds after its creation in which a folder may not be locked yet


@contextmanager
def scratch() -> Iterator[str]:
    """An empty folder below the system's temporary one, locked while this process lives."""
    from filelock import FileLock  # not at the top: --help does without

    _sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder, FileLock(_lock(folder)):
        yield folder


def _sweep(base: Path) -> None:
    """Remove this user's folders without a lock: their processes have ended."""
    from filelock import FileLock, Timeout

    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another user's, or in use
            status = folder.lstat()
            if status.st_uid == os.getuid() and folder.is_dir() and time() - status.st_mtime > YOUNG:
                with FileLock(_lock(folder), timeout=0):
                    shutil.rmtree(folder)


def _lock(folder: str | Path) -> Path:
    return Path(folder) / ".lock"
