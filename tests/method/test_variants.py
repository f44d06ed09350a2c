"""Every variant of score, selection and re-initialisation against an oracle of its own."""

import math

import numpy as np
import oracle
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import stack, tensors, train
from torch import Tensor

from repr_ray import RePr
from repr_ray.method.reinit import redraw
from repr_ray.method.scores import chance_overlap, orthogonality, weight_score
from repr_ray.method.selection import check_ratio, excluded_layers, select
from repr_ray.method.settings import DIRECTION, Ranking, Reinit, Selection

GENERATOR = torch.Generator()
PROMISING = ("null_space", "null_space_basis", "relaxed")


def kernel(seed: int, *shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(seed: int = 0, filters: int = 12, d: int = 40, dropped: int = 4) -> tuple[Tensor, Tensor]:
    """A J x d kernel and a mask that drops every third filter."""
    mask = torch.zeros(filters, dtype=torch.bool)
    mask[: 3 * dropped : 3] = True
    return kernel(seed, filters, d), mask


MEANS = {
    "mean_abs": lambda products: np.abs(products).mean(1),
    "abs_mean": lambda products: np.abs(products.mean(1)),
    "signed_mean": lambda products: products.mean(1),
}


@given(st.integers(0, 999), st.integers(2, 12), st.sampled_from(["row", "frobenius"]), st.sampled_from(list(MEANS)))
def test_variants_of_orthogonality(seed: int, filters: int, normalise: str, aggregate: str) -> None:
    weight = kernel(seed, filters, 3, 3, 3)
    rows = weight.double().numpy().reshape(filters, -1)
    rows = rows / (np.linalg.norm(rows, axis=1, keepdims=True) if normalise == "row" else np.linalg.norm(rows))
    products = rows @ rows.T
    np.fill_diagonal(products, 0)
    ranking = Ranking(normalise=normalise, aggregate=aggregate)
    np.testing.assert_allclose(weight_score(ranking)(weight, GENERATOR), MEANS[aggregate](products), atol=1e-14)


def test_the_default_score_is_the_papers() -> None:
    weight = kernel(0, 8, 3, 3, 3)
    assert torch.equal(weight_score(Ranking())(weight, GENERATOR), orthogonality(weight, GENERATOR))


def test_trap_1_a_score_divided_by_chance_ranks_layers_fairly() -> None:
    """28/0/0 over the layers of the random 3x32 net becomes about a third each."""
    totals = np.zeros(3)
    for seed in range(10):
        weights = {f"conv{i}": kernel(10 * seed + i, 32, c, 3, 3) for i, c in enumerate((3, 32, 32))}
        plain = {n: weight_score(Ranking())(w, GENERATOR) for n, w in weights.items()}
        assert [int(m.sum()) for m in select(plain, 0.3, "worst", Selection()).values()] == [28, 0, 0]
        fair = {n: weight_score(Ranking(chance_normalised=True))(w, GENERATOR) for n, w in weights.items()}
        totals += [int(m.sum()) for m in select(fair, 0.3, "worst", Selection()).values()]
        assert all(float(s.mean()) == pytest.approx(1, abs=0.15) for s in fair.values())
    assert totals.min() > 0.2 * totals.sum() and totals.max() < 0.5 * totals.sum()


@pytest.mark.parametrize("d", [1, 2, 9, 27, 288, 4608])
def test_chance_overlap(d: int) -> None:
    assert chance_overlap(d) == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.4 / d + 1e-12 if d > 1 else 0.3)
    assert d > 1 or chance_overlap(d) == pytest.approx(1)
    assert d != 2 or chance_overlap(d) == pytest.approx(2 / math.pi)


