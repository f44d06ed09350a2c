"""Files that are whole or not there."""

import errno
import os
import stat
import uuid
from pathlib import Path

PARTIAL = ".partial"
"""Ending of files that are being written; one that is left over belongs to a process that was killed."""


def append(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file, but never through a link or to what is no file: that raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with open(handle, "wb") as file:  # noqa: PTH123 - a handle, not a path
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        file.write(content)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader, or a process killed half-way, sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:  # a full disk must not stay full of halves
        partial.unlink(missing_ok=True)
        raise
