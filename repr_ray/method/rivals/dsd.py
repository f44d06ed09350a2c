"""Dense-sparse-dense training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.method import optimizer_state
from repr_ray.method.events import LayerEvent
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.rivals.settings import DSDSettings
from repr_ray.method.schedule import Phase
from repr_ray.method.scheme import Scheme
from repr_ray.method.scores import overlap
from repr_ray.method.selection import floor, nearest


class DSD(Scheme):
    """DSD, Han et al., arXiv 1607.04381, algorithm 1: see `DSDSettings`.

    Use it in a loop like RePr; the loop multiplies its learning rate by `rate_factor`. Masked weights start again
    from zero, without momentum. The scores of the events `mask` and `unmask` are the masked shares of each filter's
    weights; `dropped` marks the filters of which all weights are masked.
    """

    Settings = DSDSettings
    settings: DSDSettings

    def attach(self, example: Any) -> None:
        self.sparse_at, self.dense_at = self.settings.phases(self.epochs)
        self.weights = self._masked()
        self.masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in self.weights.items()}

    @property
    def phase(self) -> Phase:
        return "sub" if self.sparse_at <= self.epoch < self.dense_at else "full"

    @property
    def rate_factor(self) -> float:
        return self.settings.final_rate if self.epoch >= self.dense_at else 1.0

    @torch.no_grad()
    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """Mask the smallest weights, or unmask them; see `Scheme.start_epoch`.

        Raises RuntimeError if masked weights have moved because `after_step` was not called.
        """
        self._enter(epoch)
        if epoch == self.sparse_at:
            return self._mask()
        if epoch == self.dense_at:
            return self._unmask()
        return []

    @torch.no_grad()
    def after_step(self) -> None:
        """Set masked weights to exactly zero again, which momentum or weight decay may have changed."""
        if self.phase == "sub":
            for name, weight in self.weights.items():
                weight.masked_fill_(self.masks[name], 0.0)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"masks": self.masks if self.phase == "sub" else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name, mask in state["masks"].items():
            self.masks[name].copy_(mask)

    def _masked(self) -> dict[str, Tensor]:
        """The weights that are masked, by layer, each once. Raises ValueError for a layer that there is not."""
        layers = {name: m for name, m in self.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        first = next((name for name, module in layers.items() if isinstance(module, nn.Conv2d)), "")
        excluded = {first if name == "first" else name for name in self.settings.exclude} - {""}
        if unknown := sorted(excluded - set(layers)):
            raise ValueError(
                f"exclude: the network has no layer {unknown[0]}{nearest(unknown[0], ['first', *layers])}"
            )
        weights: dict[str, Tensor] = {}
        known = {id(layers[name].weight) for name in excluded}  # layers may share one tensor
        for name, module in layers.items():
            if id(module.weight) not in known:
                known.add(id(module.weight))
                weights[name] = module.weight
        if not weights:
            raise ValueError("exclude: leaves no layer to mask")
        return weights

    def _mask(self) -> list[LayerEvent]:
        before = {name: overlap(weight) for name, weight in self.weights.items()}
        if distributed.rank() == 0:
            for name, weight in self.weights.items():
                order = weight.flatten().abs().argsort(stable=True)
                smallest = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
                smallest[order[: floor(self.settings.sparsity * weight.numel())]] = True
                self.masks[name].copy_(smallest.view(weight.shape))
        distributed.broadcast(self.masks.values())
        self.after_step()
        return self._events("mask", before)

    def _unmask(self) -> list[LayerEvent]:
        for name, weight in self.weights.items():
            if weight.masked_select(self.masks[name]).any():
                raise RuntimeError(
                    f"masked weights of {name} are no longer zero: call after_step() after every optimizer step"
                )
            optimizer_state.reset(self.optimizer, weight, self.masks[name])
        return self._events("unmask", {name: overlap(weight) for name, weight in self.weights.items()})

    def _events(self, event: str, before: Mapping[str, float]) -> list[LayerEvent]:
        if distributed.rank() > 0:
            return []
        return [
            self.event(
                event,
                name,
                self.weights[name],
                mask.flatten(1).all(1),
                before[name],
                scores=tuple(mask.flatten(1).double().mean(1).tolist()),
            )
            for name, mask in self.masks.items()
        ]
