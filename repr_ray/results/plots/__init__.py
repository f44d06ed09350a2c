"""Pictures of the tables, by matplotlib: `draw` draws all of them.

| file | picture |
|---|---|
| `differences.py` | differences to the baseline, paired by seed |
| `curves.py` | accuracy and loss over epochs, together or in one panel per scheme |
| `filters.py` | which filters are dropped in which cycle |
| `scores.py` | the distribution of the filters' scores |
| `overlap.py` | the overlap of a layer's filters over time |
| `grid.py` | accuracy over a grid of settings |
| `datasets.py` | mean ranks and differences over data sets and networks |

Each takes a `block.Block` and returns a figure in the style of `style.py`. Accuracies are percent; epochs with a
sub-network have a grey band.
"""

import itertools
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from repr_ray.results.across import across
from repr_ray.results.blocks import BLOCK
from repr_ray.results.compare import Comparison
from repr_ray.results.plots.block import Block
from repr_ray.results.plots.curves import apart, together
from repr_ray.results.plots.datasets import overview
from repr_ray.results.plots.differences import differences
from repr_ray.results.plots.filters import filters
from repr_ray.results.plots.grid import ablations
from repr_ray.results.plots.overlap import overlap
from repr_ray.results.plots.scores import scores
from repr_ray.results.plots.style import Maker, Picture, save, styled
from repr_ray.results.plots.tuned import tuning_curves
from repr_ray.results.store import Tables
from repr_ray.results.tuned import tried

__all__ = ["KINDS", "Picture", "draw"]

KINDS: dict[str, Maker] = {
    "differences": differences,
    "curves": together,
    "accuracy": apart("accuracy"),
    "loss": apart("loss"),
    "filters": filters,
    "scores": scores,
    "overlap": overlap,
}
"""The pictures of a block by the names of their files."""


def draw(tables: Tables, comparison: Comparison, folder: Path, schemes: int = 30, workers: int = 1) -> list[Picture]:
    """Draw grids and differences, and the trials of blocks with up to `schemes` schemes in all, into `folder`.

    A note says what is left out. Up to `workers` processes draw. Raises FileExistsError
    where a file is not ours.
    """
    counts = comparison.table.groupby(BLOCK, sort=False).size().to_numpy()
    blocks = len(counts)
    detailed = int((counts.cumsum() <= max(schemes, counts[:1].sum() if schemes else 0)).sum())
    if detailed < blocks:
        comparison.notes.append(
            f"curves, filters, scores and overlaps are drawn for {detailed} of {blocks} blocks;"
            f" --pictures {counts.sum()} draws all"
        )
    draw_block = partial(_draw_block, tables, comparison, folder, detailed)
    processes = min(workers, detailed // 2)  # to start one costs about as much as to draw a block
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            made = list(pool.map(draw_block, range(blocks)))
    else:
        made = [draw_block(place) for place in range(blocks)]
    with styled():
        found = across(comparison.table, comparison.baseline)
        figures = itertools.chain(
            overview(found) if found else (),
            ((f"ablation-{place:02d}", *drawn) for place, drawn in enumerate(ablations(comparison), 1)),
            tuning_curves(tried(tables)),
        )
        studies = [save(figure, folder / name, title, alt) for name, figure, title, alt in figures]
    return studies + [picture for pictures in made for picture in pictures]


def _draw_block(tables: Tables, comparison: Comparison, folder: Path, detailed: int, place: int) -> list[Picture]:
    key, rows = list(comparison.table.groupby(BLOCK, sort=False))[place]
    name = " · ".join(str(part) for part in key if part)
    chosen = (comparison.trials[BLOCK] == list(key)).all(axis=1)
    block = Block(name, comparison, rows, comparison.trials[chosen], tables)
    prefix = "" if len(rows) == len(comparison.table) else f"{place + 1:02d}-{_slug(name)}-"
    pictures = []
    with styled():
        for kind, make in KINDS.items():
            if (kind == "differences" or place < detailed) and (made := make(block)):
                figure, title, alt = made
                pictures.append(save(figure, folder / f"{prefix}{kind}", f"{title}: {name}", alt))
    return pictures


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-")
