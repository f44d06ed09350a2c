"""Convolutions and matrix products: which inputs of a kernel or matrix read the maps of one filter alone."""

from typing import Any

import torch
from torch import Tensor

from repr_ray.method.tracing.labels import FIRST, MIXED, by_row, is_alike, present
from repr_ray.method.tracing.pointwise import sum_of
from repr_ray.method.tracing.trace import Trace


def convolution(trace: Trace, given: dict[str, Any], out: Tensor) -> Tensor:
    """The labels of the output of a convolution: those of its filters, or of the filter that each group reads."""
    x, weight, bias, groups = given["input"], given["weight"], given["bias"], given["groups"]
    reads, lost = trace.along(x, 1)
    trace.consume(lost)
    trace.leave_out_constants(reads)
    source, leaf = trace.sources.get(weight), trace.is_whole(weight)
    if leaf:
        trace.claim_columns(source.name, 0 if given["transposed"] else 1, groups, reads)
    if not leaf or 1 < groups < len(reads):
        trace.join(present(reads))
    own = torch.full((out.shape[1],), MIXED)
    if not given["transposed"]:
        kernel = trace.parameter_labels.get(source.name) if leaf and source.name in trace.parameter_labels else None
        if kernel is None and not leaf:
            kernel = trace.along(weight, 0)[0]
        if kernel is not None and bool((kernel >= FIRST).any()):
            layer = trace.filters(float(kernel[kernel >= FIRST][0]))[0][0]
            if layer not in trace.layers:
                trace.layers.append(layer)
            trace.calls[trace.kernel_of[layer]] += 1
            trace.outputs[out] = layer
            trace.readers.setdefault(layer, set())
            if bias is None or torch.equal(_bias_labels(trace, bias, kernel), kernel):
                own = kernel
            else:
                trace.leave_out(present(kernel), "its bias is computed, or not its own")
        elif groups > 1:
            own = _pass_through(trace, reads, groups, bias, len(own))
    return own.view(1, -1, *[1] * (out.dim() - 2))


def _bias_labels(trace: Trace, bias: Tensor, kernel: Tensor) -> Tensor:
    source = trace.sources.get(bias)
    if source is None or source.name not in trace.parameter_labels or not trace.is_whole(bias):
        return torch.zeros_like(kernel)
    trace.unclaimed.discard(source.name)
    return trace.parameter_labels[source.name]


def _pass_through(trace: Trace, reads: Tensor, groups: int, bias: Tensor | None, filters: int) -> Tensor:
    """The outputs of a group that reads the maps of one filter alone have its label."""
    group = by_row(reads.view(groups, -1))[0]
    own = torch.where(group >= FIRST, group, MIXED).repeat_interleave(filters // groups)
    if bias is None or not bool((own >= FIRST).any()):
        return own
    if not trace.is_whole(bias):
        trace.leave_out(present(own), f"its output reaches {trace.site('convolution')}, whose bias is computed")
        return torch.full_like(own, MIXED)
    trace.claim(trace.sources[bias].name, "bias", own)
    return own


def matrix_product(trace: Trace, name: str, given: dict[str, Any]) -> Tensor:
    """The labels of a matrix product: zero rows and columns stay zero."""
    names = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}.get(name, ("self", "mat2"))
    one, other = (given[key] for key in names)
    left, right = trace.labels(one), trace.labels(other)
    for z in (left, right):
        trace.leave_out_constants(z)
    rows = by_row(left.flatten(0, -2))[0].view(*left.shape[:-1], 1)
    columns = by_row(right.transpose(-1, -2).flatten(0, -2))[0].view(*right.shape[:-2], 1, -1)
    if one.dim() == 2:
        _claim_factor(trace, other, trace.along(one, 1))
        if one in trace.sources:
            _claim_factor(trace, one, trace.along(other, 0), transposed=True)
    else:
        trace.join(present(left) + present(right))
    out = torch.where(rows >= FIRST, rows, torch.where(columns >= FIRST, columns, MIXED))
    if name in ("addmm", "baddbmm"):
        added, out = torch.broadcast_tensors(trace.labels(given["self"]), out)
        out = sum_of(trace, added, out, name)
    return out


def _claim_factor(trace: Trace, factor: Tensor, found: tuple[Tensor, list[float]], transposed: bool = False) -> None:
    """Claim the inputs of a matrix (inputs x outputs, or transposed) that read the maps of one filter alone."""
    reads, lost = found
    trace.consume(lost)
    source = trace.sources.get(factor)
    if source is None:
        trace.join(present(reads))
        return
    for dim, places in ((1, source.columns), (0, source.rows)):
        places = places.T if transposed else places
        if places.dim() == 2 and places.numel() and is_alike(places):
            size = trace.tensors[source.name].shape[dim]
            labels = torch.full((size,), torch.nan)
            index = places[:, 0].long()
            labels[index] = reads
            twice = torch.bincount(index, minlength=size) > 1
            labels[twice] = MIXED
            trace.claim_columns(source.name, dim, 1, labels)
            return
    trace.join(present(reads))
