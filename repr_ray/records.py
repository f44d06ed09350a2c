"""What a trial stores when it is done, declared once for those who write it and those who read it."""

from datetime import datetime
from pathlib import Path
from typing import Any

from repr_ray.storage.foreign import Unusable, is_finite, read_json

RESULT = "result.json"

RESULT_FIELDS: dict[str, type] = {
    "collapsed_epoch": int,
    "wall_seconds": float,
    "images_per_second": float,
    "precision": str,
    "workers": int,
    "threads": int,
    "gpus": float,
    "parameters": int,
    "checksum": str,
    "started": str,
    "finished": str,
    "commit": str,
    "command": str,
    "data_digest": str,
    "teacher_seconds": float,
}
"""The columns of a result; floats take integers too. `versions` and `hardware` are mappings of text."""

_NEEDED = ("started", "finished", "wall_seconds", "precision", "workers", "checksum", "parameters")
_MAPPINGS = ("versions", "hardware")
_LONGEST = 10_000  # characters of a text


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of the trial in `folder`, None where there is none. Raises Unusable for one that is not whole."""
    try:
        result = read_json(folder / RESULT)
    except FileNotFoundError:
        return None
    if result.get("status") != "done":
        raise Unusable(f"says status={result.get('status')!r}, not done")
    if missing := [name for name in (*_NEEDED, *_MAPPINGS) if result.get(name) is None]:
        raise Unusable(f"lacks {', '.join(missing)}")
    for name, kind in RESULT_FIELDS.items():
        if (value := result.get(name)) is not None and not _fits(value, kind):
            raise Unusable(f"says {name}={str(value)[:100]!r}, which is no {_KINDS[kind]}")
    for name in ("started", "finished"):
        _check_time(name, result[name])
    for name in _MAPPINGS:
        if not isinstance(result[name], dict):
            raise Unusable(f"says {name}={str(result[name])[:100]!r}, which is no mapping")
    return result


_KINDS = {int: "whole number", float: "number", str: "text"}


def _fits(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and len(value) <= _LONGEST
    return is_finite(value) and 0 <= value < 1e15 and (kind is float or isinstance(value, int))


def _check_time(name: str, text: str) -> None:
    try:
        datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise Unusable(f"says {name}={text[:100]!r}, which is no time") from None
