"""Networks have the published sizes, fit their images, and can be planned by name."""

import pytest
import torch
from pydantic import TypeAdapter
from support import ROOT
from torch import nn

from repr_ray.models.convnet import FlatLinear
from repr_ray.models.resnet import Pad
from repr_ray.models.settings import Model
from repr_ray.study.config import ConfigError
from repr_ray.study.reading import load, validate

settings_of = TypeAdapter(Model).validate_python


def parameters(classes: int = 10, image: tuple[int, int] = (3, 32), **model: object) -> int:
    with torch.device("meta"):
        network = settings_of(model).network(classes, *image)
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("depth, thousands", [(3, 20), (8, 66), (13, 113), (18, 159)])
def test_the_papers_vanilla_nets(depth: int, thousands: int) -> None:
    """arXiv 1811.07275 counts all but the linear layer: met exactly by 3x3 + bias + batch norm."""
    whole = parameters(kind="convnet", depth=depth, batch_norm=True)
    convolutions = whole - (32 * 32 * 32 * 10 + 10)
    assert round(convolutions / 1000) == thousands
    assert convolutions == 896 + (depth - 1) * 9248 + depth * 64


@pytest.mark.parametrize("depth, count", [(20, 269_722), (32, 464_154), (56, 853_018), (110, 1_727_962)])
def test_residual_networks(depth: int, count: int) -> None:
    """arXiv 1512.03385, table 6: 0.27, 0.46, 0.85 and 1.7 million."""
    assert parameters(kind="resnet", depth=depth) == count
    projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert parameters(kind="resnet", depth=depth, shortcut="projection") == count + projections


@pytest.mark.parametrize("depth, millions", [(40, 1.0), (100, 7.0)])
def test_dense_networks(depth: int, millions: float) -> None:
    """arXiv 1608.06993, table 2: 1.0 and 7.0 million."""
    assert parameters(kind="densenet", depth=depth) / 1e6 == pytest.approx(millions, abs=0.05)


def test_dense_network_of_40_layers_to_the_last_parameter() -> None:
    """Convolutions without bias, two numbers a channel in every batch norm, one linear layer."""
    width, count = 16, 3 * 9 * 16
    for block in range(3):
        for _ in range(12):
            count += 2 * width + 9 * 12 * width
            width += 12
        count += 2 * width + (width * width if block < 2 else 0)
    assert parameters(kind="densenet") == count + width * 10 + 10 == 1_019_722


@pytest.mark.parametrize("depth, count", [(11, 9_231_114), (16, 14_728_266)])
def test_vgg(depth: int, count: int) -> None:
    assert parameters(kind="vgg", depth=depth) == count


@pytest.mark.parametrize(
    "name, count", [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("densenet121", 7_978_856)]
)
def test_torchvisions_networks(name: str, count: int) -> None:
    assert parameters(1000, (3, 224), kind="torchvision", name=name) == count


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "convnet", "pool": "max3", "kernel": 5, "init": "truncated_normal"},
        {"kind": "convnet", "pool": "max2", "batch_norm": True},
        {"kind": "resnet", "depth": 8},
        {"kind": "resnet", "depth": 8, "shortcut": "projection"},
        {"kind": "densenet", "depth": 10},
        {"kind": "vgg", "depth": 11},
        {"kind": "torchvision", "name": "resnet18"},
    ],
)
def test_a_batch_goes_through(model: dict[str, object]) -> None:
    network = settings_of(model).network(7, 3, 32)
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_max3_pools_as_tensorflows_same_does() -> None:
    """3x3 windows, stride 2, padded by one pixel at the far edges only."""
    pool = next(
        m for m in settings_of({"kind": "convnet", "pool": "max3"}).network(10, 3, 32) if isinstance(m, nn.MaxPool2d)
    )
    x = torch.randn(1, 2, 32, 32)
    padded = nn.functional.pad(x, (0, 1, 0, 1), value=-torch.inf)
    assert torch.equal(pool(x), nn.functional.max_pool2d(padded, 3, 2))


