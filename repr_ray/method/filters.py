"""Which parameters make up one filter, and who consumes its output: found by following the traced graph."""

import operator
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

# Zero in, zero out, channel by channel: a dropped filter stays silent through these.
_TRANSPARENT_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Tanh,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
    nn.Flatten,
)
_TRANSPARENT_FUNCTIONS = {
    torch.relu,
    torch.relu_,
    torch.tanh,
    torch.flatten,
    F.relu,
    F.relu_,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.gelu,
    F.silu,
    F.hardswish,
    F.tanh,
    F.dropout,
    F.dropout2d,
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.interpolate,
}
_TRANSPARENT_METHODS = {"relu", "relu_", "tanh", "flatten", "contiguous", "clone"}
_MEANS = {torch.mean, "mean"}
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_PRODUCTS = {torch.mul, operator.mul, operator.imul}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SHAPE_QUERIES = {"size", "dim", getattr}


Role = Literal["kernel", "bias", "gamma", "beta", "mean", "variance", "input"]


@dataclass(frozen=True)
class Part:
    """A tensor's slice per filter: filter f owns `width` entries from `offset + f * width` along `dim`.

    An `input` is a channel of the kernel or matrix that consumes the filter's output.
    """

    tensor: str
    role: Role
    dim: int = 0
    offset: int = 0
    width: int = 1

    def mask(self, shape: torch.Size, filters: Tensor) -> Tensor:
        """Bool tensor that broadcasts to `shape` and is true where `filters` (bool, J) own entries."""
        mask = torch.zeros(shape[self.dim], dtype=torch.bool, device=filters.device)
        owned = filters.repeat_interleave(self.width)
        mask[self.offset : self.offset + owned.numel()] = owned
        return mask.view([-1 if dim == self.dim else 1 for dim in range(len(shape))])


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of J filters that can be dropped, with everything that belongs to them.

    `output` is the module that gives its feature maps before the nonlinearity: the convolution, or the batch norm
    that follows it. Channels that were summed with another path (residual connections) have no consumer of their
    own. `joined` layers, whose maps meet another path's or parameters channel by channel, cannot be made narrower.
    """

    name: str
    filters: int
    parts: tuple[Part, ...]
    output: str
    joined: bool = False

    @property
    def kernel(self) -> str:
        """Name of the J x c x k x k weight tensor."""
        return self.parts[0].tensor

    @property
    def silenced(self) -> tuple[Part, ...]:
        """What is zero while a filter is dropped: kernel row, bias, gammas and betas."""
        return tuple(part for part in self.parts if part.role in ("kernel", "bias", "gamma", "beta"))


@dataclass(frozen=True)
class FilterMap:
    """The layers filters can be dropped from, in order of execution, and why the others are left out."""

    layers: tuple[ConvLayer, ...]
    left_out: Mapping[str, str]


class CannotFollow(Exception):
    """A filter's output reaches something for which dropping it has no clear meaning."""


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Subclasses of Linear are followed as linear layers, however they compute it."""
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def map_filters(model: nn.Module) -> FilterMap:
    """Trace `model` with torch.fx and find every droppable convolution.

    Raises ValueError when the model cannot be traced or has no convolution to drop from.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ValueError(f"model: torch.fx cannot trace {type(model).__name__}: {error}") from error
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(m.weight) for m in modules.values() if isinstance(m, nn.Conv2d))
    channels = _count_channels(graph, modules)
    layers, left_out = [], {}
    for node in graph.nodes:
        conv = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d):
            continue
        try:
            if calls[node.target] > 1 or owners[id(conv.weight)] > 1:
                raise CannotFollow("its weights are shared by several callers")
            if conv.groups > 1:
                raise CannotFollow("it is a grouped or depthwise convolution")
            layer = _follow(node, conv, modules, channels)
            for part in layer.parts:
                if part.role == "gamma" and calls[part.tensor.removesuffix(".weight")] > 1:
                    raise CannotFollow(f"its batch norm {part.tensor.removesuffix('.weight')} has several callers")
            shared = any(p.role == "input" and calls[p.tensor.removesuffix(".weight")] > 1 for p in layer.parts)
            layers.append(replace(layer, joined=layer.joined or shared))
        except CannotFollow as reason:
            left_out[str(node.target)] = str(reason)
    if not layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "it has none"
        raise ValueError(f"model: no convolution of {type(model).__name__} can be dropped from ({why})")
    return FilterMap(tuple(layers), left_out)