@given(st.integers(0, 999), st.floats(0.05, 0.7), st.sampled_from(["worst", "inverse"]))
def test_percentile_count_is_numpys(seed: int, ratio: float, order: str) -> None:
    scores = {name: kernel(seed + i, 16).double() for i, name in enumerate("ab")}
    flat = np.concatenate([s.numpy() for s in scores.values()])
    flat = flat if order == "worst" else -flat
    expected = flat > np.percentile(flat, 100 * (1 - ratio))
    found = select(scores, ratio, order, Selection(count="percentile", max_per_layer=1.0))
    if all(int(m.sum()) < 16 for m in np.split(expected, 2)):
        assert torch.cat(list(found.values())).tolist() == expected.tolist()


def test_only_named_layers() -> None:
    scores = {name: kernel(i, 10) for i, name in enumerate("abc")}
    found = select(scores, 0.1, "worst", Selection(layers=("b",)))
    assert [int(m.sum()) for m in found.values()] == [0, 3, 0]
    with pytest.raises(
        ValueError, match=r"selection\.layers: no droppable layer is called convl; did you mean conv1"
    ):
        excluded_layers(Selection(layers=("convl",)), ["conv1", "linear"])
    with pytest.raises(ValueError, match="b is never dropped from: it is grouped"):
        excluded_layers(Selection(layers=("b",)), ["a"], {"b": "it is grouped"})


@given(st.integers(0, 99), st.floats(0.05, 0.7), st.sampled_from(["floor", "percentile"]))
def test_the_ratio_of_filters_that_may_be_dropped(seed: int, ratio: float, count: str) -> None:
    """It is what leaving the other layers out of the network would drop."""
    scores = {name: kernel(seed + i, 8 + i).double() for i, name in enumerate("abc")}
    settings = Selection(exclude=("first",), count=count, prune_ratio_of="droppable", max_per_layer=1.0)
    found = select(scores, ratio, "worst", settings)
    within = {name: scores[name] for name in "bc"}
    alone = select(within, ratio, "worst", Selection(count=count, max_per_layer=1.0))
    assert not found["a"].any() and all(torch.equal(found[name], alone[name]) for name in "bc")
    if count == "floor":
        assert sum(int(m.sum()) for m in found.values()) == int(ratio * 19 + 1e-9)
        of_all = select(scores, ratio, "worst", settings.model_copy(update={"prune_ratio_of": "all"}))
        assert sum(int(m.sum()) for m in of_all.values()) == min(int(ratio * 27 + 1e-9), 17)


@pytest.mark.parametrize(
    "selection, ratio, fits",
    [
        ({"exclude": ("a",), "prune_ratio_of": "droppable"}, 0.5, True),
        ({"exclude": ("a",), "prune_ratio_of": "droppable"}, 0.95, False),
        ({"scope": "layer", "exclude": ("a",), "prune_ratio_of": "droppable"}, 0.95, False),
        ({}, 0.95, False),
        ({}, 0.8, True),
        ({"max_per_layer": 1.0}, 0.96, True),
        ({"max_per_layer": 1.0}, 0.99, False),
        ({"exclude": ("a",)}, 0.5, False),
        ({"scope": "layer", "max_per_layer": 0.5}, 0.6, False),
        ({"scope": "layer", "exclude": ("a",)}, 0.6, True),
    ],
)
def test_a_ratio_that_would_empty_the_network_is_refused(selection: dict, ratio: float, fits: bool) -> None:
    sizes = {"a": 32, "b": 30}
    if fits:
        check_ratio(sizes, ratio, Selection(**selection))
    else:
        with pytest.raises(
            ValueError, match=r"prune_ratio=0\.\d+ would drop \d+ of the \d+ filters of .* allows \d+"
        ):
            check_ratio(sizes, ratio, Selection(**selection))


@pytest.mark.parametrize(
    "ranking",
    [
        {"score": "random", "normalise": "frobenius"},
        {"score": "magnitude_l1", "chance_normalised": True},
        {"chance_normalised": True, "aggregate": "abs_mean"},
        {"images": 100},
    ],
)
def test_rankings_that_make_no_sense_are_refused(ranking: dict) -> None:
    with pytest.raises(ValueError, match=r"normalise|belong to scores that need data"):
        Ranking(**ranking)


