"""What a trial takes of a GPU's memory, measured by training a little of it."""

import contextlib
import itertools
from dataclasses import dataclass

from repr_ray.study.plan import Trial

STEPS = 8
"""Optimizer steps that are trained: those that a graph is recorded after, and some more."""

KEPT_FREE = 0.1
"""Share of a GPU's memory that stays free: allocators do not use theirs without gaps."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU, and of a process that trains on it, its CUDA context included."""

    trial: int
    gpu: int

    @property
    def fit(self) -> int:
        """How many such processes the GPU holds."""
        return int(self.gpu * (1 - KEPT_FREE) / self.trial)


def measure_memory(trial: Trial) -> Memory:
    """Train a few steps of a trial on this process's GPU and evaluate it, without writing anything.

    What other processes hold on the GPU counts as the trial's own.
    """
    import torch

    from repr_ray.training.loop import evaluate, train_epoch
    from repr_ray.training.messages import Preempted
    from repr_ray.training.setup import build_model, set_up, teach

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
