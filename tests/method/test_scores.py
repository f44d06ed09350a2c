"""Scores of weights: properties, the oracle, and the trap of their dimension."""

import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from repr_ray.method.scores import cosines, overlap
from repr_ray.method.settings import SCORE, WEIGHT_SCORES

GENERATOR = torch.Generator()


def kernel(seed: int, filters: int, channels: int = 3, size: int = 3) -> Tensor:
    return torch.randn(filters, channels, size, size, generator=torch.Generator().manual_seed(seed))


kernels = st.builds(kernel, st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 4), st.sampled_from([1, 3]))


@given(kernels)
def test_orthogonality_is_the_oracles(weight: Tensor) -> None:
    scores = SCORE.get("orthogonality")(weight, GENERATOR)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, oracle.orthogonality(weight.numpy()), atol=1e-14)


@given(kernels, st.data())
def test_orthogonality_ignores_scale_sign_and_order(weight: Tensor, data: st.DataObject) -> None:
    score = SCORE.get("orthogonality")
    before = score(weight, GENERATOR)
    factors = data.draw(
        st.lists(st.sampled_from([-3.0, -0.5, 0.25, 4.0]), min_size=len(weight), max_size=len(weight))
    )
    scaled = weight * torch.tensor(factors).view(-1, 1, 1, 1)
    torch.testing.assert_close(score(scaled, GENERATOR), before, rtol=0, atol=1e-7)
    order = torch.tensor(data.draw(st.permutations(range(len(weight)))))
    torch.testing.assert_close(score(weight[order], GENERATOR), before[order], rtol=0, atol=1e-12)
    assert (before >= 0).all() and (before <= (len(weight) - 1) / len(weight) + 1e-12).all()


def test_equal_filters_overlap_most_and_orthogonal_ones_not_at_all() -> None:
    score = SCORE.get("orthogonality")
    assert score(torch.eye(9).view(9, 1, 3, 3), GENERATOR).abs().max() < 1e-15
    torch.testing.assert_close(score(torch.ones(4, 1, 3, 3), GENERATOR), torch.full((4,), 0.75, dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(WEIGHT_SCORES))
def test_a_filter_of_zeros_has_a_finite_score(name: str) -> None:
    weight = kernel(0, 6)
    weight[2] = 0
    assert SCORE.get(name)(weight, torch.Generator()).isfinite().all()
    assert SCORE.get(name)(torch.zeros(3, 1, 3, 3), torch.Generator()).isfinite().all()
    assert cosines(weight)[2].abs().max() == 0


@given(kernels)
def test_magnitudes_drop_the_weakest_first(weight: Tensor) -> None:
    flat = weight.double().flatten(1).numpy()
    np.testing.assert_allclose(SCORE.get("magnitude_l1")(weight, GENERATOR), -np.abs(flat).sum(1))
    np.testing.assert_allclose(SCORE.get("magnitude_l2")(weight, GENERATOR), -np.linalg.norm(flat, axis=1))


@given(kernels)
def test_overlap_is_the_mean_over_pairs(weight: Tensor) -> None:
    mean = oracle.orthogonality(weight.numpy()).sum() / max(len(weight) - 1, 1)
    assert overlap(weight) == pytest.approx(mean, abs=1e-12)


def test_overlap_leaves_zero_filters_out() -> None:
    """Filters that are dropped do not make the others more orthogonal."""
    weight = kernel(0, 6)
    survivors = overlap(weight[2:])
    weight[:2] = 0
    assert overlap(weight) == pytest.approx(survivors, abs=1e-12) and survivors > 0
    assert overlap(weight[:3]) == 0


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_chance_overlap_falls_with_the_dimension(seed: int) -> None:
    """Trap 1: sqrt(2 / (pi d)), 0.154 for a 3x3x3 layer and 0.047 for 3x3x32."""
    for channels, expected in ((3, 0.154), (32, 0.047)):
        found = overlap(kernel(seed, 200, channels))
        assert found == pytest.approx(expected, rel=0.05)
        assert found == pytest.approx(math.sqrt(2 / (math.pi * 9 * channels)), rel=0.05)


def test_random_follows_its_generator() -> None:
    draw = [SCORE.get("random")(kernel(0, 8), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
