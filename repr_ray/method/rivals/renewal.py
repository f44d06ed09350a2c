"""Schemes that re-initialise a network, or its later part, every few epochs."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repr_ray import distributed
from repr_ray.method import optimizer_state
from repr_ray.method.events import LayerEvent
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.rivals.settings import (
    LaterLayerForgettingSettings,
    RenewalSettings,
    RifleSettings,
    ShrinkPerturbSettings,
)
from repr_ray.method.scheme import Scheme
from repr_ray.method.scores import overlap
from repr_ray.method.selection import nearest


class Renewal(Scheme):
    """Every few epochs some tensors of the network are re-initialised, from a newly initialised network.

    That network is what `fresh`, a function without arguments, returns; by default it is a copy of the model after a
    call of every module's `reset_parameters`. Rank 0 draws and broadcasts.
    """

    Settings = RenewalSettings
    settings: RenewalSettings
    verb = "renew"

    def attach(self, example: Any) -> None:
        self.every = self.settings.interval(self.epochs)
        self.tensors = self._renewed()

    @property
    def cycle(self) -> int:
        return max(self.epoch, 0) // self.every

    @torch.no_grad()
    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """Re-initialise if the scheme is due in `epoch` (from 0); see `Scheme.start_epoch`.

        Raises ValueError for a module that cannot be initialised because it has no `reset_parameters`.
        """
        self._enter(epoch)
        if epoch == 0 and self.fresh is None:
            _assert_resettable(self.model)
        if epoch == 0 or self.settings.place(epoch, self.epochs) != ("full", 0):
            return []
        layers = [
            (name, module.weight)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and f"{name}.weight" in self.tensors
        ]
        before = [overlap(weight) for _, weight in layers]
        if distributed.rank() == 0:
            fresh = self._fresh()
            for name, tensor in self.tensors.items():
                self._renew(tensor, fresh[name].to(tensor.device, tensor.dtype))
        distributed.broadcast(self.tensors.values())
        if self.settings.optimizer_state == "reset":
            for tensor in self.tensors.values():
                optimizer_state.reset(self.optimizer, tensor)
        return [
            self.event(self.verb, name, weight, torch.ones(len(weight), device="cpu"), was)
            for (name, weight), was in zip(layers if distributed.rank() == 0 else [], before, strict=False)
        ]

    def _renewed(self) -> dict[str, Tensor]:
        """Parameters and buffers that are re-initialised, by name."""
        raise NotImplementedError

    def _renew(self, tensor: Tensor, fresh: Tensor) -> None:
        tensor.copy_(fresh)

    def _fresh(self) -> dict[str, Tensor]:
        """Parameters and buffers of a newly initialised network; torch's global generator is left unchanged."""
        state = torch.get_rng_state()
        torch.default_generator.manual_seed((self.seed << 20) + self.epoch)
        try:
            with torch.device("cpu"):  # of the seeded generator, whatever the default device
                network = self.fresh() if self.fresh else _reset_copy(self.model)
        finally:
            torch.set_rng_state(state)
        return dict(network.named_parameters()) | dict(network.named_buffers())


class ShrinkPerturb(Renewal):
    """Shrink and perturb, Ash and Adams, arXiv 1910.08475: see `ShrinkPerturbSettings`.

    Batch norms' running statistics are kept; the optimizer state is reset, as in the authors' code.
    """

    Settings = ShrinkPerturbSettings
    settings: ShrinkPerturbSettings
    verb = "shrink"

    def _renewed(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def _renew(self, tensor: Tensor, fresh: Tensor) -> None:
        tensor.mul_(self.settings.shrink).add_(fresh, alpha=self.settings.perturb)


class LaterLayerForgetting(Renewal):
    """Later-layer forgetting, Zhou et al., arXiv 2202.00155: see `LaterLayerForgettingSettings`."""

    Settings = LaterLayerForgettingSettings
    settings: LaterLayerForgettingSettings

    def _renewed(self) -> dict[str, Tensor]:
        layers = _layers(self.model)
        first = self.settings.from_layer or layers[len(layers) // 2]
        names = list(self.model.state_dict())
        places = [place for place, name in enumerate(names) if name.startswith(f"{first}.")]
        if not places:
            raise ValueError(f"from_layer={first}: the network has no such layer{nearest(first, layers)}")
        later = _tensors(self.model, names[places[0] :])
        if self.settings.batch_norm == "reset":
            return later
        norms = [f"{name}." for name, module in self.model.named_modules() if isinstance(module, _BatchNorm)]
        return {name: tensor for name, tensor in later.items() if not name.startswith(tuple(norms))}


class Rifle(Renewal):
    """RIFLE, Li et al., arXiv 2007.03349: see `RifleSettings`. The classifier is the last layer of the network."""

    Settings = RifleSettings
    settings: RifleSettings

    def _renewed(self) -> dict[str, Tensor]:
        last = _layers(self.model)[-1]
        return _tensors(self.model, [name for name in self.model.state_dict() if name.startswith(f"{last}.")])


def _layers(model: nn.Module) -> list[str]:
    """Convolutions and linear layers, in the order of the network's modules."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    everything: Mapping[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: everything[name] for name in names if name in everything}


def _assert_resettable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        own = next(module.parameters(recurse=False), None) is not None
        if own and not hasattr(module, "reset_parameters"):
            raise ValueError(
                f"{name or 'the network'} ({type(module).__name__}) has parameters and no reset_parameters():"
                " give it one, or set the scheme's `fresh` to a function that makes a new network"
            )


def _reset_copy(model: nn.Module) -> nn.Module:
    network = copy.deepcopy(model).cpu()
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()  # type: ignore[operator]
    return network
