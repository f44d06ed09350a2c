"""Settings of images: source, splits, and augmentation."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from repr_ray.components import ByName, Count, Fraction, Natural, Settings
from repr_ray.storage.text import hint
from repr_ray.study.facts import FACTS, Facts

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[Share, Field(description="the factor is drawn from [1 - this, 1 + this]")]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1_000)]
Side = Annotated[int, Field(ge=1, le=4_096)]

OF_PARQUET = ("image", "label", "configuration")
"""Fields of `Data` that only Parquet files need."""


@dataclass(frozen=True)
class SourceKind:
    """A built-in source: `reads` is the function from `Data` to a `repr_ray.data.source.Source`.

    `unseen` is why a dry run does not look at it. `named`: it is a name, not a folder, and its splits and columns are
    fixed. `form` is what may follow its name in `data.source`, as a regular expression and in words.
    """

    reads: str
    unseen: str = ""
    named: bool = False
    form: tuple[str, str] | None = None


SOURCES = {
    "digits": SourceKind("repr_ray.data.sources.digits:digits", "part of scikit-learn", named=True),
    "torchvision": SourceKind(
        "repr_ray.data.sources.torchvision:torchvision",
        "perhaps not downloaded yet",
        named=True,
        form=(r"[A-Za-z]\w*", "torchvision:CLASS, as in torchvision:FashionMNIST"),
    ),
    "hf": SourceKind(
        "repr_ray.data.sources.hub:hub",
        "perhaps not downloaded yet",
        form=(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", "hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
    ),
    "uri": SourceKind("repr_ray.data.sources.storage:storage", "on object storage"),
    "folder": SourceKind("repr_ray.data.sources.folder:folder"),
}
"""All built-in sources by kind."""

SOURCE = ByName("source", {kind: source.reads for kind, source in SOURCES.items()})
"""Sources, plug-ins included."""

OWN = "own"
"""The kind of a plug-in source."""

_NAMED = tuple(kind for kind, source in SOURCES.items() if source.named)


class ChannelStatistics(Settings):
    """Normalisation by channel: (pixel - mean) / std, with pixels from 0 to 1."""

    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    """one number per channel"""
    std: tuple[Annotated[float, Field(ge=1e-6, le=1)], ...]
    """one number per channel"""

    @model_validator(mode="after")
    def _one_a_channel(self) -> "ChannelStatistics":
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations: give one per channel")
        return self


class SplitNames(Settings):
    """The names of the splits in a source, if they are not found."""

    train: str | None = None
    """training split"""
    validation: str | None = None
    """validation split"""
    test: str | None = None
    """test split"""


class _Ranges(Settings):
    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for field in ("scale", "ratio"):
            least, largest = getattr(self, field)
            if least > largest:
                raise ValueError(f"{field}: the smaller number first")
        return self


class RandomResizedCrop(_Ranges):
    """A part of the image of a random area and shape, scaled to `data.size`."""

    scale: tuple[PositiveShare, PositiveShare] = (0.08, 1.0)
    """smallest and largest share of the image's area"""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """smallest and largest ratio of width to height"""


class ColorJitter(Settings):
    """Random brightness, contrast and saturation, then a rotation of the hue; of grey images the first two."""

    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """largest rotation, as a share of the circle"""


class RandAugment(Settings):
    """Operations out of fourteen, all of one magnitude (arXiv 1909.13719)."""

    kind: Literal["rand_augment"]
    operations: Annotated[int, Field(ge=1, le=10)] = 2
    """number of operations, one after another"""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """magnitude of each operation, from 0 to 30"""


class TrivialAugment(Settings):
    """One of fourteen operations at a random magnitude, from a wide range (arXiv 2103.10158)."""

    kind: Literal["trivial_augment"]


