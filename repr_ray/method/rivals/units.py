"""The base of schemes that measure single filters (units) during training and replace some of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.method import optimizer_state
from repr_ray.method.events import LayerEvent
from repr_ray.method.filters import ConvLayer, Part, map_filters
from repr_ray.method.measurement import FiltersDone, RankingBatches
from repr_ray.method.scheme import Scheme


@dataclass
class Switch:
    """Whether activations are summed in a forward pass; without the sums there is no extra cost."""

    on: bool = True


@dataclass
class Reader:
    """Sums mean|h| over images of the input of a layer, for each unit of the layers before it.

    `places` (units x entries) are a unit's entries in the input, over which the mean is taken, as over pixels; `sums`
    gets the result; `images` counts.
    """

    switch: Switch
    places: list[Tensor]
    sums: list[Tensor]
    images: Tensor | None = None

    def listen(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook; active in training only, while the switch is on."""
        if not self.switch.on or not module.training or not len(inputs[0]):  # a rank may have none of a last batch
            return
        with torch.no_grad():
            x = inputs[0]
            if isinstance(module, nn.Conv2d):
                over: tuple[int, ...] = (0, 2, 3)
            else:  # features last, or maps that the layer flattens
                over = tuple(range(x.dim() - 1)) if x.shape[-1] == module.in_features else (0,)
            norms = torch.linalg.vector_norm(x, 1, over, dtype=torch.promote_types(x.dtype, torch.float32))
            each = math.prod(x.shape[dim] for dim in over) // len(x)
            for places, total in zip(self.places, self.sums, strict=True):
                total += norms.flatten()[places].mean(1) / each
            if self.images is not None:
                self.images += len(x)


class Outgoing(NamedTuple):
    """Weights that read a layer's filters: the part, each filter's entries in it, and where mean|h| is summed."""

    layer: ConvLayer
    part: Part
    places: Tensor
    sums: Tensor


