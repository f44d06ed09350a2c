"""Trial folders on disk, gathered into four tidy Parquet tables.

| table | a row is |
|---|---|
| `trials` | a trial: what it was, how far it came, its last and best figures |
| `epochs` | a finished epoch of a trial |
| `layers` | a layer of a trial in an epoch: mean off-diagonal overlap of its filters, how many are dropped |
| `cycles` | a filter of a layer when filters are dropped or re-initialised |

Losses are nats per image, accuracies fractions from 0 to 1, times seconds. Epochs, cycles and filters count from 0,
as the metadata of the files say; tables, pictures and messages count from 1.
"""

import itertools
import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
from numpy.typing import NDArray

import repr_ray
from repr_ray.method.events import LayerEvent
from repr_ray.records import (
    RESULT,
    STOPPED_EARLY,
    Averaged,
    Epoch,
    FilterRow,
    LayerRow,
    LayerState,
    Losses,
    Measured,
    TrialKeys,
    TrialRow,
    columns,
    read_result,
)
from repr_ray.results.design import Design, common, design_of
from repr_ray.results.files import MARK, replacing
from repr_ray.storage.foreign import Unusable, check_plain, is_text, obstacle, read_bytes, read_json, read_mapping
from repr_ray.storage.text import line

VERSION = "5"  # of the tables' columns
_AVERAGE = tuple(columns(Averaged))
_EARLIER = ("2", "3", "4")  # read too
_ADDED: dict[str, tuple[str, ...]] = {
    "trials": ("data_digest", "stage", "tuned", "teacher_seconds", *_AVERAGE),
    "epochs": _AVERAGE,
    "layers": ("zero",),
}  # since version 2: an earlier version may lack them
_VERSION_KEY = f"{MARK}.tables".encode()
_COUNTING_KEY = f"{MARK}.counting".encode()
_BATCH = 64  # trials read at once, and a Parquet row group at most
_BATCH_BYTES = 1 << 26  # of their lines, if there are several
_LARGEST = 1 << 28  # bytes of a trial's lines
_OPENED = 4_000  # brackets that one line opens at most: it is nested no deeper
_LAYERS = 4_000  # of a network at most
_ROWS = 1 << 22  # of a row group of a foreign Parquet file, and of its table of trials
_EPOCHS = 10**9
_HIGHEST = 1e30  # of a score or a loss
_LONGEST = 500  # characters of a name

_TEXT, _INT, _REAL, _NAME = pa.string(), pa.int64(), pa.float64(), pa.dictionary(pa.int32(), pa.string())
_ARROW = {str: _TEXT, int: _INT, float: _REAL, bool: pa.bool_()}
_LISTS = {tuple[int, ...]: pa.list_(pa.int8()), tuple[float, ...]: pa.list_(_REAL)}


def _types(record: type, text: pa.DataType = _TEXT) -> dict[str, pa.DataType]:
    """The columns of a record; fields that are mappings or optional lists have no column of their own."""
    kinds = _ARROW | _LISTS | {str: text}
    return {name: kinds[kind] for name, kind in columns(record).items() if kind in kinds}


_ID, _EPOCH, _LAYER = _types(TrialKeys), _types(Epoch), pa.struct(_types(LayerState))
_EVENT = {name: _types(LayerEvent)[name] for name in ("cycle", "event", "epoch", "layer", "scores", "dropped")}
_RESULT, _FIGURES = tuple(columns(Measured)), tuple(columns(Losses))
_KEYS = {"epochs.jsonl": ["epoch"], "cycles.jsonl": ["cycle", "event", "epoch", "layer"]}  # of a line
_AS_JSON = ("versions", "hardware")


def _schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    counting = "epochs, cycles and filters count from 0"
    return pa.schema(columns, metadata={MARK: repr_ray.__version__, _VERSION_KEY: VERSION, _COUNTING_KEY: counting})


