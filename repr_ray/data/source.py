"""The interface of a source: labelled images by index, before they are decoded."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.storage.folder import redact
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data
from repr_ray.study.facts import MISSPELT

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar with a title."""


UNLABELLED = -1
"""The label of an image without one."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

TRAIN, VALIDATION, TEST = ("train", "training"), ("validation", "valid", "val", "dev"), ("test", "testing")
SPLIT_NAMES = (*TRAIN, *VALIDATION, *TEST)  # names of splits, the usual one first


def silent(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """No progress bar."""
    return items


class Rows(Protocol):
    """The images of one split, by index; thread-safe."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Their labels."""
        ...

    def image(self, index: int) -> Image.Image:
        """An image, of which only the header is read yet. Raises the errors of its reader."""
        ...

    def where(self, index: int) -> str:
        """File and row of an image, for messages."""
        ...


def encoded(rows: Rows, index: int) -> bytes | None:
    """The bytes of an encoded image, from rows with a method `encoded`; None from rows of decoded images."""
    read: Callable[[int], bytes | None] | None = getattr(rows, "encoded", None)
    return read(index) if read else None


@dataclass(frozen=True)
class ArrayRows:
    """Decoded images: uint8, n x height x width x channels (1 or 3)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        pixels = self.images[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def where(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class FileRows:
    """Images in files of their own."""

    paths: Sequence[Path]
    labels: NDArray[np.int64]

    def encoded(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def image(self, index: int) -> Image.Image:
        """One image; the file is closed."""
        return open_bytes(self.encoded(index))

    def where(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class Subset:
    """Some images of other rows."""

    rows: Rows
    index: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.rows.labels[self.index]

    def encoded(self, index: int) -> bytes | None:
        """The bytes of one of the chosen images, if they are encoded."""
        return encoded(self.rows, int(self.index[index]))

    def image(self, index: int) -> Image.Image:
        return self.rows.image(int(self.index[index]))

    def where(self, index: int) -> str:
        return self.rows.where(int(self.index[index]))


def open_bytes(encoded: bytes) -> Image.Image:
    """An encoded image in one of `FORMATS`, its header read."""
    return Image.open(io.BytesIO(encoded), formats=FORMATS)


@dataclass(frozen=True)
class Splits:
    """The splits of a source under its own names. `names` are those of the classes, empty without names."""

    rows: Mapping[str, Rows]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source of images. `stamps` change with its files; `read` gets a folder for scratch files."""

    read: Callable[[Path], Splits]
    stamps: list[Any] = field(default_factory=list)


def wrong(data: Data, *parts: object) -> ConfigError:
    """One line that names the source, and the file or column."""
    text = ": ".join(" ".join(str(part).split()) for part in parts)
    return ConfigError(f"data.source={redact(data.source)}: {''.join(c if c.isprintable() else '?' for c in text)}")


def plain_names(names: Sequence[str]) -> list[str]:
    """Names of classes without case and punctuation, and with known misspellings corrected, to be compared."""
    plain = ("".join(c for c in name.casefold() if c.isalnum()) for name in names)
    return [MISSPELT.get(name, name) for name in plain]
