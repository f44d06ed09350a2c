"""The method once more, in float64 NumPy and SciPy, written from its description and not from the code under test."""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


def orthogonality(kernel: Array) -> Array:
    """arXiv 1811.07275: rows scaled to 1, P = |W W^T - I|, O_f = sum(P[f]) / J. A zero row overlaps nothing."""
    rows = np.asarray(kernel, np.float64).reshape(len(kernel), -1)
    scores = np.zeros(len(rows))
    for f, one in enumerate(rows):
        for g, other in enumerate(rows):
            if f != g and one.any() and other.any():
                scores[f] += abs(one @ other) / np.sqrt((one @ one) * (other @ other)) / len(rows)
    return scores


def worst(scores: dict[str, Array], ratio: float, sizes: dict[str, int], cap: float = 0.9) -> dict[str, set[int]]:
    """Largest scores first over the whole network, at most `cap` of a layer; ties by layer, then by filter."""
    order = [(-s, place, f, name) for place, (name, own) in enumerate(scores.items()) for f, s in enumerate(own)]
    wanted = int(ratio * sum(sizes.values()) + 1e-9)
    dropped: dict[str, set[int]] = {name: set() for name in scores}
    for _, _, f, name in sorted(order):
        if wanted and len(dropped[name]) < min(int(cap * sizes[name] + 1e-9), sizes[name] - 1):
            dropped[name].add(f)
            wanted -= 1
    return dropped


def complement(rows: Array) -> Array:
    """Projector (d x d) onto everything orthogonal to `rows` (m x d)."""
    basis = linalg.null_space(np.asarray(rows, np.float64))
    return basis @ basis.T


def largest_cos(new: Array, avoided: Array) -> float:
    """Largest |cos| between rows of `new` and rows of `avoided`."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (new, avoided)]
    return float(np.abs(unit[0] @ unit[1].T).max())