SCHEMAS = {
    "trials": _schema(_types(TrialRow)),
    "epochs": _schema({name: _NAME if kind == _TEXT else kind for name, kind in (_ID | _EPOCH).items()}),
    "layers": _schema(_types(LayerRow, _NAME)),
    "cycles": _schema(_types(FilterRow, _NAME) | {"filter": pa.int32(), "score": pa.float32()}),
}
"""Columns of each table, with the version of this package and of the tables as file metadata."""

UNFINISHED = ("running", "waiting")


@dataclass(frozen=True)
class Tables:
    """The gathered tables: `trials` in memory, the long ones as Parquet files in `folder`."""

    folder: Path
    trials: pd.DataFrame
    sources: dict[str, Path] = field(default_factory=dict)  # trial name -> its folder, where there is one
    notes: list[str] = field(default_factory=list)  # problems that were found
    baseline: str | None = None  # as the first experiment with one names it
    design: Design | None = None  # if the experiments have looks, all the same

    def read(self, table: str, columns: Sequence[str], trials: Iterable[str]) -> pd.DataFrame:
        """Read columns of a long table for some trials; names are categories. Order is as on disk."""
        path = self.folder / f"{table}.parquet"
        wanted = pa.array(sorted(trials), pa.string())
        return pq.read_table(path, columns=["trial", *columns], filters=pc.field("trial").isin(wanted)).to_pandas()

    def publish(self, path: Path) -> None:
        """Copy a table to `path`, by its name. Raises FileExistsError if that is a foreign file."""
        with replacing(path) as temporary:
            shutil.copyfile(self.folder / path.name, temporary)


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
        error = _or_nothing(read_json, path / "error.json", [])
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


def gather(folders: Sequence[Path], work: Path) -> Tables:
    """Gather the trials of some results folders into Parquet tables in the folder `work`.

    A folder is read from its trial folders or, without any, from its Parquet tables. Unreadable parts become lines in
    `notes`. A trial in several folders counts once, preferably a finished one. Raises ValueError, one line per
    folder, if there is no trial at all.
    """
    notes: list[str] = []
    trials: list[_Trial] = []
    baseline = None
    designs = []
    for folder in folders:
        experiment = _or_nothing(read_mapping, folder / "experiment.yaml", notes)
        baseline = baseline or str(experiment.get("baseline") or "")
        found = [*_from_folders(folder, notes)] or [*_from_parquet(folder, notes)]
        designs += [design_of(experiment.get("seeds"))] if found else []
        if not found:
            notes.append(_describe_foreign(folder))
        schemes = experiment.get("schemes")
        rank = {str(name): place for place, name in enumerate(schemes)} if isinstance(schemes, dict) else {}
        trials += sorted(found, key=lambda trial: _order(trial.row, rank))
    if not trials:
        raise ValueError("\n".join(map(line, notes)))
    trials = _once(trials, notes)

    with ExitStack() as open_files:
        paths = {name: work / f"{name}.parquet" for name in SCHEMAS}
        writers = {n: open_files.enter_context(pq.ParquetWriter(paths[n], schema)) for n, schema in SCHEMAS.items()}
        for parts in _read(trials, notes):
            for name, table in parts.items():
                if table.num_rows:
                    writers[name].write_table(table.unify_dictionaries().combine_chunks())
        rows = pa.Table.from_pylist([trial.row for trial in trials], SCHEMAS["trials"])
        writers["trials"].write_table(rows)
    sources = {trial.row["trial"]: trial.folder for trial in trials if not trial.stored}
    return Tables(work, rows.to_pandas(), sources, notes, baseline or None, common(designs, notes))


@dataclass
class _Trial:
    """A row of the trials table, and the folder of its other rows: the trial's or, if `stored`, of the tables."""

    folder: Path
    row: dict[str, Any]
    stored: bool = False


