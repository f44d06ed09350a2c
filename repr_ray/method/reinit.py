"""Bringing dropped filters back: new kernels in float64 on the CPU, from a seeded generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repr_ray.method.scores import cosines
from repr_ray.method.settings import Reinit

TOLERANCE = 1e-5
"""Largest |cos| allowed between a new filter and a direction it was asked to be orthogonal to."""


@dataclass(frozen=True)
class Redrawn:
    """New kernels (k x d, float64), and how well the request could be met.

    `largest_cos` is the largest |cos| between a new filter and a direction it had to avoid, None where it had to
    avoid none. `relaxed` filters avoid only their old value and what it overlapped most with; `last_resort` ones
    are default initialisations.
    """

    kernels: Tensor
    largest_cos: float | None = None
    relaxed: int = 0
    last_resort: int = 0

    @classmethod
    def nothing(cls) -> "Redrawn":
        """For a layer that lost no filter."""
        return cls(torch.empty(0))


def redraw(old: Tensor, survivors: Tensor, settings: Reinit, generator: torch.Generator) -> Redrawn:
    """New kernels for the k dropped filters of one layer.

    `old` (k x d) are their values before the drop, `survivors` (m x d) the present values of the other filters,
    d = c*k*k the size of a filter. Source: arXiv 1811.07275, section 4, and the author's advice for layers whose
    null space is too small (quoted in the siahuat0727 write-up): avoid only the most overlapping filters.
    """
    old, survivors = old.double().cpu(), survivors.double().cpu()
    k, d = old.shape
    if settings.direction == "default" or d == 1:
        last_resort = k if settings.direction != "default" else 0
        return Redrawn(default_init((k, d), d, generator), last_resort=last_resort)
    avoid = _row_space(torch.cat([old, survivors]))
    if d - avoid.shape[1] >= k:  # room for a direction each
        avoid = avoid.expand(k, -1, -1)
        relaxed = 0
    else:
        avoid = _most_overlapping(old, survivors)
        relaxed = k
    vectors = torch.randn(k, d, generator=generator, dtype=torch.float64)
    vectors = _project_out(_project_out(vectors, avoid), avoid)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    if settings.scale == "clip":
        vectors = clip_within(vectors, avoid, bound=d**-0.5)
    largest = float(torch.einsum("kd,kdr->kr", vectors / vectors.norm(dim=1, keepdim=True), avoid).norm(dim=1).max())
    if largest > TOLERANCE:
        raise RuntimeError(f"re-initialised filters are not orthogonal to what they avoid: |cos| {largest:.1e}")
    return Redrawn(vectors, largest, relaxed=relaxed)


def default_init(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """PyTorch's default of convolutions and linear layers, uniform in +-1/sqrt(fan_in), float64."""
    draws = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (2 * draws - 1) * fan_in**-0.5


def clip_within(vectors: Tensor, avoid: Tensor, bound: float) -> Tensor:
    """The weights of `vectors` (k x d) clipped to +-bound without leaving the complement of `avoid` (k x d x r).

    Clipping alone would turn a vector back towards what it avoids. The box and the complement are both convex, so
    alternating projections approach a point in both; a last scaling takes off what is left above the bound.
    """
    for _ in range(50):
        vectors = _project_out(vectors.clamp(-bound, bound), avoid)
    return vectors * (bound / vectors.abs().amax(dim=1, keepdim=True)).clamp(max=1.0)


def _row_space(rows: Tensor) -> Tensor:
    """Orthonormal basis of the span of `rows` (m x d): d x rank."""
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    tolerance = values.amax() * max(rows.shape) * torch.finfo(rows.dtype).eps
    return basis[values > tolerance].T


def _most_overlapping(old: Tensor, survivors: Tensor) -> Tensor:
    """Orthonormal bases (k x d x r) of each old filter and the filters it overlaps most with.

    Half of the d dimensions stay free: were all but one taken, the new filters of a layer would coincide.
    """
    k, d = old.shape
    everyone = torch.cat([old, survivors])
    own_first = cosines(everyone)[:k].abs() + 2 * torch.eye(k, len(everyone), dtype=torch.float64)
    nearest = own_first.topk(min(d // 2, len(everyone)), dim=1).indices
    return torch.linalg.qr(everyone[nearest].transpose(1, 2)).Q


def _project_out(vectors: Tensor, avoid: Tensor) -> Tensor:
    """Remove from each of k x d vectors its component in the span of its k x d x r basis."""
    inside = torch.einsum("kdr,kd->kr", avoid, vectors)
    return vectors - torch.einsum("kdr,kr->kd", avoid, inside)
