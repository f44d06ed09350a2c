"""Networks of torchvision, untrained."""

from torch import nn


def torchvision(*, name: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision.models.NAME. Raises ValueError for images that do not have three channels."""
    from torchvision.models import get_model

    if channels != 3:
        raise ValueError(f"model: torchvision's {name} takes images of 3 channels, not {channels}")
    model: nn.Module = get_model(name, weights=None, num_classes=classes)
    return model
