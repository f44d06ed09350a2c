"""New kernels: orthogonal to what they must be, in the box, reproducible."""

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repr_ray.method import directions
from repr_ray.method.directions import default_init
from repr_ray.method.reinit import TOLERANCE, Redrawn, redraw
from repr_ray.method.settings import Reinit

FLOAT32 = float(torch.finfo(torch.float32).eps) / 4
"""Half the spacing of float32 weights just below a power of two, relative to them."""


def both(old: Tensor, survivors: Tensor, reinit: Reinit, generator: torch.Generator) -> Redrawn:
    """Redraw a layer whose first filters were dropped."""
    dropped = torch.arange(len(old) + len(survivors)) < len(old)
    return redraw(torch.cat([old, survivors]), dropped, reinit, generator)


def rows(seed: int, count: int, d: int) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) * 0.1


@given(
    st.integers(0, 9999),
    st.integers(1, 8),
    st.integers(1, 10),
    st.integers(0, 20),
    st.sampled_from(["drawn", "clip"]),
)
def test_new_filters_avoid_old_and_survivors(seed: int, k: int, m: int, room: int, scale: str) -> None:
    d = 2 * k + m + room
    old, survivors = rows(seed, k, d), rows(seed + 1, m, d)
    drawn = both(old, survivors, Reinit(scale=scale), torch.Generator().manual_seed(seed))
    avoided = torch.cat([old, survivors]).double().numpy()
    new = drawn.kernels.numpy()
    assert drawn.kernels.dtype == torch.float64 and drawn.relaxed == drawn.last_resort == 0
    assert oracle.largest_cos(new, avoided) <= drawn.largest_cos + 1e-12 <= TOLERANCE
    np.testing.assert_allclose(new @ oracle.complement(avoided), new, atol=1e-9)  # inside the null space
    assert np.linalg.matrix_rank(new) == k
    if scale == "clip":
        assert np.abs(new).max() <= d**-0.5 + 1e-12
    else:
        np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1)
    stored = drawn.kernels.float().double().numpy()  # what the network holds
    assert oracle.largest_cos(stored, avoided) <= TOLERANCE


