"""What the processes of test_stream_ranks.py do: python stream_ranks.py JOB RANK [kill STEPS | stop STEPS]."""

import os
import pickle
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from repr_ray.training import loop
from repr_ray.training.messages import Preempted
from repr_ray.training.trial import run_trial


def main(job: Path, rank: int, how: str = "", steps: int = -1) -> None:
    """Train the job's trial on two gloo ranks; rank 1 dies, or is asked to stop, after so many steps."""
    trial, results, store = pickle.loads(job.read_bytes())  # noqa: S301 - written by the test that starts this
    dist.init_process_group("gloo", init_method=f"file://{store}{how}{steps}", rank=rank, world_size=2)
    loop.AGREE_EVERY = 1
    calls = iter(range(10_000))

    def stop() -> bool:
        now = rank == 1 and next(calls) == steps
        if now and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return now

    try:
        run_trial(trial, results, torch.device("cpu"), lambda message: None, {}, stop=stop)
    except Preempted:
        sys.exit(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:4], *map(int, sys.argv[4:5]))
