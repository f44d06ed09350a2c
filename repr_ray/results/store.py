"""Trial folders on disk, gathered into four tidy Parquet tables.

| table | a row is |
|---|---|
| `trials` | a trial: what it was, how far it came, its last and best figures |
| `epochs` | a finished epoch of a trial |
| `layers` | a layer of a trial in an epoch: mean off-diagonal overlap of its filters, how many are dropped |
| `cycles` | a filter of a layer when filters are dropped or re-initialised |

Losses are nats per image, accuracies fractions from 0 to 1, times seconds, epochs and cycles count from 0.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

import repr_ray
from repr_ray.results.files import MARK, replacing

VERSION = "1"  # of the tables' columns
_VERSION_KEY = f"{MARK}.tables".encode()
_BATCH = 64  # trials a Parquet row group

_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
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
    "parameters": _INT,
    "checksum": _TEXT,
    "started": _TEXT,
    "finished": _TEXT,
    "commit": _TEXT,
    "command": _TEXT,
}
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
    folder: Path


def failures(folder: Path) -> list[Failure]:
    """The failed trials of a results folder, by name. Reads only small files."""
    found = []
    for path in sorted(folder.glob("trials/*/error.json")):
        if (path.parent / "result.json").exists():
            continue
        error = _read_json(path, [])
        lines = str(error.get("message") or "").strip().splitlines()
        message = lines[0] if lines else "no message was stored"
        found.append(
            Failure(path.parent.name, error.get("status", "failed"), message, error.get("epoch"), path.parent)
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
        baseline = baseline or experiment.get("baseline")
        found: list[_Trial] = [*_from_folders(folder, notes)] or [*_from_parquet(folder, notes)]
        if not found:
            notes.append(_describe_foreign(folder))
        rank = {name: place for place, name in enumerate(experiment.get("schemes") or {})}
        trials += sorted(found, key=lambda trial: _order(trial.row, rank))
    if not trials:
        raise ValueError("\n".join(notes))
    trials = _once(trials, notes)

    writers = {name: pq.ParquetWriter(work / f"{name}.parquet", schema) for name, schema in SCHEMAS.items()}
    rows = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(trials), _BATCH):
            read = list(pool.map(_read, trials[start : start + _BATCH]))
            notes += [note for _, found in read for note in found]
            for name, schema in SCHEMAS.items():
                parts = [tables[name] for tables, _ in read if name in tables]
                table = pa.concat_tables([schema.empty_table(), *parts]).unify_dictionaries()
                writers[name].write_table(table.combine_chunks())
                if name == "trials":
                    rows.append(table)
    for writer in writers.values():
        writer.close()
    frame = pa.concat_tables(rows).to_pandas()
    sources = {trial.row["trial"]: trial.folder for trial in trials if isinstance(trial, _TrialFolder)}
    return Tables(work, frame, sources, notes, baseline)


@dataclass
class _TrialFolder:
    """A trial that is read from its folder."""

    folder: Path
    row: dict[str, Any]

    def read(self, notes: list[str]) -> dict[str, pa.Table]:
        row, name = self.row, self.row["trial"]
        epochs = _read_lines(self.folder / "epochs.jsonl", _EPOCH, notes, name)
        cycles = _read_lines(self.folder / "cycles.jsonl", _EVENT, notes, name)
        row |= _figures(epochs)
        if row["status"] == "waiting" and epochs.num_rows:
            row["status"] = "running"
        ids = {key: _repeat(row[key], epochs.num_rows) for key in _ID if key != "seed"}
        ids["seed"] = pa.array(np.full(epochs.num_rows, row["seed"]))
        epoch_columns = ids | {key: epochs[key] for key in _EPOCH}
        return {
            "trials": pa.Table.from_pylist([row], SCHEMAS["trials"]),
            "epochs": pa.table(epoch_columns).cast(SCHEMAS["epochs"]),
            "layers": _layers(name, epochs),
            "cycles": _cycles(name, cycles),
        }


@dataclass
class _StoredTrial:
    """A trial of which only the Parquet tables are left."""

    folder: Path
    row: dict[str, Any]

    def read(self, notes: list[str]) -> dict[str, pa.Table]:
        tables = {"trials": pa.Table.from_pylist([self.row], SCHEMAS["trials"])}
        for name in ("epochs", "layers", "cycles"):
            path = self.folder / f"{name}.parquet"
            if _table_version(path) == VERSION:
                only = pc.field("trial") == self.row["trial"]
                tables[name] = pq.read_table(path, filters=only).cast(SCHEMAS[name])
        return tables


_Trial = _TrialFolder | _StoredTrial


def _read(trial: _Trial) -> tuple[dict[str, pa.Table], list[str]]:
    notes: list[str] = []
    return trial.read(notes), notes


def _from_folders(folder: Path, notes: list[str]) -> Iterator[_TrialFolder]:
    for path in sorted(folder.glob("trials/*/")):
        problem = None
        config = _read_yaml(path / "config.yaml", notes)
        if not config:
            problem = "no readable config.yaml"
        elif missing := [key for key in ("dataset", "model", "scheme", "seed") if key not in config]:
            problem = f"its config.yaml lacks {', '.join(missing)}"
        if problem:
            notes.append(f"{path} is not a trial ({problem}): left out")
            continue
        result, error = _read_json(path / "result.json", notes), _read_json(path / "error.json", notes)
        row = dict.fromkeys(SCHEMAS["trials"].names) | {key: result.get(key) for key in _RESULT}
        row |= {key: str(config[key]) for key in ("dataset", "model", "scheme")}
        row |= {key: str(config.get(key) or "") for key in ("experiment", "variant", "fingerprint")}
        row |= {"trial": path.name, "seed": int(config["seed"]), "epochs": config.get("epochs")}
        row |= {key: json.dumps(result[key], sort_keys=True) for key in _AS_JSON if key in result}
        row |= {
            key: json.dumps(config.get(key) or {}, sort_keys=True, default=str) for key in ("settings", "resources")
        }
        row["status"] = "done" if result else error.get("status", "failed") if error else "waiting"
        if error and not result:
            row["message"] = str(error.get("message") or "").strip()
        yield _TrialFolder(path, row)


def _from_parquet(folder: Path, notes: list[str]) -> Iterator[_StoredTrial]:
    path = folder / "trials.parquet"
    if not path.exists():
        return
    for name in SCHEMAS:
        table = folder / f"{name}.parquet"
        if (version := _table_version(table)) != VERSION:
            found = f"is of version {version}" if version else "is not a table of repr_ray"
            notes.append(f"{table} {found}, this reads version {VERSION}: left out")
    if _table_version(path) == VERSION:
        for row in pq.read_table(path).cast(SCHEMAS["trials"]).to_pylist():
            yield _StoredTrial(folder, row)


def _table_version(path: Path) -> str | None:
    """The version of a table's columns, None where it is no table of ours."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    version = metadata.get(_VERSION_KEY)
    return version.decode() if version else None


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
        content = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError) as error:
        notes.append(f"{path} cannot be read ({str(error).splitlines()[0]})")
        return {}
    return content if isinstance(content, dict) else {}


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object, empty where there is none to read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error})")
        return {}
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path, columns: dict[str, pa.DataType], notes: list[str], trial: str) -> pa.Table:
    """A file of JSON lines; a line that is cut off, as of a killed trial, is left out with a note."""
    schema = pa.schema(columns)
    content = path.read_bytes() if path.exists() else b""
    if not content.strip():
        return schema.empty_table()
    options = pj.ParseOptions(explicit_schema=schema)
    try:
        table = _parse_lines(content, options)
    except pa.ArrowInvalid:
        lines = [line for line in content.splitlines() if line.strip()]
        good = [line for line in lines if _is_object(line)]
        notes.append(f"{trial}: {len(lines) - len(good)} of {len(lines)} lines of {path.name} cannot be read")
        try:
            table = _parse_lines(b"\n".join(good), options)
        except pa.ArrowInvalid as error:
            notes.append(f"{trial}: {path.name} is left out ({error})")
            return schema.empty_table()
    return table.filter(table["epoch"].is_valid()) if table["epoch"].null_count else table


