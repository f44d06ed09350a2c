"""The columns of the Parquet tables, and the versions of them that can be read."""

import pyarrow as pa

import repr_ray
from repr_ray.method.events import LayerEvent
from repr_ray.records import Averaged, Epoch, FilterRow, LayerRow, LayerState, Losses, TrialKeys, TrialRow, columns
from repr_ray.results.files import MARK

VERSION = "5"  # the version of the tables' columns
EARLIER = ("2", "3", "4")  # versions that are read too

AVERAGE = tuple(columns(Averaged))
LOSSES = tuple(columns(Losses))
ADDED: dict[str, tuple[str, ...]] = {
    "trials": ("data_digest", "stage", "tuned", "teacher_seconds", *AVERAGE),
    "epochs": AVERAGE,
    "layers": ("zero",),
}
"""Columns that an earlier version may lack."""

VERSION_KEY = f"{MARK}.tables".encode()
EXPERIMENT_KEY = f"{MARK}.experiment".encode()
"""The metadata of trials.parquet with what a report needs of the experiment: baseline, seeds and schemes, as JSON."""

_COUNTING_KEY = f"{MARK}.counting".encode()
MOST_ROWS = 1 << 22  # rows of a row group of a foreign Parquet file, and of its table of trials

MOST_EPOCHS = 10**9

LongTables = dict[str, pa.Table]
"""Some rows of the long tables, by table."""

TEXT, INT, _REAL, _NAME = pa.string(), pa.int64(), pa.float64(), pa.dictionary(pa.int32(), pa.string())
_ARROW = {str: TEXT, int: INT, float: _REAL, bool: pa.bool_()}
_LISTS = {tuple[int, ...]: pa.list_(pa.int8()), tuple[float, ...]: pa.list_(_REAL)}


def _types(record: type, text: pa.DataType = TEXT) -> dict[str, pa.DataType]:
    """The columns of a record; fields that are mappings or optional lists have no column of their own."""
    kinds = _ARROW | _LISTS | {str: text}
    return {name: kinds[kind] for name, kind in columns(record).items() if kind in kinds}


ID, EPOCH, LAYER = _types(TrialKeys), _types(Epoch), pa.struct(_types(LayerState))
EVENT = {name: _types(LayerEvent)[name] for name in ("cycle", "event", "epoch", "layer", "scores", "dropped")}


def _schema(columns: dict[str, pa.DataType]) -> pa.Schema:
    counting = "epochs, cycles and filters count from 0"
    return pa.schema(columns, metadata={MARK: repr_ray.__version__, VERSION_KEY: VERSION, _COUNTING_KEY: counting})


SCHEMAS = {
    "trials": _schema(_types(TrialRow)),
    "epochs": _schema({name: _NAME if kind == TEXT else kind for name, kind in (ID | EPOCH).items()}),
    "layers": _schema(_types(LayerRow, _NAME)),
    "cycles": _schema(_types(FilterRow, _NAME) | {"filter": pa.int32(), "score": pa.float32()}),
}
"""Columns of each table, with the version of this package and of the tables as file metadata."""
