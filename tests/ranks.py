"""What the processes of test_ranks.py do: python ranks.py JOB RANK."""

import pickle
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from repr_ray.distributed import RanksDiffer
from repr_ray.training import loop, trial
from repr_ray.training.messages import Preempted


def main(job: Path, rank: int) -> None:
    """Train the job's trials on two gloo ranks.

    The last of them, whose teacher is the first, once more in `stopped`, where rank 1 is asked to stop, twice; and
    `spoiled`, of which rank 1 goes its own way before epoch 1.
    """
    trials, results, spoiled = pickle.loads(job.read_bytes())  # noqa: S301 - written by the test that starts this
    dist.init_process_group("gloo", init_method=f"file://{job}.store", rank=rank, world_size=2)
    for one in trials:
        trial.run_trial(one, results, torch.device("cpu"), lambda message: None, {})
    loop.AGREE_EVERY = 1
    if rank == 0:
        shutil.copytree(results / "trials" / trials[0].name, results / "stopped" / "trials" / trials[0].name)
    for steps in (2, 5):
        calls = iter(range(1000))
        try:
            trial.run_trial(
                trials[-1],
                results / "stopped",
                torch.device("cpu"),
                lambda message: None,
                {},
                stop=lambda calls=calls, steps=steps: rank == 1 and next(calls) == steps,
            )
        except Preempted:
            continue
        sys.exit("nobody stopped")
    trial.run_trial(trials[-1], results / "stopped", torch.device("cpu"), lambda message: None, {})
    epoch = trial.run_epoch

    def spoil(setup, number, *rest):
        if number == 1 and rank == 1:
            with torch.no_grad():
                next(setup.model.parameters())[0, 0, 0, 0] += 2e-7
        return epoch(setup, number, *rest)

    trial.run_epoch = spoil
    try:
        trial.run_trial(spoiled, results, torch.device("cpu"), lambda message: None, {})
    except RanksDiffer:
        pass
    else:
        sys.exit("the ranks differ and nobody noticed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
