"""Trial folders on disk, gathered into four tidy Parquet tables.

| table | a row is |
|---|---|
| `trials` | a trial: what it was, how far it came, its last and best figures |
| `epochs` | a finished epoch of a trial |
| `layers` | a layer of a trial in an epoch: mean off-diagonal overlap of its filters, how many are dropped |
| `cycles` | a filter of a layer when filters are dropped or re-initialised |

Losses are nats per image, accuracies fractions from 0 to 1, times seconds, epochs and cycles count from 0.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
import yaml
from numpy.typing import NDArray

import repr_ray
from repr_ray.results.files import MARK, replacing

VERSION = "2"  # of the tables' columns
_VERSION_KEY = f"{MARK}.tables".encode()
_BATCH = 64  # trials read at once, and a Parquet row group at most

_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_PYTHON: dict[pa.DataType, Any] = {_TEXT: str, _INT: int, _REAL: (int, float)}
_NAME = pa.dictionary(pa.int32(), pa.string())
_ID = {
    "experiment": _TEXT,
    "trial": _TEXT,
    "dataset": _TEXT,
    "model": _TEXT,
    "variant": _TEXT,
    "scheme": _TEXT,
    "seed": _INT,
}
_EPOCH = {
    "epoch": _INT,
    "phase": _TEXT,
    "cycle": _INT,
    "train_loss": _REAL,
    "train_accuracy": _REAL,
    "val_loss": _REAL,
    "val_accuracy": _REAL,
    "test_loss": _REAL,
    "test_accuracy": _REAL,
    "learning_rate": _REAL,
    "filters_dropped": _INT,
    "images_per_second": _REAL,
    "seconds": _REAL,
}
_EVENT = {
    "cycle": _INT,
    "event": _TEXT,
    "epoch": _INT,
    "layer": _TEXT,
    "scores": pa.list_(_REAL),
    "dropped": pa.list_(pa.int8()),
}
_RESULT = {
    "collapsed_epoch": _INT,
    "wall_seconds": _REAL,
    "images_per_second": _REAL,
    "precision": _TEXT,
    "workers": _INT,
    "threads": _INT,
    "gpus": _REAL,
    "parameters": _INT,
    "checksum": _TEXT,
    "started": _TEXT,
    "finished": _TEXT,
    "commit": _TEXT,
    "command": _TEXT,
}
_KEYS = {"epochs.jsonl": ["epoch"], "cycles.jsonl": ["cycle", "event", "epoch", "layer"]}  # of a line
_FIGURES = tuple(f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("loss", "accuracy"))
_AS_JSON = ("versions", "hardware")


def _schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema(columns, metadata={MARK: repr_ray.__version__, _VERSION_KEY: VERSION})


SCHEMAS = {
    "trials": _schema(
        _ID
        | {"fingerprint": _TEXT, "status": _TEXT, "message": _TEXT, "epochs": _INT, "epochs_done": _INT}
        | dict.fromkeys(_FIGURES, _REAL)
        | {"best_val_epoch": _INT, "best_val_test_accuracy": _REAL}
        | {"best_test_epoch": _INT, "best_test_accuracy": _REAL}
        | _RESULT
        | dict.fromkeys((*_AS_JSON, "settings", "resources"), _TEXT)
    ),
    "epochs": _schema({k: _NAME if t == _TEXT else t for k, t in (_ID | _EPOCH).items()}),
    "layers": _schema(
        {"trial": _NAME, "epoch": _INT, "layer": _NAME, "overlap": _REAL, "dropped": _INT, "filters": _INT}
    ),
    "cycles": _schema(
        {"trial": _NAME, "cycle": _INT, "event": _NAME, "epoch": _INT, "layer": _NAME}
        | {"filter": pa.int32(), "score": pa.float32(), "dropped": pa.bool_()}
    ),
}
"""Columns of each table, with the version of this package and of the tables as file metadata."""

UNFINISHED = ("running", "waiting")


@dataclass(frozen=True)
class Tables:
    """The gathered tables: `trials` in memory, the long ones as Parquet files in `folder`."""

    folder: Path
    trials: pd.DataFrame
    sources: dict[str, Path] = field(default_factory=dict)  # trial name -> its folder, where there is one
    notes: list[str] = field(default_factory=list)  # what was found that is not as it should be
    baseline: str | None = None  # as the first experiment with one names it

    def read(self, table: str, columns: Sequence[str], trials: Iterable[str]) -> pd.DataFrame:
        """Read columns of a long table for some trials; names are categories. Order is as on disk."""
        path = self.folder / f"{table}.parquet"
        wanted = pa.array(sorted(trials), pa.string())
        return pq.read_table(path, columns=["trial", *columns], filters=pc.field("trial").isin(wanted)).to_pandas()

    def publish(self, path: Path) -> None:
        """Copy a table to `path`, by its name. Raises FileExistsError where that file is not ours."""
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
    """The failed trials of a results folder, by name. Reads only small files."""
    found = []
    for path in sorted(folder.glob("trials/*/error.json")):
        if (path.parent / "result.json").exists():
            continue
        error = _read_json(path, [])
        message = str(error.get("message") or "").strip() or "no message was stored"
        epoch = error.get("epoch")
        found.append(
            Failure(
                trial=path.parent.name,
                status=str(error.get("status", "failed")),
                message=message.splitlines()[0],
                epoch=epoch if isinstance(epoch, int) else None,
                traceback=str(error.get("traceback") or message),
            )
        )
    return found


def gather(folders: Sequence[Path], work: Path) -> Tables:
    """Gather the trials of some results folders into Parquet tables in the folder `work`.

    A folder with trial folders is read from those, one with only Parquet tables from them. What cannot be
    read becomes a line in `notes`, and the rest goes on. A trial that is in several folders counts once, a
    finished one first. Raises ValueError, one line a folder, where there is no trial at all.
    """
    notes: list[str] = []
    trials: list[_Trial] = []
    baseline = None
    for folder in folders:
        experiment = _read_yaml(folder / "experiment.yaml", notes)
        baseline = baseline or str(experiment.get("baseline") or "")
        found = [*_from_folders(folder, notes)] or [*_from_parquet(folder, notes)]
        if not found:
            notes.append(_describe_foreign(folder))
        schemes = experiment.get("schemes")
        rank = {str(name): place for place, name in enumerate(schemes)} if isinstance(schemes, dict) else {}
        trials += sorted(found, key=lambda trial: _order(trial.row, rank))
    if not trials:
        raise ValueError("\n".join(notes))
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
    return Tables(work, rows.to_pandas(), sources, notes, baseline or None)


@dataclass
class _Trial:
    """A row of the trials table, and where the rest is: the trial's folder or, if `stored`, that of the tables."""

    folder: Path
    row: dict[str, Any]
    stored: bool = False


