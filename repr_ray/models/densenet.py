"""Densely connected networks for small images."""

import torch
from torch import Tensor, nn

from repr_ray.models.init import finish_


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, optional spatial dropout; the output is concatenated to the input."""

    def __init__(self, inputs: int, growth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        self.spatial = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """n x inputs x h x w -> n x (inputs + growth) x h x w."""
        return torch.cat([x, self.spatial(self.conv(self.relu(self.norm(x))))], 1)


def densenet(
    *,
    depth: int,
    growth: int,
    classes: int,
    channels: int,
    image_size: int,
    dropout: float = 0.0,
    spatial_dropout: float = 0.0,
) -> nn.Module:
    """DenseNet of 3n + 4 layers without bottlenecks (arXiv 1608.06993, section 4.2): three blocks of n layers.

    Raises ValueError for images that are too small for two poolings.
    """
    if image_size < 4:
        raise ValueError("model: densenet needs images of at least 4 x 4 pixels")
    width = 16
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(channels, width, 3, padding=1, bias=False))
    for block in range(1, 4):
        layers = []
        for _ in range((depth - 4) // 3):
            layers.append(DenseLayer(width, growth, spatial_dropout))
            width += growth
        model.add_module(f"block{block}", nn.Sequential(*layers))
        model.add_module(f"norm{block}", nn.BatchNorm2d(width))
        model.add_module(f"relu{block}", nn.ReLU(inplace=True))
        if block < 3:
            model.add_module(f"transition{block}", nn.Conv2d(width, width, 1, bias=False))
            model.add_module(f"pool{block}", nn.AvgPool2d(2))
    return finish_(model, width, classes, dropout)
