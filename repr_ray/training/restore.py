"""Loading a checkpoint into a trial, with a check that this trial can have saved it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from repr_ray.training.step import Setup

_OURS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers with the same state entries for each parameter, scalars or in its shape."""


def restore(state: dict[str, Any], setup: Setup, ranks: int) -> None:
    """Load a checkpoint into a set-up trial.

    Raises for a checkpoint that this trial does not save (other shapes or types, missing entries); `setup` is then
    partly changed.
    """
    if state["precision"] != setup.precision:
        raise ValueError(f"it was trained in {state['precision']}; this trial {setup.note or 'is not'}")
    setup.model.load_state_dict(state["model"])
    _assert_alike(state["model"], setup.model.state_dict(), "model")
    fresh = setup.optimizer.state_dict()["param_groups"]
    setup.optimizer.load_state_dict(state["optimizer"])
    if type(setup.optimizer) in _OURS:
        _assert_alike(state["optimizer"], setup.optimizer.state_dict(), "optimizer")
        stored = state["optimizer"]["param_groups"]
        _assert_alike(_without_rate(fresh), _without_rate(stored), "optimizer.param_groups")
        _check_momenta(setup.optimizer)
    setup.scheme.load_state_dict(state["scheme"])
    after = setup.scheme.state_dict()
    _assert_alike(state["scheme"], after, "scheme")
    if setup.average:
        setup.average.load_state_dict(state["average"])
        _assert_alike(state["average"], setup.average.state_dict(), "average")
    part = state.get("part")
    epoch = len(state["epochs"]) - (part is None)
    if after.get("epoch", epoch) != epoch:
        raise ValueError(f"scheme.epoch is {after['epoch']}, not {epoch}")
    if part:
        _check_part(part, ranks)


def _check_part(part: dict[str, Any], ranks: int) -> None:
    """Raise unless an interrupted epoch can be resumed with this number of ranks."""
    if len(part["ranks"]) != ranks:
        raise ValueError(f"an epoch was interrupted on {len(part['ranks'])} ranks, this trial has {ranks}")
    for rank in part["ranks"]:
        _assert_alike({"totals": torch.zeros(2), "random": torch.get_rng_state()}, rank, "part.ranks")


def _check_momenta(optimizer: Optimizer) -> None:
    """Raise unless an optimizer has the same state entries for each parameter, scalars or in its shape."""
    if len({frozenset(kept) for kept in optimizer.state.values()}) > 1:
        raise ValueError("optimizer.state lacks entries of some parameters")
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if not isinstance(value, Tensor) or (value.dim() and value.shape != parameter.shape):
                raise ValueError(f"optimizer.state: {name} does not have the shape of its parameter")


def _without_rate(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups without the learning rate: each step sets it, as a tensor where a CUDA graph reads it."""
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]


def _assert_alike(one: Any, other: Any, name: str) -> None:
    """Raise ValueError, with the entry, unless `other` has all entries of `one` in the same types and shapes."""
    if isinstance(one, dict) and isinstance(other, dict):
        if missing := [key for key in one if key not in other]:
            raise ValueError(f"{name} lacks {missing[0]}")
        pairs = [(one[key], other[key], key) for key in one]
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = [(a, b, str(place)) for place, (a, b) in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise ValueError(f"{name} is {tuple(one.shape)} {one.dtype}, not {tuple(other.shape)} {other.dtype}")
        return
    elif _kind(one) != _kind(other):
        raise ValueError(f"{name} is of type {type(one).__name__}, not {type(other).__name__}")
    else:
        return
    for a, b, key in pairs:
        _assert_alike(a, b, f"{name}.{key}")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