@pytest.mark.parametrize("direction", PROMISING)
@pytest.mark.parametrize("scale", ["drawn", "clip", "unit", "survivors"])
def test_directions_that_promise_orthogonality_keep_it_at_any_scale(direction: str, scale: str) -> None:
    weight, dropped = layer()
    settings = Reinit(direction=direction, scale=scale, gain=0.5)
    drawn = redraw(weight, dropped, settings, torch.Generator().manual_seed(0))
    new, old = drawn.kernels.numpy(), weight[dropped].numpy()
    assert drawn.last_resort == 0 and drawn.relaxed == (4 if direction == "relaxed" else 0)
    assert max(abs(oracle.largest_cos(new[i : i + 1], old[i : i + 1])) for i in range(4)) < 1e-5
    if direction != "relaxed":
        assert oracle.largest_cos(new, weight.numpy()) < 1e-5
    norms = np.linalg.norm(new, axis=1)
    if scale == "clip":
        assert np.abs(new).max() <= 0.5 * 40**-0.5 + 1e-12
    elif scale == "survivors":
        np.testing.assert_allclose(norms, 0.5 * float(weight[~dropped].double().norm(dim=1).median()))
    else:
        np.testing.assert_allclose(norms, 0.5)


def test_siahuat0727s_basis_vectors() -> None:
    """The trailing columns of Q of the pivoted QR, one each, clipped entry by entry."""
    weight, dropped = layer()
    rows = torch.cat([weight[dropped], weight[~dropped]]).double().numpy()
    expected = scipy.linalg.qr(rows.T, pivoting=True)[0][:, 12:16].T
    drawn = redraw(weight, dropped, Reinit(direction="null_space_basis", scale="clip_entrywise"), GENERATOR)
    np.testing.assert_allclose(drawn.kernels, expected.clip(-(40**-0.5), 40**-0.5), atol=1e-12)
    whole = redraw(weight, dropped, Reinit(direction="null_space_basis", scale="drawn"), GENERATOR).kernels.numpy()
    complement = oracle.complement(rows)
    np.testing.assert_allclose(whole @ complement, whole, atol=1e-10)
    np.testing.assert_allclose(whole @ whole.T, np.eye(4), atol=1e-10)
    assert drawn.largest_cos is not None and drawn.largest_cos > 1e-3  # what entry by entry costs, and it is reported


def test_a_basis_of_the_survivors_alone() -> None:
    """The first siahuat0727 code: the null space of the current layer, in which dropped filters are rows of zeros."""
    weight, dropped = layer(d=10)  # 8 survivors in 10 dimensions
    current = torch.where(dropped[:, None], 0.0, weight.double()).numpy()
    expected = scipy.linalg.qr(current.T, pivoting=True)[0][:, 8:].T
    settings = Reinit(direction="survivors_basis", scale="clip_entrywise")
    drawn = redraw(weight, dropped, settings, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn.kernels[:2], expected.clip(-(10**-0.5), 10**-0.5), atol=1e-12)
    assert drawn.last_resort == 2 and drawn.kernels[2:].abs().max() <= 10**-0.5
    inside = redraw(weight, dropped, Reinit(direction="survivors_basis"), torch.Generator().manual_seed(0))
    assert oracle.largest_cos(inside.kernels[:2].numpy(), weight[~dropped].numpy()) < 1e-5
    assert oracle.largest_cos(inside.kernels[:2].numpy(), weight[dropped].numpy()) > 0.1


@pytest.mark.parametrize("last_resort", ["default", "zero"])
def test_a_basis_that_runs_out(last_resort: str) -> None:
    """14 filters of 15 dimensions leave one basis vector for four filters."""
    weight, dropped = layer(filters=14, d=15)
    settings = Reinit(direction="null_space_basis", last_resort=last_resort)
    drawn = redraw(weight, dropped, settings, torch.Generator().manual_seed(0))
    assert drawn.last_resort == 3
    assert oracle.largest_cos(drawn.kernels[:1].numpy(), weight.numpy()) < 1e-5
    rest = drawn.kernels[1:]
    assert not rest.any() if last_resort == "zero" else 0 < rest.abs().max() <= 15**-0.5
    full, dropped = layer(filters=32, d=27, dropped=9)
    assert redraw(full, dropped, settings, torch.Generator().manual_seed(0)).last_resort == 9


