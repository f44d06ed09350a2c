"""From encoded images to arrays of one shape, or to the reason why one cannot be used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from repr_ray.data.source import FORMATS, Rows, Track

T = TypeVar("T")

LARGEST = 100_000_000
"""Pixels of an image; more are taken for a decompression bomb."""

ROWS_PER_TASK = 500
_ORIENTATION = 0x0112
_DEEP = ("I", "F")


class Unreadable(ValueError):
    """An image that cannot be used: the reason."""


@dataclass(frozen=True)
class Look:
    """What an image's header says. Sizes in pixels, as the image is shown."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class Shape:
    """What every image becomes: `channels`, its shorter side scaled to `shorter`, then the middle `crop` squared."""

    channels: int
    shorter: int
    crop: int


def look(image: Image.Image) -> Look:
    """Size and channels of an image whose header has been read. Raises Unreadable for what is cast or blown up."""
    width, height = image.size
    if width * height > LARGEST:
        raise Unreadable(f"{width:,} x {height:,} pixels, more than {LARGEST:,}: a decompression bomb?")
    if image.mode.startswith(_DEEP) or any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise Unreadable("16 bits or more a channel; images have 8")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise Unreadable(f"{frames} frames; images have one")
    if image.format == "JPEG" and image.getexif().get(_ORIENTATION, 1) >= 5:
        width, height = height, width
    return Look(width, height, _channels(image))


def _channels(image: Image.Image) -> int:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return 1 if (palette == palette[:, :1]).all() else 3
    return 1 if image.mode in ("1", "L", "LA", "La") else 3


def pixels(image: Image.Image, shape: Shape) -> NDArray[np.uint8]:
    """Decode an image: height x width x channels. What is transparent is laid on white."""
    if image.format == "JPEG":
        image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if shape.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    shorter = min(image.size)
    if shorter != shape.shorter:
        width, height = (max(1, round(side * shape.shorter / shorter)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if image.size != (shape.crop, shape.crop):
        left, top = (round((side - shape.crop) / 2) for side in image.size)
        image = image.crop((left, top, left + shape.crop, top + shape.crop))
    return np.asarray(image).reshape(shape.crop, shape.crop, shape.channels)


@dataclass(frozen=True)
class Damaged:
    """An image that cannot be used: its place in its split, and why."""

    index: int
    reason: str


def look_at_all(rows: Rows, progress: Track, title: str) -> tuple[list[Look], list[Damaged]]:
    """The headers of all images."""
    return _each(rows, lambda index: look(rows.image(index)), progress, title)


def decode_all(
    rows: Rows, shape: Shape, fixed: bool, out: NDArray[np.uint8], progress: Track, title: str
) -> list[Damaged]:
    """Fill `out`, n x crop x crop x channels. With `fixed` an image of another size is one that cannot be used."""

    def decode(index: int) -> None:
        image = rows.image(index)
        found = look(image)
        if fixed and (found.width, found.height) != (shape.crop, shape.crop):
            raise Unreadable(f"{found.width} x {found.height} pixels, expected {shape.crop} x {shape.crop}")
        out[index] = pixels(image, shape)

    return _each(rows, decode, progress, title)[1]


def _each(rows: Rows, do: Callable[[int], T], progress: Track, title: str) -> tuple[list[T], list[Damaged]]:
    """Do something for each image, a block of rows per task: decoders release the interpreter lock."""
    results: list[T] = []
    damaged: list[Damaged] = []
    starts = range(0, len(rows.labels), ROWS_PER_TASK)

    def block(start: int) -> tuple[list[T], list[Damaged]]:
        done, failed = [], []
        for index in range(start, min(start + ROWS_PER_TASK, len(rows.labels))):
            try:
                done.append(do(index))
            except Exception as error:  # decoders raise errors of many types
                failed.append(Damaged(index, _reason(error)))
        return done, failed

    with ThreadPoolExecutor() as pool:
        for done, failed in progress(_in_turn(pool, block, starts), len(starts), title):
            results += done
            damaged += failed
    return results, damaged


def _in_turn(pool: ThreadPoolExecutor, do: Callable[[int], T], items: range) -> Iterator[T]:
    """As `pool.map`, but for tasks that have not started when a consumer gives up."""
    try:
        yield from pool.map(do, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _reason(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"is no {', '.join(FORMATS)} image"
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"cannot be decoded ({text[:200]})"
