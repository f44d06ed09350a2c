"""Scores of filters from their weights, one function each. The larger a score, the sooner the filter is dropped.

To add a score, write a function here and add its name to `SCORE` in settings.py; `score: my_module:peak` is a
plug-in.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from repr_ray.method.settings import SCORE, Ranking

WeightScore = Callable[[Tensor, torch.Generator], Tensor]
"""From a kernel (J x c x k x k) to scores (J), float64."""


def cosines(weight: Tensor) -> Tensor:
    """Cosines between all pairs of filters: J x ... -> J x J, float64, with zeros on the diagonal.

    An all-zero filter has no direction; its cosines are 0, not 0/0.
    """
    unit = unit_rows(weight.detach().double().flatten(1))
    return (unit @ unit.T).fill_diagonal_(0.0)


def unit_rows(rows: Tensor) -> Tensor:
    """Each row scaled to unit length; rows of zeros stay."""
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where(norms > 0, rows / norms, 0.0)


def overlap(weight: Tensor) -> float:
    """Mean |cos| over all pairs of different filters of a layer that are not zero, in [0, 1]; 0 without a pair.

    Filters that are dropped have no direction: with them the mean would fall by their share alone.
    """
    filters = len(weight) - zero_filters(weight)
    pairs = filters * (filters - 1)
    return float(cosines(weight).abs().sum()) / pairs if pairs else 0.0


def zero_filters(weight: Tensor) -> int:
    """The number of filters of a layer with an all-zero kernel; such a filter outputs a constant."""
    return int((weight.detach().flatten(1) == 0).all(1).sum())


def orthogonality(
    weight: Tensor,
    generator: torch.Generator,
    normalise: str = "row",
    aggregate: str = "mean_abs",
    chance_normalised: bool = False,
) -> Tensor:
    """Inter-filter orthogonality, arXiv 1811.07275, eqs. 1-2: O_f = sum_g |W^W^T - I|_fg / J, rows scaled to 1.

    The author's code (iamaaditya/repr-ortho) divides the whole layer by its norm instead (`normalise: frobenius`)
    and takes the absolute value after the mean (`aggregate: abs_mean`). The first code of siahuat0727/RePr keeps the
    sign (`aggregate: signed_mean`): a filter that opposes others scores low. `chance_normalised` divides by the
    expected score of random filters of this shape, so that layers of different fan-in can be ranked together.
    """
    products = cosines(weight) if normalise == "row" else _products(weight)
    total = (products.abs() if aggregate == "mean_abs" else products).sum(1)
    scores = (total.abs() if aggregate == "abs_mean" else total) / len(weight)
    if chance_normalised and len(weight) > 1:
        scores = scores / (chance_overlap(weight[0].numel()) * (len(weight) - 1) / len(weight))
    return scores


def chance_overlap(d: int) -> float:
    """The expected |cos| of two random directions in d dimensions, about sqrt(2 / (pi d))."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def _products(weight: Tensor) -> Tensor:
    """Inner products between all pairs of filters after dividing the layer by its Frobenius norm, diagonal zero."""
    rows = weight.detach().double().flatten(1)
    norm = rows.norm()
    rows = rows / norm if norm > 0 else rows
    return (rows @ rows.T).fill_diagonal_(0.0)


def magnitude_l1(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the L1 norm of each filter, so that the weakest are dropped first (arXiv 1608.08710)."""
    return -weight.detach().double().flatten(1).abs().sum(1)


def magnitude_l2(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the L2 norm of each filter, so that the weakest are dropped first."""
    return -weight.detach().double().flatten(1).norm(dim=1)


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): a control with a random ranking."""
    return torch.rand(len(weight), generator=generator, dtype=torch.float64)


def check_scores(scores: Mapping[str, Tensor], sizes: Mapping[str, int], name: str) -> None:
    """Raise ValueError unless a score gives each layer of `sizes` one finite number per filter."""
    for layer, filters in sizes.items():
        own = scores.get(layer)
        if not isinstance(own, Tensor) or own.shape != (filters,) or not own.isfinite().all():
            found = f"shape {tuple(own.shape)}" if isinstance(own, Tensor) else f"{type(own).__name__}"
            found = "infinite or no numbers" if isinstance(own, Tensor) and own.shape == (filters,) else found
            raise ValueError(
                f"score {name}: layer {layer}: found {found}, expected {filters} finite scores, one a filter"
            )


def weight_score(ranking: Ranking) -> WeightScore:
    """The score function of a ranking, with its options."""
    if ranking.score == "orthogonality":
        variant = {name: getattr(ranking, name) for name in ("normalise", "aggregate", "chance_normalised")}
        return partial(orthogonality, **variant)
    score: WeightScore = SCORE.get(ranking.score)
    return score
