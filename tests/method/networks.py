"""Networks, optimizers and a short loop for the tests of the schemes."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray import RePr
from repr_ray.method.events import LayerEvent
from repr_ray.method.masks import Masks

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "weight decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
}


def stack(width: int = 8, classes: int = 4) -> nn.Module:
    """Three convolutions with bias and batch norm on 1 x 6 x 6 images."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width, classes)),
    )


def batches(count: int = 4, size: int = 8, image: tuple[int, ...] = (1, 6, 6)) -> list[tuple[Tensor, Tensor]]:
    """Fixed random images with labels in 0-3."""
    g = torch.Generator().manual_seed(99)
    return [(torch.randn(size, *image, generator=g), torch.randint(0, 4, (size,), generator=g)) for _ in range(count)]


def step(model: nn.Module, optimizer: Optimizer, scheme: RePr, images: Tensor, labels: Tensor) -> float:
    """One optimizer step."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    scheme.after_step()
    return float(loss.detach())


def train(model: nn.Module, optimizer: Optimizer, scheme: RePr, first: int, last: int) -> list[LayerEvent]:
    """Epochs first..last - 1 over the fixed batches."""
    events = []
    for epoch in range(first, last):
        events += scheme.start_epoch(epoch)
        for images, labels in batches():
            step(model, optimizer, scheme, images, labels)
    return events


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_silent(model: nn.Module, masks: Masks) -> None:
    """Kernel, bias, gamma and beta of dropped filters are +0.0, to the bit."""
    own = tensors(model)
    for layer in masks.layers:
        for part in layer.silenced:
            tensor = own[part.tensor].detach()
            entries = tensor.masked_select(part.mask(tensor.shape, masks.dropped[layer.name]))
            assert not entries.view(torch.int32).any(), (layer.name, part.role)
