"""What it costs to start a trial: in its Tune process, as a Train worker group of one, or of two.

python -m benchmarks.startup [--trials 3]: the same tiny trials one after the other on a fresh local cluster, each
way. Seconds are from the end of one trial to the end of the next, less what it trained, by the trials' own clocks.
"""

import argparse
import os
import tempfile
from datetime import datetime
from pathlib import Path
from time import time

from benchmarks.tables import CPU, Arm, ratio_table, write
from benchmarks.trials import STANDARD, results_of, trials
from repr_ray.data.decoded import load
from repr_ray.runners import ray as on_ray

WAYS = {"in its Tune process": (1, on_ray.train_here), "Train worker group": (1, on_ray.train_on_ranks)}
TWO = "Train worker group of two"


def main() -> None:
    """Measure each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3)
    args = parser.parse_args()
    arms = []
    for name, (workers, function) in {**WAYS, TWO: (2, on_ray.train_on_ranks)}.items():
        on_ray.train_here = function
        planned = trials(
            {"kind": "convnet", "depth": 1, "width": 4},
            {"name": "digits", "train_images": 128},
            {"epochs": 1},
            STANDARD,
            seeds=list(range(args.trials + 1)),
            resources={"concurrent": 1, "workers": workers},
        )
        load(planned[0].data)
        with tempfile.TemporaryDirectory() as folder:
            started = time()
            on_ray.run(planned, Path(folder), lambda message: None, {})
            results = results_of(Path(folder), planned)
        ended = [started, *(datetime.fromisoformat(result["finished"]).timestamp() for result in results)]
        costs = [b - a - r["wall_seconds"] for a, b, r in zip(ended, ended[1:], results, strict=False)]
        arms += [Arm("first trial, with Ray's start", name, costs[:1]), Arm("every later trial", name, costs[1:])]
    on_ray.train_here = WAYS["in its Tune process"][1]
    lines = ratio_table(sorted(arms, key=lambda arm: arm.setting), "Train worker group", "seconds")
    write("startup", "What it costs to start a trial", lines, CPU, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
