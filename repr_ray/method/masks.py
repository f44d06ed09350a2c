"""Masks that keep dropped filters at exactly zero."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from repr_ray.method.filters import FilterMap


class Masks:
    """The dropped filters, and the masks of their parameters.

    `dropped[layer]` is a bool tensor (J) on the model's device; it and the masks derived from it are updated in
    place, so that a captured CUDA graph stays valid. With `kernel_only` biases, gammas and betas are not masked.
    """

    def __init__(self, model: nn.Module, filter_map: FilterMap, kernel_only: bool = False) -> None:
        tensors = dict(model.named_parameters())
        self.filter_map, self.layers = filter_map, filter_map.layers
        self.silenced = {
            layer.name: tuple(part for part in layer.silenced if part.role == "kernel" or not kernel_only)
            for layer in self.layers
        }
        self.dropped = {
            layer.name: tensors[layer.kernel].new_zeros(layer.filters, dtype=torch.bool) for layer in self.layers
        }
        # Several layers share a batch norm after a concatenation, two filters an entry after a product.
        names = dict.fromkeys(part.tensor for layer in self.layers for part in self.silenced[layer.name])
        own = {name: tensors[name] for name in names}
        self._masked = {
            name: (tensor, tensor.new_zeros(len(tensor), *[1] * (tensor.dim() - 1), dtype=torch.bool))
            for name, tensor in own.items()
        }
        self.any = False

    def set(self, dropped: Mapping[str, Tensor]) -> None:
        """Replace the dropped set; `dropped[layer]` is bool (J). Layers not named keep all their filters."""
        for _, mask in self._masked.values():
            mask.zero_()
        for layer in self.layers:
            own = self.dropped[layer.name]
            own.copy_(dropped[layer.name]) if layer.name in dropped else own.zero_()
            for part in self.silenced[layer.name] if own.any() else ():
                tensor, mask = self._masked[part.tensor]
                mask.logical_or_(part.mask(tensor.shape, own))
        self.any = any(bool(mask.any()) for mask in self.dropped.values())

    @torch.no_grad()
    def apply(self) -> None:
        """Set all parameters of dropped filters to +0.0."""
        for tensor, mask in self._masked.values():
            tensor.masked_fill_(mask, 0.0)