_LongTables = dict[str, pa.Table]  # some rows of the long tables, by table
_Index = NDArray[np.int64]  # which trial of a batch a row is of


def _read(trials: list[_Trial], notes: list[str]) -> Iterator[_LongTables]:
    """The long tables in parts, in the order of the trials; completes the rows of the trials."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for tables, run in itertools.groupby(trials, key=lambda trial: trial.folder if trial.stored else None):
            if tables:
                yield from _read_stored(tables, [trial.row["trial"] for trial in run], notes)
                continue
            blocks = [list(block) for _, block in itertools.groupby(run, key=_network)]
            batches = [batch for block in blocks for batch in _batches(block)]
            for start in range(0, len(batches), threads):
                for parts, found in pool.map(_read_batch, batches[start : start + threads]):
                    notes += found
                    yield parts


def _network(trial: _Trial) -> tuple[str, ...]:
    """The key of trials whose epochs have the same layers in the same order."""
    return tuple(trial.row[key] for key in ("dataset", "model", "variant"))


def _batches(trials: list[_Trial]) -> Iterator[list[_Trial]]:
    """Batches of trials that are read at once, bounded in number and bytes."""
    batch: list[_Trial] = []
    held = 0
    for trial in trials:
        size = sum(_size(trial.folder / name) for name in _KEYS)
        if batch and (len(batch) == _BATCH or held + size > _BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(trial)
        held += size
    if batch:
        yield batch


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _read_stored(folder: Path, trials: list[str], notes: list[str]) -> Iterator[_LongTables]:
    wanted = pa.array(trials, _TEXT)
    for name in ("epochs", "layers", "cycles"):
        path = folder / f"{name}.parquet"
        if _unusable(path):
            continue
        try:
            with pq.ParquetFile(path) as file:
                for place in range(file.num_row_groups):
                    if file.metadata.row_group(place).num_rows > _ROWS:
                        raise Unusable(f"has more than {_ROWS:,} rows in a group")
                    table = _completed(file.read_row_group(place), name)
                    found = pc.is_in(table["trial"].cast(_TEXT), value_set=wanted)
                    yield {name: table.filter(found).cast(SCHEMAS[name])}
        except (OSError, ValueError) as error:  # those of pyarrow are among them
            notes.append(f"{path}: the rest is left out ({line(error)})")


def _completed(table: pa.Table, name: str) -> pa.Table:
    """A table of an earlier version with the columns that it lacks."""
    schema = SCHEMAS[name]
    missing = {c: pa.nulls(len(table), schema.field(c).type) for c in schema.names if c not in table.column_names}
    for column, nulls in missing.items():
        table = table.append_column(column, nulls)
    return table.select(schema.names)


def _read_batch(trials: list[_Trial]) -> tuple[_LongTables, list[str]]:
    """The long tables of trials of the same network, and notes; damage in one trial does not affect the others."""
    notes: list[str] = []
    try:
        return _parts(trials, notes), notes
    except (ValueError, TypeError, OSError) as error:  # those of pyarrow are among them
        if len(trials) == 1:
            return {}, [f"{trials[0].folder}: epochs and cycles are left out ({line(error)})"]
    single = [_read_batch([trial]) for trial in trials]
    parts = {
        name: pa.concat_tables([schema.empty_table(), *(tables[name] for tables, _ in single if tables)])
        for name, schema in SCHEMAS.items()
        if name != "trials"
    }
    return parts, [note for _, found in single for note in found]


def _parts(trials: list[_Trial], notes: list[str]) -> _LongTables:
    epochs, of_epoch = _read_lines(trials, "epochs.jsonl", _EPOCH, notes)
    events, of_event = _read_lines(trials, "cycles.jsonl", _EVENT, notes)
    ids = {key: pa.array([trial.row[key] for trial in trials], kind) for key, kind in _ID.items()}
    per_epoch = {key: values.take(pa.array(of_epoch)) for key, values in ids.items()}
    parts = {
        "epochs": pa.table(per_epoch | {key: epochs[key] for key in _EPOCH}).cast(SCHEMAS["epochs"]),
        "layers": _layers(ids["trial"], of_epoch, epochs),
        "cycles": _cycles(ids["trial"], of_event, events),
    }
    columns = {key: epochs[key].to_numpy() for key in ("epoch", *_FIGURES, *_AVERAGE)}
    ends = np.searchsorted(of_epoch, np.arange(len(trials) + 1))
    for trial, start, end in zip(trials, ends[:-1], ends[1:], strict=True):
        trial.row |= _figures({key: values[start:end] for key, values in columns.items()})
        if trial.row["status"] == "waiting" and end > start:
            trial.row["status"] = "running"
    return parts


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


LONGEST_NOTE = 1_000
"""Characters of a trial's note on its images."""