_Parts = dict[str, pa.Table]  # some rows of the long tables, by table
_Index = NDArray[np.int64]  # which trial of a batch a row is of


def _read(trials: list[_Trial], notes: list[str]) -> Iterator[_Parts]:
    """The long tables, part by part in the order of the trials, whose own rows are completed on the way."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for tables, run in itertools.groupby(trials, key=lambda trial: trial.folder if trial.stored else None):
            if tables:
                yield from _read_stored(tables, [trial.row["trial"] for trial in run])
                continue
            blocks = [list(block) for _, block in itertools.groupby(run, key=_network)]
            batches = [block[k : k + _BATCH] for block in blocks for k in range(0, len(block), _BATCH)]
            for start in range(0, len(batches), threads):
                for parts, found in pool.map(_read_batch, batches[start : start + threads]):
                    notes += found
                    yield parts


def _network(trial: _Trial) -> tuple[str, ...]:
    """What trials share whose epochs have the same layers, in the same order."""
    return tuple(trial.row[key] for key in ("dataset", "model", "variant"))


def _read_stored(folder: Path, trials: list[str]) -> Iterator[_Parts]:
    wanted = pa.array(trials, _TEXT)
    for name in ("epochs", "layers", "cycles"):
        path = folder / f"{name}.parquet"
        if not _unusable(path):
            with pq.ParquetFile(path) as file:
                for place in range(file.num_row_groups):
                    table = file.read_row_group(place)
                    found = pc.is_in(table["trial"].cast(_TEXT), value_set=wanted)
                    yield {name: table.filter(found).cast(SCHEMAS[name])}


def _read_batch(trials: list[_Trial]) -> tuple[_Parts, list[str]]:
    """The long tables of trials of the same network, and notes. What is broken in one costs the others nothing."""
    notes: list[str] = []
    try:
        return _parts(trials, notes), notes
    except (ValueError, TypeError, OSError) as error:  # those of pyarrow are among them
        if len(trials) == 1:
            return {}, [f"{trials[0].folder}: epochs and cycles are left out ({str(error).splitlines()[0]})"]
    single = [_read_batch([trial]) for trial in trials]
    parts = {
        name: pa.concat_tables([schema.empty_table(), *(tables[name] for tables, _ in single if tables)])
        for name, schema in SCHEMAS.items()
        if name != "trials"
    }
    return parts, [note for _, found in single for note in found]


def _parts(trials: list[_Trial], notes: list[str]) -> _Parts:
    epochs, of_epoch = _read_lines(trials, "epochs.jsonl", _EPOCH, notes)
    events, of_event = _read_lines(trials, "cycles.jsonl", _EVENT, notes)
    ids = {key: pa.array([trial.row[key] for trial in trials], kind) for key, kind in _ID.items()}
    per_epoch = {key: values.take(pa.array(of_epoch)) for key, values in ids.items()}
    parts = {
        "epochs": pa.table(per_epoch | {key: epochs[key] for key in _EPOCH}).cast(SCHEMAS["epochs"]),
        "layers": _layers(ids["trial"], of_epoch, epochs),
        "cycles": _cycles(ids["trial"], of_event, events),
    }
    columns = {key: epochs[key].to_numpy() for key in ("epoch", *_FIGURES)}
    ends = np.searchsorted(of_epoch, np.arange(len(trials) + 1))
    for trial, start, end in zip(trials, ends[:-1], ends[1:], strict=True):
        trial.row |= _figures({key: values[start:end] for key, values in columns.items()})
        if trial.row["status"] == "waiting" and end > start:
            trial.row["status"] = "running"
    return parts


def _from_folders(folder: Path, notes: list[str]) -> Iterator[_Trial]:
    for path in sorted(folder.glob("trials/*/")):
        config = _read_yaml(path / "config.yaml", notes)
        result, error = _read_json(path / "result.json", notes), _read_json(path / "error.json", notes)
        row = dict.fromkeys(SCHEMAS["trials"].names) | {key: result.get(key) for key in _RESULT}
        row |= {key: str(config.get(key, "")) for key in ("dataset", "model", "scheme")}
        row |= {key: str(config.get(key) or "") for key in ("experiment", "variant", "fingerprint")}
        row |= {"trial": path.name, "seed": config.get("seed"), "epochs": config.get("epochs")}
        row |= {key: json.dumps(result[key], sort_keys=True) for key in _AS_JSON if key in result}
        row |= {
            key: json.dumps(config.get(key) or {}, sort_keys=True, default=str) for key in ("settings", "resources")
        }
        row["status"] = "done" if result else str(error.get("status", "failed")) if error else "waiting"
        if error and not result:
            row["message"] = str(error.get("message") or "").strip()
        if problem := _problem(config, result, row):
            notes.append(f"{path} is not a trial ({problem}): left out")
        else:
            yield _Trial(path, row)


def _problem(config: dict[str, Any], result: dict[str, Any], row: dict[str, Any]) -> str:
    """What keeps a folder from being a trial, empty where nothing does."""
    if not config:
        return "no readable config.yaml"
    if missing := [key for key in ("dataset", "model", "scheme", "seed") if config.get(key) is None]:
        return f"its config.yaml lacks {', '.join(missing)}"
    settings = config.get("settings") or {}
    blocks = [("settings", settings), ("resources", config.get("resources"))]
    blocks += [(key, settings.get(key)) for key in ("data", "scheme") if isinstance(settings, dict)]
    blocks += [(key, result.get(key)) for key in _AS_JSON]
    if wrong := [f"{key}={value!r} is no mapping" for key, value in blocks if not isinstance(value or {}, dict)]:
        return wrong[0]
    for column in SCHEMAS["trials"]:
        value = row[column.name]
        if value is not None and not isinstance(value, _PYTHON[column.type]):
            return f"{column.name}={value!r} is not of type {column.type}"
    return ""


def _from_parquet(folder: Path, notes: list[str]) -> Iterator[_Trial]:
    path = folder / "trials.parquet"
    if not path.exists():
        return
    notes += [
        f"{table} {problem}: left out" for n in SCHEMAS if (problem := _unusable(table := folder / f"{n}.parquet"))
    ]
    if not _unusable(path):
        for row in pq.read_table(path).to_pylist():
            yield _Trial(folder, row, stored=True)


def _unusable(path: Path) -> str:
    """What keeps a file from being one of our tables, empty where nothing does."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, pa.ArrowInvalid):
        return f"is not a table of {MARK}"
    version = (schema.metadata or {}).get(_VERSION_KEY, b"").decode()
    if version != VERSION:
        found = f"is of version {version}" if version else f"is not a table of {MARK}"
        return f"{found}, this reads version {VERSION}"
    return "" if schema.equals(SCHEMAS[path.stem]) else f"has other columns than version {VERSION}"


