"""A trial's curves for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from repr_ray.method.events import LayerEvent
from repr_ray.records import CURVES, EpochLine
from repr_ray.storage.text import lines

_SQUARE = 12  # pixels of a filter in the picture of a drop


class Board:
    """Event files in a trial's folder; events of an earlier run from epoch `first` on are hidden.

    `parameters` are the trial's in the HParams tab, whose metrics are the scalars' last values. TensorBoard collects
    the parameters and metrics of all trials itself.
    """

    def __init__(self, folder: Path, first: int, parameters: Mapping[str, Any]) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=first)
        plain = {
            k: v if isinstance(v, bool | int | float) else lines(v) for k, v in parameters.items() if v is not None
        }
        _, self.session, self.end = hparams(plain, {})
        self.writer.file_writer.add_summary(self.session, first)

    def add(self, row: EpochLine, events: list[LayerEvent]) -> None:
        """Add an epoch, and a picture of the filters that were dropped before it."""
        shown = (*CURVES, "seconds")
        scalars = {name: value for name, value in row.items() if name in shown and isinstance(value, float | int)}
        self._add(
            scalars | {f"overlap/{layer}": state["overlap"] for layer, state in row["layers"].items()}, row["epoch"]
        )
        if events and events[0].event == "drop":
            self.writer.add_image("dropped_filters", _on_off(events), row["epoch"], dataformats="HW")

    def flush(self) -> None:
        """Write the added events."""
        self.writer.flush()

    def close(self) -> None:
        """Write the added events and close the file."""
        self.writer.close()

    def finish(self, figures: Mapping[str, Any], epoch: int) -> None:
        """Add the result beside the last epoch, mark the trial as done, and close."""
        self._add({name: value for name, value in figures.items() if value is not None}, epoch)
        self.writer.file_writer.add_summary(self.end, epoch)
        self.close()

    def _add(self, scalars: Mapping[str, Any], epoch: int) -> None:
        """Add scalars in one event; `add_scalar` writes one event each."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.writer.file_writer.add_summary(Summary(value=values), epoch)


def _on_off(events: list[LayerEvent]) -> NDArray[np.uint8]:
    """A picture of one drop: a row of squares per layer, black for dropped filters, grey beyond the last."""
    picture = np.full((len(events), max(len(event.dropped) for event in events)), 128, np.uint8)
    for line, event in zip(picture, events, strict=True):
        line[: len(event.dropped)] = np.where(event.dropped, 0, 255)
    return picture.repeat(_SQUARE, axis=0).repeat(_SQUARE, axis=1)