def _from_folders(folder: Path, notes: list[str]) -> Iterator[_Trial]:
    for path in _trial_folders(folder, notes):
        config = _or_nothing(read_mapping, path / "config.yaml", notes)
        result, error = _result(path, notes), _or_nothing(read_json, path / "error.json", notes)
        about_data = line(result.get("data_notes") or "")[:LONGEST_NOTE]
        if about_data and (note := f"data: {about_data}") not in notes:
            notes.append(note)
        row: dict[str, Any] = dict.fromkeys(SCHEMAS["trials"].names)
        row |= {key: config.get(key) for key in ("dataset", "model", "scheme", "seed", "epochs", "data_digest")}
        row |= {key: config.get(key) or "" for key in ("experiment", "variant", "fingerprint", "stage")}
        row |= {key: result[key] for key in _RESULT if key in result}
        row |= {key: json.dumps(result[key], sort_keys=True) for key in _AS_JSON if key in result}
        row |= {key: json.dumps(config.get(key) or {}, sort_keys=True) for key in ("settings", "resources", "tuned")}
        row["trial"] = path.name
        row["status"] = "done" if result else _status(error) if error else "waiting"
        if error and not result:
            row["message"] = str(error.get("message") or "").strip()
        if problem := _problem(row) if config else "no readable config.yaml":
            notes.append(f"{path} is not a trial ({problem}): left out")
        else:
            yield _Trial(path, row)


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


def _problem(row: dict[str, Any]) -> str:
    """Why a row is not that of a trial; empty if it is."""
    if missing := [key for key in ("trial", "dataset", "model", "scheme", "seed") if row[key] is None]:
        return f"its config.yaml lacks {', '.join(missing)}"
    for column in SCHEMAS["trials"]:
        value = row[column.name]
        if value is not None and not _is_of(value, column.type):
            return f"{column.name}={_told(value)} is not of type {column.type}"
    for key in (*_ID, "fingerprint", "status"):
        if isinstance(row[key], str) and len(row[key]) > _LONGEST:
            return f"{key} has {len(row[key]):,} characters, more than {_LONGEST}"
    if row["seed"] < 0 or not 0 < (row["epochs"] or 1) <= _EPOCHS:
        return f"seed={row['seed']}, epochs={row['epochs']}: out of range"
    blocks = {key: _block(row[key]) for key in ("settings", "resources", "tuned", *_AS_JSON)}
    inner = blocks["settings"] if isinstance(blocks["settings"], dict) else {}
    blocks |= {key: inner.get(key) for key in ("data", "model", "train", "scheme")}
    if wrong := [key for key, value in blocks.items() if not isinstance(value or {}, dict)]:
        return f"{wrong[0]}={_told(blocks[wrong[0]])} is no mapping"
    return ""


def _is_of(value: Any, kind: pa.DataType) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and is_text(value)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole if kind == _INT else whole or isinstance(value, float)


def _block(text: str | None) -> Any:
    """The content of a JSON column; the text itself if it cannot be read."""
    try:
        content = json.loads(text or "{}")
        check_plain(content)
    except (ValueError, RecursionError):
        return text
    return content