def _describe_foreign(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist"
    if not folder.is_dir():
        return f"{folder} is a file, not a results folder"
    held = sorted(path.name for path in folder.iterdir())
    found = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "") if held else "nothing"
    return f"{folder} has no trials (it holds {found}): a results folder has trials/NAME/config.yaml"


def _once(trials: list[_Trial], notes: list[str]) -> list[_Trial]:
    """Keep one of the trials that share a name, a finished one first."""
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


def _read_yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    """A mapping, empty where there is none to read."""
    try:
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        notes.append(f"{path} cannot be read ({str(error).splitlines()[0]})")
        return {}
    return _mapping(content, path, notes)


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is none to read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error})")
        return {}
    return _mapping(content, path, notes)


def _mapping(content: Any, path: Path, notes: list[str]) -> dict[str, Any]:
    if isinstance(content, dict):
        return content
    notes.append(f"{path} holds no mapping: left out")
    return {}


def _read_lines(
    trials: list[_Trial], name: str, columns: dict[str, pa.DataType], notes: list[str]
) -> tuple[pa.Table, _Index]:
    """The JSON lines of some trials, and whose each is. Of a single trial what cannot be read is left out."""
    schema = pa.schema(columns)
    paths = [trial.folder / name for trial in trials]
    contents = [path.read_bytes().strip() if path.exists() else b"" for path in paths]
    try:
        table, index = _parse_lines(contents, schema)
    except pa.ArrowInvalid:
        if len(trials) > 1:
            raise
        [content], trial = contents, trials[0].row["trial"]
        lines = [line for line in content.splitlines() if line.strip()]
        good = [line for line in lines if _is_object(line)]
        if len(good) < len(lines):  # as the last line of a killed trial
            notes.append(f"{trial}: {len(lines) - len(good)} of {len(lines)} lines of {name} cannot be read")
        try:
            table, index = _parse_lines([b"\n".join(good)], schema)
        except pa.ArrowInvalid as error:
            notes.append(f"{trial}: {name} is left out ({error})")
            table, index = _parse_lines([b""], schema)
    # A line written again, as by a process that had been taken for dead, takes the place of the first.
    keys = table.select(_KEYS[name]).to_pandas().assign(trial=index)
    again = keys.duplicated(keep="last").to_numpy()
    notes += [
        f"{trials[k].row['trial']}: lines of {name} are there twice, the last counts" for k in np.unique(index[again])
    ]
    kept = ~again & keys["epoch"].notna().to_numpy()
    return (table, index) if kept.all() else (table.filter(pa.array(kept)), index[kept])