def test_truncated_normal_is_the_authors() -> None:
    torch.manual_seed(0)
    network = settings_of({"kind": "convnet", "init": "truncated_normal"}).network(10, 3, 32)
    weights = torch.cat([m.weight.detach().flatten() for m in network if hasattr(m, "weight")])
    assert weights.abs().max() <= 0.08 and float(weights.std()) == pytest.approx(0.04 * 0.8796, rel=0.01)
    assert not any(m.bias.any() for m in network if hasattr(m, "bias"))


@pytest.mark.parametrize(
    "model, image, complaint",
    [
        ({"kind": "vgg"}, (3, 8), "images of 32 x 32 pixels"),
        ({"kind": "densenet"}, (1, 2), "at least 4 x 4"),
        ({"kind": "torchvision", "name": "resnet18"}, (1, 8), "3 channels, not 1"),
        ({"kind": "convnet", "depth": 8, "pool": "max2"}, (3, 32), "no pixel after layer 6"),
    ],
)
def test_a_network_that_does_not_fit_its_images_is_refused(
    model: dict[str, object], image: tuple[int, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings_of(model).network(10, *image)


@pytest.mark.parametrize(
    "model, complaint",
    [
        ({"kind": "resnet", "depth": 21}, "model.depth=21: a residual network has 6n"),
        ({"kind": "densenet", "depth": 41}, "model.depth=41: a dense network has 3n"),
        ({"kind": "resnet", "width": 3}, "model.width: unknown field"),
        ({"kind": "resnte"}, "'convnet', 'resnet'"),
    ],
)
def test_impossible_settings_are_one_line(model: dict[str, object], complaint: str) -> None:
    raw = load(ROOT / "configs/quickstart.yaml").model_dump()
    with pytest.raises(ConfigError) as error:
        validate({**raw, "model": model}, "here")
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_labels_tell_networks_apart() -> None:
    labels = {
        settings_of(model).label
        for model in (
            {"kind": "convnet"},
            {"kind": "convnet", "pool": "max2"},
            {"kind": "convnet", "pool": "max3"},
            {"kind": "convnet", "init": "truncated_normal"},
            {"kind": "convnet", "kernel": 5},
            {"kind": "convnet", "batch_norm": True},
            {"kind": "resnet"},
            {"kind": "resnet", "shortcut": "projection"},
            {"kind": "densenet"},
            {"kind": "vgg"},
            {"kind": "torchvision", "name": "vgg16_bn"},
        )
    }
    assert len(labels) == 11 and {"convnet-3x32", "resnet20", "densenet-40-12"} <= labels


def test_flat_linear_is_flatten_and_linear() -> None:
    """In any memory order of the maps; their gradient comes back in the order they came in."""
    flat, linear = FlatLinear(6 * 4 * 5, 3), nn.Linear(6 * 4 * 5, 3)
    linear.load_state_dict(flat.state_dict())
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 4, 5).to(memory_format=order).requires_grad_()
        ours, plain = flat(x), linear(x.flatten(1))
        torch.testing.assert_close(ours, plain)
        gradients = torch.autograd.grad(ours.square().sum(), (x, flat.weight))
        torch.testing.assert_close(gradients, torch.autograd.grad(plain.square().sum(), (x, linear.weight)))
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)


def test_shortcut_a_takes_every_second_pixel_and_keeps_the_order_of_memory() -> None:
    x = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    out = Pad(stride=2, more=3)(x)
    assert torch.equal(out[:, 1:5], x[:, :, ::2, ::2])
    assert not out[:, :1].any() and not out[:, 5:].any()
    gradient = torch.autograd.grad(out.sum(), x)[0]
    assert gradient[:, :, ::2, ::2].all() and gradient.sum() == out[:, 1:5].numel()
    assert gradient.is_contiguous(memory_format=torch.channels_last)
