"""Networks. To add one: its settings in config.py, a builder in a file here, a line in `BUILDERS`."""

from collections.abc import Callable, Mapping

from torch import nn

from repr_ray.config import Model
from repr_ray.models.convnet import convnet
from repr_ray.models.densenet import densenet
from repr_ray.models.resnet import resnet
from repr_ray.models.vgg import vgg
from repr_ray.models.zoo import torchvision

BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "resnet": resnet,
    "densenet": densenet,
    "vgg": vgg,
    "torchvision": torchvision,
}


def build(settings: Model, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network for `channels` x image_size x image_size images, initialised from torch's global generator.

    Raises ValueError when the network does not fit the images.
    """
    return BUILDERS[settings.kind](
        **settings.model_dump(exclude={"kind"}), classes=classes, channels=channels, image_size=image_size
    )
