"""The tables of an earlier report, where the folders of the trials are gone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from repr_ray.results.files import MARK
from repr_ray.results.store.folders import StoredTrial, problem_of, shortened, with_blocks
from repr_ray.results.store.schemas import (
    ADDED,
    EARLIER,
    EXPERIMENT_KEY,
    MOST_ROWS,
    SCHEMAS,
    TEXT,
    VERSION,
    VERSION_KEY,
    LongTables,
)
from repr_ray.storage.foreign import Unusable, check_plain, obstacle
from repr_ray.storage.text import line


def experiment_of(folder: Path) -> dict[str, Any]:
    """Baseline, seeds and schemes of the experiment whose tables a folder has; empty if they are not known."""
    path = folder / "trials.parquet"
    if _unusable(path):
        return {}
    try:
        found = json.loads((pq.read_schema(path).metadata or {}).get(EXPERIMENT_KEY, b"{}"))
        check_plain(found)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def from_parquet(folder: Path, notes: list[str]) -> Iterator[StoredTrial]:
    """The trials of a results folder that has only its tables."""
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
            if file.metadata.num_rows > MOST_ROWS:
                raise Unusable(f"has more than {MOST_ROWS:,} rows")
            rows = _completed(file.read(), "trials").to_pylist()
    except (OSError, ValueError) as error:
        notes.append(f"{path}: left out ({line(error)})")
        return
    for row in rows:
        if problem := problem_of(row):
            notes.append(f"{path}: {shortened(row['trial'])} is not a trial ({problem}): left out")
        else:
            yield StoredTrial(folder, with_blocks(row), stored=True)


def read_stored(folder: Path, trials: list[str], notes: list[str]) -> Iterator[LongTables]:
    """The rows of some trials in the long tables of a folder."""
    wanted = pa.array(trials, TEXT)
    for name in ("epochs", "layers", "cycles"):
        path = folder / f"{name}.parquet"
        if _unusable(path):
            continue
        try:
            with pq.ParquetFile(path) as file:
                for place in range(file.num_row_groups):
                    if file.metadata.row_group(place).num_rows > MOST_ROWS:
                        raise Unusable(f"has more than {MOST_ROWS:,} rows in a group")
                    table = _completed(file.read_row_group(place), name)
                    found = pc.is_in(table["trial"].cast(TEXT), value_set=wanted)
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
    version = (schema.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
    if version not in (VERSION, *EARLIER):
        found = f"is of version {line(version)}" if version else f"is not a table of {MARK}"
        return f"{found}, this reads version {VERSION}"
    added = ADDED.get(path.stem, ()) if version in EARLIER else ()
    lacks = set(added) - set(schema.names)
    expected = pa.schema([column for column in SCHEMAS[path.stem] if column.name not in lacks])
    return "" if schema.equals(expected) else f"has other columns than version {version}"
