"""What it costs to start a trial: in its Tune process directly, or as a Train worker group of one.

python -m benchmarks.startup [--trials 3]: the same tiny trials one after the other on a fresh local cluster, each
way. Seconds are from the end of one trial to the end of the next, less what it trained.
"""

import argparse
import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from time import time

import torch

from benchmarks.tables import Arm, write
from repr_ray.config import validate
from repr_ray.data.decoded import load
from repr_ray.plan import plan
from repr_ray.runners import ray as on_ray


def main() -> None:
    """Measure both ways and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3)
    args = parser.parse_args()
    raw = {
        "name": "startup",
        "seeds": list(range(args.trials + 1)),
        "data": {"name": "digits", "train_images": 128},
        "model": {"kind": "convnet", "depth": 1, "width": 4},
        "train": {"epochs": 1},
        "schemes": {"standard": {"kind": "standard"}},
        "resources": {"concurrent": 1},
    }
    trials = plan(validate(raw, "benchmark"))
    load(trials[0].data)
    direct = on_ray._train_here
    arms = []
    for name, function in (("in its Tune process", direct), ("Train worker group", on_ray._train_on_ranks)):
        on_ray._train_here = function
        with tempfile.TemporaryDirectory() as folder:
            started = time()
            on_ray.run(trials, Path(folder), lambda message: None, {})
            results = [json.loads((Path(folder) / "trials" / t.name / "result.json").read_text()) for t in trials]
        ended = [datetime.fromisoformat(result["finished"]).timestamp() for result in results]
        trained = [result["wall_seconds"] for result in results]
        arms.append(Arm("first trial, with Ray's start", name, [ended[0] - started - trained[0]]))
        later = [after - before - own for before, after, own in zip(ended, ended[1:], trained[1:], strict=False)]
        arms.append(Arm("every later trial", name, later))
    on_ray._train_here = direct
    write("startup", arms, "Train worker group", torch.device("cpu"), os.cpu_count() or 1, "seconds")


if __name__ == "__main__":
    main()
