"""Continual backpropagation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repr_ray.method.rivals.settings import ContinualBackpropSettings
from repr_ray.method.rivals.units import UnitScheme


class ContinualBackprop(UnitScheme):
    """Continual backprop, Dohare et al., arXiv 2306.13812, algorithm 1: see `ContinualBackpropSettings`.

    The number of replaced units depends only on the number of steps, so that no step waits for the device, on which
    the utilities are.
    """

    Settings = ContinualBackpropSettings
    settings: ContinualBackpropSettings

    def attach(self, example: Any) -> None:
        super().attach(example)
        device = self._seen.device
        self.utility = torch.zeros(sum(self._sizes), device=device)
        self.born = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        self.due = [0.0] * len(self.layers)
        self.replacements: list[list[int]] = [[] for _ in self.layers]

    @torch.no_grad()
    def after_step(self) -> None:
        """Update the utilities, and replace the units that are due."""
        self.steps += 1
        decay = self.settings.decay
        self.utility.lerp_(self._contributions(), 1 - decay)
        layers = [place for place in range(len(self.layers)) if self._is_due(place)]
        if layers:
            self._replace_least(layers)

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("utility", "born", "due", "replacements")}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.utility.copy_(state["utility"])
        self.born.copy_(state["born"])
        self.due = list(state["due"])
        self.replacements = [list(steps) for steps in state["replacements"]]

    def _contributions(self) -> Tensor:
        """mean|h| sum|w_out| of every unit, summed over the layers that read it."""
        sums = {layer.name: torch.zeros(layer.filters, device=self._seen.device) for layer in self.layers}
        magnitudes: dict[str, Tensor] = {}
        for mean, (layer, part, places, _) in zip(self._means(), self._outgoing, strict=True):
            if part.tensor not in magnitudes:
                weight = self._tensors[part.tensor].detach()
                of_groups = weight.reshape(part.groups, -1, weight.shape[1], weight[0, 0].numel())
                magnitudes[part.tensor] = torch.linalg.vector_norm(of_groups, 1, (1, 3)).flatten()
            sums[layer.name] += mean * magnitudes[part.tensor][places].sum(1)
        return torch.cat(list(sums.values()))

    def _is_due(self, place: int) -> bool:
        """Whether a layer replaces a unit in this step: c <- c + rate x mature units; one when c > 1.

        All units are mature except those replaced in the last `maturity` steps.
        """
        recent = self.replacements[place]
        recent[:] = [step for step in recent if self.steps - step <= self.settings.maturity]
        mature = self._sizes[place] - len(recent) if self.steps > self.settings.maturity else 0
        self.due[place] += self.settings.replacement_rate * mature
        if self.due[place] <= 1 or not mature:
            return False
        self.due[place] -= 1
        recent.append(self.steps)
        return True

    def _replace_least(self, layers: list[int]) -> None:
        """Replace the mature unit of least utility in each of some layers."""
        mature = self.steps - self.born > self.settings.maturity
        utilities = self.utility.masked_fill(~mature, torch.inf).split(self._sizes)
        units = torch.zeros_like(mature)
        for place, own in enumerate(units.split(self._sizes)):
            if place in layers:
                own.scatter_(0, utilities[place].argmin(0, keepdim=True), True)
        self._replace(units)
        self.utility.masked_fill_(units, 0.0)
        self.born.masked_fill_(units, self.steps)

    def _scores(self, places: slice) -> tuple[float, ...] | None:
        return tuple(self.utility[places].tolist())
