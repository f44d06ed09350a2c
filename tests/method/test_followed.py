"""Other people's networks and loops: what is followed, what is left out and why, what is refused at once."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from networks import OPTIMIZERS, batches, stack, tensors, train
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from repr_ray import RePr, distributed
from repr_ray.method.filters import map_filters


def sequential(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), *modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def reason(model: nn.Module, layer: str) -> str:
    """Why a layer is left out; empty where it is not."""
    try:
        return map_filters(model).left_out.get(layer, "")
    except ValueError as error:
        return str(error)


class Positions(nn.Module):
    """A linear layer over positions, not over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(36, 36), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.mix(torch.relu(self.conv(x)).flatten(2)).mean(2))


class Sizes(nn.Module):
    """Flattened maps of two sizes, one behind the other, in one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 2, 5)
        self.linear = nn.Linear(4 * 36 + 2 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.one(x)), torch.relu(self.two(x))
        return self.linear(torch.cat([m.flatten(1) for m in maps], 1))


class Function(nn.Module):
    """Any function behind the first convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.last, self.linear = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.last(self.function(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    "function",
    [
        nn.Hardtanh(1, 2),
        nn.Hardsigmoid(),
        nn.Softplus(),
        nn.Sigmoid(),
        nn.LogSigmoid(),
        nn.Threshold(0.5, 3.0),
        torch.cos,
        torch.exp,
        lambda x: x + 1,
        lambda x: x.clamp(0.5),
        lambda x: F.pad(x, (1, 1, 1, 1), value=1.0) + 0.1,
        lambda x: x * torch.sigmoid(x) + 0.5,
        lambda x: x.softmax(1),
        lambda x: x.amax(1, keepdim=True).expand(-1, 4, -1, -1),
        lambda x: x - torch.ones(1, 4, 1, 1, device=x.device),
        lambda x: torch.sigmoid(x) * x.flip(1),  # the gate of another filter
    ],
)
def test_what_zero_does_not_pass_is_left_out(function: Callable[[Tensor], Tensor]) -> None:
    assert "through which a dropped filter is not silent" in reason(Function(function), "conv") or (
        "mixes channels" in reason(Function(function), "conv")
    )


@pytest.mark.parametrize(
    "function",
    [
        nn.Hardtanh(-1, 2),
        nn.Hardswish(),
        nn.Tanhshrink(),
        nn.Softsign(),
        nn.LeakyReLU(0.1, inplace=True),
        nn.PReLU(4),
        torch.sin,
        lambda x: x.clamp(min=0.0, max=0.5),
        lambda x: x * 3 / 2,
        lambda x: x * torch.sigmoid(x),
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: x.abs().sqrt() ** 3,
        lambda x: F.pad(x, (1, 1, 1, 1)),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    ],
)
def test_what_zero_passes_is_followed(function: Callable[[Tensor], Tensor]) -> None:
    layer = map_filters(Function(function)).layers[0]
    assert layer.name == "conv" and ("last.weight", "input") in {(p.tensor, p.role) for p in layer.parts}


def test_a_linear_layer_over_positions_and_flattened_maps_of_two_sizes() -> None:
    assert "not silent" in reason(Positions(), "conv")  # its bias comes to every channel
    one, two = map_filters(Sizes(), torch.empty(2, 1, 8, 8)).layers
    assert one.parts[-1].places_of(3) == list(range(108, 144))
    assert two.parts[-1].places_of(0) == list(range(144, 160))


def computed_kernels() -> Iterator[tuple[str, Callable[[nn.Module], object]]]:
    yield "weight_norm", parametrizations.weight_norm
    yield "spectral_norm", parametrizations.spectral_norm
    yield "orthogonal", parametrizations.orthogonal
    yield "old weight_norm", weight_norm
    yield "old spectral_norm", spectral_norm
    yield "prune", lambda module: prune.l1_unstructured(module, "weight", 0.5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [pytest.param(c, id=name) for name, c in computed_kernels()])
@pytest.mark.parametrize("place", [0, 2, 6])
def test_parametrised_layers(change: Callable[[nn.Module], object], place: int) -> None:
    """On a convolution, on the one that reads it, on the linear layer: cycles pass, and the model is as it was."""
    torch.manual_seed(0)
    model = sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    change(model[place])
    attributes = {k: type(v) for k, v in vars(model[place]).items()}
    before = distributed.checksum(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scheme = RePr(model, optimizer, epochs=6, s1=1, s2=1, selection={"scope": "layer"}, reinit={"next_layer": "zero"})
    assert before == distributed.checksum(model)
    assert {k: type(v) for k, v in vars(model[place]).items()} == attributes
    assert not any(t.is_meta for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor))
    if place < 6:
        assert "computed from other parameters" in scheme.left_out[str(place)]
    events = train(model, optimizer, scheme, 0, 6)
    assert sum(sum(event.dropped) for event in events)
    assert all(t.isfinite().all() for t in tensors(model).values())


def test_frozen_layers_and_parameters_that_the_optimizer_does_not_hold_are_left_out() -> None:
    model = stack()
    model[0].requires_grad_(False)
    model[7].weight.requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)
    scheme = RePr(model, optimizer, epochs=9, s1=1, s2=1, prune_ratio=0.5)
    assert scheme.left_out == {"0": "it is frozen", "6": "7.weight is frozen"}
    train(model, optimizer, scheme, 0, 5)
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())

    model = stack()
    scheme = RePr(model, torch.optim.SGD(model[3:].parameters(), 0.1), epochs=100)
    assert scheme.left_out == {"0": "the optimizer does not hold 0.weight"}
    with pytest.raises(ValueError, match="optimizer: it holds no parameter of this Sequential; make it from"):
        RePr(model, torch.optim.SGD(stack().parameters(), 0.1), epochs=100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.3}, r"^ratio: unknown field; did you mean prune_ratio\?$"),
        ({"ranking": {"ordr": "worst"}}, r"^ranking.ordr: unknown field; did you mean order\?$"),
        ({"prune_ratio": 30}, r"^prune_ratio=30: input should be less than"),
        ({"s1": "many"}, r"^s1='many': expected an integer$"),
    ],
)
def test_settings_of_ones_own_loop_are_checked_in_words(settings: dict[str, object], message: str) -> None:
    model = stack()
    with pytest.raises(ValueError, match=message):
        RePr(model, torch.optim.SGD(model.parameters(), 0.1), epochs=100, **settings)


