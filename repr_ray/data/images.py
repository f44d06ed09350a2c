"""Decoding: from encoded images to arrays of one shape, or to the reason why an image cannot be used."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from repr_ray.data.source import FORMATS, Rows, Track

T = TypeVar("T")

LARGEST = 100_000_000  # pixels of an image; one with more is refused as a decompression bomb

ROWS_PER_TASK = 500
AHEAD = 4  # tasks per core that run ahead of the consumer

_ORIENTATION = 0x0112
_DEEP = ("I", "F")


class Unreadable(ValueError):
    """An image that cannot be used: the reason."""


@dataclass(frozen=True)
class Look:
    """The header of an image. Sizes in pixels, of the image as displayed."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class Target:
    """The shape of decoded images: `channels`, shorter side scaled to `shorter`, middle square of side `crop`."""

    channels: int
    shorter: int
    crop: int

    @property
    def bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.crop**2 * self.channels


def look(image: Image.Image) -> Look:
    """Size and channels of an image whose header has been read. Raises Unreadable for images that are too large."""
    width, height = image.size
    if width * height > LARGEST:
        raise Unreadable(f"{width:,} x {height:,} pixels, more than {LARGEST:,}: a decompression bomb?")
    if image.mode.startswith(_DEEP) or any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        raise Unreadable("16 bits or more a channel; images have 8")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise Unreadable(f"{frames} frames; images have one")
    if image.format == "JPEG" and 5 <= _orientation(image) <= 8:
        width, height = height, width
    return Look(width, height, _channels(image))


def is_upright(image: Image.Image) -> bool:
    """Whether a JPEG is stored in its displayed orientation."""
    return _orientation(image) == 1


def _orientation(image: Image.Image) -> int:
    found: int = image.getexif().get(_ORIENTATION, 1)
    return found


def _channels(image: Image.Image) -> int:
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return 1 if (palette == palette[:, :1]).all() else 3
    return 1 if image.mode in ("1", "L", "LA", "La") else 3


def plain(image: Image.Image, channels: int) -> Image.Image:
    """Decode an image to grey or RGB, upright. Transparent pixels are blended with white."""
    if image.format == "JPEG":
        image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def pixels(image: Image.Image, shape: Target) -> NDArray[np.uint8]:
    """Decode an image into a shape: height x width x channels."""
    image = plain(image, shape.channels)
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
    found = list(each(rows, lambda index: look(rows.image(index)), progress, title))
    return [one for done, _ in found for one in done], [one for _, failed in found for one in failed]


def decode_all(
    rows: Rows, shape: Target, fixed: bool, out: NDArray[np.uint8], progress: Track, title: str
) -> list[Damaged]:
    """Fill `out`, n x crop x crop x channels. With `fixed`, an image of another size cannot be used."""

    def decode(index: int) -> None:
        out[index] = pixels(fitting(rows.image(index), shape, fixed), shape)

    return [one for _, failed in each(rows, decode, progress, title) for one in failed]


def fitting(image: Image.Image, shape: Target, fixed: bool) -> Image.Image:
    """Check an image by its header. Raises Unreadable unless it can be used; see `decode_all` for `fixed`."""
    found = look(image)
    if fixed and (found.width, found.height) != (shape.crop, shape.crop):
        raise Unreadable(f"{found.width} x {found.height} pixels, expected {shape.crop} x {shape.crop}")
    return image


def each(
    rows: Rows, do: Callable[[int], T], progress: Track, title: str, at_once: int = ROWS_PER_TASK
) -> Iterator[tuple[list[T], list[Damaged]]]:
    """Call a function for each image: results and failures, block by block, in the order of the rows.

    Threads work on some blocks ahead: decoders release the interpreter lock.
    """
    starts = range(0, len(rows.labels), at_once)

    def block(start: int) -> tuple[list[T], list[Damaged]]:
        done, failed = [], []
        for index in range(start, min(start + at_once, len(rows.labels))):
            try:
                done.append(do(index))
            except Exception as error:  # decoders raise errors of many types
                failed.append(Damaged(index, reason(error)))
        return done, failed

    yield from progress(_in_turn(block, starts), len(starts), title)


def _in_turn(do: Callable[[int], T], items: range) -> Iterator[T]:
    """Like a pool's `map`, but only a few tasks ahead of the consumer, and none after it stops."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor()
    try:
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) > AHEAD * (os.cpu_count() or 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def reason(error: Exception) -> str:
    """Why an image cannot be used, in one line."""
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"is not a {', '.join(FORMATS)} image"
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"cannot be decoded ({text[:200]})"
