"""A network; its convolutions are found by tracing, without declarations.

`repr-ray launch 'model={kind: two:two, width: 24}'`
"""

from torch import nn


def two(*, width: int = 16, classes: int, channels: int) -> nn.Module:
    """Two convolutions, average pooling and a linear layer for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, width // 2, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width // 2, classes),
    )
