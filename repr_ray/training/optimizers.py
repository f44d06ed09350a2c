"""Optimizers and learning-rate schedules from settings."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from repr_ray.config import Cosine, Sgd, Steps, Train


def build_optimizer(train: Train, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer over all parameters, fused into one kernel per step."""
    o = train.optimizer
    if isinstance(o, Sgd):
        return torch.optim.SGD(
            parameters, o.learning_rate, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov, fused=True
        )
    make = torch.optim.AdamW if o.kind == "adamw" else torch.optim.Adam
    return make(parameters, o.learning_rate, o.betas, weight_decay=o.weight_decay, fused=True)


def learning_rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimizer step, counted from 0 over the whole training."""
    base, schedule = train.optimizer.learning_rate, train.schedule
    if isinstance(schedule, Steps):
        passed = sum(step >= epoch * steps_per_epoch for epoch in schedule.epochs)
        if schedule.every_steps:
            passed += step // schedule.every_steps
        return base * schedule.factor**passed
    if isinstance(schedule, Cosine):
        warmup, total = schedule.warmup_epochs * steps_per_epoch, train.epochs * steps_per_epoch
        if step < warmup:
            return base * (step + 1) / warmup
        return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
    return base
