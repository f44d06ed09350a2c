"""RePr: drop the filters that overlap most, train the rest, and re-initialise the dropped ones orthogonal to it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray import distributed
from repr_ray.method import optimizer_state
from repr_ray.method.compact import SubNetwork
from repr_ray.method.data_scores import score_by_data
from repr_ray.method.directions import default_init
from repr_ray.method.events import LayerEvent
from repr_ray.method.filters import ConvLayer, FilterMap, Part, map_filters, unwrap
from repr_ray.method.masks import Masks
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.reinit import Redrawn, redraw
from repr_ray.method.schedule import Phase, Schedule
from repr_ray.method.scheme import Scheme
from repr_ray.method.scores import check_scores, overlap, weight_score
from repr_ray.method.selection import check_ratio, excluded_layers, select
from repr_ray.method.settings import RePrSettings


class RePr(Scheme):
    """RePr, Prakash et al., CVPR 2019, arXiv 1811.07275, on any network whose forward pass depends on shapes alone.

        repr_ = RePr(model, optimizer, epochs=100, s1=20, s2=10, prune_ratio=0.3)
        for epoch in range(100):
            repr_.start_epoch(epoch)
            for images, labels in loader:
                ...  # forward, backward
                optimizer.step()
                repr_.after_step()

    The model keeps its parameters, their names and its class: dropped filters are zeros in its own tensors.
    Settings are the fields of `RePrSettings`. Raises ValueError for settings that do not fit, for networks without a
    convolution to drop from, and for an optimizer of another model.
    """

    Settings = RePrSettings
    settings: RePrSettings

    def attach(self, example: Any) -> None:
        own = self.settings
        self.schedule = Schedule.fit(self.epochs, own.s1, own.s2, own.cycles, own.last_cycle)
        renewed = own.reinit.next_layer != "keep"
        self.filter_map = _trained(map_filters(self.model, example), self.model, self.optimizer, renewed)
        sizes = {layer.name: layer.filters for layer in self.filter_map.layers}
        excluded_layers(self.settings.selection, list(sizes), self.filter_map.left_out)
        check_ratio(sizes, self.settings.prune_ratio, self.settings.selection)
        self.masks = Masks(self.model, self.filter_map, kernel_only=self.settings.masked == "kernel")
        self._before: dict[str, Tensor] = {}
        self._returned: dict[str, Tensor] = {}

    @property
    def phase(self) -> Phase:
        return self.schedule.phase(max(self.epoch, 0))

    @property
    def cycle(self) -> int:
        return self.schedule.cycle(max(self.epoch, 0))

    @property
    def dropped(self) -> Mapping[str, Tensor]:
        return self.masks.dropped

    @property
    def left_out(self) -> Mapping[str, str]:
        return self.filter_map.left_out

    @torch.no_grad()
    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """Drop or re-initialise filters if the schedule says so for `epoch` (from 0); see `Scheme.start_epoch`.

        Raises ValueError if an epoch is skipped, or if the ranking needs data and there are no `batches`;
        RuntimeError if dropped filters have changed because `after_step` was not called. If `batches` raises, nothing
        has changed and the call can be repeated.
        """
        if self.settings.ranking.needs_data and batches is None:
            raise ValueError(
                f"ranking.score={self.settings.ranking.score} is measured on images: start_epoch(epoch, batches) with"
                " batches=lambda: an iterator of (images, labels), training or held-out ones"
            )
        before = self.epoch, self._before
        self._enter(epoch)
        try:
            if self.schedule.drops_at(epoch):
                return self._drop(batches, progress)
            if self.schedule.reinitialises_at(epoch):
                return self._reinitialise(progress)
        except BaseException:
            self.epoch, self._before = before
            raise
        return []

    def after_step(self) -> None:
        """Set dropped filters to exactly zero again, which momentum, weight decay or Adam may have changed."""
        self._returned = {}
        if self.masks.any:
            self.masks.apply()

    @torch.no_grad()
    def carry_over(self, average: nn.Module) -> None:
        """Apply the drops to an average of the weights (EMA, SWA).

        Call it after `start_epoch` and after every update of the average. In the average, dropped filters become
        zero, and re-initialised filters get their new values without a share of the old ones.
        """
        twin = unwrap(average)
        others, tensors = dict(twin.named_parameters()) | dict(twin.named_buffers()), self._tensors()
        changed = self.masks.dropped if self.masks.any else self._returned
        renewed = not self.masks.any and self.settings.reinit.next_layer != "keep"
        for layer in self.masks.layers if changed else ():
            for part in layer.parts:
                if part.role != "input" or renewed:
                    own, other = tensors[part.tensor], others[part.tensor]
                    mask = part.mask(own.shape, changed[layer.name]).to(other.device)
                    other.copy_(torch.where(mask, own.to(other), other))

    def sub_network(self) -> SubNetwork | None:
        """See `Scheme.sub_network`. Raises ValueError with `masked: kernel`, where dropped filters are not zero."""
        if not self.masks.any:
            return None
        if self.settings.masked == "kernel":
            raise ValueError("masked=kernel: dropped filters emit a constant, so that they cannot be removed")
        return SubNetwork(self.model, self.optimizer, self.masks)

    def state_dict(self) -> dict[str, Any]:
        def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.clone() for name, tensor in tensors.items()}

        return super().state_dict() | {
            "dropped": copied(self.masks.dropped),
            "before": copied(self._before),
            "epochs": self.epochs,
            "settings": self.settings.model_dump(mode="json"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Scheme.load_state_dict`. Raises ValueError for a state of other settings, epochs or network."""
        tensors = self._tensors()
        if "settings" in state:
            saved = state["settings"]
            own = self.settings.model_dump(mode="json")
            odd = [key for key in {**own, **saved} if own.get(key) != saved.get(key)]
            odd += ["epochs"] * (state["epochs"] != self.epochs)
            if odd:
                raise ValueError(f"state: it was saved with other settings: {', '.join(sorted(odd))}")
        dropped, before = state["dropped"], state["before"]
        needed = {part.tensor for layer in self.masks.layers for part in layer.parts if part.role != "input"}
        if not any(bool(mask.any()) for mask in dropped.values()):
            needed &= before.keys()
        expected = _shapes({name: tensors[name] for name in needed})
        if _shapes(dropped) != _shapes(self.masks.dropped) or _shapes(before) != expected:
            raise ValueError("state: it belongs to another network, with other layers or filters")
        super().load_state_dict(state)
        self.masks.set(dropped)
        self._returned = {}
        self._before = {name: value.to(tensors[name], copy=True) for name, value in before.items()}

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def _generator(self) -> torch.Generator:
        """A generator that depends on seed and epoch alone, so that a resumed training has the same draws."""
        return torch.Generator().manual_seed((self.seed << 20) + self.epoch)

    def score(self, batches: RankingBatches | None = None, progress: FiltersDone | None = None) -> dict[str, Tensor]:
        """Scores of all filters by layer, J each. Every rank calls it; the values of rank 0 are used."""
        ranking, generator = self.settings.ranking, self._generator()
        if batches is not None and ranking.needs_data:
            return score_by_data(ranking.score, self.model, self.masks.layers, batches, generator, progress)
        score, tensors = weight_score(ranking), self._tensors()
        if distributed.rank() > 0:
            return {}
        with torch.device("cpu"):  # of the generator, whatever the default device
            return {layer.name: score(tensors[layer.kernel], generator) for layer in self.masks.layers}

    def _drop(self, batches: RankingBatches | None, progress: FiltersDone | None) -> list[LayerEvent]:
        tensors, layers = self._tensors(), self.masks.layers
        parts = [part for layer in layers for part in layer.parts if part.role != "input"]
        self._before = {part.tensor: tensors[part.tensor].clone() for part in parts}
        scores = self.score(batches, progress)
        dropped = {name: torch.zeros_like(mask) for name, mask in self.masks.dropped.items()}
        if distributed.rank() == 0:
            settings = self.settings
            check_scores(scores, {layer.name: layer.filters for layer in layers}, settings.ranking.score)
            selected = select(scores, settings.prune_ratio, settings.ranking.order, settings.selection)
            for name, mask in selected.items():
                dropped[name].copy_(mask)
        distributed.broadcast(dropped.values())
        self.masks.set(dropped)
        self.masks.apply()
        return [
            self.event(
                "drop",
                layer.name,
                tensors[layer.kernel],
                dropped[layer.name],
                overlap(self._before[layer.kernel]),
                scores=tuple(scores[layer.name].tolist()),
            )
            for layer in (layers if distributed.rank() == 0 else ())
        ]

    def _reinitialise(self, progress: FiltersDone | None) -> list[LayerEvent]:
        tensors, layers, generator = self._tensors(), self.masks.layers, self._generator()
        self._assert_still_dropped(tensors)
        with torch.device("cpu"):  # of the generator, whatever the default device
            events = self._redraw(tensors, generator, progress) if distributed.rank() == 0 else []
        parts = [(layer, part) for layer in layers for part in layer.parts]
        distributed.broadcast(tensors[name] for name in {part.tensor: None for _, part in parts})
        if self.settings.reinit.optimizer_state == "reset":
            for layer, part in parts:
                if part.role != "input" or self.settings.reinit.next_layer != "keep":
                    tensor = tensors[part.tensor]
                    mask = part.mask(tensor.shape, self.masks.dropped[layer.name])
                    optimizer_state.reset(self.optimizer, tensor, mask)
        self._returned = {name: mask.clone() for name, mask in self.masks.dropped.items()}
        self.masks.set({})
        self._before = {}
        return events

    def _redraw(
        self, tensors: Mapping[str, Tensor], generator: torch.Generator, progress: FiltersDone | None
    ) -> list[LayerEvent]:
        """Re-initialise the filters of every layer, then the weights that read them."""
        layers = self.masks.layers
        overlaps = {layer.name: overlap(tensors[layer.kernel]) for layer in layers}
        drawn, done, total = {}, 0, sum(int(mask.sum()) for mask in self.masks.dropped.values())
        for layer in layers:
            drawn[layer.name] = self._redraw_kernels(layer, tensors, generator)
            done += int(self.masks.dropped[layer.name].sum())
            if progress:
                progress(done, total)
        for layer in layers:
            self._renew(layer, [part for part in layer.parts if part.role == "input"], tensors, generator)
        return [
            self.event(
                "reinit",
                layer.name,
                tensors[layer.kernel],
                self.masks.dropped[layer.name],
                overlaps[layer.name],
                cycle=self.schedule.cycle(self.epoch - 1),
                largest_cos=drawn[layer.name].largest_cos,
                relaxed=drawn[layer.name].relaxed,
                last_resort=drawn[layer.name].last_resort,
            )
            for layer in layers
        ]

    def _redraw_kernels(self, layer: ConvLayer, tensors: Mapping[str, Tensor], generator: torch.Generator) -> Redrawn:
        """New kernels for a layer's dropped filters, with their bias and batch norm."""
        dropped, kernel = self.masks.dropped[layer.name], tensors[layer.kernel]
        if not dropped.any():
            return Redrawn.nothing()
        before = torch.where(dropped.view(-1, 1, 1, 1), self._before[layer.kernel], kernel)
        drawn = redraw(before, dropped, self.settings.reinit, generator)
        kernel[dropped] = drawn.kernels.view(-1, *kernel.shape[1:]).to(kernel)
        self._renew(layer, [part for part in layer.parts[1:] if part.role != "input"], tensors, generator)
        return drawn

    def _renew(
        self, layer: ConvLayer, parts: Iterable[Part], tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        """Re-initialise `parts` of a layer's dropped filters."""
        dropped = self.masks.dropped[layer.name]
        if not dropped.any():
            return
        for part in parts:
            tensor = tensors[part.tensor]
            kernel = tensors.get(part.tensor.removesuffix("bias") + "weight") if part.role == "bias" else tensor
            fan_in = kernel[0].numel() if kernel is not None and kernel.dim() > 1 else None
            fresh = self._fresh(layer, part, tensor, fan_in, generator)
            if fresh is not None:
                tensor.copy_(torch.where(part.mask(tensor.shape, dropped), fresh, tensor))

    def _fresh(
        self, layer: ConvLayer, part: Part, tensor: Tensor, fan_in: int | None, generator: torch.Generator
    ) -> Tensor | None:
        """The new values of `part`, in the tensor's shape; None leaves it unchanged.

        A bias without a kernel, and so without `fan_in`, has no default and becomes zero.
        """
        reinit = self.settings.reinit
        choice: str = {"input": reinit.next_layer, "bias": reinit.bias}.get(part.role, reinit.norm_state)
        if choice == "keep":
            trained = part.role not in {"mean", "variance"} and part not in self.masks.silenced[layer.name]
            return None if part.role == "input" or trained else self._before[part.tensor]
        if choice == "default" and fan_in:
            return default_init(tensor.shape, fan_in, generator).to(tensor)
        return torch.full_like(tensor, part.role in ("gamma", "variance"))

    def _assert_still_dropped(self, tensors: Mapping[str, Tensor]) -> None:
        for layer in self.masks.layers:
            for part in self.masks.silenced[layer.name]:
                mask = part.mask(tensors[part.tensor].shape, self.masks.dropped[layer.name])
                if tensors[part.tensor].masked_select(mask).any():
                    raise RuntimeError(
                        f"dropped filters of {layer.name} are no longer zero: call after_step() after every"
                        " optimizer step"
                    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _trained(found: FilterMap, model: nn.Module, optimizer: Optimizer, renewed: bool) -> FilterMap:
    """The layers whose filters this optimizer trains, and the weights that read them if those are `renewed`.

    Raises ValueError if it trains nothing of the model.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    tensors = dict(model.named_parameters())
    if held.isdisjoint(map(id, tensors.values())):
        raise ValueError(
            f"optimizer: it holds no parameter of this {type(model).__name__}; make it from model.parameters()"
        )
    missing: dict[str, str] = {}
    for layer in found.layers:
        for part in layer.parts if renewed else layer.silenced:
            tensor = tensors.get(part.tensor)  # None for a buffer, as the statistics of a batch norm are
            if tensor is not None and not tensor.requires_grad:
                missing.setdefault(layer.name, f"{part.tensor} is frozen")
            elif tensor is not None and id(tensor) not in held:
                missing.setdefault(layer.name, f"the optimizer does not hold {part.tensor}")
    found = found.without(missing)
    found.require_layers(model)
    return found
