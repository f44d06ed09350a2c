"""Each rival beside its definition, followed step by step in NumPy with the gradients that torch gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import batches, stack
from numpy.typing import NDArray
from torch import nn

import repr_ray
from repr_ray.method.scheme import Scheme

Array = NDArray[np.float64]
RATE, MOMENTUM = 0.05, 0.9


def plain() -> nn.Module:
    """Two convolutions and a linear layer that reads 6 maps of 4 pixels each, no batch norm; float64."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 4)),
    ).double()


def gradients(
    model: nn.Module, weights: dict[str, Array], images: torch.Tensor, labels: torch.Tensor
) -> dict[str, Array]:
    """Of the mean cross entropy at some weights."""
    twin = plain()
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    F.cross_entropy(twin(images), labels).backward()
    return {name: p.grad.numpy() for name, p in twin.named_parameters()}


def copies(model: nn.Module) -> dict[str, Array]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def walk(name: str, epochs: int, **settings: Any) -> Iterator[tuple[int, int, Scheme, nn.Module, dict[str, Array]]]:
    """Train with a scheme; before every step, and after every epoch (step -1), the oracle may change its weights.

    It does SGD with momentum on its own; `velocity` lies beside the weights as `NAME!`.
    """
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM)
    scheme = getattr(repr_ray, name)(model, optimizer, epochs=epochs, **settings)
    own = copies(model) | {f"{name}!": np.zeros_like(value) for name, value in copies(model).items()}
    for epoch in range(epochs):
        scheme.start_epoch(epoch)
        for number, (images, labels) in enumerate((x.double(), y) for x, y in batches()):
            yield epoch, number, scheme, model, own
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for group in optimizer.param_groups:
                group["lr"] = RATE * scheme.rate_factor
            optimizer.step()
            scheme.after_step()
            weights = {key: value for key, value in own.items() if f"{key}!" in own}
            for key, gradient in gradients(model, weights, images, labels).items():
                own[f"{key}!"] = MOMENTUM * own[f"{key}!"] + gradient
                own[key] = own[key] - own.get("rate", RATE) * own[f"{key}!"]
                if f"{key}?" in own:
                    own[key] = np.where(own[f"{key}?"], 0.0, own[key])
        scheme.end_epoch()
        yield epoch, -1, scheme, model, own
        assert_equal(model, own)


def assert_equal(model: nn.Module, own: dict[str, Array]) -> None:
    for name, value in copies(model).items():
        np.testing.assert_allclose(value, own[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("exclude", [None, ["6"]])
def test_dsd(exclude: list[str] | None) -> None:
    """Algorithm 1: the smallest 40% of each layer masked in epochs 1 and 2, then from zero at a tenth of the rate.

    Section 4: the first convolution is not masked.
    """
    layers = ("2.weight", "6.weight") if exclude is None else ("0.weight", "2.weight")
    settings = {} if exclude is None else {"exclude": exclude}
    for epoch, number, _, _, own in walk("DSD", 4, sparsity=0.4, sparse_at=1, dense_at=3, **settings):
        if (epoch, number) == (1, 0):
            for name in layers:
                value = np.abs(own[name])
                bound = np.sort(value.ravel())[int(0.4 * value.size)]
                own[f"{name}?"] = value < bound  # a `?` is a mask, which walk applies
                own[name] = np.where(own[f"{name}?"], 0.0, own[name])
        if (epoch, number) == (3, 0):
            for name in layers:
                own[f"{name}!"] = np.where(own.pop(f"{name}?"), 0.0, own[f"{name}!"])
            own["rate"] = np.float64(RATE / 10)


@pytest.mark.parametrize("every", [1, 2])
def test_soft_filter_pruning(every: int) -> None:
    """Algorithm 1: the two of six filters with the smallest L2 norm are zero after an epoch, and go on training."""
    for epoch, number, scheme, _, own in walk("SoftFilterPruning", 4, prune_ratio=0.4, every=every):
        if number >= 0 or (epoch + 1) % every:
            assert scheme.filters_dropped == 0
        else:
            for layer in ("0", "2"):
                norms = np.sqrt((own[f"{layer}.weight"] ** 2).sum((1, 2, 3)))
                weakest = norms <= np.sort(norms)[1]
                own[f"{layer}.weight"][weakest] = 0.0
                own[f"{layer}.bias"][weakest] = 0.0
                assert scheme.dropped[layer].numpy().tolist() == weakest.tolist()


@pytest.mark.parametrize("name", ["ShrinkPerturb", "LaterLayerForgetting", "Rifle"])
def test_renewal(name: str) -> None:
    """Before epochs 2 and 4 of 6; what is renewed is given, its momentum starts from zero."""
    fresh = {key: value + 0.5 for key, value in copies(plain()).items()}
    first = {"ShrinkPerturb": "0", "LaterLayerForgetting": "2", "Rifle": "6"}[name]
    for epoch, number, scheme, _, own in walk(name, 6, every=2):
        if epoch == 0 and number == 0:
            made = plain()
            made.load_state_dict({key: torch.from_numpy(value) for key, value in fresh.items()})
            scheme.fresh = lambda made=made: made
        if number == 0 and epoch in (2, 4):
            for key, value in fresh.items():
                if key >= first:
                    own[key] = 0.4 * own[key] + 0.1 * value if name == "ShrinkPerturb" else value
                    own[f"{key}!"] = np.zeros_like(value)


def activations(own: dict[str, Array], images: torch.Tensor) -> tuple[Array, Array]:
    """mean|h| of the filters of both layers: over images, and pixels after pooling."""
    twin = plain()
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in own.items() if f"{k}!" in own})
    first, second = twin[:2](images), twin[:5](images)
    return tuple(np.abs(h.detach().numpy()).mean((0, 2, 3)) for h in (first, second))  # type: ignore[return-value]


