"""The rule of each operation: from the labels of its inputs to the labels of its outputs.

The layers of every filter that reaches an operation without a rule are left out.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repr_ray.method.tracing.labels import CONSTANT, MIXED, by_row
from repr_ray.method.tracing.moves import names, padded
from repr_ray.method.tracing.norms import norm
from repr_ray.method.tracing.pointwise import pointwise
from repr_ray.method.tracing.products import convolution, matrix_product
from repr_ray.method.tracing.trace import Trace

CONSTANTS = names(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full"
    " new_empty_strided bernoulli zero fill uniform normal random exponential empty zeros ones full rand randn"
)
_BY_CHANNEL = ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_", "fractional_max_pool")
_SUMS = names("mean sum")
_EXTREMES = names("amax amin max min var std var_mean std_mean linalg_vector_norm")
BATCH_NORMS = names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
    " miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm"
)


def labels_of(trace: Trace, func: Any, name: str, given: dict[str, Any], outputs: list[Tensor]) -> Sequence[Tensor]:
    """Labels that broadcast to each of the outputs."""
    if not outputs:
        return []
    out = outputs[0]
    first = next((t for t in given.values() if isinstance(t, Tensor)), None)
    rest = [torch.tensor(MIXED)] * (len(outputs) - 1)
    if name in CONSTANTS:
        return [torch.tensor(CONSTANT)]
    if name == "copy":
        return [trace.labels(given["src"])]
    if name in ("_to_copy", "clone") and first is not None:
        return [trace.labels(first)]
    if name == "convolution":
        return [convolution(trace, given, out)]
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return [matrix_product(trace, name, given)]
    if name in BATCH_NORMS:
        return [norm(trace, given, 1, "batch"), *rest]
    if name == "native_layer_norm" and len(given["normalized_shape"]) == 1:
        return [norm(trace, given, out.dim() - 1, "layer"), *rest]
    if name == "native_group_norm":
        return [norm(trace, given, 1, "group"), *rest]
    if name == "constant_pad_nd" and first is not None:
        return [padded(trace, first, given["pad"], given.get("value", 0) == 0)]
    if name == "native_dropout" and first is not None:
        return [trace.labels(first), *rest]
    if name.startswith(_BY_CHANNEL) and first is not None and first.shape[:2] == out.shape[:2]:
        return [_by_channel(trace, first), *rest]
    if name in _SUMS | _EXTREMES and first is not None:
        return [_reduction(trace, name, trace.labels(first), given)] * len(outputs)
    functional = getattr(torch.ops.aten, name, None)
    by_element = (
        name in ("hardswish", "_prelu_kernel")
        or torch.Tag.pointwise in func.tags
        or any(
            torch.Tag.pointwise in getattr(functional, overload).tags
            for overload in (functional.overloads() if functional else ())
        )
    )
    if by_element and len(outputs) == 1:
        return [pointwise(trace, name, given, out)]
    return [trace.unknown(name, given)] * len(outputs)


def _by_channel(trace: Trace, t: Tensor) -> Tensor:
    """The labels of an operation on each channel alone (pooling, resizing)."""
    reads, lost = trace.along(t, 1)
    trace.consume(lost, f"its output reaches {trace.site('pooling')}, which mixes channels")
    trace.leave_out_constants(torch.tensor(lost))
    return reads.view(1, -1, *[1] * (t.dim() - 2))


def _reduction(trace: Trace, name: str, labels: Tensor, given: dict[str, Any]) -> Tensor:
    """The labels of a sum, mean, extreme or variance over some dimensions."""
    dims = given.get("dim")
    dims = list(range(labels.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = [d % labels.dim() for d in dims] if labels.dim() else []
    kept = [d for d in range(labels.dim()) if d not in dims]
    sizes = [labels.shape[d] for d in kept]
    reads, lost = by_row(labels.permute(*kept, *dims).reshape(math.prod(sizes), -1))
    mixes = f"its output reaches {trace.site(name)}, which mixes channels"
    trace.consume(lost, None if name in _SUMS else mixes)
    if name not in _SUMS and name not in ("amax", "amin", "max", "min"):
        reads = torch.where(reads < 0, MIXED, reads)
    if given.get("keepdim"):
        return reads.view([labels.shape[d] if d in kept else 1 for d in range(labels.dim())])
    return reads.view(sizes)
