"""Dropout in our own networks: where it is, that it is off in evaluation, filters followed through it."""

from typing import Any

import pytest
import torch
from torch import nn

from repr_ray import RePr
from repr_ray.study.reading import validate

KINDS: list[dict[str, Any]] = [
    {"kind": "convnet", "batch_norm": True, "pool": "max2"},
    {"kind": "resnet", "depth": 8},
    {"kind": "densenet", "depth": 10},
    {"kind": "vgg", "depth": 11},
]


def settings(model: dict[str, Any]) -> Any:
    raw = {"name": "x", "seeds": [0], "data": {"name": "cifar10"}, "train": {"epochs": 8}, "model": model}
    return validate(raw | {"schemes": {"standard": {"kind": "standard"}}}, "config").model


@pytest.mark.parametrize("model", KINDS, ids=lambda model: model["kind"])
def test_dropout(model: dict[str, Any]) -> None:
    made = settings(model | {"dropout": 0.5, "spatial_dropout": 0.25})
    assert made.label == f"{settings(model).label}-dropout0.5-spatial0.25"
    torch.manual_seed(0)
    network = made.network(10, 3, 32)
    torch.manual_seed(0)
    plain = settings(model).network(10, 3, 32)
    assert list(network.state_dict()) == list(plain.state_dict())
    modules = list(network.modules())
    [dropout] = [m for m in modules if type(m) is nn.Dropout]
    spatial = [m for m in modules if isinstance(m, nn.Dropout2d)]
    assert dropout.p == 0.5 and spatial and {m.p for m in spatial} == {0.25}
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    assert not torch.equal(network.train()(images), network(images))
    ours, theirs = (
        RePr(one, torch.optim.SGD(one.parameters(), 0.1), epochs=8, s1=2, s2=2, example=images)
        for one in (network, plain)
    )
    assert ours.filter_map.layers == theirs.filter_map.layers
