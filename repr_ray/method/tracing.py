"""Where the output of every filter goes: the network is run on tensors without data, with a label on each element.

An element labelled with a filter is exactly zero whenever that filter is dropped. Operations that move elements
(views, splits, shuffles, permutations, concatenations) are carried out on the labels themselves; the others have a
rule below that says when zero in gives zero out. What has no rule makes a filter's layer be left out.
"""

import itertools
import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

Role = Literal["kernel", "bias", "gamma", "beta", "mean", "variance", "input"]

CONSTANT, MIXED, ZERO, FIRST = 0.0, 1.0, 2.0, 3.0
"""Labels: what no image can change, anything, zero in any case, and from FIRST on the filters.

A negative label marks what was zero and is now a constant, as after a sigmoid: it may gate its own filter's maps, and
nothing else may read it.
"""

SIZES = (32, 64, 224, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Image sizes tried first where none is given; others up to 256 follow while `MOST_OPERATIONS` are not reached."""

MOST_OPERATIONS = 20_000
"""Operations, over all sizes, after which no further size is tried: some seconds."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MOVES = _names(
    "view _unsafe_view _reshape_alias reshape permute transpose t expand squeeze unsqueeze select slice narrow split"
    " split_with_sizes unsafe_split unsafe_chunk chunk unbind cat stack flip roll pixel_shuffle pixel_unshuffle"
    " channel_shuffle repeat repeat_interleave reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
    " as_strided detach alias lift_fresh unfold movedim index index_select diagonal"
)
_WIDTH_FREE = _names(
    "view _unsafe_view permute transpose t expand squeeze unsqueeze cat reflection_pad2d replication_pad2d detach"
    " alias lift_fresh"
)
"""Moves that a network with fewer channels makes alike (views: where they keep or flatten the channels)."""
_CONSTANTS = _names(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full"
    " new_empty_strided bernoulli zero fill uniform normal random exponential empty zeros ones full rand randn"
)
_BY_CHANNEL = ("max_pool", "avg_pool", "adaptive_", "_adaptive_", "upsample_", "_upsample_", "fractional_max_pool")
_SUMS = frozenset({"mean", "sum"})
_EXTREMES = frozenset({"amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"})
_BATCH_NORMS = _names(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm"
    " miopen_batch_norm _batch_norm_with_update _batch_norm_no_update batch_norm"
)


class CannotTrace(ValueError):
    """The network cannot be followed; the message names the line of its code and the way out."""


@dataclass(frozen=True)
class Source:
    """A tensor made of a parameter's or buffer's elements: where each comes from, along its dimensions 0 and 1."""

    name: str
    rows: Tensor
    columns: Tensor


@dataclass
class Claim:
    """What is known about the entries of a tensor along `dim`: the label of the filter that has each to itself.

    NaN where nothing has used it yet. A kernel of a grouped convolution has its input channels counted through the
    `groups`. `axis` is that of its module's output along which the filters lie.
    """

    tensor: str
    role: Role
    labels: Tensor
    dim: int = 0
    groups: int = 1
    axis: int = 1


