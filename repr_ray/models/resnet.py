"""Residual networks for small images."""

from torch import Tensor, nn
from torch.nn import functional as F

from repr_ray.models.init import finish_


class Pad(nn.Module):
    """Shortcut A: every second pixel, the new channels zero; without parameters."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """n x c x h x w -> n x (c + more) x h/stride x w/stride."""
        # as x[:, :, ::stride, ::stride], but its gradient stays channels last
        pixels = F.avg_pool2d(x, 1, self.stride)
        return F.pad(pixels, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; spatial dropout is between the two (arXiv 1605.07146, section 2.4)."""

    def __init__(self, inputs: int, width: int, stride: int, projection: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.spatial = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != width and projection:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        elif inputs != width:
            self.shortcut = Pad(stride, width - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """n x inputs x h x w -> n x width x h/stride x w/stride."""
        out = self.norm2(self.conv2(self.spatial(self.relu1(self.norm1(self.conv1(x))))))
        return self.relu2(out + self.shortcut(x))


def resnet(
    *,
    depth: int,
    shortcut: str,
    classes: int,
    channels: int,
    image_size: int,
    dropout: float = 0.0,
    spatial_dropout: float = 0.0,
) -> nn.Module:
    """ResNet of 6n + 2 layers in three stages of 16, 32 and 64 filters (arXiv 1512.03385, section 4.2)."""
    stages, inputs = [], 16
    for width in (16, 32, 64):
        for i in range((depth - 2) // 6):
            stride = 2 if i == 0 and width > 16 else 1
            stages.append(BasicBlock(inputs, width, stride, shortcut == "projection", spatial_dropout))
            inputs = width
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(channels, 16, 3, padding=1, bias=False))
    model.add_module("norm", nn.BatchNorm2d(16))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("blocks", nn.Sequential(*stages))
    return finish_(model, 64, classes, dropout)
