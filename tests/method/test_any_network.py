"""Networks made at random, and families of torchvision and timm: whatever a dropped filter holds, nothing changes."""

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_silent, tensors
from torch import Tensor, nn

from repr_ray import RePr
from repr_ray.method.compact import SubNetwork
from repr_ray.method.filters import FilterMap
from repr_ray.method.masks import Masks

OPERATIONS = (
    "conv",
    "bias",
    "strided",
    "grouped",
    "depthwise",
    "multiplied",
    "norm",
    "gated",
    "self_gated",
    "squeeze",
    "shuffle",
    "split",
    "permute",
    "concatenate",
    "residual",
    "pad",
    "pool",
    "upsample",
    "prelu",
    "swish",
    "sigmoid",
    "tanh",
    "group_norm",
    "layer_norm",
    "gather",
    "roll",
    "flip",
    "inplace_add",
    "dropout",
    "unnormed_channels",
    "maximum",
    "linear_channels",
    "shift",
    "response_norm",
    "class_token",
)


class Shift(nn.Module):
    """A number of its own for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.view(1, -1, 1, 1) + x


class ResponseNorm(nn.Module):
    """Global response normalisation (arXiv 2301.00808)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(dim=(2, 3), keepdim=True)
        scaled = x * (response / (response.mean(1, keepdim=True) + 1e-6))
        return x + torch.addcmul(self.bias.view(1, -1, 1, 1), self.weight.view(1, -1, 1, 1), scaled)


class ClassToken(nn.Module):
    """One more position, alike in all images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2)], 2)
        return tokens[:, :, 1:].view_as(x) + tokens[:, :, :1, None]


class Anything(nn.Module):
    """A network that does a list of operations one after the other; every map has a multiple of four channels."""

    def __init__(self, operations: list[str], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.operations = operations
        self.parts = nn.ModuleDict()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        channels = 8
        for i, operation in enumerate(operations):
            made = self.make(operation, channels)
            if made is not None:
                self.parts[str(i)] = made
            channels = {"concatenate": channels + 4, "multiplied": 2 * channels, "split": channels // 2 * 2}.get(
                operation, channels
            )
            if operation in ("conv", "bias"):
                channels = 12
        self.last = nn.Conv2d(channels, 8, 1)
        self.linear = nn.Linear(8, 3)

    def make(self, operation: str, c: int) -> nn.Module | None:
        return {
            "conv": lambda: nn.Conv2d(c, 12, 3, padding=1, bias=False),
            "bias": lambda: nn.Conv2d(c, 12, 1),
            "strided": lambda: nn.Conv2d(c, c, 3, padding=1, stride=1),
            "grouped": lambda: nn.Conv2d(c, c, 3, padding=1, groups=2),
            "depthwise": lambda: nn.Conv2d(c, c, 3, padding=1, groups=c),
            "multiplied": lambda: nn.Conv2d(c, 2 * c, 3, padding=1, groups=c),
            "norm": lambda: nn.BatchNorm2d(c),
            "gated": lambda: nn.Conv2d(c, c, 1),
            "squeeze": lambda: nn.Sequential(nn.Conv2d(c, 4, 1), nn.ReLU(), nn.Conv2d(4, c, 1), nn.Sigmoid()),
            "split": lambda: nn.Conv2d(c // 2, c // 2, 3, padding=1),
            "concatenate": lambda: nn.Conv2d(c, 4, 3, padding=1),
            "residual": lambda: nn.Conv2d(c, c, 3, padding=1),
            "prelu": lambda: nn.PReLU(c),
            "group_norm": lambda: nn.GroupNorm(2, c),
            "layer_norm": lambda: nn.LayerNorm(c),
            "dropout": lambda: nn.Dropout2d(0.0),
            "linear_channels": lambda: nn.Linear(c, c),
            "shift": lambda: Shift(c),
            "response_norm": lambda: ResponseNorm(c),
            "class_token": lambda: ClassToken(c),
            "unnormed_channels": lambda: nn.BatchNorm2d(c, affine=False),
        }.get(operation, lambda: None)()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for i, operation in enumerate(self.operations):
            x = self.apply_one(operation, self.parts[str(i)] if str(i) in self.parts else nn.Identity(), x)
        return self.linear(F.relu(self.last(x)).mean((2, 3)))

    def apply_one(self, operation: str, part: nn.Module, x: Tensor) -> Tensor:
        c = x.shape[1]
        match operation:
            case "gated":
                return x * torch.tanh(part(x))
            case "self_gated":
                return x * torch.sigmoid(x)
            case "squeeze":
                return x * part(x.mean((2, 3), keepdim=True))
            case "shuffle":
                return x.view(len(x), 2, c // 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
            case "split":
                kept, changed = x.chunk(2, 1)
                return torch.cat([kept, F.relu(part(changed))], 1)
            case "permute" | "layer_norm" | "linear_channels":
                return part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case "concatenate":
                return torch.cat([part(x), x], 1)
            case "residual":
                return F.relu(x + part(x))
            case "inplace_add":
                y = F.relu(x) * 2
                y[:, : c // 2] += x[:, c // 2 :]
                return y
            case "pad":
                return F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]
            case "pool":
                return F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1)
            case "upsample":
                return F.avg_pool2d(F.interpolate(x, scale_factor=2.0), 2)
            case "swish":
                return F.silu(x)
            case "sigmoid":
                return torch.sigmoid(x)
            case "tanh":
                return torch.tanh(x)
            case "gather":
                return x[:, torch.arange(c).flip(0)]
            case "roll":
                return x.roll(1, 1)
            case "flip":
                return x.flip(1)
            case "maximum":
                return torch.maximum(x, x.flip(1))
        return part(x)


def unsettled(model: nn.Module) -> nn.Module:
    """Norms and statistics as after training, and no randomness in the forward pass."""
    g = torch.Generator().manual_seed(5)
    for module in model.modules():
        for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.2), ("running_var", 0.5)):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and tensor.dim() == 1:
                tensor.data.copy_(torch.rand(tensor.shape, generator=g) + low)
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.0
        if isinstance(getattr(module, "drop_prob", None), float):
            module.drop_prob = 0.0
    for parameter in model.parameters():
        if not parameter.any():  # a gain that switches a branch off until it has trained
            parameter.data.fill_(1.0)
    return model


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The first output, for networks with several in training mode."""
    out = model(images)
    return out if isinstance(out, Tensor) else out[0] if isinstance(out, tuple) else next(iter(out.values()))


