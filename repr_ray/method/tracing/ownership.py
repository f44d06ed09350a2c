"""Which entries of the parameters belong to which filter, and which layers are left out or keep their width."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repr_ray.method.tracing.labels import FIRST, MIXED, present

Role = Literal["kernel", "bias", "gamma", "beta", "mean", "variance", "input"]


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


class Ownership:
    """The entries of parameters that belong to each filter, found use by use.

    `left_out` holds the layers whose filters cannot be dropped, with the reason; `joined` the layers that a smaller
    copy keeps at full width. The key of a claim says whether it is about the inputs of a kernel or matrix.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.left_out: dict[str, str] = {}
        self.claims: dict[tuple[str, bool], Claim] = {}
        self.joined: set[str] = set()
        self.parameter_labels: dict[str, Tensor] = {}  # of kernels and their biases
        self.layer_of: dict[str, str] = {}
        self.kernel_of: dict[str, str] = {}
        self.calls: Counter[str] = Counter()  # of each kernel, as a convolution
        self.computed: Counter[str] = Counter()  # uses of each kernel that no rule accounts for
        self.unclaimed: set[str] = set()  # parameters of the current operation that no rule has claimed yet
        self.constant_since: dict[int, str] = {}  # by filter: where its zeros became a constant
        self._sets: list[tuple[tuple[str, int], ...]] = []  # by label: one filter, or several for a product
        self._first: dict[str, int] = {}  # the set of each layer's first filter
        self._products: dict[tuple[int, int], float] = {}
        self._register(model)
        self._count = len(self._sets)
        self._layer_names = list(self._first)
        self._firsts = torch.tensor(list(self._first.values()))

    def _register(self, model: nn.Module) -> None:
        """Give every filter that may be dropped a label: at first only its kernel row and its bias have it."""
        convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        owners = Counter(id(tensor) for conv in convs.values() for tensor in conv._parameters.values())
        for name, conv in convs.items():
            held = [tensor for tensor in conv._parameters.values() if tensor is not None]
            reason = ""
            if conv._parameters.get("weight") is None:
                reason = "its kernel is computed from other parameters (a norm, a parametrisation or pruning)"
            elif any(owners[id(tensor)] > 1 for tensor in held):
                reason = "its weights are shared by several callers"
            elif conv.groups > 1:
                reason = "it is a grouped or depthwise convolution"
            elif isinstance(conv, nn.ConvTranspose2d) or conv.weight.dim() != 4:
                reason = "it is no plain convolution"
            elif not all(tensor.requires_grad for tensor in held):
                reason = "it is frozen" if not conv.weight.requires_grad else "its bias is frozen"
            if reason:
                self.left_out[name] = reason
                continue
            first, count = len(self._sets), len(conv.weight)
            self._first[name] = first
            self._sets += [((name, f),) for f in range(count)]
            labels = torch.arange(first, first + count) + FIRST
            self.layer_of[self.names[id(conv.weight)]] = name
            self.kernel_of[name] = self.names[id(conv.weight)]
            bias = conv._parameters.get("bias")
            own_parts: list[tuple[Role, Any]] = [("kernel", conv.weight), ("bias", bias)]
            for role, tensor in own_parts:
                if tensor is not None:
                    own = self.names[id(tensor)]
                    self.parameter_labels[own] = labels.clone()
                    self.claims[own, False] = Claim(own, role, labels.clone())

    def claim(self, name: str, role: Role, labels: Tensor, index: Tensor | None = None) -> None:
        """Entries of a tensor belong to a filter unless another use of them is found."""
        self.unclaimed.discard(name)
        size = len(self.tensors[name])
        claim = self.claims.setdefault((name, False), Claim(name, role, torch.full((size,), torch.nan)))
        index = torch.arange(size) if index is None else index
        for label in self._conflicts(claim, labels, index):
            self.leave_out([label], f"its batch norm {name.rpartition('.')[0]} has several callers")
        if role in ("gamma", "beta", "bias") and not self.tensors[name].requires_grad:
            self.leave_out(present(labels), f"{name} is frozen")

    def _conflicts(self, claim: Claim, labels: Tensor, index: Tensor) -> list[float]:
        """Note one use of entries; the filters that lose them because two uses disagree."""
        before = claim.labels[index]
        claim.labels[index] = torch.where(before.isnan() | (before == labels), labels, MIXED)
        again = claim.labels[index] != labels  # the same entry twice in one use
        odd = (~before.isnan() & (before != labels)) | again
        return present(torch.cat([before[odd].nan_to_num(), labels[odd]]))

    def claim_columns(self, name: str, dim: int, groups: int, labels: Tensor) -> None:
        """Inputs of a kernel or matrix belong to a filter if every use of them reads its maps."""
        self.unclaimed.discard(name)
        claim = self.claims.setdefault(
            (name, True), Claim(name, "input", torch.full((len(labels),), torch.nan), dim, groups)
        )
        if (claim.dim, claim.groups) != (dim, groups):
            self.join(present(claim.labels.nan_to_num()) + present(labels.nan_to_num()))
            claim.labels.fill_(MIXED)
            return
        used = (~labels.isnan()).nonzero().flatten()
        self.join(self._conflicts(claim, labels[used], used))

    def release_unclaimed(self, written: Iterable[str] = ()) -> None:
        """Parameters that were `written`, or used in a way no rule accounts for, belong to no filter."""
        for name in {*self.unclaimed, *written}:
            for key in ((name, False), (name, True)):
                claim = self.claims.get(key)
                if claim is None and name in self.tensors:
                    shape = self.tensors[name].shape
                    size = shape[int(key[1])] if len(shape) > int(key[1]) else 0
                    role: Role = "input" if key[1] else "gamma"
                    self.claims[key] = Claim(name, role, torch.full((size,), MIXED), int(key[1]))
                elif claim is not None and claim.role != "kernel":
                    own = present(claim.labels.nan_to_num())
                    if key[1]:
                        self.join(own)
                    else:
                        self.leave_out(own, f"{name} has several callers")
                    claim.labels.fill_(MIXED)
            if name in self.layer_of:
                self.computed[name] += 1
                if self.computed[name] > 1 or self.calls[name]:
                    self.left_out.setdefault(self.layer_of[name], "its weights are shared by several callers")
        self.unclaimed = set()

    def consume(self, labels: list[float], reason: str | None = None) -> None:
        """Stop following these labels.

        With a `reason` their layers are left out; without one the labels have ended in a sum.
        """
        self.leave_out_constants(torch.tensor([label for label in labels if label < 0]))
        silent = [label for label in labels if label > 0]
        self.leave_out(silent, reason) if reason else self.join(silent)

    def leave_out_constants(self, labels: Tensor) -> None:
        """Leave out the layers of filters whose zeros became a constant that something else reads."""
        lost: dict[str, list[float]] = {}
        for label in present(labels[labels < 0]) if labels.numel() else []:
            lost.setdefault(self.constant_since.get(int(-label), "a function"), []).append(-label)
        for site, own in lost.items():
            self.leave_out(own, not_silent(site))

    def leave_out(self, labels: Iterable[float], reason: str) -> None:
        """Leave out the layers of these filters; the first reason is kept."""
        for layer in self._layers(labels):
            self.left_out.setdefault(layer, reason)

    def join(self, labels: Iterable[float]) -> None:
        """Keep the layers of these filters at full width in a smaller copy."""
        self.joined.update(self._layers(labels))

    def _layers(self, labels: Iterable[float]) -> set[str]:
        numbers = (torch.tensor(list(labels)).abs() - FIRST).long()
        singles = numbers < self._count
        found = {self._layer_names[i] for i in self._layer_numbers(numbers[singles]).unique().tolist()}
        return found | {layer for number in numbers[~singles].tolist() for layer, _ in self._sets[number]}

    def _layer_numbers(self, filters: Tensor) -> Tensor:
        """The place of each filter's layer among those registered; filters are counted over all of them."""
        return torch.bucketize(filters, self._firsts, right=True) - 1

    def filters(self, label: float) -> tuple[tuple[str, int], ...]:
        """Each (layer, filter) that a label stands for."""
        return self._sets[int(label - FIRST)]

    def pair(self, a: int, b: int) -> float:
        """The label of what is zero when either of two filters is dropped."""
        key = (min(a, b), max(a, b))
        if key not in self._products:
            self._products[key] = len(self._sets) + FIRST
            first, second = (self._sets[int(label - FIRST)] for label in key)
            self._sets.append(tuple(dict.fromkeys(first + second)))
        return self._products[key]

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
        owners, counts = self._layer_numbers(numbers).unique_consecutive(return_counts=True)
        layers, sizes = self._layer_names, counts.tolist()
        return {
            layers[i]: (tuple((own - self._first[layers[i]]).tolist()), tuple(at.tolist()))
            for i, own, at in zip(owners.tolist(), numbers.split(sizes), places.split(sizes), strict=True)
        }


def not_silent(site: str) -> str:
    """The reason that leaves out a filter whose zeros become something else at `site`."""
    return f"its output reaches {site}, through which a dropped filter is not silent (what follows would see it)"
