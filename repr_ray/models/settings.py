"""What can be set about a network. No torch here, so that a config is checked before torch is imported.

To add a network: a settings class here that names what it builds, a class or function that takes the settings as
keyword arguments, and of `classes`, `channels` and `image_size` what it needs. A network of one's own needs neither:
`model: {kind: my_module:Net}`.
"""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from repr_ray.components import ByKind, Component

Depth = Annotated[int, Field(ge=1, le=1_000)]
Width = Annotated[int, Field(ge=1, le=100_000)]


class ModelSettings(Component):
    """A network."""

    family: ClassVar[str] = "model"
    given: ClassVar[frozenset[str]] = frozenset({"classes", "num_classes", "channels", "image_size"})

    @property
    def label(self) -> str:
        """The name in tables and folders: the kind, with the values that are not its defaults."""
        chosen = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        name = "-".join([self.kind.partition(":")[2] or self.kind, *(f"{k}={v}" for k, v in chosen.items())])
        return re.sub(r"[^\w.=-]+", "-", name.lower()).strip("-")

    def network(self, classes: int, channels: int, image_size: int) -> Any:
        """The network (torch.nn.Module) for `channels` x image_size x image_size images.

        It is initialised from torch's global generator. Raises ValueError when it does not fit the images.
        """
        return self.build(classes=classes, num_classes=classes, channels=channels, image_size=image_size)


class ConvNet(ModelSettings):
    """`depth` x (convolution with bias, optional batch norm, ReLU, optional pooling), then one linear layer."""

    builds: ClassVar[str] = "repr_ray.models.convnet:convnet"

    kind: Literal["convnet"] = "convnet"
    depth: Depth = Field(default=3, description="convolutions")
    width: Width = Field(default=32, description="filters of each convolution")
    kernel: Literal[1, 3, 5, 7] = Field(default=3, description="side of the kernels, in pixels")
    batch_norm: bool = Field(default=False, description="batch norm after each convolution")
    pool: Literal["none", "max2", "max3"] = Field(
        default="none",
        description="max-pooling over 2 x 2 or 3 x 3 pixels after each ReLU, or none",
    )
    init: Literal["default", "truncated_normal"] = Field(
        default="default",
        description="PyTorch's initial weights, or a truncated normal distribution",
    )

    @property
    def label(self) -> str:
        """The name in tables, after the paper: convnet-3x32, with what differs from conv + bias + ReLU."""
        kernel = f"-k{self.kernel}" if self.kernel != 3 else ""
        pool = {"none": "", "max2": "-maxpool", "max3": "-maxpool3"}[self.pool]
        init = "-truncated" if self.init != "default" else ""
        return f"convnet-{self.depth}x{self.width}{kernel}{'-bn' if self.batch_norm else ''}{pool}{init}"


class ResNet(ModelSettings):
    """Residual network for CIFAR (arXiv 1512.03385) of 6n + 2 layers: 20, 32, 56, 110, ..."""

    builds: ClassVar[str] = "repr_ray.models.resnet:resnet"

    kind: Literal["resnet"]
    depth: Annotated[Depth, Field(ge=8)] = Field(default=20, description="layers: 20, 32, 44, 56, 110, ...")
    shortcut: Literal["pad", "projection"] = Field(
        default="pad",
        description="where channels grow: pad with zeros, or project by a 1x1 convolution",
    )

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if (depth - 2) % 6:
            raise ValueError("a residual network has 6n + 2 layers: 20, 32, 44, 56, 110, ...")
        return depth

    @property
    def label(self) -> str:
        """The name in tables: resnet20, resnet20-projection."""
        return f"resnet{self.depth}{'-projection' if self.shortcut == 'projection' else ''}"


class DenseNet(ModelSettings):
    """Densely connected network for CIFAR (arXiv 1608.06993) of 3n + 4 layers, without bottlenecks."""

    builds: ClassVar[str] = "repr_ray.models.densenet:densenet"

    kind: Literal["densenet"]
    depth: Annotated[Depth, Field(ge=7)] = Field(default=40, description="layers: 40, 100, ...")
    growth: Width = Field(default=12, description="channels that each layer adds")

    @field_validator("depth")
    @classmethod
    def _equal_blocks(cls, depth: int) -> int:
        if (depth - 4) % 3:
            raise ValueError("a dense network has 3n + 4 layers: 40, 100, ...")
        return depth

    @property
    def label(self) -> str:
        """The name in tables: densenet-40-12."""
        return f"densenet-{self.depth}-{self.growth}"


class Vgg(ModelSettings):
    """VGG with batch norm (arXiv 1409.1556) and one linear layer, for images of 32 pixels or more."""

    builds: ClassVar[str] = "repr_ray.models.vgg:vgg"

    kind: Literal["vgg"]
    depth: Literal[11, 13, 16] = Field(default=16, description="layers with weights, as in the paper's names")

    @property
    def label(self) -> str:
        """The name in tables: vgg16-bn."""
        return f"vgg{self.depth}-bn"


class Torchvision(ModelSettings):
    """A network of torchvision, untrained, made for ImageNet's larger images."""

    builds: ClassVar[str] = "repr_ray.models.zoo:torchvision"

    kind: Literal["torchvision"]
    name: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnext50_32x4d",
        "vgg11_bn",
        "vgg16",
        "vgg16_bn",
        "densenet121",
        "mobilenet_v2",
    ] = Field(description="the network's name in torchvision.models")

    @property
    def label(self) -> str:
        """The name in tables: torchvision-resnet50."""
        return f"torchvision-{self.name}"


Model = Annotated[ModelSettings, ByKind()]
