"""Settings of images: source, splits, and augmentation."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

import repr_ray.method.rivals.settings  # noqa: F401 - its kinds
from repr_ray.components import ByName, Count, Fraction, Natural, Settings
from repr_ray.study.facts import FACTS, NAMED_SOURCES, Facts

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1_000)]
Side = Annotated[int, Field(ge=1, le=4_096)]

SOURCE = ByName("source", {})
"""Plug-in sources: functions from `Data` to a `repr_ray.data.source.Source`."""


class ChannelStatistics(Settings):
    """Normalisation by channel: (pixel - mean) / std, with pixels from 0 to 1."""

    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(description="one number a channel")
    std: tuple[Annotated[float, Field(ge=1e-6, le=1)], ...] = Field(description="one number a channel")

    @model_validator(mode="after")
    def _one_a_channel(self) -> "ChannelStatistics":
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations: give one a channel")
        return self


class Splits(Settings):
    """The names of the splits in a source, if they are not found."""

    train: str | None = Field(default=None, description="to train on")
    validation: str | None = Field(default=None, description="to hold out")
    test: str | None = Field(default=None, description="to test on")


class RandomResizedCrop(Settings):
    """A part of the image of a random area and shape, scaled to `data.size`."""

    scale: tuple[PositiveShare, PositiveShare] = Field(
        default=(0.08, 1.0), description="the least and the largest share of the image's area"
    )
    ratio: tuple[Positive, Positive] = Field(
        default=(3 / 4, 4 / 3), description="the least and the largest width, in heights"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RandomResizedCrop":
        return _ordered(self)


class ColorJitter(Settings):
    """Random factors for brightness, contrast and saturation, then a turn of the hue. Grey images have no colour."""

    brightness: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    contrast: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    saturation: Share = Field(default=0.0, description="factors within 1 plus or minus this")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(default=0.0, description="share of the circle, either way")


class RandAugment(Settings):
    """Operations out of fourteen, all of one magnitude (arXiv 1909.13719)."""

    kind: Literal["rand_augment"]
    operations: Annotated[int, Field(ge=1, le=10)] = Field(default=2, description="how many, one after another")
    magnitude: Annotated[int, Field(ge=0, le=30)] = Field(default=9, description="of each, from 0 to 30")


class TrivialAugment(Settings):
    """One of fourteen operations at a random magnitude, from a wide range (arXiv 2103.10158)."""

    kind: Literal["trivial_augment"]


class RandomErasing(Settings):
    """A rectangle of a random area and shape becomes the mean colour (arXiv 1708.04896)."""

    probability: Share = Field(default=0.5, description="share of the images it is done to")
    scale: tuple[PositiveShare, PositiveShare] = Field(
        default=(0.02, 0.33), description="the least and the largest share of the image's area"
    )
    ratio: tuple[Positive, Positive] = Field(
        default=(0.3, 3.3), description="the least and the largest height, in widths"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "RandomErasing":
        return _ordered(self)


Ranges = TypeVar("Ranges", RandomResizedCrop, RandomErasing)


def _ordered(ranges: Ranges) -> Ranges:
    for field in ("scale", "ratio"):
        least, largest = getattr(ranges, field)
        if least > largest:
            raise ValueError(f"{field}: the smaller number first")
    return ranges


class Augment(Settings):
    """Augmentation beside `data.crop_padding` and `data.flip`, in this order."""

    random_resized_crop: RandomResizedCrop | None = Field(
        default=None, description="in place of `data.crop_padding`; needs `data.size`"
    )
    policy: Annotated[RandAugment | TrivialAugment, Field(discriminator="kind")] | None = Field(
        default=None, description="random operations on colour and shape"
    )
    color_jitter: ColorJitter | None = Field(default=None, description="random colours")
    random_erasing: RandomErasing | None = Field(default=None, description="random rectangles")
    cutout: Side | None = Field(
        default=None, description="side of a square that becomes the mean colour (arXiv 1708.04552)"
    )
    mixup: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="alpha of the Beta distribution that shares come from (arXiv 1710.09412)"
    )
    cutmix: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="the same for areas (arXiv 1905.04899); with `mixup` an image gets one of them"
    )


class Data(Settings):
    """A data set, how it is split, and what is done to its training images."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = Field(
        description=(
            f"the data set: of {', '.join(FACTS)} it is known what the source has to hold, any other name needs a"
            " source and is read as it is found"
        )
    )
    source: str = Field(
        default="torchvision",
        description=(
            "`torchvision` (downloaded when missing), `torchvision:CLASS`, `digits`, `hf:OWNER/NAME[@REVISION]`, or a"
            " folder or URL: of Parquet, of one folder a class (below `train`, `val`, `test`, or none), or of"
            " torchvision's own files; or one of your own, `my_module:name`"
        ),
    )
    image: str | None = Field(default=None, description="the column of images in Parquet, where it is not found")
    label: str | None = Field(default=None, description="the column of labels in Parquet, where it is not found")
    splits: Splits = Field(default=Splits(), description="what the source calls its splits")
    partial: bool = Field(
        default=False,
        description="allow fewer images or classes than the name says, and splits without an image of some class",
    )
    store: Literal["auto", "memory_map", "stream"] = Field(
        default="auto",
        description=(
            "decode the images once into a file that is mapped into memory, or as they are needed, from a file of"
            " encoded ones; `auto` decodes at once what takes 100 GB or less. Random resized crops are of the whole"
            " image where it streams, else of what `resize` leaves"
        ),
    )
    channels: Literal[1, 3] | None = Field(default=None, description="make images grey (1) or coloured (3)")
    size: Side | None = Field(
        default=None, description="side of the square that networks get; needed where images differ in size"
    )
    resize: Side | None = Field(
        default=None, description="what the shorter side is scaled to before the crop; `size` when not given"
    )
    evaluation_resize: Side | None = Field(
        default=None, description="the same for validation and test images, cropped from the middle"
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="share of the images, drawn by class, to test on where the source has no test split"
    )
    skip_damaged: Natural = Field(default=0, description="images that may be left out because they cannot be decoded")
    train_images: Count | None = Field(
        default=None, description="training images, the first of what validation leaves; all of these when not given"
    )
    validation_images: Natural = Field(
        default=0,
        description=(
            "images held out for validation, drawn by class; for digits, cifar10 and cifar100 the last ones of the"
            " training set"
        ),
    )
    split_by_seed: bool = Field(default=False, description="draw the validation images by class, anew for each seed")
    label_noise: Fraction = Field(
        default=0.0, description="share of the training labels that become another class, drawn by the seed"
    )
    crop_padding: Annotated[int, Field(ge=0, le=1_000)] = Field(
        default=0, description="pixels that training images are padded by before a random crop"
    )
    flip: bool = Field(default=False, description="mirror half of the training images")
    augment: Augment = Field(default=Augment(), description="more that is done to training images")
    normalise: Annotated[
        Annotated[Literal["channel", "none"], Tag("name")] | Annotated[ChannelStatistics, Tag("statistics")],
        Discriminator(lambda value: "name" if isinstance(value, str) else "statistics"),
    ] = Field(
        default="channel",
        description="by the mean and deviation of each channel over the training set, by given ones, or not at all",
    )

    @field_validator("source")
    @classmethod
    def _absolute(cls, source: str) -> str:
        """Make a path absolute: workers have other working directories."""
        if not source.isprintable():
            raise ValueError("a path or URL has no control characters")
        if source in NAMED_SOURCES or "://" in source:
            return source
        kind, colon, rest = source.partition(":")
        if colon and kind in _SOURCE_FORMS:
            pattern, form = _SOURCE_FORMS[kind]
            if not re.fullmatch(pattern, rest):
                raise ValueError(f"expected {form}")
            return source
        if SOURCE.is_plug_in(source) and not Path(source).exists():
            SOURCE.get(source)
            return source
        try:
            return str(Path(source).expanduser().resolve())
        except (OSError, RuntimeError) as error:
            raise ValueError(str(error)) from None

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
            near = difflib.get_close_matches(self.name, FACTS, n=1)
            raise ValueError(
                f"name={self.name!r} is none of {', '.join(map(repr, FACTS))}"
                + (f"; did you mean {near[0]}?" if near else "")
                + "; of other images name the source as well"
            )
        if self.name == "digits" and self.source not in NAMED_SOURCES:
            raise ValueError(f"source={self.source}: digits come with scikit-learn; leave the source out")
        if self.source.partition(":")[0] in NAMED_SOURCES:
            named = {"image": self.image, "label": self.label, "splits": self.splits != Splits()}
            if has_no_effect := [field for field, value in named.items() if value]:
                raise ValueError(f"{has_no_effect[0]}: {self.source} has no columns or splits to name; leave it out")
        elif self.splits.train and self.splits.train in (self.splits.test, self.splits.validation):
            raise ValueError(f"splits: {self.splits.train} is trained on, and cannot be held out as well")
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


_SOURCE_FORMS = {
    "torchvision": (r"[A-Za-z]\w*", "torchvision:CLASS, as in torchvision:FashionMNIST"),
    "hf": (r"[\w.-]+/[\w.-]+(@[\w./-]+)?", "hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
}
