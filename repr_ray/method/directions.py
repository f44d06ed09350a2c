"""Directions of new filters, one function per direction.

Each takes the layer's `kernel` (J x d, float64: old values of the dropped filters, current values of the others),
`dropped` (bool, J) and a generator. Null-space directions clip inside the null space if `clip` is true.

To add a direction, write a function here and add its name to `DIRECTION` in settings.py. A plug-in, `direction:
my_module:mine`, may return just a tensor (k x d).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from repr_ray.method.scores import cosines, unit_rows

CHUNK = 200_000  # elements of a chunk of bases, so that it stays in a core's cache while vectors are clipped

ROUNDING = 1e-9  # relative excess over a bound that float32 weights do not resolve: projecting again changes nothing

SMALL = 1e-2  # relative excess over a bound that can be projected in float32 with an error of 1e-9 of the bound

INDEPENDENT = 0.1
"""Distance of a unit row to the span of those before it from which Cholesky factors lose two digits at most."""


@dataclass(frozen=True)
class Directions:
    """Vectors for the k dropped filters, or for the first of them if the space has too few dimensions.

    `largest_cos` is the largest |cos| between a vector and the span that it should be orthogonal to, None for
    directions that are not orthogonal to anything. `relaxed` counts vectors that are orthogonal to part of the layer
    only. `fixed` vectors are not scaled.
    """

    vectors: Tensor
    largest_cos: float | None = None
    relaxed: int = 0
    fixed: bool = False


def null_space(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Random unit vectors of the null space of [old values; survivors]; `relaxed` if it has too few dimensions.

    Source: the author's advice in the siahuat0727 write-up, random vectors instead of basis vectors.
    """
    old, survivors = kernel[dropped], kernel[~dropped]
    rows, room = torch.cat([old, survivors]), kernel.shape[1] - len(old)
    if len(rows) > room >= 0 and _are_independent(rows[: room + 1]):
        return relaxed(kernel, dropped, generator, clip)
    avoid = _row_space(rows)
    if avoid.shape[1] > room:
        return relaxed(kernel, dropped, generator, clip)
    noise = torch.randn(*old.shape, generator=generator, dtype=torch.float64)
    return Directions(*_outside(noise, avoid, clip))


