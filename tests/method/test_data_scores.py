"""Rankings measured on images: their definitions, that they leave no trace, and that test images stay unseen."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import batches, stack, train
from support import tiny
from torch import Tensor, nn

from repr_ray import RePr, distributed
from repr_ray.method.data_scores import score_by_data
from repr_ray.method.filters import map_filters
from repr_ray.method.masks import Masks
from repr_ray.method.settings import DATA_SCORES
from repr_ray.study.config import ConfigError
from repr_ray.training.loop import run_epoch
from repr_ray.training.setup import set_up
from repr_ray.training.step import Setup

IMAGES = torch.cat([images for images, _ in batches()])
LABELS = torch.cat([labels for _, labels in batches()])


def network() -> nn.Module:
    """Trained a little, so that statistics differ from their defaults, and in training mode."""
    torch.manual_seed(0)
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train(model, optimizer, RePr(model, optimizer, epochs=9, s1=4, s2=4), 0, 3)
    return model.train()


def scores(name: str, model: nn.Module, split: int = 8) -> dict[str, Tensor]:
    parts = list(zip(IMAGES.split(split), LABELS.split(split), strict=True))
    return score_by_data(name, model, map_filters(model).layers, lambda: parts, torch.Generator().manual_seed(0))


def feature_maps(model: nn.Module) -> dict[str, Tensor]:
    """Feature maps before the nonlinearity, recomputed module by module."""
    model, found, x = copy.deepcopy(model).eval(), {}, IMAGES
    for name, module in model.named_children():
        x = module(x.clone())
        if name in ("1", "3", "7"):
            found[{"1": "0", "3": "3", "7": "6"}[name]] = x
    return found


@pytest.mark.parametrize("name", DATA_SCORES)
def test_batches_are_pooled_and_nothing_changes(name: str) -> None:
    model = network()
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    model[4].eval()
    random = torch.get_rng_state()
    found = scores(name, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert [m.training for m in model] == [i != 4 for i in range(len(model))]
    assert not any(m._forward_hooks for m in model.modules())
    for layer in map_filters(model).layers:
        assert found[layer.name].shape == (8,) and found[layer.name].dtype == torch.float64
        assert found[layer.name].isfinite().all() and not found[layer.name].requires_grad
    if name != "hessian":  # its signs are drawn by batch
        for key, value in scores(name, model, split=13).items():
            torch.testing.assert_close(value, found[key], rtol=1e-5, atol=1e-8)


def test_activation_and_apoz() -> None:
    model = network()
    for name, z in feature_maps(model).items():
        torch.testing.assert_close(scores("activation", model)[name], -z.relu().double().mean((0, 2, 3)).detach())
        torch.testing.assert_close(scores("apoz", model)[name], (z <= 0).double().mean((0, 2, 3)))


def test_gradient() -> None:
    model = network()
    own = copy.deepcopy(model).eval()
    own.zero_grad()
    F.cross_entropy(own(IMAGES), LABELS).backward()
    for name, found in scores("gradient", model).items():
        expected = -own.get_submodule(name).weight.grad.double().abs().mean((1, 2, 3))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_taylor_is_activation_times_its_gradient() -> None:
    """On the last layer, where the activation itself can be got hold of."""
    model = network()
    own = copy.deepcopy(model).eval()
    a = own[:9](IMAGES).detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(own[9:](a), LABELS, reduction="sum"), a)
    expected = (a * grad).mean((2, 3)).abs().mean(0).double().detach()
    torch.testing.assert_close(scores("taylor", model)["6"], -expected / expected.norm(), rtol=1e-4, atol=1e-7)
    assert all(float(s.norm()) == pytest.approx(1) for s in scores("taylor", model).values())


def test_hessian_diagonal() -> None:
    """The estimate, averaged over many signs, against the Hessian itself, of a net small enough to have one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 25, 4))
    weight = model[0].weight.detach()

    def loss(w: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {"0.weight": w}, IMAGES), LABELS)

    full = torch.autograd.functional.hessian(loss, weight).reshape(12, 12)
    expected = -(full.diagonal().view_as(weight) * weight**2).flatten(1).sum(1) / 2
    layers = map_filters(model).layers
    many = [(IMAGES, LABELS)] * 400
    found = score_by_data("hessian", model, layers, lambda: many, torch.Generator().manual_seed(0))["0"]
    torch.testing.assert_close(found.float(), expected, rtol=0.15, atol=2e-4)


class Shift(nn.Module):
    """Gates each channel by itself and a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + self.bias.view(1, -1, 1, 1))


def with_biases_behind() -> nn.Module:
    """Filters whose biases are those of a depthwise convolution and of a module of one's own."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 2, bias=False), Shift(), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(72, 4)),
    )
    nn.init.uniform_(model[1].bias, 0.5, 1.0)
    nn.init.uniform_(model[3].bias, 0.5, 1.0)
    return model


