"""How long a grid takes beside the training in it: sixty one-worker trials on a local cluster.

python -m benchmarks.makespan [--trials 60] [--seconds 6]: trials are given as many epochs as take about that long.
Compares the time from the start of the launch to its end with the sum of training time over the slots, and draws when
each trial ran (results/makespan.png).
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from time import time

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.tables import CPU, RESULTS, table, write
from benchmarks.trials import STANDARD, epochs_of, results_of, run_on_ray, trials
from repr_ray.data.decoded import load
from repr_ray.runners import local
from repr_ray.study.plan import Trial

Span = tuple[float, float]
"""Start and end of a trial, in seconds from the start of the launch."""


def main() -> None:
    """Run the grid, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    slots = os.cpu_count() or 1
    load(_trials(1, 1)[0].data)
    planned = _trials(args.trials, max(1, round(args.seconds / _epoch_seconds())))
    with tempfile.TemporaryDirectory() as folder:
        started = time()
        run_on_ray(planned, Path(folder))
        makespan = time() - started
        results = results_of(Path(folder), planned)
        training = sum(row["seconds"] for trial in planned for row in epochs_of(Path(folder), trial))
    spans = sorted((_clock(r["started"]) - started, _clock(r["finished"]) - started) for r in results)
    rows = [
        ("makespan: start of the launch to its end, with Ray's start and stop", f"{makespan:.1f}"),
        ("training: sum over the trials / slots", f"{training / slots:.1f}"),
        ("from a trial's first line to its last: sum / slots", f"{sum(b - a for a, b in spans) / slots:.1f}"),
        ("first trial starts after", f"{spans[0][0]:.1f}"),
        ("between a trial and the next on its slot, median", f"{np.median(_gaps(spans, slots)):.2f}"),
        ("allowed: 1.05 x training / slots + 20", f"{1.05 * training / slots + 20:.1f}"),
    ]
    title = f"Makespan of {args.trials} trials of {training / args.trials:.1f} s on {slots} slots"
    _draw(spans, slots, title)
    write("makespan", title, [*table(("", "seconds"), rows), "", "![who ran when](makespan.png)"], CPU, 1)


def _trials(seeds: int, epochs: int) -> list[Trial]:
    train = {"epochs": epochs, "batch_size": 64}
    return trials({"kind": "convnet"}, {"name": "digits"}, train, STANDARD, seeds=list(range(seeds)))


def _epoch_seconds() -> float:
    """An epoch of the trial in this process, with one thread; the first one warms up."""
    [trial] = _trials(1, 6)
    with tempfile.TemporaryDirectory() as folder:
        local.run([trial], Path(folder), lambda message: None, {})
        return float(np.median([row["seconds"] for row in epochs_of(Path(folder), trial)[1:]]))


def _clock(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _lanes(spans: Sequence[Span], slots: int) -> list[list[Span]]:
    """The trials of each slot: a trial goes to the one that has been free for longest."""
    lanes: list[list[Span]] = [[] for _ in range(slots)]
    for span in spans:
        min(lanes, key=lambda lane: lane[-1][1] if lane else 0.0).append(span)
    return lanes


def _gaps(spans: Sequence[Span], slots: int) -> list[float]:
    return [after[0] - before[1] for lane in _lanes(spans, slots) for before, after in pairwise(lane)]


def _draw(spans: Sequence[Span], slots: int, title: str) -> None:
    figure, axes = plt.subplots(figsize=(10, 0.8 + 0.5 * slots), layout="constrained")
    for slot, lane in enumerate(_lanes(spans, slots)):
        bars = [(start, end - start) for start, end in lane]
        axes.broken_barh(bars, (slot - 0.4, 0.8), facecolors=["#4477aa", "#88bbdd"] * len(bars))
    axes.set_xlim(0)
    axes.set(yticks=range(slots), yticklabels=[f"slot {slot + 1}" for slot in range(slots)], xlabel="seconds")
    axes.set_title(title, fontsize=10)
    figure.savefig(RESULTS / "makespan.png", dpi=120)


if __name__ == "__main__":
    main()
