"""The trials table, from the folders of trials."""

import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from repr_ray.records import RESULT, STOPPED_EARLY, Measured, columns, read_result
from repr_ray.results.store.schemas import ID, INT, MOST_EPOCHS, SCHEMAS, TEXT
from repr_ray.storage.foreign import Unusable, check_plain, is_text, obstacle, read_json, read_mapping
from repr_ray.storage.text import line, listed

UNFINISHED = ("running", "waiting")  # the status of trials without a result or an error
_LONGEST_NOTE = 1_000  # characters of a trial's note on its images
_LONGEST = 500  # characters of a name
_RESULT = tuple(columns(Measured))
_AS_JSON = ("versions", "hardware")
_BLOCKS = ("settings", "resources", "tuned")


@dataclass(frozen=True)
class Failure:
    """A trial that ended in an error."""

    trial: str
    status: str
    message: str  # the first line of the real error
    epoch: int | None
    traceback: str


def failures(folder: Path) -> list[Failure]:
    """The failed trials of a results folder, by name. Reads only small files; `gather` notes what cannot be read."""
    found = []
    for path in _trial_folders(folder, []):
        error = or_nothing(read_json, path / "error.json", [])
        if not error or _status(error) == STOPPED_EARLY or _result(path, []):
            continue
        message = str(error.get("message") or "").strip() or "no message was stored"
        epoch = error.get("epoch")
        found.append(
            Failure(
                trial=path.name,
                status=_status(error),
                message=message.splitlines()[0],
                epoch=epoch if isinstance(epoch, int) else None,
                traceback=str(error.get("traceback") or message),
            )
        )
    return found


@dataclass
class StoredTrial:
    """A row of the trials table, and the folder of its other rows: the trial's or, if `stored`, of the tables."""

    folder: Path
    row: dict[str, Any]
    stored: bool = False


def _trial_folders(folder: Path, notes: list[str]) -> Iterator[Path]:
    """The folders of trials, without links."""
    trials = folder / "trials"
    if reason := obstacle(trials):
        notes.append(f"{trials} {reason}: left out")
        return
    for path in sorted(trials.glob("*")):
        if path.is_symlink():
            notes.append(f"{path} is a symbolic link: left out")
        elif path.is_dir():
            yield path


def from_folders(folder: Path, notes: list[str]) -> Iterator[StoredTrial]:
    """The trials below a results folder that has their folders."""
    for path in _trial_folders(folder, notes):
        config = or_nothing(read_mapping, path / "config.yaml", notes)
        result, error = _result(path, notes), or_nothing(read_json, path / "error.json", notes)
        about_data = line(result.get("data_notes") or "")[:_LONGEST_NOTE]
        if about_data and (note := f"data: {about_data}") not in notes:
            notes.append(note)
        row: dict[str, Any] = dict.fromkeys(SCHEMAS["trials"].names)
        row |= {key: config.get(key) for key in ("dataset", "model", "scheme", "seed", "epochs", "data_digest")}
        row |= {key: config.get(key) or "" for key in ("experiment", "variant", "fingerprint", "stage")}
        row |= {key: result[key] for key in _RESULT if key in result}
        row |= {key: json.dumps(result[key], sort_keys=True) for key in _AS_JSON if key in result}
        row |= {key: json.dumps(config.get(key) or {}, sort_keys=True) for key in _BLOCKS}
        row["trial"] = path.name
        row["status"] = "done" if result else _status(error) if error else "waiting"
        if error and not result:
            row["message"] = str(error.get("message") or "").strip()
        if problem := problem_of(row) if config else "no readable config.yaml":
            notes.append(f"{path} is not a trial ({problem}): left out")
        else:
            yield StoredTrial(path, row)


def _result(path: Path, notes: list[str]) -> dict[str, Any]:
    """The trial's result; empty if it is not done."""
    try:
        return read_result(path) or {}
    except Unusable as problem:
        notes.append(f"{path / RESULT} {line(problem)}: the trial does not count as done")
        return {}


def _status(error: dict[str, Any]) -> str:
    status = line(error.get("status", ""))
    return status if 0 < len(status) <= 40 and status not in ("done", *UNFINISHED) else "failed"


def problem_of(row: dict[str, Any]) -> str:
    """Why a row is not that of a trial; empty if it is."""
    if missing := [key for key in ("trial", "dataset", "model", "scheme", "seed") if row[key] is None]:
        return f"its config.yaml lacks {', '.join(missing)}"
    for column in SCHEMAS["trials"]:
        value = row[column.name]
        if value is not None and not _is_of(value, column.type):
            return f"{column.name}={shortened(value)} is not of type {column.type}"
    for key in (*ID, "fingerprint", "status"):
        if isinstance(row[key], str) and len(row[key]) > _LONGEST:
            return f"{key} has {len(row[key]):,} characters, more than {_LONGEST}"
    if row["seed"] < 0 or not 0 < (row["epochs"] or 1) <= MOST_EPOCHS:
        return f"seed={row['seed']}, epochs={row['epochs']}: out of range"
    blocks = {key: _block(row[key]) for key in (*_BLOCKS, *_AS_JSON)}
    inner = blocks["settings"] if isinstance(blocks["settings"], dict) else {}
    blocks |= {key: inner.get(key) for key in ("data", "model", "train", "scheme")}
    if wrong := [key for key, value in blocks.items() if not isinstance(value or {}, dict)]:
        return f"{wrong[0]}={shortened(blocks[wrong[0]])} is not a mapping"
    return ""


def with_blocks(row: dict[str, Any]) -> dict[str, Any]:
    """A row of which no block is missing: an empty one is `{}`."""
    return row | {key: row[key] if _block(row[key]) else "{}" for key in _BLOCKS}


def _is_of(value: Any, kind: pa.DataType) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and is_text(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole if kind == INT else whole or isinstance(value, float)


def _block(text: str | None) -> Any:
    """The content of a JSON column; the text itself if it cannot be read."""
    try:
        content = json.loads(text or "{}")
        check_plain(content)
    except (ValueError, RecursionError):
        return text
    return content


def shortened(value: Any) -> str:
    """A value in one line of at most 100 characters."""
    return textwrap.shorten(line(repr(value)), 100, placeholder=" ...")


def or_nothing(read: Callable[[Path], dict[str, Any]], path: Path, notes: list[str]) -> dict[str, Any]:
    """The content of a file; empty without one, and, with a note, if it cannot be used."""
    try:
        return read(path)
    except FileNotFoundError:
        return {}
    except Unusable as problem:
        notes.append(f"{path} {line(problem)}: left out")
        return {}


def describe_foreign(folder: Path) -> str:
    """Why a folder is not one of results, and what it contains."""
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is a file, not a results folder"
    held = listed(sorted(path.name for path in folder.iterdir()), 3) or "nothing"
    return f"{folder} has no trials (it holds {held}): a results folder has trials/NAME/config.yaml"
