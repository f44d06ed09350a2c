"""Files that are whole or not there."""

import os
import uuid
from pathlib import Path

PARTIAL = ".partial"
"""Ending of files that are being written; one that is left over belongs to a process that was killed."""


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
