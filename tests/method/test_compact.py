"""S2 on a smaller copy of the network: the weights, statistics and momenta of the masked run."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import OPTIMIZERS, batches, stack, tensors, train
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray import RePr
from repr_ray.models.settings import ConvNet, DenseNet, Model, ResNet, Torchvision, Vgg

MODELS: dict[str, Model] = {
    "3x8": ConvNet(width=8),
    "3x8 with batch norm and pooling": ConvNet(width=8, batch_norm=True, pool="max2"),
    "resnet8": ResNet(kind="resnet", depth=8),
    "resnet8, projections": ResNet(kind="resnet", depth=8, shortcut="projection"),
    "densenet": DenseNet(kind="densenet", depth=7, growth=4),
    "vgg11": Vgg(kind="vgg", depth=11),
    "bottlenecks": Torchvision(kind="torchvision", name="resnet50"),
    "grouped": Torchvision(kind="torchvision", name="mobilenet_v2"),
}


def in_s2(
    model: nn.Module, make: Callable[..., Optimizer], images: list[tuple[Tensor, Tensor]], **settings: object
) -> tuple[nn.Module, Optimizer, RePr]:
    """At the start of S2, in float64: no ReLU switches by rounding."""
    model = model.double()
    optimizer = make(model.parameters())
    scheme = RePr(model, optimizer, epochs=4, s1=1, s2=1, prune_ratio=0.3, **settings)
    scheme.start_epoch(0)
    for x, y in images:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    scheme.start_epoch(1)
    return model, optimizer, scheme


def both_ways(
    build_model: Callable[[], nn.Module],
    make: Callable[..., Optimizer],
    images: list[tuple[Tensor, Tensor]],
    clear: bool = False,
    **settings: object,
) -> tuple[list[tuple[nn.Module, Optimizer, RePr]], nn.Module]:
    """The same epoch of S2 masked, and on the smaller copy, whose network is given as well.

    With `clear`, the loop around the copy calls `zero_grad` of the whole network's optimizer in every step.
    """
    images = [(x.double(), y) for x, y in images]
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(in_s2(build_model(), make, images, **settings))
    (masked, optimizer, scheme), (_, _, other) = made
    sub = other.sub_network()
    assert sub is not None
    for rate, (x, y) in zip((0.01, 0.02, 0.005, 0.01), images, strict=False):  # a schedule within the epoch
        for _, each, _ in made:
            each.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(masked(x), y).backward()
        optimizer.step()
        scheme.after_step()
        if clear:
            made[1][1].zero_grad()
        F.cross_entropy(sub.model(x), y).backward()
        sub.step()
    sub.scatter()
    return made, sub.model


def assert_alike(made: list[tuple[nn.Module, Optimizer, RePr]]) -> None:
    (a, of_a, scheme), (b, of_b, _) = made
    silent: dict[str, Tensor] = {}  # nobody reads the statistics of dropped filters
    for layer in scheme.masks.layers:
        for part in layer.parts:
            if part.role in ("mean", "variance"):
                mask = part.mask(tensors(a)[part.tensor].shape, scheme.dropped[layer.name])
                silent[part.tensor] = silent.get(part.tensor, mask) | mask
    for name, tensor in tensors(a).items():
        ours, theirs = tensor.detach().double(), tensors(b)[name].detach().double()
        if name in silent:
            ours, theirs = (t.masked_fill(silent[name], 0) for t in (ours, theirs))
        torch.testing.assert_close(theirs, ours, rtol=1e-8, atol=1e-10, msg=name)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        for key, value in of_a.state.get(p, {}).items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(of_b.state[q][key], value, rtol=1e-8, atol=1e-10, msg=f"{name} {key}")


@pytest.mark.parametrize("clear", [False, True], ids=["", "zero_grad"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer(optimizer: str, clear: bool) -> None:
    made, smaller = both_ways(stack, OPTIMIZERS[optimizer], batches(), clear)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in made[0][0].parameters())
    assert_alike(made)


@pytest.mark.parametrize(
    "model", [n if n != "bottlenecks" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_in_every_family(model: str) -> None:
    size = 64 if MODELS[model].kind == "torchvision" else 32  # a batch norm over single pixels magnifies rounding

    def make() -> nn.Module:
        network = MODELS[model].network(4, 3, size)
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return network

    images = batches(2, 4, (3, size, size))
    made, smaller = both_ways(make, OPTIMIZERS["weight decay"], images, selection={"scope": "layer"})
    widths = {name: m.out_channels for name, m in smaller.named_modules() if isinstance(m, nn.Conv2d)}
    scheme = made[1][2]
    for layer in scheme.masks.layers:
        kept = layer.filters - int(scheme.dropped[layer.name].sum())
        assert widths[layer.name] == (layer.filters if layer.joined else kept)
    assert_alike(made)


class Gated(nn.Module):
    """Maps that are multiplied channel by channel, and slopes of their own: neither can be made narrower alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.sloped = nn.Conv2d(8, 8, 3)
        self.prelu = nn.PReLU(8)
        self.last = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x * torch.tanh(self.gate(x))
        x = self.prelu(self.sloped(x))
        return self.linear(torch.relu(self.last(x)).mean((2, 3)))


def test_layers_that_meet_others_stay_wide() -> None:
    made, smaller = both_ways(Gated, OPTIMIZERS["momentum"], batches(), selection={"scope": "layer"})
    joined = {layer.name for layer in made[0][2].masks.layers if layer.joined}
    assert joined == {"first", "gate", "sloped"}
    assert smaller.get_submodule("last").out_channels < 8
    assert smaller.get_submodule("sloped").out_channels == 8
    assert_alike(made)


class Shared(nn.Module):
    """Two paths that end in the same convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3), nn.Conv2d(1, 8, 3)
        self.both = nn.Conv2d(8, 8, 1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.both(torch.relu(self.one(x))), self.both(torch.relu(self.two(x)))
        return self.linear(torch.relu(one + two).mean((2, 3)))


def test_layers_that_share_what_reads_them_stay_wide() -> None:
    made, _ = both_ways(Shared, OPTIMIZERS["momentum"], batches(), selection={"scope": "layer"})
    assert {layer.name for layer in made[0][2].masks.layers if layer.joined} == {"one", "two"}
    assert_alike(made)


def test_frozen_parameters_stay_frozen() -> None:
    def frozen() -> nn.Module:
        model = stack()
        model[0].requires_grad_(False)
        return model

    made, smaller = both_ways(frozen, OPTIMIZERS["adam"], batches(), selection={"scope": "layer"})
    assert not smaller[0].weight.requires_grad
    assert_alike(made)


def test_nothing_is_smaller_in_s1_and_a_constant_is_refused() -> None:
    model = stack()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheme = RePr(model, optimizer, epochs=4, s1=1, s2=1, prune_ratio=0.3, masked="kernel")
    train(model, optimizer, scheme, 0, 1)
    assert scheme.sub_network() is None
    train(model, optimizer, scheme, 1, 2)
    with pytest.raises(ValueError, match="emit a constant"):
        scheme.sub_network()
