"""An exponential moving average of a network's weights, evaluated beside the weights themselves."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from repr_ray import distributed


class Average:
    """theta' <- decay theta' + (1 - decay) theta after every optimizer step, over parameters and buffers.

    It starts from the weights after the first step. What the optimizer moves is averaged. What a scheme writes into
    the network itself is taken over by `taking_over`: a dropped filter is as silent in the average as in the network,
    and one that was brought back starts there from its new values instead of a mixture with those of before.

    torch's AveragedModel is not used because it copies its count to the device, and waits for that, in every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Average the weights of a network that keeps its tensors from here on."""
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        self.steps = 0
        self._mix = get_ema_multi_avg_fn(decay)
        self._tensors = [*zip(_tensors(self.network), _tensors(model), strict=True)]
        self._mixed = [[*side] for side in zip(*(p for p in self._tensors if p[0].is_floating_point()), strict=True)]
        self._counts = [pair for pair in self._tensors if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights that a step has led to; does not wait for the device."""
        if self.steps:
            self._mix(*self._mixed, self.steps)
        for average, own in self._counts if self.steps else self._tensors:
            average.copy_(own)
        self.steps += 1

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Around what a scheme writes: entries that are others afterwards become the average's too."""
        before = [own.clone() for _, own in self._tensors]
        yield
        with torch.no_grad():
            for (average, own), was in zip(self._tensors, before, strict=True):
                average.copy_(torch.where(own == was, average, own))

    def synchronise(self) -> None:
        """Give every rank rank 0's buffers, as the network itself gets them after an epoch."""
        distributed.broadcast(self.network.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume between two steps."""
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state_dict()`."""
        self.network.load_state_dict(state["network"])
        self.steps = int(state["steps"])


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
