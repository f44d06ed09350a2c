"""The GPU memory of a trial, measured by training a few of its steps."""

import contextlib
import itertools
from dataclasses import dataclass

from repr_ray.study.plan import Trial

STEPS = 8
"""Optimizer steps to train: more than precede the recording of a CUDA graph."""

KEPT_FREE = 0.1
"""Share of a GPU's memory that stays free, for the fragmentation of allocators."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: of a trial's process with its CUDA context, and of the GPU."""

    trial: int
    gpu: int

    @property
    def fit(self) -> int:
        """How many such processes the GPU holds."""
        return int(self.gpu * (1 - KEPT_FREE) / self.trial)


def measure_memory(trial: Trial) -> Memory:
    """Train a few steps of a trial on this process's GPU and evaluate it, without writing anything.

    Memory of other processes on the GPU is counted in.
    """
    import torch

    from repr_ray.training.loop import evaluate, train_epoch
    from repr_ray.training.messages import Preempted
    from repr_ray.training.setup import build_model, set_up
    from repr_ray.training.teacher import teach

    setup = set_up(trial, torch.device("cuda"))
    if trial.teacher:
        teach(setup, trial.teacher, build_model(trial.teacher).state_dict())
    steps = itertools.count(1)
    with contextlib.suppress(Preempted):
        train_epoch(setup, 0, stop=lambda: next(steps) >= STEPS)
    evaluate(setup, setup.test)
    free, there = torch.cuda.mem_get_info()
    context = there - free - torch.cuda.memory_reserved()
    return Memory(context + torch.cuda.max_memory_reserved(), there)
