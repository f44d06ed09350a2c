"""Bringing dropped filters back: new kernels in float64 on the CPU, from a seeded generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from repr_ray.method.directions import Directions, default_init
from repr_ray.method.scores import unit_rows
from repr_ray.method.settings import DIRECTION, Reinit

TOLERANCE = 1e-5
"""Largest |cos| allowed between a new filter and a direction it was asked to be orthogonal to."""


@dataclass(frozen=True)
class Redrawn:
    """New kernels (k x d, float64), and how well the request could be met.

    `largest_cos` is the largest |cos| between a new filter and what it had to avoid: any vector in the span of old
    values and survivors (of survivors alone, or of the most overlapping ones, where the direction avoids only these),
    or for directions that promise nothing any old value or survivor. It is None where there is nothing to compare.
    `relaxed` filters avoid only their old value and what it overlapped most with; for `last_resort` ones there was no
    room at all.
    """

    kernels: Tensor
    largest_cos: float | None = None
    relaxed: int = 0
    last_resort: int = 0

    @classmethod
    def nothing(cls) -> "Redrawn":
        """For a layer that lost no filter."""
        return cls(torch.empty(0))


def redraw(kernel: Tensor, dropped: Tensor, settings: Reinit, generator: torch.Generator) -> Redrawn:
    """New kernels for the k dropped filters of one layer.

    `kernel` (J x d, d = c*k*k) holds the values dropped filters had before the drop and the present ones of the
    survivors, `dropped` is bool (J). Source: arXiv 1811.07275, section 4, and the author's advice for layers whose
    null space is too small (quoted in the siahuat0727 write-up): avoid only the most overlapping filters. Raises
    RuntimeError when a direction that promises orthogonality to 1e-5 does not keep it.
    """
    kernel, dropped = kernel.detach().flatten(1).double().cpu(), dropped.cpu()
    k, d = int(dropped.sum()), kernel.shape[1]
    found = DIRECTION.get(settings.direction)(kernel, dropped, generator, settings.scale == "clip")
    if isinstance(found, Tensor):
        found = Directions(found)
    if found.vectors.shape[1:] != (d,) or len(found.vectors) > k or not found.vectors.isfinite().all():
        raise ValueError(
            f"direction {settings.direction}: found shape {tuple(found.vectors.shape)}, expected {k} x {d} finite"
            " numbers, a row for each dropped filter"
        )
    vectors, drawn = _scaled(found, kernel[~dropped], settings), len(found.vectors)
    if drawn < k:
        rest = torch.zeros(k - drawn, d, dtype=torch.float64)
        if settings.last_resort == "default":
            rest = default_init((k - drawn, d), d, generator)
        vectors = torch.cat([vectors, rest])
    promised = found.largest_cos is not None and settings.scale != "clip_entrywise"
    largest = found.largest_cos if promised else _largest_cos(vectors[:drawn], kernel)
    if promised and largest is not None and largest > TOLERANCE:
        raise RuntimeError(f"re-initialised filters are not orthogonal to what they avoid: |cos| {largest:.1e}")
    return Redrawn(vectors, largest, found.relaxed, k - drawn)


def _scaled(found: Directions, survivors: Tensor, settings: Reinit) -> Tensor:
    vectors, bound = found.vectors, survivors.shape[1] ** -0.5
    if found.fixed or not len(vectors):
        return vectors
    if settings.scale == "clip_entrywise" or (settings.scale == "clip" and found.largest_cos is None):
        vectors = vectors.clamp(-bound, bound)
    elif settings.scale in ("unit", "survivors"):
        vectors = unit_rows(vectors)
        if settings.scale == "survivors":
            vectors = vectors * survivors.norm(dim=1).median()
    return vectors * settings.gain


def _largest_cos(vectors: Tensor, kernel: Tensor) -> float | None:
    """Largest |cos| between new filters and the layer's old values and survivors."""
    cos = (unit_rows(vectors) @ unit_rows(kernel).T).abs()
    return float(cos.max()) if cos.numel() and vectors.any() else None