def share_bias(model: nn.Sequential) -> None:
    model[4].bias = model[2].bias


def share_kernel(model: nn.Sequential) -> None:
    model[4].weight = model[2].weight


def twice(model: nn.Sequential) -> None:
    model[4] = model[2]


@pytest.mark.parametrize(
    ("change", "next_layer", "left_out"),
    [
        (share_bias, "keep", {str(i): "its weights are shared by several callers" for i in (2, 4)}),
        (share_kernel, "keep", {str(i): "its weights are shared by several callers" for i in (2, 4)}),
        (twice, "keep", {"2": "its weights are shared by several callers"}),
        (lambda model: model[2].bias.requires_grad_(False), "keep", {"2": "its bias is frozen"}),
        (lambda model: model[2].weight.requires_grad_(False), "keep", {"2": "it is frozen"}),
        (lambda model: model[8].requires_grad_(False), "keep", {}),
        (lambda model: model[8].requires_grad_(False), "zero", {"4": "8.weight is frozen"}),
        (
            lambda model: model[2].weight.requires_grad_(False),
            "default",
            {"0": "2.weight is frozen", "2": "it is frozen"},
        ),
    ],
)
def test_shared_and_frozen_parameters(
    change: Callable[[nn.Sequential], object], next_layer: str, left_out: dict[str, str]
) -> None:
    """What is left out keeps every value through all cycles, but for what the optimizer trains."""
    torch.manual_seed(0)
    model = sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    change(model)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    selection = {"scope": "layer"}
    scheme = RePr(model, optimizer, epochs=6, s1=1, s2=1, selection=selection, reinit={"next_layer": next_layer})
    assert scheme.left_out == left_out
    events = train(model, optimizer, scheme, 0, 6)
    assert sum(sum(event.dropped) for event in events)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())


def test_a_model_in_data_parallel_is_followed_like_itself() -> None:
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inside = RePr(nn.DataParallel(model), optimizer, epochs=9, s1=1, s2=1)
    assert inside.filter_map == RePr(model, optimizer, epochs=9, s1=1, s2=1).filter_map


