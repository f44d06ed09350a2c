"""Filters that no scheme dropped and whose kernel is all zeros at the end of training."""

import pyarrow.compute as pc
import pyarrow.parquet as pq

from repr_ray.results.blocks import BLOCK
from repr_ray.results.compare import Comparison, finished, records
from repr_ray.results.store import Tables

_NAMED = 6  # layers in a note


def zero_filters(tables: Tables, comparison: Comparison) -> list[str]:
    """A note for every scheme with such filters: its layers, those with most first, in the trial with most."""
    trials = finished(comparison.trials)[["trial", "epochs_done", *BLOCK, "scheme"]]
    path, columns = tables.folder / "layers.parquet", ["trial", "epoch", "layer", "zero", "dropped", "filters"]
    zero = pq.read_table(path, columns=columns, filters=pc.field("zero") > pc.field("dropped")).to_pandas()
    zero = zero.astype({"trial": str, "layer": str}).merge(trials, on="trial")
    last = zero[zero["epoch"] + 1 == zero["epochs_done"]]
    notes = []
    for (*block, scheme), rows in last.groupby([*BLOCK, "scheme"], sort=False):
        where = " ".join(filter(None, map(str, block)))
        rows = rows.assign(count=rows["zero"] - rows["dropped"]).sort_values("count", ascending=False, kind="stable")
        layers = rows.drop_duplicates("layer")
        most = records(layers.head(_NAMED))
        told = [f"{row['count']:.0f} of {row['filters']:.0f} in {row['layer']}" for row in most]
        if len(layers) > _NAMED:
            told.append(f"fewer in {len(layers) - _NAMED} more layers")
        every = int((trials[[*BLOCK, "scheme"]] == [*block, scheme]).all(axis=1).sum())
        notes.append(
            f"{where}: {scheme}: filters without a function, whose kernel is all zeros after the last epoch:"
            f" {', '.join(told)} (at most; in {rows['trial'].nunique()} of {every} trials)"
        )
    return notes