class Trace(TorchDispatchMode):
    """The labels of every tensor while a network runs, and what follows from them.

    `layers` are the convolutions in order of execution, `left_out` those that filters cannot be dropped from, with
    the reason; `claims` what belongs to filters; `joined` the layers that a smaller copy keeps at full width.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._modules = {module: name for name, module in reversed(list(model.named_modules()))}
        self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}
        self._twins = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in self._tensors.values()}
        self._labels = WeakIdKeyDictionary()  # each broadcasts to the tensor, in as many dimensions
        self._laid_out = WeakIdKeyDictionary()  # tensors whose labels lie in memory as they do, and views of them
        self._sources = WeakIdKeyDictionary()
        for name, tensor in self._tensors.items():
            self._sources[self._twins[id(tensor)]] = _source(name, tensor)
        self.inputs: tuple[Any, ...] = ()
        self.layers: list[str] = []
        self.left_out: dict[str, str] = {}
        self.claims: dict[tuple[str, bool], Claim] = {}
        self.joined: set[str] = set()
        self.readers: dict[str, set[tuple[str, str]]] = {}
        self._facts: dict[str, Tensor] = {}
        self._layer_of: dict[str, str] = {}
        self._kernel_of: dict[str, str] = {}
        self._sets: list[tuple[tuple[str, int], ...]] = []  # of one filter each to begin with, then of several
        self._first: dict[str, int] = {}  # the set of each layer's first filter
        self._products: dict[tuple[int, int], float] = {}
        self._lost_at: dict[int, str] = {}
        self._outputs = WeakIdKeyDictionary()
        self._calls: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()
        self._stack: list[nn.Module] = []
        self._unclaimed: set[str] = set()
        self.called: set[str] = set()
        self.operations = 0
        self._follows = True
        self._register(model)
        self._count = len(self._sets)

    def _register(self, model: nn.Module) -> None:
        """Give every filter that may be dropped a label: its kernel and its bias are what is zero to begin with."""
        convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        owners = Counter(id(conv._parameters.get("weight")) for conv in convs.values())
        for name, conv in convs.items():
            reason = ""
            if conv._parameters.get("weight") is None:
                reason = "its kernel is computed from other parameters (a norm, a parametrisation or pruning)"
            elif owners[id(conv.weight)] > 1:
                reason = "its weights are shared by several callers"
            elif conv.groups > 1:
                reason = "it is a grouped or depthwise convolution"
            elif isinstance(conv, nn.ConvTranspose2d) or conv.weight.dim() != 4:
                reason = "it is no plain convolution"
            elif not conv.weight.requires_grad:
                reason = "it is frozen"
            if reason:
                self.left_out[name] = reason
                continue
            first, count = len(self._sets), len(conv.weight)
            self._first[name] = first
            self._sets += [((name, f),) for f in range(count)]
            labels = torch.arange(first, first + count) + FIRST
            self._layer_of[self._names[id(conv.weight)]] = name
            self._kernel_of[name] = self._names[id(conv.weight)]
            bias = conv._parameters.get("bias")
            own_parts: list[tuple[Role, Any]] = [("kernel", conv.weight), ("bias", bias)]
            for role, tensor in own_parts:
                if tensor is not None:
                    own = self._names[id(tensor)]
                    self._facts[own] = labels.clone()
                    self.claims[own, False] = Claim(own, role, labels.clone())

    # Running the network

    def run(self, *inputs: Any, labels: bool = True) -> None:
        """Follow one call of the network, or only see whether it takes these inputs. Raises whatever it raises."""
        self._follows, self.inputs = labels, inputs
        self._calls.clear()
        self._computed.clear()
        self._stack.clear()
        images = tree_map(lambda t: torch.empty_like(t, device="meta") if isinstance(t, Tensor) else t, inputs)
        for image in tree_leaves(images):
            if isinstance(image, Tensor):
                self._labels[image] = _scalar(MIXED, image)
        pre, post = nn.modules.module.register_module_forward_pre_hook, nn.modules.module.register_module_forward_hook
        handles = [pre(self._enter), post(self._leave, always_call=True)]
        plain = mock.patch.object(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
        try:
            with torch.no_grad(), _uncompiled(), plain, self:
                outputs = self._model(*images)
        finally:
            for handle in handles:
                handle.remove()
        for output in _tensors_in(outputs) if labels else ():
            if output in self._labels:
                self._blame(self._present(self._labels[output]), _not_silent("the network's output"))
        for name, calls in self._calls.items():
            if calls > 1:
                self.left_out.setdefault(self._layer_of[name], "its weights are shared by several callers")

    def _enter(self, module: nn.Module, inputs: object) -> None:
        self._stack.append(module)
        self.called.add(self._modules.get(module, ""))

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._stack.pop()
        with _disable_current_modes():
            self._note_axis(module, output)

    def _note_axis(self, module: nn.Module, output: object) -> None:
        """Where in its module's output the channels lie that a norm was found to silence."""
        name = self._modules.get(module, "")
        tensors = [self._names[id(p)] for p in module._parameters.values() if id(p) in self._names]
        claims = [self.claims[name, False] for name in tensors if (name, False) in self.claims]
        own = [claim for claim in claims if claim.role in ("gamma", "bias")]
        if own and isinstance(output, Tensor) and output in self._labels and not isinstance(module, nn.Conv2d):
            along = [self._along(output, d)[0] for d in range(output.dim())]
            axes = [d for d in range(1, output.dim()) if bool((along[d] >= FIRST).any())]
            for claim in own:
                claim.axis = axes[0] if axes else claim.axis
                if claim.role == "bias" and not (axes and torch.equal(along[axes[0]], claim.labels)):
                    self._blame(self._present(claim.labels), f"{claim.tensor} is added to it within {name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        base = func._schema.name.split("::")[1]
        if not any(t.is_meta or id(t) in self._names for t in tensors):
            out = func(*args, **kwargs)
            if base in _CONSTANTS and isinstance(out, Tensor) and out.is_floating_point() and not out.is_meta:
                out = out.to("meta")  # results may be written into it
            return out
        if base in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"):
            raise CannotTrace("what it does depends on the values of a tensor")
        self.operations += 1
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        real = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        args, kwargs = tree_map(self._twin, (args, kwargs))
        for t in tensors if self._follows else ():
            if (layer := self._outputs.get(self._twin(t))) is not None and base not in ("detach", "alias"):
                self.readers[layer].add((base, self._modules.get(self._stack[-1], "")))
        out = func(*args, **kwargs)
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if self._follows:
            self._follow(func, base, given, real, out)
        return out

    def _twin(self, value: Any) -> Any:
        """A tensor without data in the place of one that has data."""
        if not isinstance(value, Tensor) or (value.is_meta and id(value) not in self._names):
            return value
        if id(value) in self._twins:
            return self._twins[id(value)]
        return torch.empty_like(value, device="meta") if value.dim() else value

    # From the labels of an operation's inputs to those of its outputs

    def _follow(self, func: Any, base: str, given: dict[str, Any], real: dict[str, Any], out: Any) -> None:
        tensors = [t for t in tree_leaves(list(given.values())) if isinstance(t, Tensor)]
        self._unclaimed = {self._sources[t].name for t in tensors if t in self._sources}
        in_place = base.endswith("_") and not base.endswith("__")
        name = base.removesuffix("_") if in_place else base
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in _MOVES:
            moved = self._move(func, name, given, real, out)
            if moved is not None:
                for one, labels in zip(outputs, moved, strict=True):
                    if isinstance(labels, Source):
                        self._sources[one] = labels
                    else:
                        self._labels[one] = labels
                self._close()
                return
        found = self._rule(func, name, given, outputs)
        for one, labels in zip(outputs, found, strict=True):
            labels = labels.reshape([1] * (one.dim() - labels.dim()) + list(labels.shape))
            if in_place and one in self._sources:
                self._close({self._sources[one].name})
            elif in_place and one in self._laid_out:
                self._labels[one].copy_(labels.clone())
            else:
                self._labels[one] = labels
        self._close()

    def _rule(self, func: Any, name: str, given: dict[str, Any], outputs: list[Tensor]) -> Sequence[Tensor]:
        """Labels that broadcast to each of the outputs."""
        if not outputs:
            return []
        out = outputs[0]
        first = next((t for t in given.values() if isinstance(t, Tensor)), None)
        rest = [torch.tensor(MIXED)] * (len(outputs) - 1)
        if name in _CONSTANTS:
            return [torch.tensor(CONSTANT)]
        if name == "copy":
            return [self.labels(given["src"])]
        if name in ("_to_copy", "clone") and first is not None:
            return [self.labels(first)]
        if name == "convolution":
            return [self._convolution(given, out)]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            return [self._matrix_product(name, given)]
        if name in _BATCH_NORMS:
            return [self._norm(given, 1, "batch"), *rest]
        if name == "native_layer_norm" and len(given["normalized_shape"]) == 1:
            return [self._norm(given, out.dim() - 1, "layer"), *rest]
        if name == "native_group_norm":
            return [self._norm(given, 1, "group"), *rest]
        if name == "constant_pad_nd" and first is not None:
            return [self._padded(first, given["pad"], given.get("value", 0) == 0)]
        if name == "native_dropout" and first is not None:
            return [self.labels(first), *rest]
        if name.startswith(_BY_CHANNEL) and first is not None and first.shape[:2] == out.shape[:2]:
            return [self._by_channel(first), *rest]
        if name in _SUMS | _EXTREMES and first is not None:
            return [self._reduction(name, self.labels(first), given)] * len(outputs)
        functional = getattr(torch.ops.aten, name, None)
        pointwise = (
            name in ("hardswish", "_prelu_kernel")
            or torch.Tag.pointwise in func.tags
            or any(
                torch.Tag.pointwise in getattr(functional, overload).tags
                for overload in (functional.overloads() if functional else ())
            )
        )
        if pointwise and len(outputs) == 1:
            return [self._pointwise(name, given, out)]
        return [self._unknown(name, given)] * len(outputs)

    def _move(
        self, func: Any, name: str, given: dict[str, Any], real: dict[str, Any], out: Any
    ) -> Sequence[Tensor | Source] | None:
        """The same operation on the labels. None where it cannot be carried out."""
        if name in ("index", "index_select"):
            wanted = real.get("indices", [real.get("index")])
            if any(t is not None and t.is_meta for t in wanted):
                return None  # nobody knows which
        owners = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        data = [t for t in owners if t.is_meta]
        given = {**given, **{key: real[key] for key in ("indices", "index") if key in given}}
        if data and data[0] in self._sources and data[0] not in self._labels and name not in ("cat", "stack"):
            source = self._sources[data[0]]
            self._unclaimed.discard(source.name)
            if "view" in name:
                return [Source(source.name, source.rows.reshape(out.shape), source.columns.reshape(out.shape))]
            rows = tree_leaves(func(**_with(given, data[0], source.rows)))
            columns = tree_leaves(func(**_with(given, data[0], source.columns)))
            return [Source(source.name, r, c) for r, c in zip(rows, columns, strict=True)]
        flat = name == "cat" and all(self._is_flat(t, given.get("dim", 0)) for t in data)

        def moving(t: Any) -> Any:
            if not isinstance(t, Tensor) or not t.is_meta:
                return t
            return self._by_entry(t, given.get("dim", 0)) if flat else self._own_labels(t)

        moved = {key: tree_map(moving, value) for key, value in given.items()}
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        labels = [t for t in tree_leaves(func(**moved)) if isinstance(t, Tensor)]
        for i, (one, own) in enumerate(zip(results, labels, strict=True)):
            if not flat:
                self._laid_out[one] = True
                labels[i] = own if own.stride() == one.stride() else _laid_out(own, one)
        before = data[0].shape if data else torch.Size()
        if name not in _WIDTH_FREE or ("view" in name and not _keeps_channels(before, results[0].shape)):
            for t in data:
                self._join(self._present(self.labels(t)))
        return labels

    def _is_flat(self, t: Tensor, dim: int) -> bool:
        """Whether labels are known to differ along one dimension alone."""
        labels = self.labels(t)
        return t not in self._laid_out and all(size == 1 or d == dim % t.dim() for d, size in enumerate(labels.shape))

    def _by_entry(self, t: Tensor, dim: int) -> Tensor:
        labels = self.labels(t)
        return labels.expand([t.shape[d] if d == dim % t.dim() else 1 for d in range(t.dim())])

    def _padded(self, t: Tensor, pad: list[int], zero: bool) -> Tensor:
        labels = self.labels(t)
        if not zero:
            return torch.constant_pad_nd(labels.expand(t.shape), pad, CONSTANT)
        pad = list(pad)  # zeros beside what is alike along a dimension: zero whenever that is
        for i in range(len(pad) // 2):
            if labels.shape[-1 - i] == 1:
                pad[2 * i : 2 * i + 2] = [0, 0]
        return torch.constant_pad_nd(labels, pad, ZERO)

    def _convolution(self, given: dict[str, Any], out: Tensor) -> Tensor:
        x, weight, bias, groups = given["input"], given["weight"], given["bias"], given["groups"]
        reads, lost = self._along(x, 1)
        self._consume(lost)
        self._blame_constants(reads)
        source, leaf = self._sources.get(weight), self._is_whole(weight)
        if leaf:
            self._claim_columns(source.name, 0 if given["transposed"] else 1, groups, reads)
        if not leaf or 1 < groups < len(reads):
            self._join(self._present(reads))
        own = torch.full((out.shape[1],), MIXED)
        if not given["transposed"]:
            kernel = self._facts.get(source.name) if leaf and source.name in self._facts else None
            if kernel is None and not leaf:
                kernel = self._along(weight, 0)[0]
            if kernel is not None and bool((kernel >= FIRST).any()):
                layer = self.filters(float(kernel[kernel >= FIRST][0]))[0][0]
                if layer not in self.layers:
                    self.layers.append(layer)
                self._calls[self._kernel_of[layer]] += 1
                self._outputs[out] = layer
                self.readers.setdefault(layer, set())
                if bias is None or torch.equal(self._bias_labels(bias, kernel), kernel):
                    own = kernel
                else:
                    self._blame(self._present(kernel), "its bias is computed, or not its own")
            elif groups > 1:
                own = self._pass_through(reads, groups, bias, len(own))
        return own.view(1, -1, *[1] * (out.dim() - 2))

    def _bias_labels(self, bias: Tensor, kernel: Tensor) -> Tensor:
        source = self._sources.get(bias)
        if source is None or source.name not in self._facts or not self._is_whole(bias):
            return torch.zeros_like(kernel)
        self._unclaimed.discard(source.name)
        return self._facts[source.name]

    def _pass_through(self, reads: Tensor, groups: int, bias: Tensor | None, filters: int) -> Tensor:
        """Filters of a convolution whose groups read the maps of one filter alone are silent with it."""
        group = self._rows(reads.view(groups, -1))[0]
        own = torch.where(group >= FIRST, group, MIXED).repeat_interleave(filters // groups)
        if bias is None or not bool((own >= FIRST).any()):
            return own
        if not self._is_whole(bias):
            self._blame(self._present(own), f"its output reaches {self._site('convolution')}, whose bias is computed")
            return torch.full_like(own, MIXED)
        self._claim(self._sources[bias].name, "bias", own)
        return own

    def _matrix_product(self, name: str, given: dict[str, Any]) -> Tensor:
        one, other = (
            (given["self"], given["mat2"])
            if name in ("mm", "bmm")
            else ((given["mat1"], given["mat2"]) if name == "addmm" else (given["batch1"], given["batch2"]))
        )
        left, right = self.labels(one), self.labels(other)
        for z in (left, right):
            self._blame_constants(z)
        rows = self._rows(left.flatten(0, -2))[0].view(*left.shape[:-1], 1)
        columns = self._rows(right.transpose(-1, -2).flatten(0, -2))[0].view(*right.shape[:-2], 1, -1)
        if one.dim() == 2:
            self._claim_factor(other, self._along(one, 1))
            if one in self._sources:
                self._claim_factor(one, self._along(other, 0), transposed=True)
        else:
            self._join(self._present(left) + self._present(right))
        out = torch.where(rows >= FIRST, rows, torch.where(columns >= FIRST, columns, MIXED))
        if name in ("addmm", "baddbmm"):
            added, out = torch.broadcast_tensors(self.labels(given["self"]), out)
            out = self._sum(added, out, name)
        return out

    def _claim_factor(self, factor: Tensor, found: tuple[Tensor, list[float]], transposed: bool = False) -> None:
        """Note which inputs of a matrix (inputs x outputs, or transposed) read a filter's maps alone."""
        reads, lost = found
        self._consume(lost)
        source = self._sources.get(factor)
        if source is None:
            self._join(self._present(reads))
            return
        for dim, places in ((1, source.columns), (0, source.rows)):
            places = places.T if transposed else places
            if places.dim() == 2 and places.numel() and _is_alike(places):
                size = self._tensors[source.name].shape[dim]
                labels = torch.full((size,), torch.nan)
                index = places[:, 0].long()
                labels[index] = reads
                twice = torch.bincount(index, minlength=size) > 1
                labels[twice] = MIXED
                self._claim_columns(source.name, dim, 1, labels)
                return
        self._join(self._present(reads))

    def _norm(self, given: dict[str, Any], dim: int, kind: str) -> Tensor:
        reads, lost = self._along(given["input"], dim)
        site = self._site("norm")
        self._consume(lost, f"its output reaches {site}, which does not take it channel by channel")
        self._blame_constants(reads)
        weight, bias = given.get("weight"), given.get("bias")
        found = torch.where((reads >= FIRST) | (reads == ZERO), reads, MIXED)
        own = self._present(reads)
        statistics = (given.get("running_mean"), given.get("running_var"))
        batch = kind == "batch" and (given.get("training", False) or statistics[0] is None)
        if not (batch and bias is None):
            if own and (weight is None or (kind == "batch" and bias is None)):
                self._blame(own, f"its batch norm {site} has no gamma and beta to silence it with")
            scales: list[tuple[Role, Any]] = [("gamma", weight), ("beta", bias)]
            for role, tensor in scales:
                if tensor is None:
                    continue
                source = self._sources.get(tensor)
                if source is None or source.rows.dim() != 1 or source.name in self._facts:
                    self._blame(own, f"its output reaches {site}, whose {role} is computed")
                else:
                    self._claim(source.name, role, reads, source.rows.long())
            if kind != "batch":
                self._join(own)
            self._blame_unowned(own, weight, site)
        moments: list[tuple[Role, Any]] = [("mean", statistics[0]), ("variance", statistics[1])]
        for role, tensor in moments:
            source = self._sources.get(tensor) if tensor is not None else None
            if source is not None:
                self._claim(source.name, role, reads, source.rows.long())
        return found.view([-1 if d == dim else 1 for d in range(given["input"].dim())])

    def _blame_unowned(self, own: list[float], weight: Tensor | None, site: str) -> None:
        """Whoever silences one filter at a time does so at the module that has the gamma."""
        if own and weight is not None and weight in self._sources:
            owner = self._sources[weight].name.rpartition(".")[0]
            if owner != self._modules.get(self._stack[-1]):
                self._blame(own, f"its output reaches {site}, whose gamma belongs to another module")

    def _by_channel(self, t: Tensor) -> Tensor:
        reads, lost = self._along(t, 1)
        self._consume(lost, f"its output reaches {self._site('pooling')}, which mixes channels")
        self._blame_constants(torch.tensor(lost))
        return reads.view(1, -1, *[1] * (t.dim() - 2))

    def _reduction(self, name: str, labels: Tensor, given: dict[str, Any]) -> Tensor:
        dims = given.get("dim")
        dims = list(range(labels.dim())) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        dims = [d % labels.dim() for d in dims] if labels.dim() else []
        kept = [d for d in range(labels.dim()) if d not in dims]
        sizes = [labels.shape[d] for d in kept]
        reads, lost = self._rows(labels.permute(*kept, *dims).reshape(math.prod(sizes), -1))
        mixes = f"its output reaches {self._site(name)}, which mixes channels"
        self._consume(lost, None if name in _SUMS else mixes)
        if name not in _SUMS and name not in ("amax", "amin", "max", "min"):
            reads = torch.where(reads < 0, MIXED, reads)
        if given.get("keepdim"):
            return reads.view([labels.shape[d] if d in kept else 1 for d in range(labels.dim())])
        return reads.view(sizes)

    def _pointwise(self, name: str, given: dict[str, Any], out: Tensor) -> Tensor:
        tensors = [t for t in given.values() if isinstance(t, Tensor)]
        every = list(torch.broadcast_tensors(*(self.labels(t) for t in tensors)))
        if not any(bool(_filters(z).any()) for z in every):
            if any(bool((z == MIXED).any()) for z in every):
                return torch.tensor(MIXED)
            return torch.tensor(CONSTANT)
        if len(tensors) == 1:
            return every[0] if _is_zero_at_zero(name, given) else self._to_constants(every[0], name)
        if len(tensors) == 2 and name in ("mul", "multiply"):
            for t, z in zip(reversed(tensors), every, strict=True):
                if t.numel() > 1 and (t in self._sources or t not in self._labels or self._varies(t)):
                    self._join(self._present(z))
            return self._product(every[0], every[1], name)
        if name == "addcmul":
            factors = {"self": given["tensor1"], "other": given["tensor2"]}
            return self._total(
                given["self"], every[0], None, self._pointwise("mul", factors, out).expand(out.shape), name
            )
        if len(tensors) == 2 and name in ("add", "sub", "rsub"):
            return self._total(tensors[0], every[0], tensors[1], every[1], name)
        if name in ("div", "prelu", "_prelu_kernel", "where", "lerp", "maximum", "minimum"):
            if name in ("prelu", "_prelu_kernel", "div") and not bool(_filters(every[1]).any()):
                if tensors[1].numel() > 1:
                    self._join(self._present(every[0]))
                return every[0]
            if name == "div" and torch.equal(every[1][labelled := _filters(every[0])], -every[0][labelled]):
                return every[0]  # x / (1 + |x|)
            if all(torch.equal(z, every[-1]) for z in every[-2:]) and name != "div":
                return every[-1]
        return self._unknown(name, given)

    def _total(self, one: Tensor, a: Tensor, other: Tensor | None, b: Tensor, name: str) -> Tensor:
        """A sum; of maps and a parameter with an entry a channel, as a bias, each filter's entry is its own."""
        for parameter, labels in ((one, b), (other, a)):
            if parameter is not None and self._is_bias(parameter) and bool(_filters(labels).any()):
                return self._shifted(labels, parameter)
        return self._sum(a, b, name)

    def _is_bias(self, t: Tensor) -> bool:
        source = self._sources.get(t)
        if source is None or t in self._labels or source.name in self._facts:
            return False
        parameter = self._tensors[source.name]
        return isinstance(parameter, nn.Parameter) and parameter.dim() == 1 and t.numel() == max(t.shape) > 1

    def _shifted(self, labels: Tensor, bias: Tensor) -> Tensor:
        source, axis = self._sources[bias], labels.dim() - bias.dim() + list(bias.shape).index(bias.numel())
        reads, lost = self._rows(labels.movedim(axis, 0).reshape(labels.shape[axis], -1))
        site = self._site("add")
        self._consume(lost, f"its output reaches {site}, which does not take it channel by channel")
        self._blame_constants(torch.tensor(lost))
        reads = reads.expand(bias.numel())
        self._claim(source.name, "bias", torch.where(reads >= FIRST, reads, MIXED), source.rows.flatten().long())
        self._join(self._present(reads))
        if source.name.rpartition(".")[0] != self._modules.get(self._stack[-1] if self._stack else self._model):
            self._blame(self._present(reads), f"its output reaches {site}, whose bias belongs to another module")
        reads = torch.where(reads == ZERO, CONSTANT, reads)
        return reads.view([-1 if d == axis else 1 for d in range(labels.dim())])

    def _varies(self, t: Tensor) -> bool:
        """Whether a factor is more than random numbers drawn for the shape at hand."""
        return bool((self._labels[t] != CONSTANT).any())

    def _to_constants(self, labels: Tensor, name: str) -> Tensor:
        site = self._site(name)
        for label in self._present(labels):
            if label > 0:
                self._lost_at.setdefault(int(label), site)
        return torch.where(labels >= FIRST, -labels, torch.where(labels == ZERO, CONSTANT, labels))

    def _sum(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Where both are silent together, so is the sum; beside anything else a dropped filter adds nothing."""
        constants = [
            self._to_constants(z, name) if bool(((z.abs() >= FIRST) & (o == CONSTANT)).any()) else z
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
            self._consume(self._present(z[ends]))
        return out

    def _product(self, a: Tensor, b: Tensor, name: str) -> Tensor:
        """Silent where either factor is: a gate cannot open what is zero."""
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
            ids = torch.tensor([self._pair(int(p), int(q)) for p, q in pairs.T])
            out = out.masked_scatter(both, ids[places])
        for z, other in ((a, b), (b, a)):
            astray = (z <= -FIRST) & (other != CONSTANT) & (other != z) & (other != -z) & (other != ZERO)
            self._blame_constants(z[astray])
        return out

    def _pair(self, a: int, b: int) -> float:
        """The label of what is zero when either of two filters is dropped."""
        key = (min(a, b), max(a, b))
        if key not in self._products:
            self._products[key] = len(self._sets) + FIRST
            first, second = (self._sets[int(label - FIRST)] for label in key)
            self._sets.append(tuple(dict.fromkeys(first + second)))
        return self._products[key]

    def _unknown(self, name: str, given: dict[str, Any]) -> Tensor:
        """No rule: whatever filter reaches it is left out."""
        every = [self.labels(t) for t in tree_leaves(list(given.values())) if isinstance(t, Tensor)]
        for z in every:
            self._consume(self._present(z), _not_silent(self._site(name)))
        return torch.tensor(MIXED if any(bool((z != CONSTANT).any()) for z in every) else CONSTANT)

    # Labels

    def labels(self, t: Tensor) -> Tensor:
        """The labels of a tensor's elements, broadcasting to it; not to be written to."""
        if t in self._labels:
            return self._labels[t]
        source = self._sources.get(t)
        if source is not None and source.name in self._facts:
            return self._facts[source.name][source.rows.long()]
        return _scalar(CONSTANT, t)

    def _own_labels(self, t: Tensor) -> Tensor:
        """Labels in memory as the tensor's elements: a view of it has a view of them, and sees what is written."""
        if t not in self._laid_out:
            self._labels[t] = _laid_out(self.labels(t), t)
            self._laid_out[t] = True
        return self._labels[t]

    def _along(self, t: Tensor, dim: int) -> tuple[Tensor, list[float]]:
        """The label of each slice along `dim` that has one label (zeros aside), and the labels inside the others."""
        labels = self.labels(t)
        found, lost = self._rows(labels.movedim(dim, 0).reshape(labels.shape[dim], -1))
        return found.expand(t.shape[dim]), lost

    def _rows(self, rows: Tensor) -> tuple[Tensor, list[float]]:
        """The same for each row of a matrix of labels."""
        if rows.shape[1] == 1:
            return rows.flatten(), []
        if not rows.shape[1]:
            return torch.full((len(rows),), MIXED), []
        zero = rows == ZERO
        low, high = rows.masked_fill(zero, torch.inf).amin(1), rows.masked_fill(zero, -torch.inf).amax(1)
        one = low == high
        found = torch.where(zero.all(1), ZERO, torch.where(one, low, MIXED))
        odd = ~one & ~zero.all(1)
        return found, self._present(rows[odd]) if bool(odd.any()) else []

    def _present(self, labels: Tensor) -> list[float]:
        """The filters' labels, negative ones too, that occur."""
        labels = labels[labels.abs() >= FIRST] if labels.numel() else labels
        return labels.unique().tolist() if labels.numel() else []

    def _is_whole(self, t: Tensor) -> bool:
        """Whether a tensor is a parameter itself."""
        source = self._sources.get(t)
        return source is not None and t is self._twins[id(self._tensors[source.name])]

    # What follows

    def _claim(self, name: str, role: Role, labels: Tensor, index: Tensor | None = None) -> None:
        """Entries of a tensor are a filter's own where no other use of them is found."""
        self._unclaimed.discard(name)
        size = len(self._tensors[name])
        claim = self.claims.setdefault((name, False), Claim(name, role, torch.full((size,), torch.nan)))
        index = torch.arange(size) if index is None else index
        for label in self._conflicts(claim, labels, index):
            self._blame([label], f"its batch norm {name.rpartition('.')[0]} has several callers")
        if role in ("gamma", "beta", "bias") and not self._tensors[name].requires_grad:
            self._blame(self._present(labels), f"{name} is frozen")

    def _conflicts(self, claim: Claim, labels: Tensor, index: Tensor) -> list[float]:
        before = claim.labels[index]
        claim.labels[index] = torch.where(before.isnan() | (before == labels), labels, MIXED)
        again = claim.labels[index] != labels  # the same entry twice in one use
        odd = (~before.isnan() & (before != labels)) | again
        return self._present(torch.cat([before[odd].nan_to_num(), labels[odd]]))

    def _claim_columns(self, name: str, dim: int, groups: int, labels: Tensor) -> None:
        """Inputs of a kernel or matrix are a filter's own where every use of them reads its maps."""
        self._unclaimed.discard(name)
        claim = self.claims.setdefault(
            (name, True), Claim(name, "input", torch.full((len(labels),), torch.nan), dim, groups)
        )
        if (claim.dim, claim.groups) != (dim, groups):
            self._join(self._present(claim.labels.nan_to_num()) + self._present(labels.nan_to_num()))
            claim.labels.fill_(MIXED)
            return
        used = (~labels.isnan()).nonzero().flatten()
        self._join(self._conflicts(claim, labels[used], used))

    def _close(self, written: Iterable[str] = ()) -> None:
        """Parameters that an operation used in a way no rule accounts for belong to no filter."""
        for name in {*self._unclaimed, *written}:
            for key in ((name, False), (name, True)):
                claim = self.claims.get(key)
                if claim is None and name in self._tensors:
                    shape = self._tensors[name].shape
                    size = shape[int(key[1])] if len(shape) > int(key[1]) else 0
                    role: Role = "input" if key[1] else "gamma"
                    self.claims[key] = Claim(name, role, torch.full((size,), MIXED), int(key[1]))
                elif claim is not None and claim.role != "kernel":
                    own = self._present(claim.labels.nan_to_num())
                    if key[1]:
                        self._join(own)
                    else:
                        self._blame(own, f"{name} has several callers")
                    claim.labels.fill_(MIXED)
            if name in self._layer_of:
                self._computed[name] += 1
                if self._computed[name] > 1 or self._calls[name]:
                    self.left_out.setdefault(self._layer_of[name], "its weights are shared by several callers")
        self._unclaimed = set()

    def _consume(self, labels: list[float], reason: str | None = None) -> None:
        """Labels end here: among others, where zero adds nothing, or for a reason."""
        self._blame_constants(torch.tensor([label for label in labels if label < 0]))
        silent = [label for label in labels if label > 0]
        self._blame(silent, reason) if reason else self._join(silent)

    def _blame_constants(self, labels: Tensor) -> None:
        lost: dict[str, list[float]] = {}
        for label in self._present(labels[labels < 0]) if labels.numel() else []:
            lost.setdefault(self._lost_at.get(int(-label), "a function"), []).append(-label)
        for site, own in lost.items():
            self._blame(own, _not_silent(site))

    def _blame(self, labels: Iterable[float], reason: str) -> None:
        for layer in self._layers(labels):
            self.left_out.setdefault(layer, reason)

    def _join(self, labels: Iterable[float]) -> None:
        self.joined.update(self._layers(labels))

    def _layers(self, labels: Iterable[float]) -> dict[str, None]:
        return dict.fromkeys(layer for label in labels for layer, _ in self.filters(abs(label)))

    def filters(self, label: float) -> tuple[tuple[str, int], ...]:
        """The (layer, filter) that a label stands for."""
        return self._sets[int(label - FIRST)]

    def owners(self, claim: Claim) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """By layer: the filters that have entries of a tensor to themselves, in order, and the entries' places."""
        places = (claim.labels >= FIRST).nonzero().flatten()
        labels = claim.labels[places]
        singles = labels < FIRST + self._count
        found = [torch.stack([labels[singles] - FIRST, places[singles]]).long()]
        for label, place in zip(labels[~singles].tolist(), places[~singles].tolist(), strict=True):
            members = [self._first[layer] + filter for layer, filter in self.filters(label)]
            found.append(torch.tensor([members, [place] * len(members)], device=places.device))
        numbers, places = torch.cat(found, 1)
        order = (numbers * len(claim.labels) + places).argsort()
        numbers, places = numbers[order], places[order]
        firsts = torch.tensor(list(self._first.values()), device=numbers.device)
        which = torch.bucketize(numbers, firsts, right=True) - 1
        owners, counts = which.unique_consecutive(return_counts=True)
        layers, sizes = list(self._first), counts.tolist()
        return {
            layers[i]: (tuple((own - self._first[layers[i]]).tolist()), tuple(at.tolist()))
            for i, own, at in zip(owners.tolist(), numbers.split(sizes), places.split(sizes), strict=True)
        }

    def _site(self, operation: str) -> str:
        """What a person knows the place by: the innermost module, or a function."""
        module = self._stack[-1] if self._stack else self._model
        name = self._modules.get(module, "")
        return name if name and not any(module.children()) else operation or name


def follow(model: nn.Module, example: Any = None) -> Trace:
    """The trace of one call in training mode and one in evaluation mode, on tensors without data.

    `example` is an input, or a tuple of them; without one, image sizes are tried until one fits. The network is
    left as it was. Raises CannotTrace when it cannot be run, or when what it does depends on the values of tensors.
    """
    furthest: tuple[int, Exception] = (-1, CannotTrace("it takes no input"))
    operations = 0
    with torch.device("cpu"), _left_as_it_was(model):  # the caller may be making all else on another device
        for inputs in [_as_inputs(example)] if example is not None else _guesses(model):
            trace = Trace(model)
            try:
                for training, labels in ((True, False), (True, True), (False, True)):
                    if labels or operations:  # most networks take the first size
                        model.train(training)
                        trace.run(*inputs, labels=labels)
                return trace
            except Exception as error:
                operations += trace.operations
                if trace.operations > furthest[0]:
                    furthest = (trace.operations, error)
                if isinstance(error, CannotTrace | NotImplementedError | TypeError | AttributeError):
                    break
                if operations > MOST_OPERATIONS:
                    break
    raise CannotTrace(_explanation(model, furthest[1], example is not None)) from furthest[1]


def _uncompiled() -> AbstractContextManager[object]:
    """Compiled parts of a network run as they were written; the compiler, slow to import, is left alone otherwise."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Modes, attributes and random numbers are put back: a hook or a forward pass may set what it computed."""
    before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, attributes, parameters, buffers in before:
            every: list[tuple[dict[str, Any], dict[str, Any]]] = [
                (vars(module), attributes),
                (module._parameters, parameters),
                (module._buffers, buffers),
            ]
            for own, saved in every:
                own.clear()
                own.update(saved)


def _as_inputs(example: Any) -> tuple[Any, ...]:
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _guesses(model: nn.Module) -> Iterator[tuple[Tensor]]:
    """Two images of every likely shape: of the channels that the first convolution takes, or coloured ones."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for sizes in (SIZES, [size for size in range(1, 257) if size not in SIZES]):
        for channels, size in itertools.product(dict.fromkeys((first, 3)), sizes):
            yield (torch.empty(2, channels, size, size, device="meta", dtype=dtype),)


def _explanation(model: nn.Module, error: Exception, given: bool) -> str:
    """One line: what went wrong, where in the user's code, and the way out."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    what = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    way = "make the forward pass a function of shapes alone (torch.where in place of `if` on values)"
    if not isinstance(error, CannotTrace | NotImplementedError):
        way = "check that it takes that input" if given else "pass example=, an input of the network as it is trained"
    return f"model: {type(model).__name__} cannot be followed: {what}{where}; {way}"


def _is_library(file: str) -> bool:
    return file.startswith(torch.__path__[0]) or file == __file__ or "<" in file


def _not_silent(site: str) -> str:
    return f"its output reaches {site}, through which a dropped filter is not silent (what follows would see it)"


def _source(name: str, tensor: Tensor) -> Source:
    def count(dim: int) -> Tensor:
        if tensor.dim() <= dim:
            return torch.zeros(()).expand(tensor.shape)
        places = torch.arange(tensor.shape[dim], dtype=torch.float32)
        return places.view([-1 if d == dim else 1 for d in range(tensor.dim())]).expand(tensor.shape)

    return Source(name, count(0), count(1))


def _is_alike(rows: Tensor) -> bool:
    """Whether each row of a matrix holds one value; a matrix of weights may be large, its strides often tell."""
    if 0 in rows.stride():
        return rows.stride(1) == 0 or rows.shape[1] == 1
    return bool((rows[:, :1] == rows).all())


def _scalar(label: float, like: Tensor) -> Tensor:
    """One label for all elements."""
    return torch.full([1] * like.dim(), label)


def _laid_out(labels: Tensor, like: Tensor) -> Tensor:
    """Labels in memory as `like` is, so that views of it are views of them; what is expanded stays so."""
    sizes = [1 if stride == 0 else size for size, stride in zip(like.shape, like.stride(), strict=True)]
    labels = labels.expand(like.shape)
    own = labels[tuple(slice(size) for size in sizes)]
    if not torch.equal(own.expand(like.shape), labels):
        raise CannotTrace("elements that share memory belong to different filters")
    return torch.empty_strided(sizes, like.stride()).copy_(own).expand(like.shape)


def _with(given: Mapping[str, Any], tensor: Tensor, value: Tensor) -> dict[str, Any]:
    return {key: value if one is tensor else one for key, one in given.items()}


def _keeps_channels(before: torch.Size, after: torch.Size) -> bool:
    """Whether a view keeps dimension 1 as it is, or flattens all after the batch."""
    return before[:2] == after[:2] or (len(after) == 2 and before[:1] == after[:1])


def _filters(labels: Tensor) -> Tensor:
    return labels.abs() >= FIRST


def _is_zero_at_zero(name: str, given: Mapping[str, Any]) -> bool:
    """Whether a function of one tensor, with these numbers beside it, gives zero for zero."""
    function: Callable[..., Any] = getattr(torch.ops.aten, name)
    try:
        value = function(**{key: torch.zeros(1) if isinstance(v, Tensor) else v for key, v in given.items()})
    except (RuntimeError, TypeError):
        return False
    return isinstance(value, Tensor) and not bool(value.any())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a network's output, whatever holds it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _tensors_in(one)
    elif hasattr(value, "__dict__"):
        yield from _tensors_in(vars(value))
