"""The rows of the long tables, and the figures of the trials table, from the JSON lines of trials."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from repr_ray.results.store.folders import StoredTrial
from repr_ray.results.store.lines import Index, read_lines
from repr_ray.results.store.schemas import AVERAGE, EPOCH, EVENT, ID, LAYER, LOSSES, SCHEMAS, LongTables

_HIGHEST = 1e30  # of a score or a loss


def long_tables(trials: list[StoredTrial], notes: list[str]) -> LongTables:
    """The long tables of trials of one network; completes the trials' rows."""
    epochs, of_epoch = read_lines(trials, "epochs.jsonl", EPOCH, notes)
    events, of_event = read_lines(trials, "cycles.jsonl", EVENT, notes)
    ids = {key: pa.array([trial.row[key] for trial in trials], kind) for key, kind in ID.items()}
    per_epoch = {key: values.take(pa.array(of_epoch)) for key, values in ids.items()}
    parts = {
        "epochs": pa.table(per_epoch | {key: epochs[key] for key in EPOCH}).cast(SCHEMAS["epochs"]),
        "layers": _layers(ids["trial"], of_epoch, epochs),
        "cycles": _cycles(ids["trial"], of_event, events),
    }
    columns = {key: epochs[key].to_numpy() for key in ("epoch", *LOSSES, *AVERAGE)}
    ends = np.searchsorted(of_epoch, np.arange(len(trials) + 1))
    for trial, start, end in zip(trials, ends[:-1], ends[1:], strict=True):
        figures = _figures({key: values[start:end] for key, values in columns.items()})
        planned = trial.row["epochs"]
        if trial.row["status"] == "done" and planned and figures["epochs_done"] != planned:
            notes.append(
                f"{trial.folder}: done, but epochs.jsonl ends after epoch {figures['epochs_done']} of {planned}: it"
                " counts without accuracies"
            )
            figures = {"epochs_done": figures["epochs_done"]}
        trial.row |= figures
        if trial.row["status"] == "waiting" and end > start:
            trial.row["status"] = "running"
    return parts


def _figures(columns: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The figures of a trial's epochs in the trials table: epochs done, last and best accuracies."""
    if not len(columns["epoch"]):
        return {"epochs_done": 0}
    epoch, test, val = columns["epoch"], columns["test_accuracy"], columns["val_accuracy"]
    last = epoch.argmax()
    figures: dict[str, Any] = {key: float(columns[key][last]) for key in LOSSES}
    figures |= {key: float(columns[key][last]) for key in AVERAGE if not np.isnan(columns[key][last])}
    figures["epochs_done"] = int(epoch[last]) + 1
    for kind, chosen in (("test", test), ("val", np.where(np.isnan(test), np.nan, val))):
        if not np.isnan(chosen).all():
            best = int(np.nanargmax(chosen))
            name = "best_test_accuracy" if kind == "test" else "best_val_test_accuracy"
            figures |= {f"best_{kind}_epoch": int(epoch[best]), name: float(test[best])}
    return figures


def _layers(trials: pa.Array, index: Index, epochs: pa.Table) -> pa.Table:
    """The `layers` struct of every epoch as rows: epoch by epoch, layers in the network's order."""
    schema = SCHEMAS["layers"]
    struct = epochs["layers"].combine_chunks()
    names = [child.name for child in struct.type]
    if not names or not len(struct):
        return schema.empty_table()
    columns = {field.name: [pc.struct_field(struct, [name, field.name]) for name in names] for field in LAYER}
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
    whole = table.filter(table["filters"].is_valid()) if table["filters"].null_count else table
    return whole.cast(schema)


def _cycles(trials: pa.Array, index: Index, events: pa.Table) -> pa.Table:
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