class RandomErasing(_Ranges):
    """A random rectangle becomes the mean colour, black with `data.normalise: none` (arXiv 1708.04896)."""

    probability: Share = 0.5
    """share of the images that are changed"""
    scale: tuple[PositiveShare, PositiveShare] = (0.02, 0.33)
    """smallest and largest share of the image's area"""
    ratio: tuple[Positive, Positive] = (0.3, 3.3)
    """smallest and largest ratio of height to width"""


class Augment(Settings):
    """Augmentation beside `data.crop_padding` and `data.flip`, in this order."""

    random_resized_crop: RandomResizedCrop | None = None
    """random part of the image, in place of `data.crop_padding`; needs `data.size`"""
    policy: Annotated[RandAugment | TrivialAugment, Field(discriminator="kind")] | None = None
    """random operations on colour and shape"""
    color_jitter: ColorJitter | None = None
    """random colours"""
    random_erasing: RandomErasing | None = None
    """random rectangles"""
    cutout: Side | None = None
    """side of a square that becomes the mean colour, black with `data.normalise: none` (arXiv 1708.04552)"""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """alpha of the Beta distribution of shares in mixed images (arXiv 1710.09412)"""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """the same for images mixed by area (arXiv 1905.04899); with `mixup` an image gets one of the two"""


