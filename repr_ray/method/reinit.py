"""Re-initialisation of dropped filters: new kernels in float64 on the CPU, from a seeded generator."""

from dataclasses import dataclass

import torch
from torch import Tensor

from repr_ray.method.directions import Directions, default_init
from repr_ray.method.scores import unit_rows
from repr_ray.method.settings import DIRECTION, Reinit

TOLERANCE = 1e-5  # largest |cos| allowed between a new filter and a direction that it must be orthogonal to


@dataclass(frozen=True)
class Redrawn:
    """New kernels (k x d, float64), and how orthogonal they are.

    `largest_cos` is the largest |cos| between a new filter and the span that its direction is orthogonal to: that of
    old values and survivors, of the survivors alone, or of the most overlapping filters. For directions that are not
    orthogonal to anything it is the largest |cos| with an old value or survivor, and None if there is none. `relaxed`
    counts the filters that are orthogonal only to the most overlapping ones, `last_resort` those without a direction.
    """

    kernels: Tensor
    largest_cos: float | None = None
    relaxed: int = 0
    last_resort: int = 0

    @classmethod
    def nothing(cls) -> "Redrawn":
        """The result for a layer without dropped filters."""
        return cls(torch.empty(0))


def redraw(kernel: Tensor, dropped: Tensor, settings: Reinit, generator: torch.Generator) -> Redrawn:
    """New kernels for the k dropped filters of one layer.

    `kernel` (J x d, d = c*k*k) has the values of dropped filters before the drop and the current values of the
    survivors; `dropped` is bool (J). Source: arXiv 1811.07275, section 4, and the author's advice for layers whose
    null space is too small (quoted in the siahuat0727 write-up): avoid only the most overlapping filters. Raises
    RuntimeError if an orthogonal direction is not orthogonal to 1e-5, ValueError for a wrong shape or values that are
    not finite.
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
