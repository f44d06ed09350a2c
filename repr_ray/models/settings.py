"""Settings of networks, without torch, so that a config is checked before torch is imported.

To add a network, write a settings class here that names what it builds, a class or function that takes the settings
as keyword arguments, and any of `classes`, `channels` and `image_size`. A plug-in, `model: {kind: my_module:Net}`,
needs no change here.
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from repr_ray.components import ByKind, Component, Fraction

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


Dropout = Annotated[Fraction, Field(description="share of the classifier's inputs dropped in training")]
SpatialDropout = Annotated[Fraction, Field(description="share of whole feature maps dropped in training")]


def _dropped(dropout: float, spatial: float) -> str:
    """The part of a label for dropout."""
    return "".join(f"-{name}{share:g}" for name, share in (("dropout", dropout), ("spatial", spatial)) if share)


class ConvNet(ModelSettings):
    """`depth` x (convolution with bias, optional batch norm, ReLU, optional pooling), then one linear layer."""

    builds: ClassVar[str] = "repr_ray.models.convnet:convnet"

    kind: Literal["convnet"] = "convnet"
    depth: Depth = 3
    """convolutions"""
    width: Width = 32
    """filters of each convolution"""
    kernel: Literal[1, 3, 5, 7] = 3
    """side of the kernels, in pixels"""
    batch_norm: bool = False
    """batch norm after each convolution"""
    pool: Literal["none", "max2", "max3"] = "none"
    """max-pooling over 2 x 2 or 3 x 3 pixels after each ReLU, or none"""
    init: Literal["default", "truncated_normal"] = "default"
    """PyTorch's initial weights, or a truncated normal distribution"""
    dropout: Dropout = 0.0
    spatial_dropout: SpatialDropout = 0.0

    @property
    def label(self) -> str:
        """The name in tables, after the paper: convnet-3x32, with what differs from conv + bias + ReLU."""
        kernel = f"-k{self.kernel}" if self.kernel != 3 else ""
        pool = {"none": "", "max2": "-maxpool", "max3": "-maxpool3"}[self.pool]
        init = "-truncated" if self.init != "default" else ""
        norm = "-bn" if self.batch_norm else ""
        dropped = _dropped(self.dropout, self.spatial_dropout)
        return f"convnet-{self.depth}x{self.width}{kernel}{norm}{pool}{init}{dropped}"


class ResNet(ModelSettings):
    """Residual network for CIFAR (arXiv 1512.03385) of 6n + 2 layers: 20, 32, 56, 110, ..."""

    builds: ClassVar[str] = "repr_ray.models.resnet:resnet"

    kind: Literal["resnet"]
    depth: Annotated[Depth, Field(ge=8)] = 20
    """layers: 20, 32, 44, 56, 110, ..."""
    shortcut: Literal["pad", "projection"] = "pad"
    """shortcut to more channels: padded with zeros, or projected by a 1x1 convolution"""
    dropout: Dropout = 0.0
    spatial_dropout: SpatialDropout = 0.0

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if (depth - 2) % 6:
            raise ValueError("a residual network has 6n + 2 layers: 20, 32, 44, 56, 110, ...")
        return depth

    @property
    def label(self) -> str:
        """The name in tables: resnet20, resnet20-projection."""
        shortcut = "-projection" if self.shortcut == "projection" else ""
        return f"resnet{self.depth}{shortcut}{_dropped(self.dropout, self.spatial_dropout)}"


class DenseNet(ModelSettings):
    """Densely connected network for CIFAR (arXiv 1608.06993) of 3n + 4 layers, without bottlenecks."""

    builds: ClassVar[str] = "repr_ray.models.densenet:densenet"

    kind: Literal["densenet"]
    depth: Annotated[Depth, Field(ge=7)] = 40
    """layers: 40, 100, ..."""
    growth: Width = 12
    """channels that each layer adds"""
    dropout: Dropout = 0.0
    spatial_dropout: SpatialDropout = 0.0

    @field_validator("depth")
    @classmethod
    def _equal_blocks(cls, depth: int) -> int:
        if (depth - 4) % 3:
            raise ValueError("a dense network has 3n + 4 layers: 40, 100, ...")
        return depth

    @property
    def label(self) -> str:
        """The name in tables: densenet-40-12."""
        return f"densenet-{self.depth}-{self.growth}{_dropped(self.dropout, self.spatial_dropout)}"


class Vgg(ModelSettings):
    """VGG with batch norm (arXiv 1409.1556) and one linear layer, for images of 32 pixels or more."""

    builds: ClassVar[str] = "repr_ray.models.vgg:vgg"

    kind: Literal["vgg"]
    depth: Literal[11, 13, 16] = 16
    """layers with weights, as in the paper's names"""
    dropout: Dropout = 0.0
    spatial_dropout: SpatialDropout = 0.0

    @property
    def label(self) -> str:
        """The name in tables: vgg16-bn."""
        return f"vgg{self.depth}-bn{_dropped(self.dropout, self.spatial_dropout)}"


Scalar = bool | int | float | str


class Library(ModelSettings):
    """A network of a library, with keyword arguments of its own.

    Most take images of many sizes; one that is made for a single size is made for that of the data set. Images that
    are too small are scaled by `data.size`.

    Its weights are random, or those of a file that `torch.save` wrote: a `state_dict`, or a mapping that has one
    under `state_dict` or `model`. If the last layer is for other classes, it is random.
    """

    name: str
    """the network's name in the library"""
    options: dict[str, Scalar | tuple[Scalar, ...] | None] = Field(default_factory=dict)
    """keyword arguments of the network, as its library documents them"""
    weights: str | None = None
    """a file of weights to start from, on every node"""

    @field_validator("weights")
    @classmethod
    def _absolute(cls, weights: str | None) -> str | None:
        """Workers have other working directories."""
        return weights and str(Path(weights).expanduser().resolve())

    @property
    def label(self) -> str:
        """The name in tables: torchvision-resnet50, with the options and the file of weights, if any."""
        options = [f"{key}={value}" for key, value in self.options.items()]
        start = [f"from-{Path(self.weights).stem}"] if self.weights else []
        return re.sub(r"[^\w.=-]+", "-", "-".join([str(self.kind), self.name, *options, *start]))


_TORCHVISION = (
    "alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169"
    " densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5"
    " efficientnet_b6 efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3"
    " maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small"
    " regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf"
    " regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf"
    " regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d"
    " shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b"
    " swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn"
    " vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2"
)
"""Networks of torchvision.models, by name."""


class Torchvision(Library):
    """A network of torchvision."""

    builds: ClassVar[str] = "repr_ray.models.zoo:torchvision"

    kind: Literal["torchvision"]
    name: Literal[tuple(_TORCHVISION.split())]  # type: ignore[valid-type]
    """the network's name in torchvision.models"""


class Timm(Library):
    """A network of timm, which the optional extra `repr-ray[timm]` installs."""

    builds: ClassVar[str] = "repr_ray.models.zoo:timm"

    kind: Literal["timm"]
    name: Annotated[str, Field(pattern=r"^[\w.]+$", max_length=200)]
    """the network's name in timm.list_models()"""


Model = Annotated[ModelSettings, ByKind()]
