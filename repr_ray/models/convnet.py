"""The paper's vanilla networks: a stack of equal convolutions and one linear layer."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repr_ray.models.init import truncated_normal_


class FlatLinear(nn.Linear):
    """`nn.Flatten` and `nn.Linear` in one, with the parameters that those two would have.

    The weight is permuted to the order of channels-last maps: copying the maps to the order of the weight, and their
    gradient back, takes a sixth of a training step on a CPU (benchmarks/README.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """n x c x h x w -> n x classes."""
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x.flatten(1))
        weight = self.weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, self.bias)


def convnet(
    *,
    depth: int,
    width: int,
    kernel: int,
    batch_norm: bool,
    pool: str,
    init: str,
    classes: int,
    channels: int,
    image_size: int,
    dropout: float = 0.0,
    spatial_dropout: float = 0.0,
) -> nn.Module:
    """`depth` x (conv, bias, [batch norm], ReLU, [pool]), flatten, linear (arXiv 1811.07275, section 5).

    `spatial_dropout` is applied after each ReLU, `dropout` before the linear layer.
    `pool` is `max2` (2x2) or `max3` (3x3, stride 2, padded at the far edges as TensorFlow's 'same' does).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, depth + 1):
        layers[f"conv{i}"] = nn.Conv2d(channels if i == 1 else width, width, kernel, padding=kernel // 2)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(width)
        # ReLU and max pooling commute; pooling first leaves ReLU a quarter of the work
        if pool == "max2":
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            image_size //= 2
        elif pool == "max3":
            layers[f"pool{i}"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
            image_size = (image_size - 2) // 2 + 1
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
        if spatial_dropout:
            layers[f"spatial{i}"] = nn.Dropout2d(spatial_dropout)
        if image_size < 1:
            raise ValueError(
                f"model.depth={depth}: pooling leaves no pixel after layer {i}; use fewer layers or pool: none"
            )
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["linear"] = FlatLinear(width * image_size * image_size, classes)
    model = nn.Sequential(layers)
    if init == "truncated_normal":
        truncated_normal_(model)
    return model
