"""Images that are decoded when they are needed, by processes of one trial, some batches ahead of training."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from repr_ray.data.augment import Cut
from repr_ray.data.encoded import Encoded
from repr_ray.data.images import is_upright, look, plain, reason
from repr_ray.data.source import open_bytes

AT_ONCE = 32  # images that a process decodes for one request
AHEAD = 4  # requests ahead for each process at least; and as many as two batches have, so that each may be late once
MOST_AHEAD = 32  # requests ahead of two batches at most: it bounds the memory of images that are not used yet
PATIENCE = 300  # seconds without an image after which the trial fails
LOOK_EVERY = 5  # seconds between two checks of the processes
# Seconds after which a process that has not begun is replaced: CPython before 3.12 may hang in a fork while another
# thread ends (PyOS_AfterFork_Child waits for a lock that nobody holds in the child).
START = 15


class StreamError(RuntimeError):
    """An image cannot be decoded."""


class StreamStopped(StreamError):
    """A process that decodes images has died or hangs. A new start may help."""


@dataclass(frozen=True)
class Request:
    """Images by their place in a file, and how to cut them; without a cut they get the shape of the file."""

    rows: NDArray[np.int64]
    cut: Cut | None

    def parts(self) -> Iterator["Request"]:
        """The request in parts of at most AT_ONCE images, at least one part."""
        for start in range(0, max(1, len(self.rows)), AT_ONCE):
            of = slice(start, start + AT_ONCE)
            yield Request(self.rows[of], self.cut and self.cut.take(of))


class Streamed:
    """The images of a split by index, decoded by `workers` processes, or in this one without workers.

    The result depends on the request alone, bit for bit.
    """

    def __init__(
        self, images: Encoded, index: NDArray[np.int64] | None, size: int, device: torch.device, workers: int
    ) -> None:
        self.decoder, self.index = Decoder(images, size), index
        self.device, self.workers = device, workers
        self.indexed_on = torch.device("cpu")

    def batches(self, wanted: Iterable[tuple[Tensor | slice, Cut | None]]) -> Iterator[Tensor]:
        """The images at some indices of the split (b x h x w x c, uint8) on the device. Raises StreamError."""
        asked = [list(Request(self._rows(index), cut).parts()) for index, cut in wanted]
        parts = self._decoded([part for batch in asked for part in batch], 2 * max(map(len, asked), default=0))
        on_gpu = self.device.type == "cuda"
        for batch in asked:
            sizes = [len(part.rows) for part in batch]
            images = torch.empty(sum(sizes), *self.decoder.shape(batch[0].cut), dtype=torch.uint8, pin_memory=on_gpu)
            for place in images.split(sizes):
                place.copy_(next(parts)[: len(place)])
            yield images.to(self.device, non_blocking=True)

    def _rows(self, index: Tensor | slice) -> NDArray[np.int64]:
        if self.index is None:
            return np.arange(len(self.decoder.images))[index] if isinstance(index, slice) else index.numpy()
        rows: NDArray[np.int64] = self.index[index if isinstance(index, slice) else index.numpy()]
        return rows

    def _decoded(self, requests: list[Request], ahead: int) -> Iterator[Tensor]:
        """The images of all requests, decoded so many requests `ahead` of the consumer.

        A part has space for AT_ONCE images, and its memory is used again after the next one is asked for.
        """
        if not requests:
            return
        workers = min(self.workers, len(requests))
        factor = max(AHEAD, min(ahead, MOST_AHEAD) // workers) if workers else None
        slots = min(len(requests), 1 + workers * (factor or 0))  # those in use by the processes, and the consumer's
        memory = torch.empty(slots, AT_ONCE, *self.decoder.shape(requests[0].cut), dtype=torch.uint8)
        if workers:
            memory.share_memory_()
        asked = [(number % slots, request) for number, request in enumerate(requests)]
        started = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()  # their process ids

        def start(first: int) -> tuple[Iterator[str], list[Any]]:
            """Start the processes from a request on: their results in order, and the processes."""
            started.zero_()
            before = multiprocessing.active_children()
            with _quietly():
                loader = DataLoader(
                    Into(memory, self.decoder),
                    batch_size=None,
                    sampler=asked[first:],
                    num_workers=workers,
                    prefetch_factor=factor,
                    timeout=LOOK_EVERY if workers else 0,
                    worker_init_fn=partial(_begin, started),
                    generator=torch.Generator(),  # else the state of the global one changes
                    multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                )
                decoded = iter(loader)
            return decoded, [child for child in multiprocessing.active_children() if child not in before]

        decoded, children = start(0)
        waited_from = started_at = monotonic()
        for number in range(len(requests)):
            while True:
                try:
                    problem = next(decoded)
                except RuntimeError as error:
                    if "timed out" not in str(error):
                        raise StreamStopped(f"a process that decodes images has died: {error}") from None
                    if monotonic() - waited_from > PATIENCE:
                        raise StreamStopped(f"no image arrived for {PATIENCE} s: check the storage") from None
                    begun = set(started.tolist())
                    hung = [child for child in children if child.pid not in begun]
                    if hung and monotonic() - started_at > START:
                        for child in hung:
                            child.kill()
                        del decoded  # ends the others
                        decoded, children = start(number)
                        started_at = monotonic()
                else:
                    break
            if problem:
                raise StreamError(problem)
            yield memory[number % slots]
            waited_from = monotonic()


@dataclass(frozen=True)
class Decoder:
    """Decodes the images that requests name."""

    images: Encoded
    size: int

    def shape(self, cut: Cut | None) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        side = self.size if cut else self.images.target.crop
        return side, side, self.images.target.channels

    def decode(self, request: Request, out: Tensor) -> str:
        """Write the images into the first places of `out`. Returns why one cannot be decoded, or an empty text."""
        rows, cut = request.rows.tolist(), request.cut
        side, _, channels = self.shape(cut)
        row = -1
        try:
            if cut is None:
                for place, row in enumerate(rows):
                    out[place] = torch.from_numpy(self.images.pixels(row).copy())
                return ""
            opened, sides = [], []
            for row in rows:
                content = self.images.content(row)
                image = open_bytes(content)
                opened.append((row, content, image))
                found = look(image)
                sides.append((found.height, found.width))
            boxes = cut.crops.boxes(cut.crops.drawn(cut.places), np.reshape(sides, (-1, 2)).astype(np.int64)).tolist()
            for place, (row, content, image) in enumerate(opened):  # noqa: B007 - the row is in the message
                crop = cropped(image, content, boxes[place], side, channels)
                out[place] = crop.flip(1) if cut.flips[place] else crop
        except Exception as error:  # decoders raise errors of many types
            return f"{self.images.file}: image {row}: {reason(error)}; has the file changed?"
        return ""


@dataclass(frozen=True)
class Into(Dataset[str]):
    """Decodes requests into slots of memory; it runs in other processes, and the memory is shared with them."""

    memory: Tensor
    decoder: Decoder

    def __getitem__(self, asked: tuple[int, Request]) -> str:
        slot, request = asked
        return self.decoder.decode(request, self.memory[slot])


def cropped(image: Image.Image, content: bytes, box: list[int], size: int, channels: int) -> Tensor:
    """A box (top, left, height, width) of an encoded image, scaled to size x size x channels, uint8.

    Bilinear with antialiasing. JPEG is decoded to a half, a quarter or an eighth where a box keeps `size` pixels; the
    box is then rounded to decoded pixels, a shift of at most half a pixel of the result.
    """
    import simplejpeg

    top, left, height, width = box
    mode = {1: "L", 3: "RGB"}[channels]
    if image.format == "JPEG" and is_upright(image) and image.mode in ("L", mode):
        (across, down), by = image.size, _scale(min(height, width), size)
        pixels = simplejpeg.decode_jpeg(
            content,
            "GRAY" if channels == 1 else "RGB",
            min_height=-(-down // by),
            min_width=-(-across // by),
            strict=False,
        )
        top, left, height, width = (round(side / by) for side in (top, left, height, width))
    else:
        pixels = np.array(plain(image, channels))
    part = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)[top : top + height, left : left + width])
    part = part.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)


def _scale(box: int, size: int) -> int:
    """The divisor of an image's size in decoding: one that the inverse cosine transform supports."""
    return next((by for by in (8, 4, 2) if box >= by * size), 1)


def _begin(started: Tensor, worker: int) -> None:
    """Say that this process has begun, and start a session: signals to the trial's group do not reach it."""
    os.setsid()
    started[worker] = os.getpid()


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress warnings (such as on more processes than cores) and PyTorch's handler of SIGCHLD.

    That handler would raise at any point of the trial, such as in a checkpoint.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGCHLD, before)
