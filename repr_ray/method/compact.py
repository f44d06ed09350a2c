"""A faster S2: a copy of the network without its dropped filters, with an optimizer of its own."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray.method.filters import ConvLayer, Part, map_filters
from repr_ray.method.masks import Masks
from repr_ray.plug_ins import first_line


class SubNetwork:
    """A copy of a network without the dropped filters and the weights that read them, equal in its training steps.

        sub = repr_.sub_network()  # in S2, after start_epoch
        for images, labels in loader:
            F.cross_entropy(sub.model(images), labels).backward()
            sub.step()
        sub.scatter()

    Weights equal those of the masked run up to floating-point order, where nothing is drawn at random in the forward
    pass (dropout draws masks of other shapes). The copy is in training mode. Layers that cannot be narrower (see
    `ConvLayer.joined`) keep their width and stay masked. Momenta of dropped filters fade, as they do in a masked run
    of activations without slope at zero. Raises ValueError for a network or an optimizer that cannot be made smaller.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, optimizer: Optimizer, masks: Masks) -> None:
        self._full, self._full_optimizer, self._masks = model, optimizer, masks
        self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._keep = _kept(self._tensors, masks)
        self.model = self._gathered()
        self._check()
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._twins = dict(zip(model.parameters(), self.model.parameters(), strict=True))
        groups = [group | {"params": [self._twins[p] for p in group["params"]]} for group in optimizer.param_groups]
        self.optimizer = _like(optimizer, groups)
        for full, twin in self._twins.items():
            if full in optimizer.state:
                self.optimizer.state[twin] = {
                    key: self._select(self._names[full], value, full) for key, value in optimizer.state[full].items()
                }
        self._silenced = list(self._still_masked())
        for parameter in model.parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update the copy from its gradients, which are cleared.

        Weights that read a dropped filter are not in the copy and get no gradient, but momentum and weight decay
        change them: the optimizer of the whole network, which has the learning rates, steps too, with zero gradients.
        """
        for own, full in zip(self.optimizer.param_groups, self._full_optimizer.param_groups, strict=True):
            own.update({key: value for key, value in full.items() if key != "params"})
        self.optimizer.step()
        self.optimizer.zero_grad()
        for tensor, mask in self._silenced:
            tensor.masked_fill_(mask, 0.0)
        for parameter in self._twins:
            if parameter.requires_grad and parameter.grad is None:  # a loop may call zero_grad() of its optimizer
                parameter.grad = torch.zeros_like(parameter)
        self._full_optimizer.step()
        self._masks.apply()

    @torch.no_grad()
    def scatter(self) -> None:
        """Write weights, batch-norm statistics and momenta back to the network; do not use the copy afterwards."""
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, target in self._tensors.items():
            self._put(name, target, own[name])
        for full, twin in self._twins.items():
            state = self.optimizer.state.get(twin, {})
            for key, target in self._full_optimizer.state.get(full, {}).items():
                if isinstance(target, Tensor) and target.shape == full.shape and key in state:
                    self._put(self._names[full], target, state[key])
        self._full_optimizer.zero_grad()

    def _gathered(self) -> nn.Module:
        model = copy.deepcopy(self._full).train()
        for name in self._keep:
            path, _, leaf = name.rpartition(".")
            owner = model.get_submodule(path)
            tensor = getattr(owner, leaf)
            smaller = self._select(name, tensor.detach(), tensor)
            if isinstance(tensor, nn.Parameter):
                smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            setattr(owner, leaf, smaller)
            if isinstance(owner, nn.Conv2d):
                if owner.groups > 1:  # depthwise: fewer groups
                    owner.groups = owner.groups * len(owner.weight) // owner.out_channels
                owner.out_channels, owner.in_channels = len(owner.weight), owner.weight.shape[1] * owner.groups
            elif isinstance(owner, nn.Linear):
                owner.in_features = owner.weight.shape[1]
            elif isinstance(owner, nn.BatchNorm2d | nn.SyncBatchNorm):
                owner.num_features = len(owner.weight)
        return model

    def _check(self) -> None:
        """Check the copy by a trace: every filter must reach the same layers as in the network."""
        try:
            found = {layer.name: layer for layer in map_filters(self.model, self._masks.filter_map.example).layers}
        except ValueError as error:
            raise ValueError(f"compact sub-network: {error}; train S2 masked instead") from error
        for layer in self._masks.layers:
            copy = found.get(layer.name)
            if copy is None or _places(copy.parts) != self._expected(layer):
                raise ValueError(
                    f"compact sub-network: without its dropped filters, {layer.name} feeds other channels than in the"
                    " masked network (a width is written into the forward pass); train S2 masked instead"
                )

    def _expected(self, layer: ConvLayer) -> dict[tuple[str, str], set[tuple[int, int]]]:
        """(filter, place) of every part of a layer, counted as they are in the copy."""
        here = ~self._masks.dropped[layer.name] | layer.joined
        places: dict[tuple[str, str], set[tuple[int, int]]] = {}
        for part in layer.parts:
            entries = torch.ones(self._tensors[part.tensor].shape[part.dim] * part.groups, dtype=torch.bool)
            if part.tensor in self._keep:
                keep = self._keep[part.tensor].cpu()
                lengthwise = keep.transpose(0, part.dim).flatten(1) if keep.dim() > 1 else keep.unsqueeze(1)
                entries = (keep.view(part.groups, -1) if part.groups > 1 else lengthwise).any(1)
            filters, entries = here.cpu().cumsum(0) - 1, (entries.cumsum(0) - 1)
            places[part.tensor, part.role] = {
                (int(filters[f]), int(entries[place]))
                for f, place in zip(part.filters, part.places, strict=True)
                if here[f]
            }
        return places

    def _select(self, name: str, value: Any, like: Tensor) -> Any:
        """The entries that the copy has of a tensor in the shape of `like`; any other value unchanged."""
        if not isinstance(value, Tensor):
            return value
        if name not in self._keep or value.shape != like.shape:
            return value.clone()
        keep = self._keep[name]
        shape = [len(places.unique()) for places in keep.nonzero(as_tuple=True)]
        layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
        return value.masked_select(keep).view(shape).contiguous(memory_format=layout)

    def _put(self, name: str, target: Tensor, source: Tensor) -> None:
        if name in self._keep:
            target.masked_scatter_(self._keep[name], source)
        else:
            target.copy_(source)

    def _still_masked(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Parameters of the copy, with the masks of their zeros."""
        own = dict(self.model.named_parameters())
        for layer in self._masks.layers:
            dropped = self._masks.dropped[layer.name]
            if layer.joined and dropped.any():
                for part in self._masks.silenced[layer.name]:
                    full = self._tensors[part.tensor]
                    mask = part.mask(full.shape, dropped).expand(full.shape)
                    yield own[part.tensor], self._select(part.tensor, mask, full)


def _like(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """An optimizer of the same class for other parameters, with the options of their groups."""
    make: Any = type(optimizer)
    try:
        made: Optimizer = make(groups)
    except Exception as error:  # of a class whose arguments are not all options of groups
        raise ValueError(
            f"compact sub-network: {make.__name__} cannot be made from parameter groups alone ({first_line(error)});"
            " train S2 masked instead"
        ) from None
    return made


def _places(parts: tuple[Part, ...]) -> dict[tuple[str, str], set[tuple[int, int]]]:
    return {(part.tensor, part.role): set(zip(part.filters, part.places, strict=True)) for part in parts}


def _kept(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Bool, in the shape of every tensor that is smaller in the copy: true where an entry is in it."""
    kept: dict[str, Tensor] = {}
    for layer in masks.layers:
        dropped = masks.dropped[layer.name]
        if dropped.any() and not layer.joined:
            for part in layer.parts:
                shape = tensors[part.tensor].shape
                before = kept.get(part.tensor, torch.ones(shape, dtype=torch.bool, device=dropped.device))
                kept[part.tensor] = before & ~part.mask(shape, dropped)
    return kept
