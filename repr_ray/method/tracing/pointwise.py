"""Functions of each element: activations, sums, products and gates."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repr_ray.method.tracing.labels import CONSTANT, FIRST, MIXED, ZERO, by_row, has_filter, present
from repr_ray.method.tracing.trace import Trace


def pointwise(trace: Trace, name: str, given: dict[str, Any], out: Tensor) -> Tensor:
    """The labels of the output of a function of each element."""
    tensors = [t for t in given.values() if isinstance(t, Tensor)]
    every = list(torch.broadcast_tensors(*(trace.labels(t) for t in tensors)))
    if not any(bool(has_filter(z).any()) for z in every):
        if any(bool((z == MIXED).any()) for z in every):
            return torch.tensor(MIXED)
        return torch.tensor(CONSTANT)
    if len(tensors) == 1:
        return every[0] if _is_zero_at_zero(name, given) else _to_constants(trace, every[0], name)
    if len(tensors) == 2 and name in ("mul", "multiply"):
        for t, z in zip(reversed(tensors), every, strict=True):
            if t.numel() > 1 and (t in trace.sources or t not in trace.label_of or _varies(trace, t)):
                trace.join(present(z))
        return _product(trace, every[0], every[1], name)
    if name == "addcmul":
        factors = {"self": given["tensor1"], "other": given["tensor2"]}
        return _total(
            trace, given["self"], every[0], None, pointwise(trace, "mul", factors, out).expand(out.shape), name
        )
    if len(tensors) == 2 and name in ("add", "sub", "rsub"):
        return _total(trace, tensors[0], every[0], tensors[1], every[1], name)
    if name in ("div", "prelu", "_prelu_kernel", "where", "lerp", "maximum", "minimum"):
        if name in ("prelu", "_prelu_kernel", "div") and not bool(has_filter(every[1]).any()):
            if tensors[1].numel() > 1:
                trace.join(present(every[0]))
            return every[0]
        if name == "div" and torch.equal(every[1][labelled := has_filter(every[0])], -every[0][labelled]):
            return every[0]  # x / (1 + |x|)
        if all(torch.equal(z, every[-1]) for z in every[-2:]) and name != "div":
            return every[-1]
    return trace.unknown(name, given)


def _total(trace: Trace, one: Tensor, a: Tensor, other: Tensor | None, b: Tensor, name: str) -> Tensor:
    """A sum. Of maps and a parameter with one entry per channel (a bias), each filter owns its entry."""
    for parameter, labels in ((one, b), (other, a)):
        if parameter is not None and _is_bias(trace, parameter) and bool(has_filter(labels).any()):
            return _shifted(trace, labels, parameter)
    return sum_of(trace, a, b, name)


def _is_bias(trace: Trace, t: Tensor) -> bool:
    source = trace.sources.get(t)
    if source is None or t in trace.label_of or source.name in trace.parameter_labels:
        return False
    parameter = trace.tensors[source.name]
    return isinstance(parameter, nn.Parameter) and parameter.dim() == 1 and t.numel() == max(t.shape) > 1


def _shifted(trace: Trace, labels: Tensor, bias: Tensor) -> Tensor:
    """The labels of maps to which a bias is added, an entry per channel."""
    source, axis = trace.sources[bias], labels.dim() - bias.dim() + list(bias.shape).index(bias.numel())
    reads, lost = by_row(labels.movedim(axis, 0).reshape(labels.shape[axis], -1))
    site = trace.site("add")
    trace.consume(lost, f"its output reaches {site}, which does not take it channel by channel")
    trace.leave_out_constants(torch.tensor(lost))
    reads = reads.expand(bias.numel())
    trace.claim(source.name, "bias", torch.where(reads >= FIRST, reads, MIXED), source.rows.flatten().long())
    trace.join(present(reads))
    if source.name.rpartition(".")[0] != trace.running:
        trace.leave_out(present(reads), f"its output reaches {site}, whose bias belongs to another module")
    reads = torch.where(reads == ZERO, CONSTANT, reads)
    return reads.view([-1 if d == axis else 1 for d in range(labels.dim())])


def _varies(trace: Trace, t: Tensor) -> bool:
    """Whether a factor is more than random numbers drawn for the shape at hand."""
    return bool((trace.label_of[t] != CONSTANT).any())


def _to_constants(trace: Trace, labels: Tensor, name: str) -> Tensor:
    """The labels of zeros that become a constant at this operation."""
    site = trace.site(name)
    for label in present(labels):
        if label > 0:
            trace.constant_since.setdefault(int(label), site)
    return torch.where(labels >= FIRST, -labels, torch.where(labels == ZERO, CONSTANT, labels))


def sum_of(trace: Trace, a: Tensor, b: Tensor, name: str) -> Tensor:
    """A sum is zero where both are zero with the same filter; in any other sum a dropped filter adds zero."""
    constants = [
        _to_constants(trace, z, name) if bool(((z.abs() >= FIRST) & (o == CONSTANT)).any()) else z
        for z, o in ((a, b), (b, a))
    ]
    out = torch.full_like(a, MIXED)
    same = a.abs() == b.abs()
    out = torch.where(same, torch.minimum(a, b), out)
    out = torch.where((b == CONSTANT) & (a != ZERO), constants[0], out)
    out = torch.where((a == CONSTANT) & (b != ZERO), constants[1], out)
    out = torch.where(((a == ZERO) & (b == CONSTANT)) | ((b == ZERO) & (a == CONSTANT)), CONSTANT, out)
    ends = ~same & (a != CONSTANT) & (b != CONSTANT)
    for z in (a, b):
        trace.consume(present(z[ends]))
    return out


def _product(trace: Trace, a: Tensor, b: Tensor, name: str) -> Tensor:
    """A product is zero where either factor is, also behind a gate."""
    silent_a, silent_b = a >= ZERO, b >= ZERO
    out = torch.full_like(a, MIXED)
    out = torch.where((a == CONSTANT) & (b == CONSTANT), CONSTANT, out)
    out = torch.where((a <= -FIRST) & ((b == CONSTANT) | (b == a)), a, out)
    out = torch.where((b <= -FIRST) & (a == CONSTANT), b, out)
    out = torch.where(silent_b, b, out)
    out = torch.where(silent_a & (~silent_b | (a == ZERO)), a, out)
    both = silent_a & silent_b & (a != b) & (a != ZERO) & (b != ZERO)
    if bool(both.any()):
        pairs, places = torch.stack([a[both], b[both]]).unique(dim=1, return_inverse=True)
        ids = torch.tensor([trace.pair(int(p), int(q)) for p, q in pairs.T])
        out = out.masked_scatter(both, ids[places])
    for z, other in ((a, b), (b, a)):
        astray = (z <= -FIRST) & (other != CONSTANT) & (other != z) & (other != -z) & (other != ZERO)
        trace.leave_out_constants(z[astray])
    return out


def _is_zero_at_zero(name: str, given: Mapping[str, Any]) -> bool:
    """Whether a function of one tensor, with its other arguments as given, is zero at zero."""
    function: Callable[..., Any] = getattr(torch.ops.aten, name)
    try:
        value = function(**{key: torch.zeros(1) if isinstance(v, Tensor) else v for key, v in given.items()})
    except (RuntimeError, TypeError):
        return False
    return isinstance(value, Tensor) and not bool(value.any())