RANDOM = {"ranking": {"score": "random"}, "reinit": {"direction": "default", "bias": "default"}}
"""Nothing that costs time: the networks are many."""


def attached(model: nn.Module, images: Tensor) -> RePr:
    """RePr that drops before the second of three epochs and brings back before the third."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    return RePr(model, optimizer, epochs=3, s1=1, s2=1, prune_ratio=0.4, example=images, **RANDOM)


def assert_safe(scheme: RePr, images: Tensor) -> float:
    """Drop, perturb all that belongs to the dropped, bring back, train a step: the share of them that it moved."""
    model, masks, layers = scheme.model, scheme.masks, scheme.filter_map.layers
    g, own = torch.Generator().manual_seed(1), tensors(model)
    for epoch in (0, 1):
        scheme.start_epoch(epoch)
    dropped = {name: mask.clone() for name, mask in masks.dropped.items()}
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    with torch.no_grad():
        for training in (False, True):
            model.train(training)
            assert_silent(model, masks)
            torch.manual_seed(0)
            expected = logits(model, images)
            for layer in layers:
                for part in layer.parts:
                    mask = part.mask(own[part.tensor].shape, dropped[layer.name])
                    noise = torch.rand(own[part.tensor].shape, generator=g) + 0.1
                    own[part.tensor].copy_(torch.where(mask, noise.to(own[part.tensor]), own[part.tensor]))
            scheme.after_step()
            torch.manual_seed(0)
            # a statistic of BatchNorm moves in the forward pass, but in training it is not read
            assert torch.equal(logits(model, images), expected), training
            for name, tensor in own.items():
                tensor.copy_(before[name])
    scheme.start_epoch(2)
    return assert_trains(scheme, dropped, images)


def assert_trains(scheme: RePr, returned: dict[str, Tensor], images: Tensor) -> float:
    """A step moves the filters that are back and have a gradient, and all stays finite; the share that moved."""
    own, labels = tensors(scheme.model), torch.zeros(len(images), dtype=torch.long)
    outputs = scheme.model(images)
    scheme.optimizer.zero_grad()
    sum(F.cross_entropy(one, labels) for one in ([outputs] if isinstance(outputs, Tensor) else outputs)).backward()
    kernels = {layer.name: own[layer.kernel] for layer in scheme.filter_map.layers}
    before = {name: kernel.detach().clone() for name, kernel in kernels.items()}
    scheme.optimizer.step()
    scheme.after_step()
    assert all(tensor.isfinite().all() for tensor in own.values() if tensor.is_floating_point())
    moved = {name: (kernel != before[name]).flatten(1).any(1) for name, kernel in kernels.items()}
    for name, mask in returned.items():
        driven = kernels[name].grad.flatten(1).abs().amax(1) > 1e-9
        assert moved[name][mask & driven].all(), name
    return float(torch.cat([moved[name][mask] for name, mask in returned.items()]).float().mean())


@settings(max_examples=20)
@given(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=6), st.integers(0, 2**16))
def test_networks_made_at_random(operations: list[str], seed: int) -> None:
    model = unsettled(Anything(operations, seed))
    images = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
    try:
        scheme = attached(model, images)
    except ValueError as error:
        assert "can be dropped from" in str(error)
        return
    found = scheme.filter_map
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert {layer.name for layer in found.layers} | set(found.left_out) == set(convs)
    assert_safe(scheme, images)
    model.zero_grad()
    assert_compact(model, found, images)


def assert_compact(model: nn.Module, found: FilterMap, images: Tensor) -> None:
    """The smaller network computes what the masked one computes, or is refused by name."""
    model = model.double().eval()
    masks, g = Masks(model, found), torch.Generator().manual_seed(2)
    dropped = {layer.name: torch.rand(layer.filters, generator=g) < 0.4 for layer in found.layers}
    for mask in dropped.values():
        mask[0] = False
    masks.set(dropped)
    masks.apply()
    found = FilterMap(found.layers, found.left_out, (images.double(),))
    masks.filter_map = found
    try:
        sub = SubNetwork(model, torch.optim.SGD(model.parameters(), 0.1), masks)
    except ValueError as error:
        assert "compact sub-network: " in str(error)
        return
    torch.testing.assert_close(sub.model.eval()(images.double()), model(images.double()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("pair", [pytest.param(p, id="-".join(p)) for p in itertools.pairwise(sorted(OPERATIONS))])
def test_neighbours(pair: tuple[str, str]) -> None:
    """Every operation at least twice, whatever the random ones were."""
    test_networks_made_at_random.hypothesis.inner_test(list(pair), 3)


SMALL = {
    "torchvision": """shufflenet_v2_x0_5 mobilenet_v3_small squeezenet1_1 mnasnet0_5 googlenet regnet_y_400mf
        efficientnet_b0 convnext_tiny inception_v3""",
    "timm": """
        starnet_s050 lcnet_035 convnext_atto regnetx_002 resnet10t mobilenetv3_small_050
        tf_mobilenetv3_small_minimal_100 convnextv2_atto dla46_c regnety_002 resnetv2_18 hardcorenas_a
        mobilenetv2_035 legacy_seresnet18 tf_efficientnet_lite0 spnasnet_100 efficientnet_es mixnet_s dpn48b
        rexnetr_100 hrnet_w18_small repvit_m0_9 fbnetv3_b res2net50_48w_2s ghostnetv2_100 efficientformerv2_s0
        lcnet_050 ghostnet_100 repvgg_a0 botnet26t_256 lambda_resnet26t gcresnext26ts gernet_s mobileone_s0
        regnetz_b16 cpubone_nano csatv2 cs3darknet_s darknet17 cspnext_tiny davit_tiny densenet121 edgenext_xx_small
        efficientformer_l1 fbnetc_100 mnasnet_small semnasnet_075 tinynet_e mobilenetv1_100 efficientnet_cc_b0_4e
        tf_efficientnetv2_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0 fasternet_t0 fastvit_t8 ghostnetv3_050
        hgnet_tiny iformer_t inception_next_atto lcnetv2_small levit_conv_128s mambaout_femto
        mobilenetv4_conv_small_035 mobilevit_xxs mobilevitv2_050 nf_regnet_b0 pvt_v2_b0 repghostnet_050 resnest14d
        seresnet18 skresnet18 swiftformer_xs tiny_vit_5m_224 tresnet_m visformer_tiny ese_vovnet19b_slim shvit_s1
        xcit_nano_12_p16_224 poolformer_s12
    """,
}
"""The smallest network of each family; the first of each library in `make test`, all of them with `-m slow`."""

REDUCED: dict[str, dict[str, object]] = {
    "davit_tiny": {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 64, 128], "num_heads": [1, 2, 4, 8]},
    "densenet121": {"block_config": [2, 2, 2, 2], "growth_rate": 8},
    "mambaout_femto": {"depths": [1, 1, 1, 1]},
    "tresnet_m": {"layers": [1, 1, 1, 1]},
}
"""Fewer layers and channels than the network has by default."""

MOSTLY_GATES = {"ghostnetv2_100", "efficientnet_cc_b0_4e"}
"""Less than half of their filters can be dropped: the others end in a sigmoid, or in activations with a constant."""


@pytest.mark.parametrize(
    "library, name",
    [
        pytest.param(library, name, marks=[] if i == 0 else [pytest.mark.slow])
        for library in SMALL
        for i, name in enumerate(SMALL[library].split())
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_small_networks_of_libraries(library: str, name: str) -> None:
    package = pytest.importorskip("timm" if library == "timm" else "torchvision.models")
    torch.manual_seed(0)
    make = package.create_model if library == "timm" else importlib.import_module("torchvision.models").get_model
    model = unsettled(make(name, num_classes=4, **REDUCED.get(name, {})))
    images, scheme = followed(model, 299 if name == "inception_v3" else 32)
    found = scheme.filter_map
    dense = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    assert (2 * sum(layer.filters for layer in found.layers) >= dense) != (name in MOSTLY_GATES)
    assert assert_safe(scheme, images) > 0.2  # the others are zero for these images, after a ReLU
    model.zero_grad()
    assert_compact(model, found, images)


def followed(model: nn.Module, smallest: int) -> tuple[Tensor, RePr]:
    """Images of the smallest size that a network takes, and RePr attached to it."""
    sides = [side for side in (32, 64, 96, 128, 192, 224, 256, 299) if side >= smallest]
    for side in sides:
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            return images, attached(model, images)
        except ValueError:
            if side == sides[-1]:
                raise
    raise AssertionError