def null_space_basis(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Basis vectors of the null space of [old values; survivors], one per filter, as in the siahuat0727 code.

    There may be fewer basis vectors than filters; the others get the last resort.
    """
    return _basis(torch.cat([kernel[dropped], kernel[~dropped]]), int(dropped.sum()), clip)


def survivors_basis(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Basis vectors of the null space of the survivors, one per filter, as in earlier code of siahuat0727.

    That null space is larger, but may still have fewer dimensions than there are filters.
    """
    return _basis(kernel[~dropped], int(dropped.sum()), clip)


def qr_column(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Column f of Q of the layer's matrix, with the sign of R's diagonal, as in the author's code, repr-ortho.

    Such a column is orthogonal only to the filters before f, and close to filter f's old value. If there are more
    filters than dimensions, the author's code reshapes the values to J x d instead of transposing them; so does this.
    """
    filters, d = kernel.shape
    columns = kernel.T.contiguous()  # TensorFlow's layout: a filter is a column
    q, r = torch.linalg.qr(columns if d >= filters else columns.reshape(filters, d))
    q = q * r.diagonal().sign()
    return Directions((q.T if d >= filters else q)[dropped])


def relaxed(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Random unit vectors, each orthogonal to d/2 filters: its old value and those that overlapped most with it.

    Half of the d dimensions stay free; with one free dimension all new filters of a layer would coincide. If d is 1,
    no vector is returned.
    """
    old, d = kernel[dropped], kernel.shape[1]
    if d == 1:
        return Directions(old[:0], 0.0)
    everyone = torch.cat([old, kernel[~dropped]])
    k, near = len(old), min(d // 2, len(everyone))
    if near == len(everyone):  # the same span for all
        noise = torch.randn(k, d, generator=generator, dtype=torch.float64)
        return Directions(*_outside(noise, torch.linalg.qr(everyone.T).Q, clip), relaxed=k)
    gram = cosines(everyone)
    own_first = gram[:k].abs() + 2 * torch.eye(k, len(everyone), dtype=torch.float64)
    units = unit_rows(everyone)
    gram.diagonal().copy_(units.any(dim=1))
    nearest = own_first.topk(near, dim=1).indices
    noise = torch.randn(k, d, generator=generator, dtype=torch.float64)
    size = max(1, CHUNK // (d * near))
    chunks = [
        _outside(noise[i : i + size], _bases(units, gram, nearest[i : i + size]), clip) for i in range(0, k, size)
    ]
    return Directions(torch.cat([v for v, _ in chunks]), max(cos for _, cos in chunks), relaxed=k)


def default(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """PyTorch's default initialisation of a convolution: a control without orthogonality."""
    d = kernel.shape[1]
    return Directions(default_init((int(dropped.sum()), d), d, generator))


def old(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """The value before the drop: a control that only pauses filters."""
    return Directions(kernel[dropped], fixed=True)


def zero(kernel: Tensor, dropped: Tensor, generator: torch.Generator, clip: bool) -> Directions:
    """Zeros (k x d), not scaled: a control that brings filters back empty."""
    return Directions(torch.zeros_like(kernel[dropped]), fixed=True)


def default_init(shape: Sequence[int], fan_in: int, generator: torch.Generator) -> Tensor:
    """PyTorch's default of convolutions and linear layers, uniform in +-1/sqrt(fan_in), float64."""
    draws = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (2 * draws - 1) * fan_in**-0.5


def clip_within(vectors: Tensor, avoid: Tensor, bound: float) -> Tensor:
    """The weights of `vectors` (k x d) clipped to +-bound without leaving the complement of `avoid`.

    Clipping alone would add a component in the span of `avoid`. The box and the complement are both convex, so that
    alternating projections approach a point in both; a final scaling removes the rest above the bound.
    """
    vectors = _clipped(vectors, avoid, bound)
    return vectors * (bound / vectors.abs().amax(dim=1, keepdim=True)).clamp(max=1.0)


def _clipped(vectors: Tensor, avoid: Tensor, bound: float) -> Tensor:
    """The alternating projections of `clip_within`. Only the excess over the bound is projected.

    An excess below `SMALL` of the bound is projected in float32: the rounding error is as small as that of float64
    on the whole vector.
    """
    single = None
    for step in range(50):
        excess = vectors.clamp(-bound, bound).sub_(vectors)
        largest = max(map(abs, map(float, excess.aminmax())))
        if largest <= bound * ROUNDING:
            break
        if step == 0:
            vectors = _project_out(excess.add_(vectors), avoid)
        elif largest > SMALL * bound:
            vectors = vectors + _project_out(excess, avoid)
        else:
            single = avoid.float() if single is None else single
            vectors = vectors + _project_out(excess.float(), single)
    return vectors


def _bases(units: Tensor, gram: Tensor, chosen: Tensor) -> Tensor:
    """Orthonormal bases (n x d x m), each of the span of m unit rows (`chosen`, n x m); `gram` is J x J."""
    chosen = chosen.sort(dim=1).values  # for cache hits
    basis = _of_independent(units[chosen], gram[chosen[:, :, None], chosen[:, None, :]])
    return torch.linalg.qr(units[chosen].mT).Q if basis is None else basis


def _of_independent(units: Tensor, gram: Tensor) -> Tensor | None:
    """Orthonormal basis (... x d x m) of the span of unit rows (... x m x d), from Cholesky factors of their cosines.

    Less than half the work of a QR decomposition. None if rows are nearly dependent: rounding errors would grow.
    """
    factors, failed = torch.linalg.cholesky_ex(gram)
    if failed.any() or factors.diagonal(dim1=-2, dim2=-1).amin() < INDEPENDENT:
        return None
    return torch.linalg.solve_triangular(factors, units, upper=False).mT


def _basis(avoid: Tensor, count: int, clip: bool) -> Directions:
    """Up to `count` basis vectors of the null space of rows (m x d), from their pivoted QR."""
    rows = avoid.numpy()
    q, r, _ = scipy.linalg.qr(rows.T, pivoting=True)
    diagonal = np.abs(np.diag(r))
    rank = int((diagonal > max(rows.shape) * np.finfo(np.float64).eps * diagonal.max(initial=0.0)).sum())
    basis, span = (torch.from_numpy(np.ascontiguousarray(part)) for part in (q[:, rank:].T[:count], q[:, :rank]))
    return Directions(*_outside(basis, span, clip))


def _outside(vectors: Tensor, avoid: Tensor, clip: bool) -> tuple[Tensor, float]:
    """Unit vectors (or clipped ones) orthogonal to the span of `avoid`, and their largest |cos| with it."""
    if not len(vectors):
        return vectors, 0.0
    vectors = _project_out(_project_out(vectors, avoid), avoid)
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    if clip:
        vectors = clip_within(vectors, avoid, bound=vectors.shape[1] ** -0.5)
    inside = _inside(vectors / vectors.norm(dim=1, keepdim=True), avoid)
    return vectors, float(inside.norm(dim=1).max())


def _are_independent(rows: Tensor) -> bool:
    """Whether `rows` (m x d) are clearly independent; much cheaper than their rank."""
    units = unit_rows(rows)
    return _of_independent(units, units @ units.T) is not None


def _row_space(rows: Tensor) -> Tensor:
    """Orthonormal basis of the span of `rows` (m x d): d x rank."""
    if 0 < rows.shape[0] <= rows.shape[1]:
        units = unit_rows(rows)
        independent = _of_independent(units, units @ units.T)
        if independent is not None:
            return independent
    _, values, basis = torch.linalg.svd(rows, full_matrices=False)
    tolerance = values.amax() * max(rows.shape) * torch.finfo(rows.dtype).eps
    return basis[values > tolerance].T


def _inside(vectors: Tensor, avoid: Tensor) -> Tensor:
    """Coordinates (k x r) of k x d vectors in a shared orthonormal basis (d x r), or in one for each (k x d x r)."""
    return vectors @ avoid if avoid.dim() == 2 else torch.bmm(vectors[:, None], avoid)[:, 0]


def _project_out(vectors: Tensor, avoid: Tensor) -> Tensor:
    """Remove from each vector its component in the span of its basis."""
    inside = _inside(vectors, avoid)
    return vectors - (inside @ avoid.T if avoid.dim() == 2 else torch.bmm(inside[:, None], avoid.mT)[:, 0])
