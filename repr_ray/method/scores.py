"""Scores of filters, one function each. The larger a score, the sooner the filter is dropped.

To add a score: write a function here, add it to `WEIGHT_SCORES`, and its name to `Ranking.score` in settings.py.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WeightScore = Callable[[Tensor, torch.Generator], Tensor]


def cosines(weight: Tensor) -> Tensor:
    """Cosines between all pairs of filters: J x ... -> J x J, float64, with zeros on the diagonal.

    An all-zero filter has no direction; its cosines are 0, not 0/0.
    """
    rows = weight.detach().double().flatten(1)
    norms = rows.norm(dim=1, keepdim=True)
    unit = torch.where(norms > 0, rows / norms, 0.0)
    return (unit @ unit.T).fill_diagonal_(0.0)


def overlap(weight: Tensor) -> float:
    """Mean |cos| over all pairs of different filters of a layer, in [0, 1]; 0 for a single filter."""
    pairs = len(weight) * (len(weight) - 1)
    return float(cosines(weight).abs().sum()) / pairs if pairs else 0.0


def orthogonality(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Inter-filter orthogonality, arXiv 1811.07275, eqs. 1-2: O_f = sum_g |W^W^T - I|_fg / J, rows scaled to 1."""
    return cosines(weight).abs().sum(1) / len(weight)


def magnitude_l1(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the L1 norm of each filter, so that the weakest are dropped first (arXiv 1608.08710)."""
    return -weight.detach().double().flatten(1).abs().sum(1)


def magnitude_l2(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the L2 norm of each filter, so that the weakest are dropped first."""
    return -weight.detach().double().flatten(1).norm(dim=1)


def random(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1): the control that ranks by nothing."""
    return torch.rand(len(weight), generator=generator, dtype=torch.float64)


WEIGHT_SCORES: Mapping[str, WeightScore] = {
    "orthogonality": orthogonality,
    "magnitude_l1": magnitude_l1,
    "magnitude_l2": magnitude_l2,
    "random": random,
}