def _told(value: Any) -> str:
    return textwrap.shorten(line(repr(value)), 100, placeholder=" ...")


def _from_parquet(folder: Path, notes: list[str]) -> Iterator[_Trial]:
    path = folder / "trials.parquet"
    if not path.exists():
        return
    notes += [
        f"{table} {problem}: left out" for n in SCHEMAS if (problem := _unusable(table := folder / f"{n}.parquet"))
    ]
    if _unusable(path):
        return
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows > _ROWS:
                raise Unusable(f"has more than {_ROWS:,} rows")
            rows = _completed(file.read(), "trials").to_pylist()
    except (OSError, ValueError) as error:
        notes.append(f"{path}: left out ({line(error)})")
        return
    for row in rows:
        if problem := _problem(row):
            notes.append(f"{path}: {_told(row['trial'])} is not a trial ({problem}): left out")
        else:
            yield _Trial(folder, row, stored=True)


def _unusable(path: Path) -> str:
    """Why a file is not one of our tables; empty if it is."""
    if reason := obstacle(path):
        return reason
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, pa.ArrowInvalid):
        return f"is not a table of {MARK}"
    version = (schema.metadata or {}).get(_VERSION_KEY, b"").decode(errors="replace")
    if version not in (VERSION, *_EARLIER):
        found = f"is of version {line(version)}" if version else f"is not a table of {MARK}"
        return f"{found}, this reads version {VERSION}"
    added = _ADDED.get(path.stem, ()) if version in _EARLIER else ()
    lacks = set(added) - set(schema.names)
    expected = pa.schema([column for column in SCHEMAS[path.stem] if column.name not in lacks])
    return "" if schema.equals(expected) else f"has other columns than version {version}"


def _describe_foreign(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is a file, not a results folder"
    held = sorted(path.name for path in folder.iterdir())
    found = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "") if held else "nothing"
    return f"{folder} has no trials (it holds {found}): a results folder has trials/NAME/config.yaml"


def _once(trials: list[_Trial], notes: list[str]) -> list[_Trial]:
    """Keep one of the trials with the same name, preferably a finished one."""
    kept: dict[str, _Trial] = {}
    for trial in trials:
        name = trial.row["trial"]
        if name not in kept or (trial.row["status"] == "done" != kept[name].row["status"]):
            kept[name] = trial
    if len(kept) < len(trials):
        notes.append(f"{len(trials) - len(kept)} of the trials are in more than one folder: counted once")
    return list(kept.values())


