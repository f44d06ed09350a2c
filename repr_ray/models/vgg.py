"""VGG networks with batch norm for small images."""

from collections.abc import Mapping

from torch import nn

from repr_ray.models.init import finish_

STAGES: Mapping[int, tuple[int, ...]] = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
"""Convolutions of each stage, by depth (arXiv 1409.1556, table 1)."""


def vgg(
    *, depth: int, classes: int, channels: int, image_size: int, dropout: float = 0.0, spatial_dropout: float = 0.0
) -> nn.Module:
    """VGG with batch norm and a single linear layer, as is usual for CIFAR.

    Raises ValueError for images that are too small for five poolings.
    """
    if image_size < 32:
        raise ValueError(f"model: vgg pools five times and needs images of 32 x 32 pixels or more, not {image_size}")
    model, inputs = nn.Sequential(), channels
    for stage, count in enumerate(STAGES[depth], start=1):
        width = min(64 * 2 ** (stage - 1), 512)
        for i in range(1, count + 1):
            model.add_module(f"conv{stage}_{i}", nn.Conv2d(inputs, width, 3, padding=1))
            model.add_module(f"norm{stage}_{i}", nn.BatchNorm2d(width))
            model.add_module(f"relu{stage}_{i}", nn.ReLU(inplace=True))
            if spatial_dropout:
                model.add_module(f"spatial{stage}_{i}", nn.Dropout2d(spatial_dropout))
            inputs = width
        model.add_module(f"pool{stage}", nn.MaxPool2d(2))
    return finish_(model, inputs, classes, dropout)
