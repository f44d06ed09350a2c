"""Scores of filters measured on images, one function each. The larger a score, the sooner the filter is dropped.

A feature map z is the output of a convolution and the batch norm that follows it, a = ReLU(z) its activation. Every
rank has its own images; sums are over all ranks. Networks are in evaluation mode and float32, and are not changed.

To add a score, write a function here and add its name to `SCORE` in settings.py. A plug-in, `score: my_module:mine`,
is measured on images if its argument is called `measurement`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repr_ray.method.filters import ConvLayer
from repr_ray.method.measurement import FiltersDone, Measurement, RankingBatches, evaluating
from repr_ray.method.settings import SCORE

FEWEST_IMAGES = 1024  # images of a pass of the oracle, which silences one filter in each copy of the batch


def activation(measurement: Measurement) -> dict[str, Tensor]:
    """Minus the mean activation: the least active filters are dropped first (arXiv 1611.06440, section 2.2)."""
    means = measurement.mean_of_maps(lambda z: z.relu().mean((2, 3)))
    return {name: -mean for name, mean in means.items()}


def apoz(measurement: Measurement) -> dict[str, Tensor]:
    """Average percentage of zeros among activations, in [0, 1] (arXiv 1607.03250, eq. 1)."""
    return measurement.mean_of_maps(lambda z: (z <= 0).float().mean((2, 3)))


def gradient(measurement: Measurement) -> dict[str, Tensor]:
    """Minus the mean |dL/dw| of a filter's weights, L the mean loss: those with the smallest are dropped first."""
    means = measurement.mean_of_kernels(torch.autograd.grad)
    return {name: -grad.abs().flatten(1).mean(1) for name, grad in means.items()}


def taylor(measurement: Measurement) -> dict[str, Tensor]:
    """Minus the first-order estimate of the loss's change, arXiv 1611.06440, eq. 8, scaled to unit L2 norm per layer.

    Per image |mean over positions of a * dL/da|, then the mean over images. Where a ReLU follows, z * dL/dz is the
    same product.
    """
    sums, images = measurement.zeros(), 0
    for inputs, labels in measurement.batches():
        maps: dict[str, Tensor] = {}

        def keep(layer: ConvLayer, z: Tensor, maps: dict[str, Tensor] = maps) -> Tensor:
            maps[layer.name] = z
            return z.clone()  # an in-place ReLU may follow

        with measurement.hooked(keep):
            loss = F.cross_entropy(measurement.model(inputs).float(), labels, reduction="sum")
        for (name, z), grad in zip(maps.items(), torch.autograd.grad(loss, list(maps.values())), strict=True):
            sums[name] += (z.detach() * grad).mean((2, 3)).abs().double().sum(0)
        images += len(labels)
    means = measurement.mean_over_images(sums.values(), images)
    return {name: -mean / mean.norm().clamp(min=torch.finfo(mean.dtype).tiny) for name, mean in means.items()}


def hessian(measurement: Measurement) -> dict[str, Tensor]:
    """Minus the saliency of optimal brain damage (LeCun et al. 1990), sum over a filter of h_ii * w_i^2 / 2.

    The diagonal h of the Hessian of the mean loss is estimated as v * (H v) with random signs v, new ones for every
    batch (Bekas et al. 2007).
    """

    def diagonal(loss: Tensor, kernels: list[nn.Parameter]) -> Iterator[Tensor | None]:
        signs = [_signs(kernel, measurement.generator) for kernel in kernels]
        grads = torch.autograd.grad(loss, kernels, create_graph=True)
        products = torch.autograd.grad(grads, kernels, signs, allow_unused=True)
        return (p if p is None else sign * p for sign, p in zip(signs, products, strict=True))

    means = measurement.mean_of_kernels(diagonal).items()
    return {
        name: -(mean * kernel.detach() ** 2).flatten(1).sum(1) / 2
        for (name, mean), kernel in zip(means, measurement.kernels(), strict=True)
    }


def oracle(measurement: Measurement) -> dict[str, Tensor]:
    """Minus the accuracy lost when that one filter is silenced (arXiv 1811.07275, section 3), one at a time.

    Several filters are evaluated in one pass: each gets its own copy of the images. A filter is
    silenced where a drop takes effect: in its batch norms, or in the convolution's output if it has none.
    """
    variants = [(layer, f) for layer in measurement.layers for f in range(layer.filters)]
    correct = torch.zeros(len(variants) + 1, dtype=torch.float64, device=measurement.kernels()[0].device)
    largest = max((len(labels) for _, labels in measurement.batches()), default=1)
    together, images = -(-FEWEST_IMAGES // largest), 0
    for first in range(0, len(correct), together):  # the last variant is the unchanged network
        copies, images = min(together, len(correct) - first), 0
        with torch.no_grad(), _silenced(measurement.model, variants[first : first + copies], copies):
            for inputs, labels in measurement.batches():
                logits = measurement.model(inputs.repeat(copies, 1, 1, 1))
                correct[first : first + copies] += (logits.argmax(1).view(copies, -1) == labels).sum(1)
                images += len(labels)
        measurement.progress(min(first + copies, len(variants)), len(variants))
    gained = (correct[:-1] - correct[-1]).split([layer.filters for layer in measurement.layers])
    return measurement.mean_over_images(gained, images)


@contextmanager
def _silenced(model: nn.Module, variants: Sequence[tuple[ConvLayer, int]], copies: int) -> Iterator[None]:
    """Silence filter f of a layer in the c-th copy of the batch, for the c-th (layer, f)."""
    places: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for copy, (layer, f) in enumerate(variants):
        for part in layer.silenced:
            module = part.tensor.rpartition(".")[0]
            first = part.role == "kernel" and layer.output == layer.name  # else a batch norm is all that reads it
            if first or part.role == "gamma" or (part.role == "bias" and module != layer.name):
                places.setdefault((module, part.axis), []).extend((copy, place) for place in part.places_of(f))
    with ExitStack() as stack:
        for (name, axis), own in places.items():

            def silence(
                module: nn.Module, inputs: object, z: Tensor, own: list[tuple[int, int]] = own, axis: int = axis
            ) -> Tensor:
                z = z.clone()
                by_copy = z.movedim(axis, 1).unflatten(0, (copies, -1))
                for copy, channel in own:
                    by_copy[copy, :, channel] = 0.0
                return z

            handle = model.get_submodule(name).register_forward_hook(silence)
            stack.callback(handle.remove)
        yield


def score_by_data(
    name: str,
    model: nn.Module,
    layers: Sequence[ConvLayer],
    batches: RankingBatches,
    generator: torch.Generator,
    progress: FiltersDone | None = None,
) -> dict[str, Tensor]:
    """Scores of all filters by layer (J, float64), equal on all ranks. Every rank calls it.

    Parameters, gradients, buffers, modes and torch's global generators stay as they are.
    """
    with evaluating(model):
        measurement = Measurement(model, layers, batches, generator, progress or (lambda done, total: None))
        scores: dict[str, Tensor] = SCORE.get(name)(measurement)
        return scores


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random +-1 in a tensor's shape."""
    return (torch.randint(0, 2, like.shape, generator=generator, device="cpu") * 2 - 1).to(like)
