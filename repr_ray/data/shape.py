"""The shape of the images that a network gets: from the facts of a named data set, or from the source."""

from dataclasses import dataclass
from functools import cache

from repr_ray.study.data import Data


@dataclass(frozen=True)
class Shape:
    """Classes; channels and side (pixels) of the images that a network gets; number of training images."""

    classes: int
    channels: int
    size: int
    train_images: int


def shape_is_known(data: Data) -> bool:
    """Whether the shape is known without decoding anything."""
    from repr_ray.data.decoded import known_facts

    return _published(data) is not None or known_facts(data) is not None


@cache
def shape_of(data: Data) -> Shape:
    """The shape, from the name if that is enough; else the source is decoded. Raises ConfigError."""
    if published := _published(data):
        return published
    from repr_ray.data.decoded import load

    decoded = load(data)
    return Shape(decoded.classes, decoded.train.images.shape[-1], decoded.size, len(decoded.train))


def _published(data: Data) -> Shape | None:
    """The shape by the facts of a named data set; None if they are not enough, as for a part of its images."""
    facts = data.facts
    size = data.size or (facts.size if facts else None)
    if facts is None or size is None or (data.partial and data.train_images is None):
        return None
    count = data.train_images or facts.train - data.validation_images
    return Shape(facts.classes, data.channels or facts.channels, size, count)


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Optimizer steps of an epoch; the last batch may be smaller."""
    return -(-shape_of(data).train_images // batch_size)
