"""What a trial stores and the tables hold: every record and its columns, declared once for writer, readers, trackers.

| record | where |
|---|---|
| `Epoch` | a line of `epochs.jsonl`, a row of the `epochs` table, the scalars of TensorBoard and MLflow |
| `repr_ray.LayerEvent` | a line of `cycles.jsonl` |
| `Result` | `result.json` |
| `TrialRow`, `LayerRow`, `FilterRow` | a row of the `trials`, `layers` and `cycles` tables |

Losses are nats per image, accuracies fractions from 0 to 1, times seconds; epochs and cycles count from 0.
"""

from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Required, TypedDict, get_args, get_type_hints

from repr_ray.storage.foreign import Unusable, is_finite, read_json

STOPPED_EARLY = "stopped early"  # status in error.json of a point of the search space that stays short
RESULT = "result.json"


class Losses(TypedDict):
    """The loss and the accuracy on each split, None where an epoch was not evaluated."""

    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None


class Averaged(TypedDict, total=False):
    """The same of the averaged weights, with `train.ema`; not there without."""

    ema_val_loss: float | None
    ema_val_accuracy: float | None
    ema_test_loss: float | None
    ema_test_accuracy: float | None


class _EpochStart(TypedDict):
    epoch: int
    phase: str
    cycle: int


class _EpochEnd(TypedDict):
    learning_rate: float
    filters_dropped: int
    images_per_second: float
    seconds: float


class Epoch(_EpochStart, Losses, Averaged, _EpochEnd):
    """A finished epoch. `images_per_second` is of training alone, `seconds` of all that it took."""


class LayerState(TypedDict):
    """A layer after an epoch: mean |cos| between its filters; how many are dropped, there, and zero."""

    overlap: float
    dropped: int
    filters: int
    zero: int


class EpochLine(Epoch):
    """A line of `epochs.jsonl`: the epoch and its layers by name."""

    layers: dict[str, LayerState]


def without_layers(line: EpochLine) -> Epoch:
    """The columns of an epoch alone."""
    row: Any = {name: value for name, value in line.items() if name != "layers"}
    return row


class Measured(TypedDict, total=False):
    """The columns of the trials table that a result fills.

    `images_per_second` counts training images, in the time of all epochs with their ranking and evaluation.
    """

    collapsed_epoch: int | None
    wall_seconds: Required[float]
    images_per_second: float
    precision: Required[str]
    workers: Required[int]
    threads: int
    gpus: float
    parameters: Required[int]
    checksum: Required[str]
    started: Required[str]
    finished: Required[str]
    commit: str | None
    command: str
    data_digest: str
    teacher_seconds: float


class Result(Measured, total=False):
    """`result.json`: `status` is always `done`."""

    status: Required[str]
    versions: Required[dict[str, Any]]
    hardware: Required[dict[str, Any]]
    data_notes: str
    plug_ins: dict[str, str]
    teacher: str


class TrialKeys(TypedDict):
    """What every row of the epochs table repeats about its trial."""

    experiment: str
    trial: str
    dataset: str
    model: str
    variant: str
    scheme: str
    seed: int


class _Course(TypedDict):
    fingerprint: str
    status: str
    message: str
    epochs: int
    epochs_done: int


class _Best(TypedDict):
    best_val_epoch: int
    best_val_test_accuracy: float
    best_test_epoch: int
    best_test_accuracy: float


class _Blocks(TypedDict):
    versions: str
    hardware: str
    settings: str
    resources: str
    stage: str
    tuned: str


class TrialRow(TrialKeys, _Course, Losses, Averaged, _Best, Measured, _Blocks):
    """A trial: what it was, how far it came, its last and best figures, its result; blocks are JSON text."""


class _LayerKeys(TypedDict):
    trial: str
    epoch: int
    layer: str


class LayerRow(_LayerKeys, LayerState):
    """A layer of a trial after an epoch."""


class FilterRow(TypedDict):
    """A filter of a layer when filters are dropped or re-initialised."""

    trial: str
    cycle: int
    event: str
    epoch: int
    layer: str
    filter: int
    score: float
    dropped: bool


def columns(record: type) -> dict[str, Any]:
    """The fields of a record with their types, `X | None` as X, in the order of the table's columns."""
    return {
        name: next(kind for kind in get_args(hint) if kind is not NoneType) if isinstance(hint, UnionType) else hint
        for name, hint in get_type_hints(record).items()
    }


CURVES = [name for name, kind in columns(Epoch).items() if kind is float and name != "seconds"] + ["filters_dropped"]
"""Columns of an epoch that trackers draw."""

SUMMARY = ("best_val_test_accuracy", "wall_seconds", "parameters", "collapsed_epoch")
"""Columns of a trial that trackers show once."""


def tracked_settings(scheme: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What trackers call a trial's parameters: its settings by dotted name."""
    return {"scheme": scheme, "seed": seed} | flatten(settings)


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


_LONGEST = 10_000  # characters of a text


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of the trial in `folder`, None without one. Raises Unusable for an incomplete or wrong one."""
    try:
        result = read_json(folder / RESULT)
    except FileNotFoundError:
        return None
    if result.get("status") != "done":
        raise Unusable(f"has status={result.get('status')!r}, not done")
    needed = [name for name in Result.__annotations__ if name in Result.__required_keys__]
    if missing := [name for name in needed if result.get(name) is None]:
        raise Unusable(f"lacks {', '.join(missing)}")
    for name, kind in columns(Measured).items():
        if (value := result.get(name)) is not None and not _fits(value, kind):
            raise Unusable(f"has {name}={str(value)[:100]!r}, not {_KINDS[kind]}")
    for name in ("started", "finished"):
        try:
            datetime.fromisoformat(result[name]).timestamp()
        except (ValueError, OverflowError):
            raise Unusable(f"has {name}={result[name][:100]!r}, not a time") from None
    for name in ("versions", "hardware"):
        if not isinstance(result[name], dict):
            raise Unusable(f"has {name}={str(result[name])[:100]!r}, not a mapping")
    return result


_KINDS = {int: "a whole number", float: "a number", str: "text"}


def _fits(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a float may be written as an integer."""
    if kind is str:
        return isinstance(value, str) and len(value) <= _LONGEST
    return is_finite(value) and 0 <= value < 1e15 and (kind is float or isinstance(value, int))