class Data(Settings):
    """A data set, its splits, and the augmentation of its training images."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = Field(
        description=(
            f"name of the data set; for {', '.join(FACTS)} the content of the source is known and checked, any other"
            " name needs a `data.source`"
        )
    )
    source: str = "torchvision"
    """`torchvision` (downloaded when missing), `torchvision:CLASS`, `digits`, `hf:OWNER/NAME[@REVISION]`, or a folder
    or URL: of Parquet, of a folder per class (below `train`, `val`, `test`, or none), or of torchvision's own files;
    or a plug-in, `my_module:name`"""
    image: str | None = None
    """column of images in Parquet, if it is not found"""
    label: str | None = None
    """column of labels in Parquet, if it is not found: whole numbers from 0, texts, or true and false"""
    splits: SplitNames = SplitNames()
    """names of the splits in the source"""
    configuration: str | None = None
    """configuration of Parquet files that have several, as on the Hugging Face hub"""
    classes: (
        Annotated[
            Annotated[int, Field(ge=2, le=1_000_000), Tag("number")]
            | Annotated[tuple[str, ...], Field(min_length=2), Tag("names")],
            Discriminator(lambda value: "names" if isinstance(value, list | tuple) else "number"),
        ]
        | None
    ) = None
    """number of classes, or their names in the order of the labels, if they are not found"""
    partial: bool = False
    """allow fewer images or classes than the name implies, and splits that lack a class"""
    store: Literal["auto", "memory_map", "stream"] = "auto"
    """decode the images once into a file that is mapped into memory, or as they are needed, from a file of encoded
    ones; `auto` decodes at once what takes 100 GB or less. Random resized crops are of the whole image where it
    streams, else of what `resize` leaves"""
    channels: Literal[1, 3] | None = None
    """make images grey (1) or coloured (3)"""
    size: Side | None = None
    """side of the square images that networks get; required if images differ in size"""
    resize: Side | None = None
    """length of the shorter side before the crop; by default `size`"""
    evaluation_resize: Side | None = None
    """the same for validation and test images, cropped from the middle"""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """share of the images, drawn by class, for a test split if the source has none"""
    skip_damaged: Natural = 0
    """number of images that may be left out because they cannot be decoded"""
    train_images: Count | None = None
    """number of training images, without the validation images; by default all. For digits, cifar10 and cifar100 the
    first ones (unless `split_by_seed`), else drawn by class"""
    validation_images: Natural = 0
    """images held out for validation, drawn by class; for digits, cifar10 and cifar100 the last ones of the training
    set"""
    split_by_seed: bool = False
    """draw other validation images for each seed, by class"""
    label_noise: Fraction = 0.0
    """share of training labels that are replaced by another class, drawn by the seed"""
    crop_padding: Annotated[int, Field(ge=0, le=1_000)] = 0
    """padding of training images before a random crop, in pixels"""
    flip: bool = False
    """mirror training images with probability 1/2"""
    augment: Augment = Augment()
    """further augmentation of training images"""
    normalise: Annotated[
        Annotated[Literal["channel", "none"], Tag("name")] | Annotated[ChannelStatistics, Tag("statistics")],
        Discriminator(lambda value: "name" if isinstance(value, str) else "statistics"),
    ] = "channel"
    """mean and standard deviation of each channel: of the training set, given ones, or none"""

    @field_validator("source")
    @classmethod
    def _absolute(cls, source: str) -> str:
        """Make a path absolute: workers have other working directories."""
        if not source.isprintable():
            raise ValueError("a path or URL has no control characters")
        if source in _NAMED or "://" in source:
            return source
        kind, colon, rest = source.partition(":")
        if colon and kind in SOURCES and (form := SOURCES[kind].form):
            if not re.fullmatch(form[0], rest):
                raise ValueError(f"expected {form[1]}")
            return source
        if SOURCE.is_plug_in(source) and not Path(source).exists():
            SOURCE.get(source)
            return source
        try:
            return str(Path(source).expanduser().resolve())
        except (OSError, RuntimeError) as error:
            raise ValueError(str(error)) from None

    @property
    def kind(self) -> str:
        """The kind of the source: one of `SOURCES`, or `OWN`."""
        if self.name == "digits" and self.source == "torchvision":  # the default
            return "digits"
        if "://" in self.source:
            return "uri"
        kind = self.source.partition(":")[0]
        if kind in SOURCES:
            return kind
        return OWN if SOURCE.is_plug_in(self.source) else "folder"

    @property
    def images(self) -> "Data":
        """The settings that say what the images of all splits are: those without augmentation."""
        fields = ("crop_padding", "flip", "augment", "normalise", "store")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in fields})

    @property
    def facts(self) -> Facts | None:
        """The facts of a data set of this name."""
        return FACTS.get(self.name)

    @model_validator(mode="after")
    def _fits_together(self) -> "Data":
        """Raise ValueError for settings without an effect."""
        if self.source == "torchvision" and self.name != "digits" and not (self.facts and self.facts.torchvision):
            if self.facts:
                raise ValueError(f"source: torchvision has no {self.name}; name {self.facts.source}, or a folder")
            raise ValueError(
                f"name={self.name!r} is none of {', '.join(map(repr, FACTS))}{hint(self.name, FACTS)}; for other"
                " images name the source as well"
            )
        if self.name == "digits" and self.source not in _NAMED:
            raise ValueError(f"source={self.source}: digits come with scikit-learn; leave the source out")
        if self.source.partition(":")[0] in _NAMED:
            named = {"splits": self.splits != SplitNames()} | {field: getattr(self, field) for field in OF_PARQUET}
            if has_no_effect := [field for field, value in named.items() if value]:
                raise ValueError(f"{has_no_effect[0]}: {self.source} has no columns or splits to name; leave it out")
        elif self.splits.train and self.splits.train in (self.splits.test, self.splits.validation):
            raise ValueError(f"splits: {self.splits.train} is trained on, and cannot be held out as well")
        if self.classes and self.facts:
            raise ValueError(f"classes: those of {self.name} are known; leave it out, or choose another data.name")
        if isinstance(self.classes, tuple) and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: each name once")
        for field in ("resize", "evaluation_resize"):
            side = getattr(self, field)
            if side is not None and (self.size is None or side < self.size):
                raise ValueError(f"{field}={side}: crops of data.size={self.size} are taken from it")
        if self.split_by_seed and not self.validation_images:
            raise ValueError("split_by_seed: there are no validation images to draw; set data.validation_images")
        if self.augment.random_resized_crop and (self.crop_padding or self.size is None):
            raise ValueError(
                "augment.random_resized_crop: needs data.size, and takes the place of data.crop_padding"
                if self.size is None
                else "crop_padding: augment.random_resized_crop takes its place; leave one of them out"
            )
        return self