def _parse_lines(contents: list[bytes], schema: pa.Schema) -> tuple[pa.Table, _Index]:
    counts = [content.count(b"\n") + 1 if content else 0 for content in contents]
    index = np.repeat(np.arange(len(contents)), counts)
    if not len(index):
        return schema.empty_table(), index
    joined = b"\n".join(filter(None, contents))
    # A block has to hold the longest line, and one block also keeps the inferred types in step.
    read = pj.ReadOptions(use_threads=False, block_size=len(joined) + 1)
    table = pj.read_json(pa.BufferReader(joined), read, pj.ParseOptions(explicit_schema=schema))
    table.validate(full=True)  # text that is not UTF-8
    if table.num_rows != len(index):
        raise pa.ArrowInvalid("not one object a line")
    return table, index


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _figures(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """What the trials table says about a trial's epochs: how far it is, its last and its best figures."""
    if not len(columns["epoch"]):
        return {"epochs_done": 0}
    epoch, test, val = columns["epoch"], columns["test_accuracy"], columns["val_accuracy"]
    last = epoch.argmax()
    figures: dict[str, Any] = {key: float(columns[key][last]) for key in _FIGURES}
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
    if "layers" not in epochs.column_names or not pa.types.is_struct(epochs["layers"].type):
        return schema.empty_table()
    struct = epochs["layers"].combine_chunks()
    names = [child.name for child in struct.type]
    columns = {key: [pc.struct_field(struct, [name, key]) for name in names] for key in schema.names[3:]}
    values = {key: np.stack([c.to_numpy(zero_copy_only=False) for c in cs], 1) for key, cs in columns.items()}
    layer = np.tile(np.arange(len(names), dtype=np.int32), len(struct))
    table = pa.table(
        {
            "trial": trials.take(pa.array(np.repeat(index, len(names)))),
            "epoch": np.repeat(epochs["epoch"].to_numpy(), len(names)),
            "layer": pa.DictionaryArray.from_arrays(layer, names),
        }
        | {
            key: pa.array(array.ravel().astype(float), from_pandas=True).cast(schema.field(key).type)
            for key, array in values.items()
        }
    )
    return (
        table.filter(table["filters"].is_valid()).cast(schema) if table["filters"].null_count else table.cast(schema)
    )


def _cycles(trials: pa.Array, index: _Index, events: pa.Table) -> pa.Table:
    """Every filter of every event as a row; without a score where an event has not one for each filter."""
    dropped, scores = events["dropped"].combine_chunks(), events["scores"].combine_chunks()
    counts, scored = (pc.list_value_length(c).fill_null(0).to_numpy().astype(np.int64) for c in (dropped, scores))
    event = np.repeat(np.arange(events.num_rows), counts)
    score = np.full(len(event), np.nan)
    score[(scored == counts)[event]] = scores.filter(pa.array(scored == counts)).flatten().to_numpy(False)
    columns = {
        "trial": trials.take(pa.array(index[event])),
        **{key: events[key].combine_chunks().take(event) for key in ("cycle", "event", "epoch", "layer")},
        "filter": (np.arange(len(event)) - np.repeat(counts.cumsum() - counts, counts)).astype(np.int32),
        "score": pa.array(score.astype(np.float32), from_pandas=True),
        "dropped": dropped.flatten().fill_null(0).cast(pa.bool_()),
    }
    return pa.table(columns).select(SCHEMAS["cycles"].names).cast(SCHEMAS["cycles"])
