"""Sets that are too large to be decoded once: one file of encoded images a split, mapped into memory."""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.data.images import Damaged, Shape, each, fitting, pixels, plain
from repr_ray.data.source import Rows, Track, encoded, open_bytes

AT_ONCE = 32
"""Images that one task packs."""


@dataclass(frozen=True)
class Encoded:
    """Encoded images, and the shape that each gets when it is decoded.

    `file` is a .npy file of bytes, in which image k lies from `offsets[k]` to `offsets[k + 1]`. Processes that have
    it mapped share the pages; a copy of this object in another process maps it again.
    """

    file: Path
    offsets: NDArray[np.int64]
    target: Shape

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.load(self.file, mmap_mode="r")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the array of all images, if they were decoded."""
        return len(self), self.target.crop, self.target.crop, self.target.channels

    def content(self, index: int) -> bytes:
        """One image as it is encoded."""
        return self._bytes[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def image(self, index: int) -> Image.Image:
        """One image whose header has been read."""
        return open_bytes(self.content(index))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One image in its shape, to the bit what a decoded copy of the set would hold."""
        return pixels(self.image(index), self.target)


@dataclass
class Survey:
    """What is known of images once all of them were seen, in their order.

    `content` takes the shape and bytes of the images, as of one array; `counts` has the values of each channel,
    `digests` sixteen bytes of each image.
    """

    content: "hashlib._Hash"
    shape: tuple[int, ...]
    counts: NDArray[np.int64] = field(init=False)
    digests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content.update(f"{np.dtype(np.uint8).str}{self.shape}".encode())
        self.counts = np.zeros((self.shape[-1], 256), dtype=np.int64)

    def add(self, images: NDArray[np.uint8], seen: "Seen | None" = None) -> None:
        """The next images, n x height x width x channels, which may have been looked at in another thread."""
        self.content.update(np.ascontiguousarray(images).data)
        counts, digests = seen or see(images)
        self.counts += counts
        self.digests += digests

    def labels(self, labels: NDArray[np.int64]) -> None:
        """The labels of all of them."""
        self.content.update(f"{labels.dtype.str}{labels.shape}".encode())
        self.content.update(np.ascontiguousarray(labels).data)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel, of values in [0, 1]."""
        shares, values = self.counts / self.counts.sum(1, keepdims=True), np.arange(256) / 255
        mean = shares @ values
        return mean, np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))

    def also_in(self, other: "Survey") -> int:
        """How many of these images are among others, to the bit."""
        if self.shape[1:] != other.shape[1:]:
            return 0
        known = set(other.digests)
        return sum(digest in known for digest in self.digests)


Seen = tuple[NDArray[np.int64], list[bytes]]


def see(images: NDArray[np.uint8]) -> Seen:
    """What a `Survey` adds up over images."""
    channels = images.reshape(-1, images.shape[-1]).T
    counts = np.stack([np.bincount(channel, minlength=256) for channel in channels])
    return counts, [hashlib.blake2b(image, digest_size=16).digest() for image in images]


def pack(
    folder: Path, split: str, rows: Rows, shape: Shape, fixed: bool, content: "hashlib._Hash", progress: Track
) -> tuple[Survey, list[Damaged]]:
    """Write SPLIT_content.npy and SPLIT_offsets.npy; each image is decoded once, so that none fails in training.

    Where images cannot be used, the files are of the other ones, and the survey is worth nothing.
    """

    def one(index: int) -> tuple[bytes, NDArray[np.uint8], Seen]:
        found = encoded(rows, index)
        image = fitting(rows.image(index) if found is None else open_bytes(found), shape, fixed)
        if found is None:
            image = plain(image, shape.channels)
            found = _png(image)
        square = pixels(image, shape)
        return found, square, see(square[None])

    survey = Survey(content, (len(rows.labels), shape.crop, shape.crop, shape.channels))
    lengths: list[int] = []
    damaged: list[Damaged] = []
    with (folder / f"{split}_content.npy").open("wb") as file:
        _write_header(file, 0)
        for done, failed in each(rows, one, progress, f"packing {split} images", AT_ONCE):
            for found, square, seen in done:
                file.write(found)
                lengths.append(len(found))
                survey.add(square[None], seen)
            damaged += failed
        file.seek(0)
        _write_header(file, sum(lengths))
    np.save(folder / f"{split}_offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    return survey, damaged


def _png(image: Image.Image) -> bytes:
    """Without loss, for images that have no encoding of their own."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _write_header(file: Any, length: int) -> None:
    """Of so many bytes in a .npy file; NumPy leaves room for the length to grow in place."""
    described = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, described)
