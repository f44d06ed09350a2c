"""A dropped filter contributes exactly nothing, in any network; what has no meaning is left out by name."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import assert_silent, stack, tensors
from torch import Tensor, nn

from repr_ray import RePr
from repr_ray.method.filters import map_filters, unwrap
from repr_ray.method.masks import Masks
from repr_ray.models.convnet import convnet
from repr_ray.models.densenet import densenet
from repr_ray.models.resnet import resnet
from repr_ray.models.vgg import vgg


class Functional(nn.Module):
    """Functional forms, a shortcut, squeeze-and-excitation, a mean instead of pooling, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 6, 3)
        self.linear = nn.Linear(6 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        x = F.max_pool2d(x, 2)
        y = self.second(x)
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = torch.relu(x + y)
        x = F.adaptive_avg_pool2d(F.dropout(self.last(x).relu_(), 0.0, self.training), 2)
        return self.linear(x.view(x.size(0), -1))


CIFAR = {"classes": 10, "channels": 3, "image_size": 32}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sequential": (lambda: convnet_of(4), 32),
    "functional": (Functional, 14),
    "resnet": (lambda: resnet(depth=14, shortcut="pad", **CIFAR), 16),
    "resnet-projection": (lambda: resnet(depth=14, shortcut="projection", **CIFAR), 16),
    "densenet": (lambda: densenet(depth=13, growth=6, **CIFAR), 16),
    "vgg11": (lambda: vgg(depth=11, **CIFAR), 32),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 32),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=10), 32),
    "torchvision vgg16_bn": (lambda: torchvision.models.vgg16_bn(num_classes=10), 32),
    "torchvision densenet121": (lambda: torchvision.models.densenet121(num_classes=10), 32),
}


def convnet_of(depth: int) -> nn.Module:
    settings = {"width": 8, "kernel": 3, "batch_norm": True, "pool": "max3", "init": "default"}
    return convnet(depth=depth, **settings, **CIFAR)


def unsettle(model: nn.Module) -> None:
    """Batch norms as after training: no gamma is one, no statistic the default."""
    g = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.2),
                (module.running_var, 0.5),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=g) + low)
        elif isinstance(module, nn.Dropout):
            module.p = 0.0


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.endswith("vgg16_bn") else []) for n in NETWORKS]
)
@torch.no_grad()
def test_whatever_a_dropped_filter_holds_the_output_is_the_same(name: str) -> None:
    """Perturb everything that belongs to dropped filters, and what reads them: not a bit of the output changes."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    unsettle(model)
    found = map_filters(model)
    assert set(found.left_out) == ({"excite"} if name == "functional" else set())
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert {layer.name for layer in found.layers} | set(found.left_out) == set(convs)
    masks, g = Masks(model, found), torch.Generator().manual_seed(1)
    dropped = {layer.name: torch.rand(layer.filters, generator=g) < 0.4 for layer in found.layers}
    images, own = torch.randn(2, 3, size, size, generator=g), tensors(model)
    full = model.eval()(images)
    masks.set(dropped)
    for training in (False, True):
        model.train(training)
        masks.apply()
        assert_silent(model, masks)
        statistics = {n: b.clone() for n, b in model.named_buffers()}
        before = model(images)
        assert not torch.equal(before, full) and before.isfinite().all()
        for buffer, value in statistics.items():
            own[buffer].copy_(value)
        for layer in found.layers:
            for part in layer.parts:
                mask = part.mask(own[part.tensor].shape, dropped[layer.name])
                noise = torch.rand(own[part.tensor].shape, generator=g) + 0.1
                own[part.tensor].copy_(torch.where(mask, noise, own[part.tensor]))
        masks.apply()
        assert torch.equal(model(images), before)
        for buffer, value in statistics.items():
            own[buffer].copy_(value)


@pytest.mark.parametrize("name", ["sequential", "functional", "resnet", "resnet-projection", "torchvision resnet18"])
@torch.no_grad()
def test_dropping_is_cutting_the_channel_out(name: str) -> None:
    """The network with dropped filters computes what it computes with their feature maps replaced by zeros."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    unsettle(model)
    found = map_filters(model)
    g = torch.Generator().manual_seed(1)
    dropped = {layer.name: torch.rand(layer.filters, generator=g) < 0.4 for layer in found.layers}
    images = torch.randn(2, 3, size, size, generator=g)
    handles = [
        model.get_submodule(layer.output).register_forward_hook(
            lambda module, x, z, mask=dropped[layer.name]: z * ~mask.view(1, -1, 1, 1)
        )
        for layer in found.layers
    ]
    cut = model(images)
    for handle in handles:
        handle.remove()
    masks = Masks(model, found)
    masks.set(dropped)
    masks.apply()
    torch.testing.assert_close(model(images), cut, rtol=1e-5, atol=1e-5)


