"""From scores to dropped filters."""

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from repr_ray.method.selection import excluded_layers, select
from repr_ray.method.settings import SCORE, Selection


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Tensor]:
    """Scores of one to four layers, with ties."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    values = st.integers(0, 5)
    return {
        f"conv{i}": torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64)
        for i, n in enumerate(sizes, 1)
    }


def names(dropped: dict[str, Tensor]) -> dict[str, set[int]]:
    return {name: set(mask.nonzero().flatten().tolist()) for name, mask in dropped.items()}


@given(networks(), st.floats(0.01, 0.6), st.floats(0.05, 0.95))
def test_global_selection_is_the_oracles(scores: dict[str, Tensor], ratio: float, cap: float) -> None:
    sizes = {name: len(s) for name, s in scores.items()}
    found = select(scores, ratio, "worst", Selection(max_per_layer=cap))
    assert names(found) == oracle.worst({n: s.numpy() for n, s in scores.items()}, ratio, sizes, cap)
    inverse = select(scores, ratio, "inverse", Selection(max_per_layer=cap))
    assert names(inverse) == oracle.worst({n: -s.numpy() for n, s in scores.items()}, ratio, sizes, cap)


@given(networks(), st.floats(0.01, 0.99), st.sampled_from(["worst", "inverse"]), st.sampled_from(["global", "layer"]))
def test_no_layer_is_ever_emptied(scores: dict[str, Tensor], ratio: float, order: str, scope: str) -> None:
    dropped = select(scores, ratio, order, Selection(scope=scope))
    for name, mask in dropped.items():
        assert mask.sum() <= min(0.9 * len(scores[name]) + 1e-9, len(scores[name]) - 1)
    again = select(scores, ratio, order, Selection(scope=scope))
    assert all(torch.equal(dropped[name], again[name]) for name in scores)


@given(networks(), st.floats(0.01, 0.8))
def test_per_layer_selection_takes_the_ratio_of_each(scores: dict[str, Tensor], ratio: float) -> None:
    dropped = select(scores, ratio, "worst", Selection(scope="layer"))
    for name, own in scores.items():
        expected = min(int(ratio * len(own) + 1e-9), int(0.9 * len(own) + 1e-9), len(own) - 1)
        assert dropped[name].sum() == expected
        if 0 < expected < len(own):
            assert own[dropped[name]].min() >= own[~dropped[name]].max()


def test_trap_1_a_global_ranking_of_random_weights_takes_the_first_layer() -> None:
    """28/0/0 over the layers of the 3x32 net, whatever the seed."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        score = SCORE.get("orthogonality")
        scores = {
            f"conv{i}": score(torch.randn(32, c, 3, 3, generator=generator), generator)
            for i, c in enumerate((3, 32, 32), 1)
        }
        assert [int(mask.sum()) for mask in select(scores, 0.3, "worst", Selection()).values()] == [28, 0, 0]
        without = select(scores, 0.3, "worst", Selection(exclude=("first",)))
        assert int(without["conv1"].sum()) == 0 and sum(int(m.sum()) for m in without.values()) == 28
        assert [int(m.sum()) for m in select(scores, 0.3, "worst", Selection(scope="layer")).values()] == [9, 9, 9]
        assert int(select(scores, 0.3, "worst", Selection(max_per_layer=0.5))["conv1"].sum()) == 16


def test_excluded_layers_must_exist_and_leave_something() -> None:
    assert excluded_layers(Selection(exclude=("first", "b")), ["a", "b", "c"]) == {"a", "b"}
    with pytest.raises(ValueError, match="no droppable layer is called d"):
        excluded_layers(Selection(exclude=("d",)), ["a", "b"])
    with pytest.raises(ValueError, match="no layer to drop from"):
        excluded_layers(Selection(exclude=("a", "b")), ["a", "b"])
