"""bf16 on a CPU: layers whose gradient PyTorch leaves uninitialised are found, and trained in fp32."""

import itertools

import pytest
import torch
from support import TINY
from torch import nn

from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate
from repr_ray.training import precision
from repr_ray.training.restore import restore
from repr_ray.training.setup import set_up

CPU = torch.device("cpu")
SHAPES = [
    (size, kernel, stride, padding)
    for size, kernel, stride in itertools.product((1, 2, 3, 4, 8), (1, 3, 5), (1, 2, 3))
    for padding in sorted({0, kernel // 2, kernel - 1})
    if size + 2 * padding >= kernel
]


def fill_freed_memory(elements: int) -> None:
    """Leave NaN in memory that is allocated next."""
    torch.full((elements,), float("nan"))


@pytest.mark.parametrize("channels", [8, 64])
def test_gradients_in_bf16_are_those_in_fp32_of_all_layers_that_are_not_found(channels: int) -> None:
    torch.manual_seed(0)
    found = []
    for size, kernel, stride, padding in SHAPES:
        layer = nn.Conv2d(channels, channels, kernel, stride, padding, bias=False).to(
            memory_format=torch.channels_last
        )
        images = torch.randn(8, channels, size, size).to(memory_format=torch.channels_last)
        if precision.padded_kernel(layer, images):
            found.append((size, kernel, stride, padding))
            continue
        gradients = []
        for enabled in (True, False):
            fill_freed_memory(layer.weight.numel())
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = layer(images)
            layer.weight.grad = None
            (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            assert layer.weight.grad is not None
            gradients.append(layer.weight.grad)
        scale = float(gradients[1].abs().max())
        torch.testing.assert_close(*gradients, rtol=0, atol=0.05 * scale, msg=f"{size, kernel, stride, padding}")
    assert (1, 3, 2, 1) in found and (2, 3, 2, 1) in found and (2, 3, 1, 1) not in found


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_a_network_on_small_images_trains_in_fp32(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 x 4 pixels one is left after two halvings."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    raw = TINY | {"model": {"kind": "resnet", "depth": 20}, "train": TINY["train"] | {"precision": asked}}
    small, large = (plan(validate(raw | {"data": raw["data"] | {"size": size}}, "tiny"))[0] for size in (4, 8))
    assert set_up(large, CPU).precision == "bf16"
    if asked == "bf16":
        with pytest.raises(ConfigError, match=r"a kernel of 3 x 3 on 2 x 2 pixels reads nothing but"):
            set_up(small, CPU)
    else:
        setup = set_up(small, CPU, "bf16")  # from a checkpoint of an earlier version
        assert setup.precision == "fp32" and setup.note.startswith("trains in fp32: ")
        with pytest.raises(ValueError, match="it was trained in bf16; this trial trains in fp32"):
            restore({"precision": "bf16"}, setup, 1)


def test_looking_for_such_layers_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Dropout())
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert precision.padded_kernel(model, torch.zeros(2, 1, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()) and model.training
    assert not model[1].training