def test_parts_of_a_filter() -> None:
    layers = map_filters(stack()).layers
    roles = [[(part.role, part.tensor) for part in layer.parts] for layer in layers]
    norm = [("gamma", "1.weight"), ("beta", "1.bias"), ("mean", "1.running_mean"), ("variance", "1.running_var")]
    assert roles[0] == [("kernel", "0.weight"), ("bias", "0.bias"), *norm, ("input", "3.weight")]
    assert roles[1] == [("kernel", "3.weight"), ("bias", "3.bias"), ("input", "6.weight")]
    assert roles[2][0] == ("kernel", "6.weight") and roles[2][-1] == ("input", "10.weight")
    assert [layer.output for layer in layers] == ["1", "3", "7"]


def test_synchronised_batch_norms_are_batch_norms() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(stack())
    assert map_filters(converted) == map_filters(stack())


def test_a_linear_layer_reads_a_block_of_inputs_per_filter() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))
    part = map_filters(model).layers[0].parts[-1]
    assert (part.role, part.places_of(1)) == ("input", list(range(16, 32)))
    mask = part.mask(model[3].weight.shape, torch.tensor([False, True, False]))
    assert mask.flatten().nonzero().flatten().tolist() == list(range(16, 32))


def sequential(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *modules, nn.Flatten(), nn.Linear(4, 2))


class Shared(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1)
        self.second = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x))).mean((2, 3))


class SharedNorm(nn.Module):
    """One batch norm for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x))) + torch.relu(self.norm(self.two(x)))
        return self.linear(torch.relu(self.last(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "model, layer, reason",
    [
        (sequential(nn.Conv2d(4, 4, 3, groups=4)), "2", "grouped or depthwise"),
        (sequential(nn.Sigmoid(), nn.Conv2d(4, 4, 3)), "0", "reaches 2"),
        (sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3)), "0", "no gamma and beta"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), "2", "the network's output"),
        (Shared(), "first", "shared by several callers"),
        (SharedNorm(), "one", "norm has several callers"),
    ],
)
def test_trap_5_what_has_no_meaning_is_left_out_with_the_reason(model: nn.Module, layer: str, reason: str) -> None:
    try:
        left_out = map_filters(model).left_out[layer]
    except ValueError as error:  # nothing else to drop from
        left_out = str(error)
    assert reason in left_out


def test_a_layer_that_is_left_out_is_refused_when_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert set(RePr(model, optimizer, epochs=100).left_out) == {"4"}
    for field in ("layers", "exclude"):
        with pytest.raises(ValueError, match=f"selection.{field}: 4 is never dropped from: its output"):
            RePr(model, optimizer, epochs=100, selection={field: ["4"]})


@pytest.mark.parametrize("model", [nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), nn.Sequential(nn.Conv2d(1, 2, 3))])
def test_a_network_without_droppable_convolutions_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="model: no convolution of Sequential can be dropped from"):
        RePr(model, torch.optim.SGD(model.parameters(), 0.1), epochs=100)


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"Branches cannot be followed: .*return x if x.sum\(\) > 0 else -x; make"):
        map_filters(Branches())


def test_wrappers_are_taken_off() -> None:
    model = stack()
    assert unwrap(torch.compile(model)) is model


@pytest.mark.parametrize("make", [lambda: convnet_of(2), lambda: resnet(depth=8, shortcut="pad", **CIFAR)])
def test_a_network_without_memory_is_followed_like_one_with(make: Callable[[], nn.Module]) -> None:
    """Where tensors are made on the meta device by default, as a launch does to check networks."""
    expected = map_filters(make())
    with torch.device("meta"):
        found = map_filters(make())
    assert found.layers == expected.layers and found.left_out == expected.left_out
