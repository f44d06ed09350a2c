"""Running a network on images to score its filters, without changing it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.method.filters import ConvLayer

RankingBatches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Returns an iterator over this rank's (images, labels), on the model's device, from the first one."""

FiltersDone = Callable[[int, int], None]
"""Called with the number of filters that are done, and the number of all."""


@dataclass(frozen=True)
class Measurement:
    """The inputs of a score on images. `generator` is in the same state on all ranks."""

    model: nn.Module
    layers: Sequence[ConvLayer]
    batches: RankingBatches
    generator: torch.Generator
    progress: FiltersDone

    def kernels(self) -> list[nn.Parameter]:
        """The J x c x k x k weights of every layer."""
        return [self.model.get_parameter(layer.kernel) for layer in self.layers]

    def zeros(self) -> dict[str, Tensor]:
        """A float64 zero per filter, by layer."""
        return {
            layer.name: torch.zeros(layer.filters, dtype=torch.float64, device=kernel.device)
            for layer, kernel in zip(self.layers, self.kernels(), strict=True)
        }

    def mean_of_kernels(
        self, statistic: Callable[[Tensor, list[nn.Parameter]], Iterable[Tensor | None]]
    ) -> dict[str, Tensor]:
        """The mean over images of a statistic in the shape of each kernel, of a batch's summed cross entropy.

        None is zero.
        """
        kernels, images = self.kernels(), 0
        sums = [torch.zeros_like(kernel, dtype=torch.float64) for kernel in kernels]
        for inputs, labels in self.batches():
            loss = F.cross_entropy(self.model(inputs).float(), labels, reduction="sum")
            for total, own in zip(sums, statistic(loss, kernels), strict=True):
                total += 0 if own is None else own
            images += len(labels)
        return self.mean_over_images(sums, images)

    @contextmanager
    def hooked(self, hook: Callable[[ConvLayer, Tensor], Tensor | None]) -> Iterator[None]:
        """Call `hook(layer, z)` with every feature map z (n x J x height x width); what it returns replaces z."""
        handles = [
            self.model.get_submodule(layer.output).register_forward_hook(lambda m, x, z, layer=layer: hook(layer, z))
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mean_over_images(self, sums: Iterable[Tensor], images: int) -> dict[str, Tensor]:
        """Sums over this rank's images -> means over those of all ranks, by layer.

        Raises ValueError if there was no image.
        """
        sums = list(sums)
        count = torch.tensor(float(images), dtype=torch.float64, device=sums[0].device)
        distributed.all_reduce(count, *sums)
        if not count:
            raise ValueError("ranking: batches() gave no images")
        return {layer.name: own / count for layer, own in zip(self.layers, sums, strict=True)}

    def mean_of_maps(self, statistic: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean over images of a statistic of feature maps: n x J x height x width -> n x J."""
        sums, images = self.zeros(), 0

        def add(layer: ConvLayer, z: Tensor) -> None:
            sums[layer.name] += statistic(z).double().sum(0)

        with torch.no_grad(), self.hooked(add):
            for inputs, _ in self.batches():
                self.model(inputs)
                images += len(inputs)
        return self.mean_over_images(sums.values(), images)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients on, no autocast; every module's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
