"""The parameters of each filter, and the weights that read its output, from the labels of a traced network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repr_ray.method.tracing.follow import follow
from repr_ray.method.tracing.ownership import Role
from repr_ray.method.tracing.trace import Trace


@dataclass(frozen=True)
class Part:
    """The entries of filters in one tensor: filter `filters[i]` owns entry `places[i]` along `dim`.

    An `input` is a channel of the kernel or matrix that reads the filter's output; in a grouped convolution, whose
    kernel has the channels of one of its `groups` in dimension 1, channels are counted over all groups. `axis` is the
    axis of channels in the output of the owning module.
    """

    tensor: str
    role: Role
    dim: int
    filters: tuple[int, ...]
    places: tuple[int, ...]
    groups: int = 1
    axis: int = 1

    def mask(self, shape: torch.Size, filters: Tensor) -> Tensor:
        """Bool tensor that broadcasts to `shape` and is true where `filters` (bool, J) own entries."""
        mask = torch.zeros(shape[self.dim] * self.groups, dtype=torch.bool, device=filters.device)
        places, owners = torch.tensor([self.places, self.filters], device=filters.device)
        mask[places] = filters[owners]
        return self.lay_out(mask, shape)

    def lay_out(self, entries: Tensor, shape: torch.Size) -> Tensor:
        """A value for each entry along `dim`, so that it broadcasts to `shape`."""
        if self.groups > 1:  # the rows of a group read the group's channels
            entries = entries.view(self.groups, 1, -1).expand(-1, shape[0] // self.groups, -1)
            return entries.reshape(shape[0], shape[1], *[1] * (len(shape) - 2))
        return entries.view([-1 if dim == self.dim else 1 for dim in range(len(shape))])

    def places_of(self, filter: int) -> list[int]:
        """The entries along `dim` that one filter owns."""
        return [place for owner, place in zip(self.filters, self.places, strict=True) if owner == filter]


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of J filters that can be dropped, with all their parameters.

    `output` is the module whose output is the feature maps before the nonlinearity: the convolution, or the batch
    norm that follows it. Channels that are summed with another path (residual connections) have no inputs of their
    own. `joined` layers, whose maps are combined channel by channel with another path or parameters, cannot be made
    narrower.
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
        """The entries that are zero while a filter is dropped: kernel row, bias, gammas and betas."""
        return tuple(part for part in self.parts if part.role in ("kernel", "bias", "gamma", "beta"))


@dataclass(frozen=True)
class FilterMap:
    """The layers whose filters can be dropped, in order of execution, and the reasons why others are left out.

    `example` is the input of the trace.
    """

    layers: tuple[ConvLayer, ...]
    left_out: Mapping[str, str]
    example: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def without(self, left_out: Mapping[str, str]) -> "FilterMap":
        """The map with more layers left out, for the reasons given."""
        layers = tuple(layer for layer in self.layers if layer.name not in left_out)
        return FilterMap(layers, {**self.left_out, **left_out}, self.example)

    def require_layers(self, model: nn.Module) -> None:
        """Raise ValueError unless there is a layer to drop from."""
        if not self.layers:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items()) or "it has none"
            raise ValueError(f"model: no convolution of {type(model).__name__} can be dropped from ({why})")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model


def map_filters(model: nn.Module, example: Any = None) -> FilterMap:
    """Follow every convolution's filters through `model` and find those that can be dropped.

    `example` is an input as it is trained on (or a tuple of them); without one, square images of many sizes are
    tried. Raises ValueError when the model cannot be followed or has no convolution to drop from.
    """
    convs = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        FilterMap((), {}).require_layers(model)
    trace = follow(model, example)
    left_out = {name: trace.left_out[name] for name in convs if name in trace.left_out}
    left_out |= {name: "it is never called" for name in convs if name not in left_out and name not in trace.layers}
    norms = {name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    with torch._C.DisableTorchFunction():  # a default device costs time in each call on labels
        parts = _parts(trace)
    layers = (
        ConvLayer(
            name,
            len(model.get_parameter(f"{name}.weight")),
            tuple(parts[name]),
            _output(name, trace.readers[name], norms),
            name in trace.joined,
        )
        for name in trace.layers
        if name not in left_out
    )
    found = FilterMap(tuple(layers), left_out, trace.inputs)
    found.require_layers(model)
    return found


def _parts(trace: Trace) -> dict[str, list[Part]]:
    """The parts of each layer, in the order in which the network uses them."""
    parts: dict[str, list[Part]] = {layer: [] for layer in trace.layers}
    for claim in trace.claims.values():
        for layer, (filters, at) in trace.owners(claim).items():
            if layer in parts:
                parts[layer].append(Part(claim.tensor, claim.role, claim.dim, filters, at, claim.groups, claim.axis))
    return parts


def _output(name: str, readers: set[tuple[str, str]], norms: set[str]) -> str:
    """The batch norm that alone reads a convolution, else the convolution."""
    modules = {module for _, module in readers}
    return modules.pop() if len(readers) == 1 and modules <= norms else name
