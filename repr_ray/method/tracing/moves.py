"""Operations that move elements (views, splits, concatenations), carried out on the labels themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from repr_ray.method.tracing.labels import CONSTANT, ZERO, laid_out_like, present
from repr_ray.method.tracing.trace import Origin, Trace


def names(text: str) -> frozenset[str]:
    """The names of operations, separated by spaces."""
    return frozenset(text.split())


MOVES = names(
    "view _unsafe_view _reshape_alias reshape permute transpose t expand squeeze unsqueeze select slice narrow split"
    " split_with_sizes unsafe_split unsafe_chunk chunk unbind cat stack flip roll pixel_shuffle pixel_unshuffle"
    " channel_shuffle repeat repeat_interleave reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
    " as_strided detach alias lift_fresh unfold movedim index index_select diagonal"
)
_WIDTH_FREE = names(
    "view _unsafe_view permute transpose t expand squeeze unsqueeze cat reflection_pad2d replication_pad2d detach"
    " alias lift_fresh"
)
"""Moves that mean the same in a network with fewer channels (views: if they keep or flatten the channels)."""


def moved(
    trace: Trace, func: Any, name: str, given: dict[str, Any], real: dict[str, Any], out: Any
) -> Sequence[Tensor | Origin] | None:
    """The result of the same operation on the labels, or None if it cannot be carried out on them."""
    if name in ("index", "index_select"):
        wanted = real.get("indices", [real.get("index")])
        if any(t is not None and t.is_meta for t in wanted):
            return None  # which elements is not known
    owners = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
    data = [t for t in owners if t.is_meta]
    given = {**given, **{key: real[key] for key in ("indices", "index") if key in given}}
    if data and data[0] in trace.sources and data[0] not in trace.label_of and name not in ("cat", "stack"):
        source = trace.sources[data[0]]
        trace.unclaimed.discard(source.name)
        if "view" in name:
            return [Origin(source.name, source.rows.reshape(out.shape), source.columns.reshape(out.shape))]
        rows = tree_leaves(func(**_with(given, data[0], source.rows)))
        columns = tree_leaves(func(**_with(given, data[0], source.columns)))
        return [Origin(source.name, r, c) for r, c in zip(rows, columns, strict=True)]
    flat = name == "cat" and all(_is_flat(trace, t, given.get("dim", 0)) for t in data)

    def moving(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_meta:
            return t
        return _by_entry(trace, t, given.get("dim", 0)) if flat else trace.writable_labels(t)

    arguments = {key: tree_map(moving, value) for key, value in given.items()}
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    labels = [t for t in tree_leaves(func(**arguments)) if isinstance(t, Tensor)]
    for i, (one, own) in enumerate(zip(results, labels, strict=True)):
        if not flat:
            trace.laid_out[one] = True
            labels[i] = own if own.stride() == one.stride() else laid_out_like(own, one)
    before = data[0].shape if data else torch.Size()
    if name not in _WIDTH_FREE or ("view" in name and not _keeps_channels(before, results[0].shape)):
        for t in data:
            trace.join(present(trace.labels(t)))
    return labels


def _is_flat(trace: Trace, t: Tensor, dim: int) -> bool:
    """Whether labels differ along this dimension alone."""
    labels = trace.labels(t)
    return t not in trace.laid_out and all(size == 1 or d == dim % t.dim() for d, size in enumerate(labels.shape))


def _by_entry(trace: Trace, t: Tensor, dim: int) -> Tensor:
    labels = trace.labels(t)
    return labels.expand([t.shape[d] if d == dim % t.dim() else 1 for d in range(t.dim())])


def padded(trace: Trace, t: Tensor, pad: list[int], zero: bool) -> Tensor:
    """The labels of a padded tensor; `zero` says whether it is padded with zeros."""
    labels = trace.labels(t)
    if not zero:
        return torch.constant_pad_nd(labels.expand(t.shape), pad, CONSTANT)
    pad = list(pad)  # zeros along a dimension with one label: as zero as the rest
    for i in range(len(pad) // 2):
        if labels.shape[-1 - i] == 1:
            pad[2 * i : 2 * i + 2] = [0, 0]
    return torch.constant_pad_nd(labels, pad, ZERO)


def _with(given: Mapping[str, Any], tensor: Tensor, value: Tensor) -> dict[str, Any]:
    return {key: value if one is tensor else one for key, one in given.items()}


def _keeps_channels(before: torch.Size, after: torch.Size) -> bool:
    """Whether a view keeps dimension 1 as it is, or flattens all after the batch."""
    return before[:2] == after[:2] or (len(after) == 2 and before[:1] == after[:1])