def test_batches_that_raise_leave_all_as_it_was() -> None:
    torch.manual_seed(0)
    model = stack()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    scheme = RePr(model, optimizer, epochs=6, s1=1, s2=1, ranking={"score": "activation"})
    twins = copy.deepcopy((model, optimizer, scheme))

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield batches()[0]
        raise OSError("the disk is gone")

    scheme.start_epoch(0, batches)
    before = copy.deepcopy(scheme.state_dict())
    with pytest.raises(OSError, match="gone"):
        scheme.start_epoch(1, broken)
    assert str(scheme.state_dict()) == str(before) and scheme.filters_dropped == 0
    events = scheme.start_epoch(1, batches)
    twins[2].start_epoch(0, batches)
    assert events == twins[2].start_epoch(1, batches) and events


@pytest.mark.parametrize(
    "change, wrong",
    [
        ({"prune_ratio": 0.5}, "other settings: prune_ratio"),
        ({"s1": 2}, "other settings: s1"),
        ({"ranking": {"order": "inverse"}}, "other settings: ranking"),
        ({"epochs": 12}, "other settings: epochs"),
        ({"seed": 5}, "seed=0, this scheme has seed=5"),
        ({"width": 6}, "another network"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, object], wrong: str) -> None:
    def made(width: int = 8, **fields: object) -> RePr:
        model = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return RePr(model, optimizer, **{"epochs": 9, "s1": 1, "s2": 1, **fields})

    saved = made()
    saved.start_epoch(0)
    saved.start_epoch(1)
    other = made(**change)
    with pytest.raises(ValueError, match=wrong):
        other.load_state_dict(saved.state_dict())
    assert other.epoch == -1 and other.filters_dropped == 0
    old = {key: saved.state_dict()[key] for key in ("epoch", "dropped", "before")}  # as saved by earlier versions
    same = made()
    same.load_state_dict(old)
    assert same.filters_dropped == saved.filters_dropped > 0


def test_a_state_is_a_copy() -> None:
    model = stack()
    scheme = RePr(model, torch.optim.SGD(model.parameters(), 0.1), epochs=9, s1=1, s2=1)
    scheme.start_epoch(0)
    scheme.start_epoch(1)
    state = scheme.state_dict()
    kept = copy.deepcopy(state)
    scheme.start_epoch(2)
    assert str(state) == str(kept)
    for value in (*state["dropped"].values(), *state["before"].values()):
        value.zero_()
    scheme.load_state_dict(kept)
    assert scheme.filters_dropped == 7


def test_an_average_of_the_weights_has_the_same_filters() -> None:
    torch.manual_seed(0)
    model = stack()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    scheme = RePr(model, optimizer, epochs=6, s1=1, s2=1, selection={"scope": "layer"})
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    for epoch in range(6):
        scheme.start_epoch(epoch)
        scheme.carry_over(average.module)
        dropped = {name: mask.clone() for name, mask in scheme.dropped.items()}
        returned = {name: mask.clone() for name, mask in scheme._returned.items()}
        for name, mask in returned.items():
            kernel = f"{name}.weight"
            assert torch.equal(tensors(average.module)[kernel][mask], tensors(model)[kernel][mask])
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            scheme.after_step()
            average.update_parameters(model)
            scheme.carry_over(average.module)
        for layer in scheme.masks.layers if scheme.masks.any else ():
            for part in layer.silenced:
                own = tensors(average.module)[part.tensor]
                assert not own.masked_select(part.mask(own.shape, dropped[layer.name])).any()
        assert not scheme._returned  # from here on they are averaged like all others


def test_a_network_that_asks_for_values_is_refused_with_its_line() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x)).mean((2, 3))
            if x.max().item() > 1:
                x = x / 2
            return self.linear(x)

    with pytest.raises(ValueError, match=r"values of a tensor at .*test_followed.py:\d+: if x.max\(\).item\(\) > 1:"):
        map_filters(Early())


def test_a_network_that_takes_no_square_images_wants_an_example() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 21, 2))
    with pytest.raises(ValueError, match="pass example="):
        map_filters(model)
    assert map_filters(model, torch.empty(1, 1, 8, 23)).layers[0].parts[-1].places_of(1) == list(range(126, 252))
    with pytest.raises(ValueError, match="check that it takes that input"):
        map_filters(model, torch.empty(1, 1, 8, 8))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_network_is_followed_while_all_else_is_made_on_another_device(device: str) -> None:
    with torch.device(device):
        found = map_filters(stack(), torch.empty(2, 1, 6, 6))
    assert found.layers == map_filters(stack(), torch.empty(2, 1, 6, 6)).layers