def renewed(own: dict[str, Array], model: nn.Module, layer: int, units: Array) -> None:
    """Fresh weights, which the oracle takes over; bias, outgoing weights and all momenta are zero."""
    name, reader, width = (("0", "2", 1), ("2", "6", 4))[layer]
    outgoing = np.repeat(units, width)
    fresh = copies(model)[f"{name}.weight"][units]
    bound = own[f"{name}.weight"][0].size ** -0.5
    assert (np.abs(fresh) <= bound).all() and fresh.std() > 0.3 * bound if units.any() else True
    old = own[f"{name}.weight"][units]
    assert not units.any() or not np.isclose(old, fresh).any()
    own[f"{name}.weight"][units] = fresh
    own[f"{name}.bias"][units] = 0.0
    own[f"{reader}.weight"][:, outgoing] = 0.0
    own[f"{name}.weight!"][units] = own[f"{name}.bias!"][units] = 0.0
    own[f"{reader}.weight!"][:, outgoing] = 0.0


def follow(name: str, epochs: int, replace: Any, **settings: Any) -> int:
    """Walk with an oracle that is asked after every step which units of a layer are replaced; how many were."""
    steps, total = 0, 0
    seen: tuple[Array, Array] | None = None
    data = [x.double() for x, _ in batches()]
    for _, number, _, model, own in walk(name, epochs, **settings):
        if seen is not None:  # the step before is done
            steps += 1
            for layer in (0, 1):
                units = replace(layer, steps, seen[layer], own)
                total += int(units.sum())
                if layer == 0:
                    first = units
                else:
                    renewed(own, model, 0, first)
                    renewed(own, model, 1, units)
            assert_equal(model, own)
        seen = activations(own, data[number]) if number >= 0 else None
    return total


def test_continual_backprop() -> None:
    """Algorithm 1: u <- 0.8u + 0.2 mean|h| sum|w_out|; c <- c + 0.04 x mature; when c > 1 the least useful goes."""
    utility, age, due = np.zeros((2, 6)), np.zeros((2, 6)), np.zeros(2)

    def replace(layer: int, step: int, h: Array, own: dict[str, Array]) -> Array:
        weights = (
            np.abs(own["2.weight"]).sum((0, 2, 3))
            if layer == 0
            else np.abs(own["6.weight"]).sum(0).reshape(6, 4).sum(1)
        )
        utility[layer] = 0.8 * utility[layer] + 0.2 * h * weights
        age[layer] += 1
        mature = age[layer] > 4
        due[layer] += 0.04 * mature.sum()
        units = np.zeros(6, bool)
        if due[layer] > 1 and mature.any():
            due[layer] -= 1
            units[np.where(mature, utility[layer], np.inf).argmin()] = True
            utility[layer][units] = age[layer][units] = 0
        return units

    assert follow("ContinualBackprop", 5, replace, decay=0.8, replacement_rate=0.04, maturity=4) >= 4


def test_redo() -> None:
    """Definition 3.1, algorithm 1: every three steps, units with at most 0.7 of their layer's mean activation."""

    def replace(layer: int, step: int, h: Array, own: dict[str, Array]) -> Array:
        return h / h.mean() <= 0.7 if step % 3 == 0 else np.zeros(6, bool)

    assert follow("ReDo", 4, replace, threshold=0.7, every=3) >= 4


