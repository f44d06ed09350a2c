"""Soft filter pruning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from repr_ray import distributed
from repr_ray.method.events import LayerEvent
from repr_ray.method.filters import map_filters
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.rivals.settings import SoftFilterPruningSettings
from repr_ray.method.scheme import Scheme
from repr_ray.method.scores import magnitude_l2, overlap
from repr_ray.method.selection import floor


class SoftFilterPruning(Scheme):
    """SFP, He et al., arXiv 1808.06866, algorithm 1: see `SoftFilterPruningSettings`.

        for epoch in range(100):
            sfp.start_epoch(epoch)
            ...  # train
            sfp.end_epoch()
            ...  # evaluate the pruned network

    As in the authors' code, batch norms and the optimizer's state are not changed. The bias of a convolution, which
    their networks do not have, becomes zero with its kernel.
    """

    Settings = SoftFilterPruningSettings
    settings: SoftFilterPruningSettings

    def attach(self, example: Any) -> None:
        self.filter_map = map_filters(self.model, example)
        tensors = dict(self.model.named_parameters())
        self._dropped = {
            layer.name: torch.zeros(layer.filters, dtype=torch.bool, device=tensors[layer.kernel].device)
            for layer in self.filter_map.layers
        }
        self.ended = True

    @property
    def cycle(self) -> int:
        return max(self.epoch, 0) // self.settings.every

    @property
    def dropped(self) -> Mapping[str, Tensor]:
        """The filters that were set to zero after this epoch; none until then."""
        return self._dropped

    @property
    def left_out(self) -> Mapping[str, str]:
        return self.filter_map.left_out

    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """See `Scheme.start_epoch`. Raises ValueError if `end_epoch` was not called after the last epoch."""
        if not self.ended:
            raise ValueError(f"start_epoch({epoch}): call end_epoch() after every epoch, before the evaluation")
        self._enter(epoch)
        self.ended = False
        for mask in self._dropped.values():
            mask.zero_()
        return []

    @torch.no_grad()
    def end_epoch(self) -> list[LayerEvent]:
        """Set the weakest filters of every layer to zero."""
        self.ended = True
        if (self.epoch + 1) % self.settings.every:
            return []
        tensors, layers = dict(self.model.named_parameters()), self.filter_map.layers
        norms: dict[str, Tensor] = {}
        before: dict[str, float] = {}
        if distributed.rank() == 0:
            for layer in layers:
                kernel = tensors[layer.kernel]
                norms[layer.name] = -magnitude_l2(kernel, torch.Generator())
                before[layer.name] = overlap(kernel)
                count = floor(self.settings.prune_ratio * layer.filters)
                weakest = norms[layer.name].argsort(stable=True)[:count]
                self._dropped[layer.name][weakest] = True
        distributed.broadcast(self._dropped.values())
        for layer in layers:
            for part in layer.parts:
                if part.role in ("kernel", "bias"):
                    tensor = tensors[part.tensor]
                    tensor.masked_fill_(part.mask(tensor.shape, self._dropped[layer.name]), 0.0)
        return [
            self.event(
                "drop",
                layer.name,
                tensors[layer.kernel],
                self._dropped[layer.name],
                before[layer.name],
                scores=tuple(norms[layer.name].tolist()),
            )
            for layer in (layers if distributed.rank() == 0 else ())
        ]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ended": self.ended, "dropped": dict(self._dropped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ended = state["ended"]
        for name, mask in state["dropped"].items():
            self._dropped[name].copy_(mask)