def natural(text: str) -> tuple[tuple[int, float, str], ...]:
    """A sort key that puts `x=0.5` before `x=10`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return tuple((0, float(part), "") if place % 2 else (1, 0.0, part) for place, part in enumerate(parts))


def _order(row: dict[str, Any], rank: dict[str, int]) -> tuple[Any, ...]:
    scheme = row["scheme"]  # the user's name, and grid values after it
    place = next((rank[name] for name in rank if f"{scheme} ".startswith(f"{name} ")), len(rank))
    names = [natural(row[key]) for key in ("dataset", "model", "variant")]
    return (*names, place, natural(scheme), row["seed"], row["trial"])


def _or_nothing(read: Callable[[Path], dict[str, Any]], path: Path, notes: list[str]) -> dict[str, Any]:
    """The content of a file; empty without one, and, with a note, if it cannot be used."""
    try:
        return read(path)
    except FileNotFoundError:
        return {}
    except Unusable as problem:
        notes.append(f"{path} {line(problem)}: left out")
        return {}


def _read_lines(
    trials: list[_Trial], name: str, columns: dict[str, pa.DataType], notes: list[str]
) -> tuple[pa.Table, _Index]:
    """The JSON lines of some trials, and the trial of each; unreadable lines and impossible values are left out."""
    contents = [_lines_of(trial, name, notes) for trial in trials]
    if name == "epochs.jsonl":
        columns = columns | {"layers": pa.struct([(layer, _LAYER) for layer in _layer_names(contents)])}
    schema = pa.schema(columns)
    try:
        table, index = _parse_lines(contents, schema)
    except pa.ArrowInvalid:
        if len(trials) > 1:
            raise
        [content], trial = contents, trials[0].row["trial"]
        lines = [one for one in content.splitlines() if one.strip()]
        good = [one for one in lines if _is_readable(one, schema)]
        if len(good) < len(lines):  # as the last line of a killed trial
            notes.append(f"{trial}: {len(lines) - len(good)} of {len(lines)} lines of {name} cannot be read")
        table, index = _parse_lines([b"\n".join(good)], schema)
    possible = _possible(table)
    notes += [
        f"{trials[k].row['trial']}: {count} lines of {name} are left out: an epoch or an accuracy that cannot be"
        for k, count in zip(*np.unique(index[~possible], return_counts=True), strict=True)
    ]
    # The last of duplicate lines counts, as of a process that was taken for dead and went on.
    keys = table.select(_KEYS[name]).to_pandas().assign(trial=index)
    again = keys.duplicated(keep="last").to_numpy()
    notes += [
        f"{trials[k].row['trial']}: lines of {name} are there twice, the last counts" for k in np.unique(index[again])
    ]
    kept = ~again & possible
    return (table, index) if kept.all() else (table.filter(pa.array(kept)), index[kept])


def _lines_of(trial: _Trial, name: str, notes: list[str]) -> bytes:
    """The lines of one trial, without those that are nested too deep."""
    try:
        content = read_bytes(trial.folder / name, _LARGEST).strip()
    except FileNotFoundError:
        return b""
    except Unusable as problem:
        notes.append(f"{trial.folder / name} {line(problem)}: left out")
        return b""
    if content.count(b"[") + content.count(b"{") <= _OPENED:
        return content
    lines = content.splitlines()
    return b"\n".join(b"" if one.count(b"[") + one.count(b"{") > _OPENED else one for one in lines)


def _layer_names(contents: list[bytes]) -> list[str]:
    """The names of the layers, from the first line of each trial."""
    names: dict[str, None] = {}
    for content in contents:
        try:
            names |= dict.fromkeys(json.loads(content.partition(b"\n")[0])["layers"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return [name for name in names if isinstance(name, str)][:_LAYERS]


def _parse_lines(contents: list[bytes], schema: pa.Schema) -> tuple[pa.Table, _Index]:
    counts = [content.count(b"\n") + 1 if content else 0 for content in contents]
    index = np.repeat(np.arange(len(contents)), counts)
    if not len(index):
        return schema.empty_table(), index
    joined = b"\n".join(filter(None, contents))
    # One block: it must hold the longest line, and all lines get the same types.
    read = pj.ReadOptions(use_threads=False, block_size=len(joined) + 1)
    parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    table = pj.read_json(pa.BufferReader(joined), read, parse)
    table.validate(full=True)  # text that is not UTF-8
    if table.num_rows != len(index):
        raise pa.ArrowInvalid("not one object a line")
    return table, index


def _is_readable(content: bytes, schema: pa.Schema) -> bool:
    try:
        if not isinstance(json.loads(content), dict):
            return False
        _parse_lines([content], schema)
    except (ValueError, RecursionError):
        return False
    return True


def _possible(table: pa.Table) -> NDArray[np.bool_]:
    """Which lines have an epoch, and no impossible accuracy or cycle."""
    epoch = table["epoch"].to_numpy()
    possible = (epoch >= 0) & (epoch < _EPOCHS)  # false for what is missing
    for name, most in (("cycle", _EPOCHS), *((key, 1) for key in (*_FIGURES, *_AVERAGE) if key.endswith("accuracy"))):
        if name in table.column_names:
            values = table[name].to_numpy()
            possible &= ~((values < 0) | (values > most))
    return np.asarray(possible, dtype=bool)


def _figures(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The figures of a trial's epochs in the trials table: epochs done, last and best accuracies."""
    if not len(columns["epoch"]):
        return {"epochs_done": 0}
    epoch, test, val = columns["epoch"], columns["test_accuracy"], columns["val_accuracy"]
    last = epoch.argmax()
    figures: dict[str, Any] = {key: float(columns[key][last]) for key in _FIGURES}
    figures |= {key: float(columns[key][last]) for key in _AVERAGE if not np.isnan(columns[key][last])}
    figures["epochs_done"] = int(epoch[last]) + 1
    for kind, chosen in (("test", test), ("val", np.where(np.isnan(test), np.nan, val))):
        if not np.isnan(chosen).all():
            best = int(np.nanargmax(chosen))
            name = "best_test_accuracy" if kind == "test" else "best_val_test_accuracy"
            figures |= {f"best_{kind}_epoch": int(epoch[best]), name: float(test[best])}
    return figures