def _parse_lines(content: bytes, options: pj.ParseOptions) -> pa.Table:
    # A block has to hold the longest line, and one block also keeps the inferred types in step.
    read = pj.ReadOptions(use_threads=False, block_size=len(content) + 1)
    return pj.read_json(pa.BufferReader(content), read, options)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _repeat(value: str | None, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([value], _TEXT))


def _figures(epochs: pa.Table) -> dict[str, Any]:
    """What the trials table says about a trial's epochs: how far it is, its last and its best figures."""
    if not epochs.num_rows:
        return {"epochs_done": 0}
    columns = {key: epochs[key].to_numpy() for key in ("epoch", *_FIGURES)}
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


def _layers(trial: str, epochs: pa.Table) -> pa.Table:
    """The `layers` struct of every epoch as rows: epoch by epoch, layers in the network's order."""
    schema = SCHEMAS["layers"]
    if "layers" not in epochs.column_names or not pa.types.is_struct(epochs["layers"].type):
        return schema.empty_table()
    struct = epochs["layers"].combine_chunks()
    names = [child.name for child in struct.type]
    columns = {key: [pc.struct_field(struct, [name, key]) for name in names] for key in schema.names[3:]}
    values = {key: np.stack([c.to_numpy(zero_copy_only=False) for c in cs], 1) for key, cs in columns.items()}
    rows = len(struct)
    layer = np.tile(np.arange(len(names), dtype=np.int32), rows)
    table = pa.table(
        {
            "trial": _repeat(trial, rows * len(names)),
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


def _cycles(trial: str, events: pa.Table) -> pa.Table:
    """Every filter of every event as a row."""
    dropped = [row or [] for row in events["dropped"].to_pylist()]
    scores = events["scores"].to_pylist()
    counts = np.array([len(row) for row in dropped], dtype=np.int64)
    event = np.repeat(np.arange(events.num_rows), counts)
    flat = [
        value
        for row, mask in zip(scores, dropped, strict=True)
        for value in (row if row and len(row) == len(mask) else [None] * len(mask))
    ]
    columns = {
        "trial": _repeat(trial, len(event)),
        **{key: events[key].combine_chunks().take(event) for key in ("cycle", "event", "epoch", "layer")},
        "filter": (np.arange(len(event)) - np.repeat(counts.cumsum() - counts, counts)).astype(np.int32),
        "score": pa.array(flat, pa.float32()),
        "dropped": pa.array([bool(value) for mask in dropped for value in mask], pa.bool_()),
    }
    return pa.table(columns).select(SCHEMAS["cycles"].names).cast(SCHEMAS["cycles"])
