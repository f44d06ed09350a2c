"""Batch, layer and group norms; gamma and beta of a dropped filter are zero."""

from typing import Any

import torch
from torch import Tensor

from repr_ray.method.tracing.labels import FIRST, MIXED, ZERO, present
from repr_ray.method.tracing.ownership import Role
from repr_ray.method.tracing.trace import Trace


def norm(trace: Trace, given: dict[str, Any], dim: int, kind: str) -> Tensor:
    """The labels of a normalised tensor, whose gamma and beta have one entry for each along `dim`."""
    reads, lost = trace.along(given["input"], dim)
    site = trace.site("norm")
    trace.consume(lost, f"its output reaches {site}, which does not take it channel by channel")
    trace.leave_out_constants(reads)
    weight, bias = given.get("weight"), given.get("bias")
    found = torch.where((reads >= FIRST) | (reads == ZERO), reads, MIXED)
    own = present(reads)
    statistics = (given.get("running_mean"), given.get("running_var"))
    batch = kind == "batch" and (given.get("training", False) or statistics[0] is None)
    if not (batch and bias is None):
        if own and (weight is None or (kind == "batch" and bias is None)):
            trace.leave_out(own, f"its batch norm {site} has no gamma and beta to silence it with")
        scales: list[tuple[Role, Any]] = [("gamma", weight), ("beta", bias)]
        for role, tensor in scales:
            if tensor is None:
                continue
            source = trace.sources.get(tensor)
            if source is None or source.rows.dim() != 1 or source.name in trace.parameter_labels:
                trace.leave_out(own, f"its output reaches {site}, whose {role} is computed")
            else:
                trace.claim(source.name, role, reads, source.rows.long())
        if kind != "batch":
            trace.join(own)
        _require_own_gamma(trace, own, weight, site)
    moments: list[tuple[Role, Any]] = [("mean", statistics[0]), ("variance", statistics[1])]
    for role, tensor in moments:
        source = trace.sources.get(tensor) if tensor is not None else None
        if source is not None:
            trace.claim(source.name, role, reads, source.rows.long())
    return found.view([-1 if d == dim else 1 for d in range(given["input"].dim())])


def _require_own_gamma(trace: Trace, own: list[float], weight: Tensor | None, site: str) -> None:
    """Leave out filters whose gamma belongs to another module: a single filter is silenced at its own module."""
    if own and weight is not None and weight in trace.sources:
        owner = trace.sources[weight].name.rpartition(".")[0]
        if owner != trace.running:
            trace.leave_out(own, f"its output reaches {site}, whose gamma belongs to another module")
