"""How long a launch takes to start: a timeline of the quickstart, what its processes import, and the start of trials.

python -m benchmarks.startup [--trials 3] [--rounds 3]

Timeline: `python -m repr_ray.launch` as a user types it, from the start of the command to each of its lines.
Imports: CPU seconds of fresh interpreters. Trials: the same tiny trials one after the other on a fresh local cluster,
in their Tune process, as a Train worker group of one, and of two; seconds are from the end of one trial to the end of
the next, less what it trained, by the trials' own clocks.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import time

from benchmarks.tables import CPU, Arm, ratio_table, table, write
from benchmarks.trials import STANDARD, results_of, run_on_ray, trials
from repr_ray.data.decoded import load
from repr_ray.runners import ray as on_ray

WAYS = {"in its Tune process": (1, on_ray.train_here), "Train worker group": (1, on_ray.train_on_ranks)}
TWO = "Train worker group of two"

STEPS = (
    ("imports; config, plan, results folder", "trials to run"),
    ("loading the images", "importing PyTorch"),
    ("importing PyTorch, building every network", "starting Ray"),
    ("starting Ray (since `loading the images`), importing Tune", "starting the processes"),
    ("processes of the trials import PyTorch (since Ray's start)", "  starts"),
    ("first epoch", "  epoch 1/"),
    ("training of six trials; Ray stops", "reading the results"),
    ("tables and pictures", ""),
)
"""Steps of a launch, and the text in the line that the next one begins with."""

IMPORTS = {
    "pydantic, yaml": ["-c", "import pydantic, yaml"],
    "repr_ray.launch --help": ["-m", "repr_ray.launch", "--help"],
    "torch": ["-c", "import torch"],
    "ray": ["-c", "import ray"],
    "ray.tune": ["-c", "import ray.tune"],
    "ray.train.torch": ["-c", "import ray.train.torch"],
    "a trial's process: ray, repr_ray.training.trial": ["-c", "import ray, repr_ray.training.trial"],
}


def timeline() -> list[float]:
    """Seconds from the start of the quickstart to the end of each of `STEPS`."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", "-m", "repr_ray.launch", "--results", folder]
        started = time()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                if len(ends) + 1 < len(STEPS) and STEPS[len(ends)][1] in line:
                    ends.append(time() - started)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return [*ends, time() - started]


def cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system time of a fresh interpreter."""
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_and_later(planned: list[object]) -> list[float]:
    """Seconds that each trial took beside its training; the first with the start of Ray."""
    with tempfile.TemporaryDirectory() as folder:
        started = time()
        run_on_ray(planned, Path(folder))
        results = results_of(Path(folder), planned)
    ended = [started, *(datetime.fromisoformat(result["finished"]).timestamp() for result in results)]
    return [b - a - r["wall_seconds"] for a, b, r in zip(ended, ended[1:], results, strict=False)]


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    launches = [timeline() for _ in range(args.rounds)]
    rows = []
    for place, (step, _) in enumerate(STEPS):
        ends = [ends[place] for ends in launches]
        took = [ends[place] - (ends[place - 1] if place else 0) for ends in launches]
        rows.append([step, f"{median(took):.1f}", f"{median(ends):.1f}", f"{min(ends):.1f}-{max(ends):.1f}"])
    lines = [f"Timeline of `python -m repr_ray.launch` (quickstart), median of {args.rounds}.", ""]
    lines += [*table(["step", "seconds", "at its end", "spread"], rows), ""]
    base = min(cpu_seconds(IMPORTS["pydantic, yaml"]) for _ in range(args.rounds))
    costs = {name: min(cpu_seconds(arguments) for _ in range(args.rounds)) for name, arguments in IMPORTS.items()}
    lines += [f"CPU seconds of an interpreter that imports, lowest of {args.rounds}.", ""]
    lines += table(
        ["imports", "CPU s", "ratio"], [[name, f"{cost:.2f}", f"{cost / base:.1f}"] for name, cost in costs.items()]
    )
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
        costs = first_and_later(planned)
        arms += [Arm("first trial, with Ray's start", name, costs[:1]), Arm("every later trial", name, costs[1:])]
    on_ray.train_here = WAYS["in its Tune process"][1]
    lines += ["", *ratio_table(sorted(arms, key=lambda arm: arm.setting), "Train worker group", "seconds")]
    write("startup", "How long a launch takes to start", lines, CPU, os.cpu_count() or 1)


if __name__ == "__main__":
    main()