def _count_channels(graph: torch.fx.Graph, modules: dict[str, nn.Module]) -> dict[torch.fx.Node, int]:
    """Channels of every node's output (before flattening), where they can be told without running the model."""
    channels: dict[torch.fx.Node, int] = {}
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            channels[node] = module.out_channels
        elif isinstance(module, nn.Linear):
            channels[node] = module.out_features
        elif node.target is torch.cat:
            channels[node] = sum(channels.get(part, 0) for part in _cat_parts(node))
        else:
            known = [channels[arg] for arg in node.all_input_nodes if arg in channels]
            if known:
                channels[node] = known[0]
    return channels


def _cat_parts(node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    parts = node.args[0] if node.args else node.kwargs["tensors"]
    if dim != 1 or not isinstance(parts, list | tuple):
        raise CannotFollow(f"its output reaches {node.name}, a concatenation that is not over channels")
    return tuple(part for part in parts if isinstance(part, torch.fx.Node))


def _follow(
    node: torch.fx.Node, conv: nn.Conv2d, modules: dict[str, nn.Module], channels: dict[torch.fx.Node, int]
) -> ConvLayer:
    """Follow one convolution's output to everything that belongs to it or consumes it."""
    name = str(node.target)
    parts = [Part(f"{name}.weight", "kernel")]
    if conv.bias is not None:
        parts.append(Part(f"{name}.bias", "bias"))
    paths, seen, joined = deque([(node, 0)]), set(), False
    while paths:
        source, offset = paths.popleft()
        for user in source.users:
            for at in _offsets(source, user, offset, channels):
                if (user, at) in seen:
                    continue
                seen.add((user, at))
                module = modules.get(str(user.target)) if user.op == "call_module" else None
                if isinstance(module, _NORMS):
                    parts += _norm_parts(str(user.target), module, at)
                    paths.append((user, at))
                elif isinstance(module, nn.Conv2d):
                    if module.groups > 1:
                        raise CannotFollow(f"its output feeds {user.target}, a grouped convolution")
                    parts.append(Part(f"{user.target}.weight", "input", 1, at))
                elif isinstance(module, nn.Linear):
                    width, left = divmod(module.in_features, channels[source])
                    if left:
                        raise CannotFollow(f"its output reaches {user.target}, whose inputs are not its channels")
                    parts.append(Part(f"{user.target}.weight", "input", 1, at * width, width))
                elif _is_transparent(user, module):
                    joined |= _is_product(user) or (isinstance(module, nn.PReLU) and module.num_parameters > 1)
                    paths.append((user, at))
                elif _is_sum(user):
                    joined = True
                elif user.target not in _SHAPE_QUERIES:
                    what = "the network's output" if user.op == "output" else f"{user.target}"
                    raise CannotFollow(f"its output reaches {what}, through which a dropped filter is not silent")
    return ConvLayer(name, conv.out_channels, tuple(dict.fromkeys(parts)), _output(node, modules), joined)


def _output(node: torch.fx.Node, modules: dict[str, nn.Module]) -> str:
    """The batch norm that is the only user of a convolution, else the convolution."""
    users = [user for user in node.users if user.target not in _SHAPE_QUERIES]
    follows = len(users) == 1 and isinstance(modules.get(str(users[0].target)), _NORMS)
    return str(users[0].target if follows and users[0].op == "call_module" else node.target)


def _norm_parts(name: str, norm: nn.BatchNorm2d | nn.SyncBatchNorm, offset: int) -> list[Part]:
    if not norm.affine:
        raise CannotFollow(f"its batch norm {name} has no gamma and beta to silence it with")
    parts = [Part(f"{name}.weight", "gamma", 0, offset), Part(f"{name}.bias", "beta", 0, offset)]
    if norm.track_running_stats:
        parts.append(Part(f"{name}.running_mean", "mean", 0, offset))
        parts.append(Part(f"{name}.running_var", "variance", 0, offset))
    return parts


def _offsets(
    source: torch.fx.Node, user: torch.fx.Node, offset: int, channels: dict[torch.fx.Node, int]
) -> Iterator[int]:
    """Where the filters' channels start in `user`'s input: shifted by what a concatenation puts before them."""
    if user.target is not torch.cat:
        yield offset
        return
    before = 0
    for part in _cat_parts(user):
        if part is source:
            yield before + offset
        if part not in channels:
            raise CannotFollow(f"its output reaches {user.name}, whose channels cannot be counted")
        before += channels[part]


def _is_sum(node: torch.fx.Node) -> bool:
    return node.target in _SUMS and all(isinstance(arg, torch.fx.Node) for arg in node.args)


def _is_product(node: torch.fx.Node) -> bool:
    return node.target in _PRODUCTS and all(isinstance(arg, torch.fx.Node) for arg in node.args)


def _is_transparent(node: torch.fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_module":
        return isinstance(module, _TRANSPARENT_MODULES)
    if node.op == "call_method" and node.target in ("view", "reshape"):
        return len(node.args) == 3 and bool(node.args[2] == -1)
    if node.target in _MEANS:  # over height and width; over channels they would not stay apart
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(dims, list | tuple) and set(dims) in ({2, 3}, {-2, -1})
    if node.op == "call_method":
        return node.target in _TRANSPARENT_METHODS
    return node.target in _TRANSPARENT_FUNCTIONS | _PRODUCTS or node.target is torch.cat


class Masks:
    """Which filters are dropped, and the means to keep them silent.

    `dropped[layer]` is a bool tensor (J) on the model's device; it and the masks derived from it are updated in
    place, so that a captured CUDA graph stays valid. With `kernel_only` biases, gammas and betas are left alone.
    """

    def __init__(self, model: nn.Module, filter_map: FilterMap, kernel_only: bool = False) -> None:
        tensors = dict(model.named_parameters())
        self.layers = filter_map.layers
        self.silenced = {
            layer.name: tuple(part for part in layer.silenced if part.role == "kernel" or not kernel_only)
            for layer in self.layers
        }
        self.dropped = {
            layer.name: torch.zeros(layer.filters, dtype=torch.bool, device=tensors[layer.kernel].device)
            for layer in self.layers
        }
        # A batch norm after a concatenation is shared by several layers: one mask a tensor, one part a layer.
        names = dict.fromkeys(part.tensor for layer in self.layers for part in self.silenced[layer.name])
        self._masked = {
            name: (
                tensors[name],
                torch.zeros(
                    (len(tensors[name]), *[1] * (tensors[name].dim() - 1)),
                    dtype=torch.bool,
                    device=tensors[name].device,
                ),
            )
            for name in names
        }
        self.any = False

    def set(self, dropped: Mapping[str, Tensor]) -> None:
        """Replace the dropped set; `dropped[layer]` is bool (J). Layers not named keep all their filters."""
        for layer in self.layers:
            own = self.dropped[layer.name]
            own.copy_(dropped[layer.name]) if layer.name in dropped else own.zero_()
            for part in self.silenced[layer.name]:
                mask = self._masked[part.tensor][1]
                mask.narrow(0, part.offset, layer.filters).copy_(own.view(-1, *[1] * (mask.dim() - 1)))
        self.any = any(bool(mask.any()) for mask in self.dropped.values())

    @torch.no_grad()
    def apply(self) -> None:
        """Set everything dropped filters own to +0.0, whatever an optimizer did to it."""
        for tensor, mask in self._masked.values():
            tensor.masked_fill_(mask, 0.0)