@pytest.mark.parametrize("make", [network, with_biases_behind])
def test_the_oracle_drops_one_filter_at_a_time(make: Callable[[], nn.Module]) -> None:
    model = make()
    heard: list[tuple[int, int]] = []
    layers = map_filters(model).layers
    parts = [(IMAGES, LABELS)]
    found = score_by_data("oracle", model, layers, lambda: parts, torch.Generator(), lambda *n: heard.append(n))
    model.eval()

    def accuracy(network: nn.Module) -> float:
        return float((network(IMAGES).argmax(1) == LABELS).double().mean())

    for layer in layers:
        for f in range(layer.filters):
            cut = copy.deepcopy(model)
            masks = Masks(cut, map_filters(cut, IMAGES))
            masks.set({layer.name: torch.arange(8) == f})
            masks.apply()
            assert float(found[layer.name][f]) == pytest.approx(accuracy(cut) - accuracy(model), abs=1e-12)
    assert heard[-1] == (24, 24) and all(done <= total == 24 for done, total in heard)


@pytest.mark.parametrize("name", DATA_SCORES)
def test_a_ranking_without_data_is_refused_before_training(name: str) -> None:
    model = stack()
    scheme = RePr(model, torch.optim.SGD(model.parameters(), 0.1), epochs=9, s1=2, s2=2, ranking={"score": name})
    with pytest.raises(ValueError, match=f"ranking.score={name} is measured on images"):
        scheme.start_epoch(0)


def test_no_images_at_all() -> None:
    with pytest.raises(ValueError, match="gave no images"):
        score_by_data("apoz", stack(), map_filters(stack()).layers, list, torch.Generator())


def test_the_oracle_needs_held_out_images() -> None:
    with pytest.raises(ConfigError, match=r"schemes\.repr: ranking: oracle is measured on validation images"):
        prepare("oracle", {"validation_images": 0})


def prepare(score: str, data: dict[str, int] | None = None, **ranking: object) -> Setup:
    schemes = {"repr": {"kind": "repr", "s1": 1, "s2": 1, "ranking": {"score": score, **ranking}}}
    *_, trial = tiny(schemes=schemes, data=data or {}, train={"epochs": 3, "precision": "fp32"})
    return set_up(trial, torch.device("cpu"))


class Forbidden:
    """In place of the test set while filters are ranked."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError("test images were asked for")


@pytest.mark.parametrize("name", DATA_SCORES)
def test_rankings_never_see_test_images(name: str) -> None:
    """Nor any other images than those of the split they are to use."""
    setup = prepare(name)
    allowed = setup.validation if name == "oracle" else setup.train
    pool = {tuple(image.flatten().tolist()) for batch in allowed.in_order(500) for image in batch.images}
    seen: list[Tensor] = []
    setup.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    test, setup.test = setup.test, Forbidden()  # type: ignore[assignment]
    setup.scheme.start_epoch(0, setup.ranking)
    assert setup.scheme.start_epoch(1, setup.ranking)[0].scores is not None
    assert seen and all(tuple(image.flatten().tolist()) in pool for batch in seen for image in batch)
    setup.test = test


@pytest.mark.parametrize("name, count", [("apoz", 64), ("oracle", 100)])
def test_how_many_images_are_used(name: str, count: int) -> None:
    """A quarter of the training images, all held-out ones, or the cap; spread over the split."""

    def sizes(setup: Setup) -> int:
        assert setup.ranking is not None
        return sum(len(labels) for _, labels in setup.ranking())

    assert sizes(prepare(name)) == count
    capped = prepare(name, images=10)
    assert sizes(capped) == 10
    assert sizes(prepare(name, images=10_000, split="train")) == 256
    assert prepare("random").ranking is None


@pytest.mark.parametrize("name", ["taylor", "oracle"])
def test_a_trial_ranks_by_data(name: str) -> None:
    setup = prepare(name)
    heard: list[list[tuple[int, int]]] = [[], [], []]
    events: dict[int, list[Any]] = {epoch: [] for epoch in range(3)}
    rows = [
        run_epoch(setup, epoch, lambda n, found: events[n].extend(found), lambda *n: heard[epoch].append(n))  # noqa: B023
        for epoch in range(3)
    ]
    assert rows[1]["filters_dropped"] == 4 and len(events[1]) == 2
    assert bool(heard[1]) == (name == "oracle")


def test_checksums_do_not_care_how_filters_are_ranked() -> None:
    """Measuring must not change training: rankings that see other images share their weights."""
    first, second = prepare("apoz", images=8), prepare("taylor", images=64)
    for setup in (first, second):
        run_epoch(setup, 0)
    assert distributed.checksum(first.model) == distributed.checksum(second.model)
