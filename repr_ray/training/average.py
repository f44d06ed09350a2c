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

    It starts from the weights after the first step. Changes by the optimizer are averaged. Values that a scheme
    writes into the network are copied by `taking_over`: a dropped filter is zero in the average too, and a
    re-initialised one starts from its new values, without a share of the old ones.

    torch's AveragedModel is not used because it copies its count to the device, and waits for that, in every step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Average the weights of a network, whose tensors must not be replaced."""
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        self.steps = 0
        self._mix = get_ema_multi_avg_fn(decay)
        self._tensors = [*zip(_tensors(self.network), _tensors(model), strict=True)]
        self._mixed = [[*side] for side in zip(*(p for p in self._tensors if p[0].is_floating_point()), strict=True)]
        self._counts = [pair for pair in self._tensors if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step; does not wait for the device."""
        if self.steps:
            self._mix(*self._mixed, self.steps)
        for average, own in self._counts if self.steps else self._tensors:
            average.copy_(own)
        self.steps += 1

    @contextmanager
    def taking_over(self) -> Iterator[None]:
        """Wrap changes of a scheme: entries that it changes are copied into the average."""
        before = [own.clone() for _, own in self._tensors]
        yield
        with torch.no_grad():
            for (average, own), was in zip(self._tensors, before, strict=True):
                average.copy_(torch.where(own == was, average, own))

    def synchronise(self) -> None:
        """Broadcast rank 0's buffers, as those of the network after an epoch."""
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
