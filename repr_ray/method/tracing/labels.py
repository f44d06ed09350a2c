"""Labels on the elements of a tensor: which filter makes each element zero when it is dropped.

A label is a number in a float tensor that broadcasts to the labelled tensor, in as many dimensions.
"""

import torch
from torch import Tensor

CONSTANT, MIXED, ZERO, FIRST = 0.0, 1.0, 2.0, 3.0
"""Labels: no image can change the element, it may be anything, it is always zero; from FIRST on, filters.

A negative label marks an element that was zero and is now a constant, as after a sigmoid: it may gate the maps of its
own filter; a filter of which anything else reads it is left out.
"""


class CannotTrace(ValueError):
    """The network cannot be followed; the message names the line of its code and the way out."""


def by_row(rows: Tensor) -> tuple[Tensor, list[float]]:
    """The label of each row that has one label (zeros aside), and the labels inside the other rows."""
    if rows.shape[1] == 1:
        return rows.flatten(), []
    if not rows.shape[1]:
        return torch.full((len(rows),), MIXED), []
    zero = rows == ZERO
    low, high = rows.masked_fill(zero, torch.inf).amin(1), rows.masked_fill(zero, -torch.inf).amax(1)
    one = low == high
    found = torch.where(zero.all(1), ZERO, torch.where(one, low, MIXED))
    odd = ~one & ~zero.all(1)
    return found, present(rows[odd]) if bool(odd.any()) else []


def present(labels: Tensor) -> list[float]:
    """The labels of filters, negative ones included, that occur."""
    labels = labels[labels.abs() >= FIRST] if labels.numel() else labels
    if not labels.numel():
        return []
    whole = labels.long()  # labels are dense: no need to sort
    lowest = whole.min()
    seen = torch.zeros(int(whole.max() - lowest) + 1, dtype=torch.bool)
    seen[whole - lowest] = True
    return (seen.nonzero().flatten() + lowest).to(labels.dtype).tolist()


def has_filter(labels: Tensor) -> Tensor:
    """Whether each element has the label of a filter, negative ones included."""
    return labels.abs() >= FIRST


def scalar(label: float, like: Tensor) -> Tensor:
    """One label for all elements."""
    return torch.full([1] * like.dim(), label)


def unexpanded(t: Tensor) -> Tensor:
    """The part of a tensor that is in memory; it broadcasts to the tensor."""
    return t[tuple(slice(1 if stride == 0 else None) for stride in t.stride())]


def laid_out_like(labels: Tensor, like: Tensor) -> Tensor:
    """The labels with the strides of `like`, so that both have the same views; what is expanded stays so."""
    sizes = unexpanded(like).shape
    labels = labels.expand(like.shape)
    own = labels[tuple(slice(size) for size in sizes)]
    if not torch.equal(own.expand(like.shape), labels):
        raise CannotTrace("elements that share memory belong to different filters")
    return torch.empty_strided(sizes, like.stride()).copy_(own).expand(like.shape)


def is_alike(rows: Tensor) -> bool:
    """Whether each row of a matrix holds one value; strides often show it without reading a large one."""
    if 0 in rows.stride():
        return rows.stride(1) == 0 or rows.shape[1] == 1
    return bool((rows[:, :1] == rows).all())