def _layers(trials: pa.Array, index: _Index, epochs: pa.Table) -> pa.Table:
    """The `layers` struct of every epoch as rows: epoch by epoch, layers in the network's order."""
    schema = SCHEMAS["layers"]
    struct = epochs["layers"].combine_chunks()
    names = [child.name for child in struct.type]
    if not names or not len(struct):
        return schema.empty_table()
    columns = {field.name: [pc.struct_field(struct, [name, field.name]) for name in names] for field in _LAYER}
    values = {key: np.stack([c.to_numpy(zero_copy_only=False) for c in cs], 1) for key, cs in columns.items()}
    values = {key: array.ravel().astype(float) for key, array in values.items()}
    with np.errstate(invalid="ignore"):
        values["overlap"] = np.where((values["overlap"] >= 0) & (values["overlap"] < 2), values["overlap"], np.nan)
    layer = np.tile(np.arange(len(names), dtype=np.int32), len(struct))
    table = pa.table(
        {
            "trial": trials.take(pa.array(np.repeat(index, len(names)))),
            "epoch": np.repeat(epochs["epoch"].to_numpy(), len(names)),
            "layer": pa.DictionaryArray.from_arrays(layer, names),
        }
        | {key: pa.array(array, from_pandas=True).cast(schema.field(key).type) for key, array in values.items()}
    )
    return (
        table.filter(table["filters"].is_valid()).cast(schema) if table["filters"].null_count else table.cast(schema)
    )


def _cycles(trials: pa.Array, index: _Index, events: pa.Table) -> pa.Table:
    """Every filter of every event as a row; without scores if their number is not that of the filters."""
    dropped, scores = events["dropped"].combine_chunks(), events["scores"].combine_chunks()
    counts, scored = (pc.list_value_length(c).fill_null(0).to_numpy().astype(np.int64) for c in (dropped, scores))
    event = np.repeat(np.arange(events.num_rows), counts)
    score = np.full(len(event), np.nan)
    score[(scored == counts)[event]] = scores.filter(pa.array(scored == counts)).flatten().to_numpy(False)
    with np.errstate(invalid="ignore"):
        score[np.abs(score) > _HIGHEST] = np.nan
    columns = {
        "trial": trials.take(pa.array(index[event])),
        **{key: events[key].combine_chunks().take(event) for key in ("cycle", "event", "epoch", "layer")},
        "filter": (np.arange(len(event)) - np.repeat(counts.cumsum() - counts, counts)).astype(np.int32),
        "score": pa.array(score.astype(np.float32), from_pandas=True),
        "dropped": dropped.flatten().fill_null(0).cast(pa.bool_()),
    }
    return pa.table(columns).select(SCHEMAS["cycles"].names).cast(SCHEMAS["cycles"])