def test_layers_that_share_a_tensor_are_masked_once_or_not_at_all() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight, model[3].weight = model[0].weight, model[2].weight
    scheme = repr_ray.DSD(model, torch.optim.SGD(model.parameters(), 0.1), epochs=3)
    assert list(scheme.weights) == ["2"]
    for exclude, message in ((["22"], "exclude: the network has no layer 22"), (["0", "2"], "leaves no layer")):
        with pytest.raises(ValueError, match=message):
            repr_ray.DSD(model, torch.optim.SGD(model.parameters(), 0.1), epochs=3, exclude=exclude)


@pytest.mark.parametrize("batch_norm", ["keep", "reset"])
def test_batch_norms_of_later_layers_are_kept_or_start_again(batch_norm: str) -> None:
    """`stack` has batch norms 1 and 7; the second half of its layers starts anew."""
    model = stack()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("1.", "7.")):
                tensor.fill_(7)
    scheme = repr_ray.LaterLayerForgetting(
        model, torch.optim.SGD(model.parameters(), 0.1), epochs=4, every=1, batch_norm=batch_norm
    )
    before = copies(model)
    scheme.start_epoch(0)
    events = scheme.start_epoch(1)
    renewed = [event.layer for event in events]
    assert renewed and all((copies(model)[f"{name}.weight"] != before[f"{name}.weight"]).all() for name in renewed)
    assert (model[1].running_mean == 7).all() and (model[1].weight == 7).all()
    for tensor, value in ((model[7].weight, 1), (model[7].bias, 0), (model[7].running_mean, 0)):
        assert (tensor == (7 if batch_norm == "keep" else value)).all()


def test_activations_are_watched_in_the_steps_that_need_them() -> None:
    """Those after which ReDo replaces units, also when training resumes; all of them for continual backprop."""
    for name, needed in (("ReDo", [False, False, True]), ("ContinualBackprop", [True] * 3)):
        settings = {"every": 3} if name == "ReDo" else {}
        model, other = plain(), plain()
        scheme, resumed = (
            getattr(repr_ray, name)(one, torch.optim.SGD(one.parameters(), RATE), epochs=2, **settings)
            for one in (model, other)
        )
        scheme.start_epoch(0)
        for watched in needed * 2:
            resumed.load_state_dict(scheme.state_dict())
            assert scheme.watching == resumed.watching == watched
            model(batches()[0][0].double())
            assert scheme._seen.any() == watched
            scheme.after_step()
            assert not scheme._seen.any()


def test_units_of_batch_norms_and_adam_start_again() -> None:
    torch.manual_seed(0)
    model = stack()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scheme = repr_ray.ReDo(model, optimizer, epochs=2, every=4, threshold=1.0)
    scheme.start_epoch(0)
    for images, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        scheme.after_step()
    units = torch.tensor(scheme.end_epoch()[0].dropped, dtype=torch.bool)
    assert 0 < units.sum() < 8
    norm = model[1]
    for tensor, value in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert (tensor[units] == value).all() and not (tensor[~units] == value).any()
    for parameter, place in ((model[0].weight, units), (norm.weight, units), (model[3].weight, (slice(None), units))):
        for key in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[parameter][key]
            assert not state[place].any() and state.any()
        assert optimizer.state[parameter]["step"] == 4


def test_units_without_outgoing_weights_of_their_own_are_left_alone() -> None:
    from repr_ray.models.settings import ResNet

    model = ResNet(kind="resnet", depth=8).network(10, 3, 16)
    scheme = repr_ray.ContinualBackprop(model, torch.optim.SGD(model.parameters(), 0.1), epochs=2)
    assert {layer.name for layer in scheme.layers} == {f"blocks.{block}.conv1" for block in range(3)}
    assert "joined with another path" in scheme.left_out["blocks.0.conv2"]


@given(st.integers(2, 12), st.floats(0.01, 0.99))
def test_sparsity_is_what_was_asked_for(width: int, share: float) -> None:
    """Floor of the share, of every layer, and what is masked is never larger than what is left."""
    model = stack(width)
    scheme = repr_ray.DSD(model, torch.optim.SGD(model.parameters(), 0.1), epochs=3, sparsity=share)
    before = copies(model)
    for epoch in range(2):
        scheme.start_epoch(epoch)
    for name, mask in scheme.masks.items():
        weight = np.abs(before[f"{name}.weight"])
        assert mask.sum() == int(share * mask.numel() + 1e-9)
        assert weight[mask.numpy()].max(initial=0) <= weight[~mask.numpy()].min(initial=np.inf)
        assert not copies(model)[f"{name}.weight"][mask.numpy()].any()


def test_a_fresh_network_leaves_the_random_numbers_alone() -> None:
    model = stack()
    scheme = repr_ray.ShrinkPerturb(model, torch.optim.SGD(model.parameters(), 0.1), epochs=4, every=1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for epoch in range(3):
        scheme.start_epoch(epoch)
    assert torch.equal(torch.rand(1), expected)
