"""The state of an optimizer for what is re-initialised: as of a new optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from repr_ray.method import optimizer_state

OPTIMIZERS: dict[str, Any] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {"lr": 0.05},
    "ASGD": {"lr": 0.05, "t0": 2},
    "Adadelta": {},
    "Adagrad": {"initial_accumulator_value": 0.1},
}


def _steps(optimizer: torch.optim.Optimizer, parameter: Tensor, seed: int, count: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_whose_state_is_reset_steps_like_a_new_one(name: str) -> None:
    used, options = torch.nn.Parameter(torch.randn(6, 5)), OPTIMIZERS[name]
    optimizer = getattr(torch.optim, name)([used], **options)
    _steps(optimizer, used, 0)
    fresh = torch.nn.Parameter(used.detach().clone())
    optimizer_state.reset(optimizer, used)
    _steps(optimizer, used, 1)
    _steps(getattr(torch.optim, name)([fresh], **options), fresh, 1)
    assert torch.equal(used, fresh)


@pytest.mark.parametrize("kind", ["Rprop", "ASGD", "Lookahead"])
def test_step_sizes_and_copies_of_the_weights_do_not_become_zero(kind: str) -> None:
    parameter = torch.nn.Parameter(torch.randn(6, 5))
    base = getattr(torch.optim, "SGD" if kind == "Lookahead" else kind)([parameter], lr=0.05)
    optimizer = pytest.importorskip("timm.optim").Lookahead(base, k=2) if kind == "Lookahead" else base
    _steps(optimizer, parameter, 0)
    before, mask = copy.deepcopy(base.state[parameter]), torch.arange(6)[:, None] < 2
    with torch.no_grad():  # as filters that come back
        parameter.copy_(torch.where(mask, torch.randn(6, 5), parameter))
    optimizer_state.reset(optimizer, parameter, mask)
    weights, zero = parameter.detach(), torch.tensor(0.0)
    first = {"step_size": torch.tensor(0.05), "ax": weights, "lookahead_slow_buff": weights}
    state = {key: value for key, value in base.state[parameter].items() if value.shape == parameter.shape}
    assert first.keys() & state.keys()
    for key, value in state.items():
        assert torch.equal(value, torch.where(mask, first.get(key, zero), before[key])), key
