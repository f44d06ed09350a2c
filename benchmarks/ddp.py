"""Two ranks of one thread beside one process of two, and beside the same loop under torchrun.

python -m benchmarks.ddp [--rounds 3] [--images 2560] [--epochs 40]: every round trains the same trial each way, on
random images of CIFAR's size; images a second are the median over the second half of its epochs. In the first half,
over ten seconds, processes of Ray's own still start on the cores that train.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.distributed as dist

from benchmarks.tables import CPU, Arm, ratio_table, write
from benchmarks.trials import STANDARD, epochs_of, run_on_ray, trials, write_random_cifar
from repr_ray.data.decoded import load
from repr_ray.study.plan import Trial
from repr_ray.training.trial import run_trial

ONE, RAY, TORCHRUN = "one process, two threads", "two ranks, Ray", "two ranks, torchrun"


def main() -> None:
    """Measure and write the table; as a rank of torchrun, train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of:
        dist.init_process_group("gloo")
        trial = _trial(args.rank_of, args.epochs, workers=2)
        run_trial(trial, args.rank_of / "results", CPU, lambda message: None, {})
        dist.barrier()  # rank 0 writes the result last
        os._exit(0)  # gloo's threads can abort an interpreter that ends in the ordinary way
    ways: dict[str, Callable[[Trial, Path], None]] = {ONE: _on_ray, RAY: _on_ray, TORCHRUN: _under_torchrun}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, run in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                os.environ["REPR_RAY_CACHE"] = f"{folder}/cache"
                write_random_cifar(Path(folder), args.images, 128)
                trial = _trial(Path(folder), args.epochs, workers=1 if name == ONE else 2)
                load(trial.data)
                run(trial, Path(folder))
                rows = epochs_of(Path(folder) / "results", trial)
            rates[name].append(float(np.median([row["images_per_second"] for row in rows[len(rows) // 2 :]])))
    arms = [Arm("convnet-3x32, batch 128", name, values) for name, values in rates.items()]
    lines = ratio_table(arms, ONE, "images/s")
    under = np.median(np.divide(rates[RAY], rates[TORCHRUN]))
    lines += ["", f"On Ray against torchrun, within a round: {under:.2f}."]
    write("ddp", "Two ranks of one thread", lines, CPU, 2)


def _trial(folder: Path, epochs: int, workers: int) -> Trial:
    data = {"name": "cifar10", "partial": True, "source": str(folder), "crop_padding": 4, "flip": True}
    train = {"epochs": epochs, "batch_size": 128, "evaluate_every": epochs}
    resources = {"workers": workers, "cpus_per_worker": 2 // workers, "gpus_per_worker": 0}
    return trials({"kind": "convnet"}, data, train, STANDARD, resources=resources)[0]


def _on_ray(trial: Trial, folder: Path) -> None:
    (folder / "results").mkdir()
    run_on_ray([trial], folder / "results")


def _under_torchrun(trial: Trial, folder: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "benchmarks.ddp"]
    command += ["--rank-of", str(folder), "--epochs", str(trial.train.epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
