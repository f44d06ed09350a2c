"""Untrusted files, read within bounds, and never through a link, a pipe or a device."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from repr_ray.storage.documents import DEEPEST, read_yaml

LARGEST = 1 << 20  # bytes of a document


class Unusable(ValueError):
    """A file that cannot be used; the text gives the reason, without the file's name."""


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a regular file. Raises FileNotFoundError, and Unusable for any other obstacle."""
    return _read(path, 0, largest)


def read_tail(path: Path, size: int) -> bytes:
    """The last `size` bytes of a regular file. Raises as `read_bytes` does."""
    return _read(path, -size, None)


def _read(path: Path, start: int, largest: int | None) -> bytes:
    try:
        if reason := _refused(path.lstat().st_mode):  # before opening, which may have effects on a device
            raise Unusable(reason)
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123 - a handle, not a path
            status = os.fstat(handle)
            if reason := _refused(status.st_mode):
                raise Unusable(reason)
            if largest is not None and status.st_size > largest:
                raise Unusable(f"is of {status.st_size:,} bytes, more than {largest:,}")
            file.seek(max(0, status.st_size + start) if start else 0)
            return file.read(largest if largest is not None else -start)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unusable(
            "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        ) from None


def _refused(mode: int) -> str:
    """Why a file of this kind is not read, empty for a regular one."""
    if stat.S_ISLNK(mode):
        return "is a symbolic link"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is not a regular file"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of plain, bounded values. Raises FileNotFoundError and Unusable."""
    try:
        content = json.loads(read_bytes(path))
    except RecursionError:
        raise Unusable(f"is nested more than {DEEPEST} levels deep") from None
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable(f"is not JSON ({error})") from None
    return _mapping(content)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML mapping of plain, bounded values. Raises FileNotFoundError and Unusable."""
    try:
        content = read_yaml(read_bytes(path).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unusable(f"is not YAML ({' '.join(str(error).split())})") from None
    return _mapping(content)


def _mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise Unusable("holds no mapping")
    check_plain(content)
    return content


def check_plain(content: Any, levels: int = DEEPEST) -> None:
    """Raise Unusable for values that JSON does not have, deep nesting, and integers beyond 64 bits."""
    if not levels:
        raise Unusable(f"is nested more than {DEEPEST} levels deep")
    if isinstance(content, dict):
        if odd := [key for key in content if not isinstance(key, str) or not is_text(key)]:
            raise Unusable(f"has the key {odd[0]!r}, which is not text")
        content = content.values()
    elif not isinstance(content, list):
        if isinstance(content, int) and not -(2**63) <= content < 2**63:
            raise Unusable("holds an integer beyond 64 bits")
        if isinstance(content, str) and not is_text(content):
            raise Unusable("holds a lone surrogate")
        if not isinstance(content, str | int | float | None):
            raise Unusable(f"holds a {type(content).__name__}, expected plain values")
        return
    for value in content:
        check_plain(value, levels - 1)


def is_text(value: str) -> bool:
    """Whether text can be stored: it has no lone surrogates, which foreign file names may have."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def obstacle(path: Path) -> str:
    """Why a path is neither read nor written (link, pipe, device); empty for a file, a folder, or a free name."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return "" if stat.S_ISDIR(mode) else _refused(mode)


def obstacles(folder: Path, names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Links, pipes and devices in a results folder, among `names` and below `trials`."""
    for name in names:
        if reason := obstacle(folder / name):
            yield folder / name, reason
    yield from _below(folder / "trials", 2)


def _below(folder: Path, levels: int) -> Iterator[tuple[Path, str]]:
    if not levels or not folder.is_dir() or folder.is_symlink():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _below(path, levels - 1)
            elif not entry.is_file(follow_symlinks=False):
                yield path, obstacle(path)