@settings(max_examples=30)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(1, 30), st.integers(2, 27))
def test_the_relaxed_rule_avoids_old_value_and_nearest(seed: int, k: int, m: int, d: int) -> None:
    """Trap 6: no null space once old and survivors span (nearly) everything."""
    old, survivors = rows(seed, k, d), rows(seed + 1, m, d)
    drawn = both(old, survivors, Reinit(), torch.Generator().manual_seed(seed))
    if k + m + k <= d:
        assert drawn.relaxed == 0
        return
    assert drawn.relaxed == k and drawn.largest_cos is not None and drawn.largest_cos <= TOLERANCE
    everyone = torch.cat([old, survivors]).double().numpy()
    unit = everyone / np.linalg.norm(everyone, axis=1, keepdims=True)
    new = drawn.kernels.numpy()
    for f in range(k):
        cos = np.abs(unit @ unit[f])
        cos[f] = 2
        nearest = np.argsort(-cos, kind="stable")[: min(d // 2, k + m)]
        assert nearest[0] == f
        assert oracle.largest_cos(new[f : f + 1], everyone[nearest]) <= TOLERANCE


def test_the_first_layer_of_the_vanilla_net() -> None:
    """28 of 32 filters in 27 dimensions: no null space, and still no two new filters alike."""
    drawn = both(rows(0, 28, 27), rows(1, 4, 27), Reinit(), torch.Generator().manual_seed(2))
    assert drawn.relaxed == 28
    cos = np.corrcoef(drawn.kernels.numpy())
    assert np.abs(cos - np.eye(28)).max() < 0.95


@pytest.mark.parametrize("spread", [1, 3])
def test_filters_that_all_avoid_the_same_are_drawn_at_once(spread: int) -> None:
    """Up to d/2 filters: as one by one, with a basis of its own for each."""
    old, survivors = rows(0, 9, 40), rows(1, 11, 40) * spread
    drawn = both(old, survivors, Reinit(direction="relaxed"), torch.Generator().manual_seed(2))
    noise = torch.randn(9, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = noise.numpy() @ oracle.complement(torch.cat([old, survivors]).numpy())
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    projector, bound = oracle.complement(torch.cat([old, survivors]).numpy()), 40**-0.5
    for _ in range(50):
        alone = alone.clip(-bound, bound) @ projector
    alone *= np.minimum(1, bound / np.abs(alone).max(axis=1, keepdims=True))
    np.testing.assert_allclose(drawn.kernels, alone, atol=1e-6)


@pytest.mark.parametrize(("scale", "spread"), [(1.0, 0.0), (1.0, 1e-3), (1.0, 1e-9), (1e-12, 0.3)])
def test_bases_of_their_own_are_those_of_exact_projections(scale: float, spread: float) -> None:
    """More filters than half the dimensions, some nearly or wholly dependent: Cholesky factors, or a QR instead."""
    old, survivors = rows(0, 6, 16), rows(1, 14, 16)
    survivors[3:9] = old + spread * rows(2, 6, 16)
    everyone = scale * torch.cat([old, survivors]).double().numpy()
    drawn = both(
        *torch.from_numpy(everyone).split([6, 14]), Reinit(direction="relaxed"), torch.Generator().manual_seed(2)
    )
    noise = torch.randn(6, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64).numpy()
    unit = everyone / np.linalg.norm(everyone, axis=1, keepdims=True)
    cos = np.abs(unit[:6] @ unit.T) + np.eye(6, 20)
    assert drawn.relaxed == 6 and drawn.largest_cos <= TOLERANCE
    for f in range(6 if spread > 1e-6 else 0):  # rows (nearly) equal have no one span of eight
        projector = oracle.complement(unit[np.argsort(-cos[f], kind="stable")[:8]])
        alone = noise[f] @ projector
        alone /= np.linalg.norm(alone)
        for _ in range(50):
            alone = (alone.clip(-0.25, 0.25)) @ projector
        alone *= min(1, 0.25 / np.abs(alone).max())
        np.testing.assert_allclose(drawn.kernels[f], alone, atol=FLOAT32 * 0.25)


@pytest.mark.parametrize("shared", [True, False])
def test_small_excesses_are_projected_as_exactly_as_weights_are_stored(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """In float32, until nothing more shows: half a spacing of float32 weights from fifty projections in float64."""
    old, survivors = rows(0, 20, 96), rows(1, 20 if shared else 70, 96)
    draws = []
    for small, rounding in ((0.0, 1e-15), (directions.SMALL, directions.ROUNDING)):
        monkeypatch.setattr(directions, "SMALL", small)
        monkeypatch.setattr(directions, "ROUNDING", rounding)
        draws.append(both(old, survivors, Reinit(direction="relaxed"), torch.Generator().manual_seed(2)))
    exact, drawn = draws
    assert not torch.equal(exact.kernels, drawn.kernels)
    torch.testing.assert_close(drawn.kernels, exact.kernels, rtol=0, atol=FLOAT32 * 96**-0.5)
    assert drawn.largest_cos < FLOAT32


@settings(max_examples=30)
@given(st.integers(0, 9999), st.integers(1, 12), st.integers(0, 30), st.integers(2, 40), st.integers(0, 6))
def test_no_room_is_found_without_a_rank(seed: int, k: int, m: int, d: int, copies: int) -> None:
    """Independent rows are more than there is room for; with rows that depend on others the rank says so."""
    old, survivors = rows(seed, k, d), rows(seed + 1, m, d)
    survivors[:copies] = old[:1]
    drawn = both(old, survivors, Reinit(), torch.Generator().manual_seed(seed))
    rank = np.linalg.matrix_rank(torch.cat([old, survivors]).double().numpy())
    assert drawn.relaxed == (k if d - rank < k else 0)


def test_one_dimension_leaves_the_default_as_last_resort() -> None:
    drawn = both(rows(0, 2, 1), rows(1, 3, 1), Reinit(), torch.Generator().manual_seed(0))
    assert drawn.last_resort == 2 and drawn.relaxed == 0 and drawn.kernels.abs().max() <= 1


@pytest.mark.parametrize("broken", ["zero", "equal"])
def test_degenerate_rows_do_no_harm(broken: str) -> None:
    old, survivors = rows(0, 3, 27), rows(1, 5, 27)
    survivors[1] = 0 if broken == "zero" else old[0]
    drawn = both(old, survivors, Reinit(), torch.Generator().manual_seed(0))
    assert drawn.kernels.isfinite().all() and drawn.largest_cos <= TOLERANCE
    zeros = both(torch.zeros(2, 9), torch.zeros(2, 9), Reinit(), torch.Generator().manual_seed(0))
    assert zeros.kernels.isfinite().all()


def test_default_init_is_pytorchs() -> None:
    draws = default_init((500, 27), 27, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 500, 3)
    assert draws.abs().max() <= 27**-0.5
    assert float(draws.std()) == pytest.approx(float(conv.weight.detach().std()), rel=0.02)
    drawn = both(rows(0, 3, 27), rows(1, 5, 27), Reinit(direction="default"), torch.Generator().manual_seed(0))
    assert torch.equal(drawn.kernels, draws[:3])


def test_the_same_generator_gives_the_same_filters() -> None:
    twice = [both(rows(0, 3, 27), rows(1, 5, 27), Reinit(), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(twice[0].kernels, twice[1].kernels)