def test_the_authors_column_of_q() -> None:
    """Gram-Schmidt by hand: orthogonal to the filters before it alone, and near the old value."""
    weight, dropped = layer(filters=32, d=75, dropped=9)
    settings = Reinit(direction="qr_column", scale="unit", gain=1.5)
    drawn = redraw(weight, dropped, settings, GENERATOR)
    columns: list[np.ndarray] = []
    for row in weight.double().numpy():
        column = row - sum((c * (c @ row) for c in columns), np.zeros(75))
        columns.append(column / np.linalg.norm(column))
    np.testing.assert_allclose(drawn.kernels, 1.5 * np.stack(columns)[dropped.numpy()], atol=1e-12)
    own = torch.nn.functional.cosine_similarity(drawn.kernels, weight[dropped].double()).abs()
    assert own.max() > 0.8 and drawn.largest_cos == pytest.approx(float(own.max()), abs=0.1)


def test_the_authors_column_with_more_filters_than_dimensions() -> None:
    weight, dropped = layer(filters=32, d=27, dropped=9)
    drawn = redraw(weight, dropped, Reinit(direction="qr_column", scale="drawn"), GENERATOR)
    assert drawn.kernels.shape == (9, 27) and drawn.kernels.isfinite().all()


@pytest.mark.parametrize("scale", ["clip", "unit", "survivors"])
def test_old_and_zero_come_back_as_they_are(scale: str) -> None:
    weight, dropped = layer()
    old = redraw(weight, dropped, Reinit(direction="old", scale=scale), GENERATOR)
    assert torch.equal(old.kernels, weight[dropped].double()) and old.largest_cos == pytest.approx(1)
    zero = redraw(weight, dropped, Reinit(direction="zero", scale=scale), GENERATOR)
    assert not zero.kernels.any() and zero.largest_cos is None


@pytest.mark.parametrize("direction", DIRECTION.builtin)
def test_every_direction_trains_through_cycles(direction: str) -> None:
    torch.manual_seed(0)
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    settings = {"selection": {"scope": "layer"}, "reinit": {"direction": direction}}
    scheme = RePr(model, optimizer, epochs=7, s1=1, s2=1, **settings)
    events = train(model, optimizer, scheme, 0, 7)
    assert sum(event.event == "reinit" for event in events) == 9
    assert all(tensor.isfinite().all() for tensor in tensors(model).values())


def test_where_the_kernel_alone_is_masked_the_bias_is_trained_and_is_the_output() -> None:
    torch.manual_seed(0)
    model = stack()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    keep = {"bias": "keep", "norm_state": "keep"}
    cycle = {"epochs": 5, "s1": 2, "s2": 2, "selection": {"scope": "layer"}}
    scheme = RePr(model, optimizer, **cycle, masked="kernel", reinit=keep)
    train(model, optimizer, scheme, 0, 2)
    before = {name: value.detach().clone() for name, value in tensors(model).items()}
    train(model, optimizer, scheme, 2, 4)
    mask = scheme.dropped["3"].clone()
    assert mask.any() and not model[3].weight[mask].any()
    moved = model[3].bias.detach()[mask].clone()
    assert not torch.equal(moved, before["3.bias"][mask])
    emitted = model[3](torch.randn(1, 8, 3, 3)).detach()[0, mask]
    assert torch.equal(emitted, moved.view(-1, 1, 1).expand_as(emitted))
    scheme.start_epoch(4)
    assert torch.equal(model[3].bias.detach()[mask], moved)  # as it trained, not as it was
    assert model[3].weight[mask].any()
