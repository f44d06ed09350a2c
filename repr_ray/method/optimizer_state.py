"""The state that an optimizer keeps for a parameter."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

WEIGHTS = ("z", "ax", "lookahead_slow_buff")
"""Copies and averages of the weights: of schedule-free optimizers, ASGD and timm's Lookahead."""

FIRST = {"step_size": "lr", "eta": "lr", "sum": "initial_accumulator_value"}
"""The option that a state begins with, for Rprop, ASGD and Adagrad."""

ONES = ("mu", "mu_product")
"""Factors of ASGD and NAdam that begin at 1: numbers, not moments of these names."""


def reset(optimizer: Optimizer, parameter: Tensor, mask: Tensor | None = None) -> None:
    """Set the state of a parameter to its first values, in place, where `mask` (broadcast to its shape) is true.

    Moments become zero, copies and averages of the weights the present weights. Without a mask the whole state is
    reset, with the number of steps.
    """
    kept: Any = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead has no state of its own
    for name, state in kept.state.get(parameter, {}).items():
        if not isinstance(state, Tensor) or (mask is not None and state.shape != parameter.shape):
            continue
        first = parameter.detach() if name in WEIGHTS else float(name in ONES and not state.dim())
        if name in FIRST:
            group = next(group for group in kept.param_groups if any(p is parameter for p in group["params"]))
            first = group.get(FIRST[name], 0.0)
        if isinstance(first, Tensor) and first.dim():
            state.copy_(first if mask is None else torch.where(mask, first, state))
        else:
            state.fill_(first) if mask is None else state.masked_fill_(mask, first)
