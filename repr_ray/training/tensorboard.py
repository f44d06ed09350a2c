"""A trial's curves for TensorBoard."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from repr_ray.method.events import LayerEvent
from repr_ray.records import Epoch, EpochLine, columns

_CURVES = [name for name, kind in columns(Epoch).items() if kind is float] + ["filters_dropped"]


class Board:
    """Event files in a trial's folder; events of an earlier run from epoch `first` on are hidden."""

    def __init__(self, folder: Path, first: int) -> None:
        self.writer = SummaryWriter(str(folder), purge_step=first)

    def add(self, row: EpochLine, events: list[LayerEvent]) -> None:
        """Add an epoch, and a picture of the filters that were dropped before it."""
        scalars = {name: value for name, value in row.items() if name in _CURVES and isinstance(value, float | int)}
        scalars |= {f"overlap/{layer}": state["overlap"] for layer, state in row["layers"].items()}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.writer.file_writer.add_summary(
            Summary(value=values), row["epoch"]
        )  # one event; `add_scalar` writes one for each value
        if events and events[0].event == "drop":
            self.writer.add_image("dropped_filters", _on_off(events), row["epoch"], dataformats="HW")

    def flush(self) -> None:
        """Write the added events."""
        self.writer.flush()

    def close(self) -> None:
        """Write the added events and close the file."""
        self.writer.close()


def _on_off(events: list[LayerEvent], pixels: int = 12) -> NDArray[np.uint8]:
    """A picture of one drop: a row of squares per layer, black for dropped filters, grey beyond the last."""
    picture = np.full((len(events), max(len(event.dropped) for event in events)), 128, np.uint8)
    for line, event in zip(picture, events, strict=True):
        line[: len(event.dropped)] = np.where(event.dropped, 0, 255)
    return picture.repeat(pixels, axis=0).repeat(pixels, axis=1)
