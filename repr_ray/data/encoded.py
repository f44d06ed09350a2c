"""Data sets that are too large to be decoded once: a file of encoded images per split, mapped into memory."""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.data.images import Damaged, Target, each, fitting, pixels, plain
from repr_ray.data.source import Rows, Track, encoded, open_bytes

AT_ONCE = 32  # images that one task writes


@dataclass(frozen=True)
class Encoded:
    """Encoded images, and their shape when decoded.

    `file` is a .npy file of bytes, with image k from `offsets[k]` to `offsets[k + 1]`. Processes that map it share
    its pages; a pickled copy of this object maps it again.
    """

    file: Path
    offsets: NDArray[np.int64]
    target: Target

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
        """The shape of the array of all decoded images."""
        return len(self), self.target.crop, self.target.crop, self.target.channels

    def content(self, index: int) -> bytes:
        """The bytes of one encoded image."""
        return self._bytes[self.offsets[index] : self.offsets[index + 1]].tobytes()

    def image(self, index: int) -> Image.Image:
        """One image, of which only the header is read yet."""
        return open_bytes(self.content(index))

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One decoded image, bit for bit as in a decoded copy of the data set."""
        return pixels(self.image(index), self.target)


@dataclass
class Survey:
    """Statistics of images, added in their order.

    `content` hashes the shape and bytes of the images, as of one array; `counts` has the histogram of each channel,
    `digests` sixteen bytes for each image.
    """

    content: "hashlib._Hash"
    shape: tuple[int, ...]
    counts: NDArray[np.int64] = field(init=False)
    digests: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.content.update(f"{np.dtype(np.uint8).str}{self.shape}".encode())
        self.counts = np.zeros((self.shape[-1], 256), dtype=np.int64)

    def add(self, images: NDArray[np.uint8], seen: "Seen | None" = None) -> None:
        """Add the next images, n x height x width x channels, whose sums another thread may have computed."""
        self.content.update(np.ascontiguousarray(images).data)
        counts, digests = seen or see(images)
        self.counts += counts
        self.digests += digests

    def labels(self, labels: NDArray[np.int64]) -> None:
        """Add the labels of all images to the digest."""
        self.content.update(f"{labels.dtype.str}{labels.shape}".encode())
        self.content.update(np.ascontiguousarray(labels).data)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel, of values in [0, 1]."""
        shares, values = self.counts / self.counts.sum(1, keepdims=True), np.arange(256) / 255
        mean = shares @ values
        return mean, np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))

    def also_in(self, other: "Survey") -> int:
        """The number of these images that occur in another survey, bit for bit."""
        if self.shape[1:] != other.shape[1:]:
            return 0
        known = set(other.digests)
        return sum(digest in known for digest in self.digests)


Seen = tuple[NDArray[np.int64], list[bytes]]


def see(images: NDArray[np.uint8]) -> Seen:
    """The sums of a `Survey` over some images."""
    channels = images.reshape(-1, images.shape[-1]).T
    counts = np.stack([np.bincount(channel, minlength=256) for channel in channels])
    return counts, [hashlib.blake2b(image, digest_size=16).digest() for image in images]


def pack(
    folder: Path, split: str, rows: Rows, shape: Target, fixed: bool, content: "hashlib._Hash", progress: Track
) -> tuple[Survey, list[Damaged]]:
    """Write SPLIT_content.npy and SPLIT_offsets.npy; each image is decoded once to check it.

    If some images cannot be used, the files have the others, and the survey is not valid.
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
    """PNG bytes, lossless, for images that are not encoded."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _write_header(file: Any, length: int) -> None:
    """Write the header of a .npy file with this many bytes; NumPy leaves space for a longer number."""
    described = {"descr": "|u1", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, described)
