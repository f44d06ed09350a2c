"""The JSON lines of trials (epochs.jsonl, cycles.jsonl), read within bounds and without damaged lines."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from numpy.typing import NDArray

from repr_ray.results.store.folders import StoredTrial
from repr_ray.results.store.schemas import AVERAGE, LAYER, LOSSES, MOST_EPOCHS
from repr_ray.storage.foreign import Unusable, read_bytes
from repr_ray.storage.text import line

_LARGEST = 1 << 28  # bytes of a trial's lines
_OPENED = 4_000  # opening brackets of one line at most, a bound on its depth
_LAYERS = 4_000  # of a network at most
KEYS = {"epochs.jsonl": ["epoch"], "cycles.jsonl": ["cycle", "event", "epoch", "layer"]}  # of a line
Index = NDArray[np.int64]  # which trial of a batch a row is of


def read_lines(
    trials: list[StoredTrial], name: str, columns: dict[str, pa.DataType], notes: list[str]
) -> tuple[pa.Table, Index]:
    """The JSON lines of some trials, and the trial of each; unreadable lines and impossible values are left out."""
    contents = [_lines_of(trial, name, notes) for trial in trials]
    if name == "epochs.jsonl":
        columns = columns | {"layers": pa.struct([(layer, LAYER) for layer in _layer_names(contents)])}
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
        f"{trials[k].row['trial']}: {count} lines of {name} are left out: an impossible epoch or accuracy"
        for k, count in zip(*np.unique(index[~possible], return_counts=True), strict=True)
    ]
    # The last of duplicate lines counts: an unreachable process may have gone on writing beside its successor.
    keys = table.select(KEYS[name]).to_pandas().assign(trial=index)
    again = keys.duplicated(keep="last").to_numpy()
    notes += [
        f"{trials[k].row['trial']}: lines of {name} are there twice, the last counts" for k in np.unique(index[again])
    ]
    kept = ~again & possible
    return (table, index) if kept.all() else (table.filter(pa.array(kept)), index[kept])


def _lines_of(trial: StoredTrial, name: str, notes: list[str]) -> bytes:
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


def _parse_lines(contents: list[bytes], schema: pa.Schema) -> tuple[pa.Table, Index]:
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
    possible = (epoch >= 0) & (epoch < MOST_EPOCHS)  # false for what is missing
    accuracies = [key for key in (*LOSSES, *AVERAGE) if key.endswith("accuracy")]
    for name, most in {"cycle": MOST_EPOCHS, **dict.fromkeys(accuracies, 1)}.items():
        if name in table.column_names:
            values = table[name].to_numpy()
            possible &= ~((values < 0) | (values > most))
    return np.asarray(possible, dtype=bool)
