"""Writing result files atomically, and never over a foreign file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repr_ray.storage import atomic
from repr_ray.storage.foreign import obstacle

MARK = "repr_ray"  # in every file of this package, near its start or its end
_WINDOW = 1 << 14


def is_ours(path: Path) -> bool:
    """Whether a file was written by this package: its first or last 16 KiB hold the mark."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_WINDOW)
        file.seek(max(0, path.stat().st_size - _WINDOW))
        return MARK.encode() in head + file.read()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """`atomic.replacing` for files of this package, in a folder that is made if needed.

    Raises FileExistsError if `path` is a link, or a file without our mark.
    """
    if reason := obstacle(path):
        raise FileExistsError(f"{path} {reason}: left as it is")
    if path.exists() and not is_ours(path):
        raise FileExistsError(f"{path} was not written by {MARK}: left as it is")
    if path.parent.is_file():
        raise FileExistsError(f"{path.parent} is a file: {path.name} is not written")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        yield temporary


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in place of `path`; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
