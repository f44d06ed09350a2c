"""Losses for any scheme. Weights of a penalty that change in training are tensors on the device, changed in place.

Penalties apply to convolutions that are not grouped: all their filters have the same inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LossTerm:
    """Cross entropy, and the interface of all losses.

    `teacher` maps images to logits, for losses that need one; it is set before training.
    """

    teacher: Callable[[Tensor], Tensor] | None = None

    def __init__(self, model: nn.Module | None = None) -> None:
        """Attach to the network."""

    @property
    def changes(self) -> frozenset[str]:
        """Which of `loss` and `penalty` a subclass overrides."""
        return frozenset(n for n in ("loss", "penalty") if getattr(type(self), n) is not getattr(LossTerm, n))

    def start_epoch(self, epoch: int) -> None:
        """Called before every epoch, from 0, and when training resumes within one."""

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, summed over its images: float32 logits (n x classes), labels (n), images (n x ...)."""
        return F.cross_entropy(logits, labels, reduction="sum")

    def penalty(self) -> Tensor | None:
        """A term of the weights that is added to the mean loss over a batch; None for none."""
        return None


class LabelSmoothing(LossTerm):
    """See `loss_settings.LabelSmoothingSettings`."""

    def __init__(self, model: nn.Module, smoothing: float) -> None:
        self.smoothing = smoothing

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.smoothing)


class Distillation(LossTerm):
    """See `loss_settings.DistillationSettings`."""

    def __init__(self, model: nn.Module, alpha: float, temperature: float) -> None:
        self.alpha, self.temperature = alpha, temperature

    def loss(self, logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        """See `LossTerm.loss`. Raises ValueError when there is no teacher."""
        if self.teacher is None:
            raise ValueError("loss: distillation: set `scheme.term.teacher` to the teacher's network")
        with torch.no_grad():
            taught = self.teacher(images)
            taught = taught.to(torch.promote_types(taught.dtype, torch.float32))
            target = F.log_softmax(taught / self.temperature, 1)
        soft = F.log_softmax(logits / self.temperature, 1)
        divergence = F.kl_div(soft, target, reduction="sum", log_target=True) * self.temperature**2
        if self.alpha == 1:
            return divergence
        return (1 - self.alpha) * F.cross_entropy(logits, labels, reduction="sum") + self.alpha * divergence


class Penalty(LossTerm):
    """`weight` times the sum over layers of `of_layer`."""

    def __init__(self, model: nn.Module, weight: float) -> None:
        self.layers = self.layers_of(model)
        device = next(model.parameters()).device
        self.weight = torch.tensor(float(weight), device=device)

    def layers_of(self, model: nn.Module) -> list[Any]:
        """The layers with a penalty."""
        return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]

    def of_layer(self, layer: Any) -> Tensor:
        """The penalty of a layer."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight * torch.stack([self.of_layer(layer) for layer in self.layers]).sum()


class Orthogonality(Penalty):
    """See `loss_settings.OrthogonalitySettings`. A filter of zeros has no overlap, and counts as 1."""

    def of_layer(self, layer: nn.Conv2d) -> Tensor:
        """Sum of |W^W^T - I|."""
        rows = layer.weight.flatten(1)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = rows / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        return (unit @ unit.T - _identity(unit)).abs().sum()


class Srip(Penalty):
    """See `loss_settings.SripSettings`."""

    def __init__(self, model: nn.Module, weight: float, decay: tuple[tuple[int, float], ...]) -> None:
        super().__init__(model, weight)
        self.first, self.decay = weight, decay

    def layers_of(self, model: nn.Module) -> list[Any]:
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        return [*super().layers_of(model), *linear]

    def start_epoch(self, epoch: int) -> None:
        """Set the weight of this epoch."""
        factors = [1.0, *(factor for start, factor in self.decay if epoch >= start)]
        self.weight.fill_(self.first * factors[-1])

    def of_layer(self, layer: nn.Module) -> Tensor:
        """The squared spectral norm of W^T W - I: u = A v, s = |A u| / |u|, for a random v."""
        rows: Any = layer.weight
        rows = rows.flatten(1)
        gram = rows @ rows.T - _identity(rows)
        u = gram @ torch.randn(len(rows), device=rows.device, dtype=rows.dtype)
        v = gram @ u
        return v.square().sum() / u.square().sum().clamp_min(torch.finfo(u.dtype).tiny)


class Ocnn(Penalty):
    """See `loss_settings.OcnnSettings`. Dilated convolutions are left out as well."""

    def __init__(self, model: nn.Module, weight: float, squared: bool) -> None:
        super().__init__(model, weight)
        self.squared = squared

    def layers_of(self, model: nn.Module) -> list[Any]:
        """All convolutions but the first. Raises ValueError if there is none."""
        layers = [m for m in super().layers_of(model)[1:] if set(m.dilation) == {1}]
        if not layers:
            raise ValueError("loss: ocnn: the network has no convolution but the first")
        return layers

    def of_layer(self, layer: nn.Conv2d) -> Tensor:
        """||Conv(K, K) - I_0||, squared or not."""
        kernel = layer.weight
        strides = [min(s, k) for s, k in zip(layer.stride, layer.kernel_size, strict=True)]
        padding = [(k - 1) // s * s for s, k in zip(strides, layer.kernel_size, strict=True)]
        products = F.conv2d(kernel, kernel, stride=strides, padding=padding)
        centre = [p // s for p, s in zip(padding, strides, strict=True)]
        target = torch.zeros_like(products)
        target[:, :, centre[0], centre[1]] = _identity(kernel)
        squares = (products - target).square().sum()
        return squares if self.squared else squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


def _identity(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