class UnitScheme(Scheme):
    """Measures mean|h| of every filter that has outgoing weights of its own.

    h is the input of those weights: after batch norm, nonlinearity and pooling. Filters whose maps are summed with
    another path have no outgoing weights of their own and are never replaced; nor are those that cannot be followed.

    Forward hooks sum on the device, over the images of all ranks. Attach the scheme before the first forward pass of
    a compiled network: torch.compile does not notice hooks that are added later.
    """

    recorded = False

    def attach(self, example: Any) -> None:
        found = map_filters(self.model, example)
        inputs = {layer.name: [p for p in layer.parts if p.role == "input"] for layer in found.layers}
        reasons = {layer.name: why for layer in found.layers if (why := self._reason(layer, inputs[layer.name]))}
        self.layers = tuple(layer for layer in found.layers if layer.name not in reasons)
        self._left_out = dict(found.left_out) | reasons
        if not self.layers:
            why = "; ".join(f"{name}: {reason}" for name, reason in self._left_out.items())
            raise ValueError(f"{self.settings.kind}: no convolution has outgoing weights of its own ({why})")
        self._tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        device = next(self.model.parameters()).device
        outgoing = [(layer, part) for layer in self.layers for part in inputs[layer.name]]
        self._seen = torch.zeros(sum(layer.filters for layer, _ in outgoing) + 1, device=device)
        slices = self._seen[:-1].split([layer.filters for layer, _ in outgoing])
        self._outgoing = [
            Outgoing(layer, part, torch.tensor(part.places, device=device).view(layer.filters, -1), own)
            for (layer, part), own in zip(outgoing, slices, strict=True)
        ]
        self._missed = torch.zeros((), dtype=torch.bool, device=device)
        self._replaced = torch.zeros(sum(layer.filters for layer in self.layers), dtype=torch.bool, device=device)
        self._sizes = [layer.filters for layer in self.layers]
        self._owners = {
            (layer.name, part): self._owner(layer, part).to(device) for layer in self.layers for part in layer.parts
        }
        self.steps = 0
        self._switch = Switch(self._due_next())
        self._listen()

    @property
    def left_out(self) -> Mapping[str, str]:
        return self._left_out

    @property
    def watching(self) -> bool:
        return self._switch.on

    def start_epoch(
        self, epoch: int, batches: RankingBatches | None = None, progress: FiltersDone | None = None
    ) -> list[LayerEvent]:
        """See `Scheme.start_epoch`. Raises RuntimeError if a step had no forward pass in training mode."""
        self._assert_seen()
        self._enter(epoch)
        return []

    def end_epoch(self) -> list[LayerEvent]:
        """The events of this epoch, if filters were replaced."""
        self._assert_seen()
        replaced = self._replaced.to("cpu", copy=True)
        self._replaced.zero_()
        if distributed.rank() > 0 or not replaced.any():
            return []
        places = torch.tensor([0, *self._sizes], device="cpu").cumsum(0).tolist()
        kernels = [self._tensors[layer.kernel] for layer in self.layers]
        return [
            self.event(
                "replace",
                layer.name,
                kernel,
                replaced[first:last],
                None,
                scores=self._scores(slice(first, last)),
            )
            for layer, kernel, first, last in zip(self.layers, kernels, places, places[1:], strict=False)
        ]

    def detach(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": self.steps, "replaced": self._replaced}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = state["steps"]
        self._switch.on = self._due_next()
        self._replaced.copy_(state["replaced"])

    def _due_next(self) -> bool:
        """Whether the activations of the next step are needed."""
        return True

    def _scores(self, places: slice) -> tuple[float, ...] | None:
        """The scores of some units for the table of cycles."""
        return None

    def _reason(self, layer: ConvLayer, inputs: list[Part]) -> str | None:
        """Why filters of a layer cannot be units, or None."""
        if layer.joined or not inputs:
            return "its maps are joined with another path, no weights read them alone"
        modules = dict(self.model.named_modules())
        for part in inputs:
            reader = modules.get(part.tensor.removesuffix(".weight"))
            if not isinstance(reader, nn.Conv2d | nn.Linear) or part.dim != 1:
                return f"{part.tensor}, which reads it, is not the weight of a convolution or linear layer"
            each, left = divmod(len(part.places), layer.filters)
            if left or list(part.filters) != [f for f in range(layer.filters) for _ in range(each)]:
                return f"{part.tensor} does not read all its filters alike"
        return None

    def _owner(self, layer: ConvLayer, part: Part) -> Tensor:
        """The filter that owns each entry of a part's tensor; the number of filters for entries without an owner."""
        shape = self._tensors[part.tensor].shape
        owners = torch.full((shape[part.dim] * part.groups,), layer.filters, device="cpu")
        owners[list(part.places)] = torch.tensor(part.filters, device="cpu")
        return part.lay_out(owners, shape)

    def _listen(self) -> None:
        readers: dict[str, Reader] = {}
        for outgoing in self._outgoing:
            reader = readers.setdefault(outgoing.part.tensor.removesuffix(".weight"), Reader(self._switch, [], []))
            reader.places.append(outgoing.places)
            reader.sums.append(outgoing.sums)
        next(iter(readers.values())).images = self._seen[-1]
        self._handles = [
            self.model.get_submodule(name).register_forward_pre_hook(reader.listen)
            for name, reader in readers.items()
        ]

    def _means(self) -> list[Tensor]:
        """mean|h| over the images of a step on all ranks, for the units of each outgoing part; clears the sums."""
        distributed.all_reduce(self._seen)
        self._missed |= self._seen[-1] == 0
        means = (self._seen[:-1] / self._seen[-1].clamp_min(1)).split(
            [outgoing.layer.filters for outgoing in self._outgoing]
        )
        self._seen.zero_()
        return list(means)

    def _assert_seen(self) -> None:
        if self._missed:
            raise RuntimeError(
                f"{self.settings.kind}: its hooks have seen no forward pass in training mode before an after_step():"
                " attach it before the first call of a compiled model, and call torch._dynamo.reset() first where one"
                " of its class has been compiled before"
            )

    def _replace(self, units: Tensor) -> None:
        """Re-initialise units (bool, over all layers): incoming weights by PyTorch's default, outgoing weights zero.

        Bias and batch norm are reset too, as in the code of continual backprop for residual networks.
        """
        distributed.broadcast([units])
        self._replaced |= units
        generator = torch.Generator(units.device).manual_seed((self.seed << 20) + self.steps)
        for layer, mask in zip(self.layers, units.split(self._sizes), strict=True):
            padded = torch.cat([mask, mask.new_zeros(1)])
            for part in layer.parts:
                tensor = self._tensors[part.tensor]
                own = padded[self._owners[layer.name, part]]
                if part.role == "kernel":
                    self._redraw(layer, tensor, own, generator)
                else:
                    tensor.masked_fill_(own, float(part.role in ("gamma", "variance")))
                if self.settings.optimizer_state == "reset":
                    optimizer_state.reset(self.optimizer, tensor, own)

    def _redraw(self, layer: ConvLayer, kernel: Tensor, own: Tensor, generator: torch.Generator) -> None:
        """Uniform in +-1/sqrt(fan in), which is PyTorch's default for a convolution."""
        fresh = torch.rand(kernel.shape, generator=generator, device=kernel.device, dtype=torch.float32)
        bound = kernel[0].numel() ** -0.5
        kernel.copy_(torch.where(own, ((2 * fresh - 1) * bound).to(kernel.dtype), kernel))
        distributed.broadcast([kernel])
