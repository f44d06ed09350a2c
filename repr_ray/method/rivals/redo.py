"""Recycling dormant neurons."""

import torch
from torch import Tensor

from repr_ray.method.rivals.settings import ReDoSettings
from repr_ray.method.rivals.units import UnitScheme


class ReDo(UnitScheme):
    """ReDo, Sokar et al., arXiv 2302.12902, algorithm 1: see `ReDoSettings`.

    Activations are summed only in the steps after which units are replaced. As in the authors' code, the moments of
    incoming and outgoing weights are reset, Adam's count of steps is not.
    """

    Settings = ReDoSettings
    settings: ReDoSettings

    @torch.no_grad()
    def after_step(self) -> None:
        """Every `every` steps, replace the units that were dormant in the last batch."""
        due = self._due_next()
        self.steps += 1
        if due:
            self._replace(torch.cat([self._dormant(own) for own in self._activations()]))
        self._switch.on = self._due_next()

    def _due_next(self) -> bool:
        return (self.steps + 1) % self.settings.every == 0

    def _activations(self) -> list[Tensor]:
        """mean|h| of the units of each layer, averaged over the layers that read them."""
        means: dict[str, list[Tensor]] = {layer.name: [] for layer in self.layers}
        for mean, outgoing in zip(self._means(), self._outgoing, strict=True):
            means[outgoing.layer.name].append(mean)
        return [torch.stack(own).mean(0) for own in means.values()]

    def _dormant(self, activations: Tensor) -> Tensor:
        """Units whose share of the layer's mean is at most the threshold; all of a layer without activations."""
        return activations <= self.settings.threshold * activations.mean()
