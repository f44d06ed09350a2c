"""Batches as tensor operations on the training device; only streamed images need work per image."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repr_ray.data.augment import Augmentation, Cut
from repr_ray.data.decoded import Split
from repr_ray.data.encoded import Encoded
from repr_ray.data.stream import Streamed
from repr_ray.study.data import Data


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch: images (b x c x h x w, channels last), labels (b).

    Labels are classes or, for mixed images, the shares of every class (b x classes). `size` is the number of
    images in the global batch, over all ranks; `index` (b) has the places of this slice's images in the split.
    """

    images: Tensor
    labels: Tensor
    size: int
    index: Tensor


class Resident:
    """The images of a split by index: uint8 on the device, or mapped into memory if that is a CPU."""

    def __init__(self, split: Split, device: torch.device) -> None:
        images: Any = split.images
        index = split.index
        if index is not None and device.type != "cpu":
            images, index = images[index], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on an array that is not writable: nothing is written to it
            self.images = torch.from_numpy(images).to(device)
        self.index = None if index is None else torch.from_numpy(index)
        self.indexed_on = device

    def batches(self, wanted: Iterable[tuple[Tensor | slice, Cut | None]]) -> Iterator[Tensor]:
        """The images at some indices of the split, b x h x w x c, uint8."""
        for index, _ in wanted:
            yield self.images[index if self.index is None else self.index[index]]


class Batches:
    """One split of a data set as normalised float32 batches of size x size images."""

    def __init__(
        self,
        split: Split,
        mean: np.ndarray,
        std: np.ndarray,
        data: Data,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        classes: int = 0,
        loaders: int = 0,
    ) -> None:
        self.store: Resident | Streamed
        if encoded := isinstance(split.images, Encoded):
            self.store = Streamed(split.images, split.index, data.size or split.images.shape[1], device, loaders)
        else:
            self.store = Resident(split, device)
        self.labels, self.device = torch.from_numpy(split.targets).to(device), device
        self.scale = torch.tensor(1 / (255 * std), dtype=torch.float32, device=device)
        self.shift = torch.tensor(-mean / std, dtype=torch.float32, device=device)
        self.augmentation = Augmentation(data, split.images.shape[1], mean, classes, device, encoded)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def same_every_epoch(self) -> bool:
        """Whether an image is the same in every epoch, and as in evaluation; False for images that stream."""
        return isinstance(self.store, Resident) and not self.augmentation.varies

    def shuffled(self, batch_size: int, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        """One epoch of augmented training batches from the `first` one on; the last one may be smaller.

        Order and augmentation are drawn for the whole epoch from `generator` (on the CPU), then sliced: an image gets
        the same augmentation for any number of ranks and on any device.
        """
        order = torch.randperm(len(self), generator=generator)
        draws = self.augmentation.draw(len(self), generator)
        parts = list(self._slices(batch_size, first))
        wanted = [self._places(*part) for part in parts]
        asked, order = order.to(self.store.indexed_on), order.to(self.device)
        images = self.store.batches((asked[places], draws.cut and draws.cut.take(places)) for places in wanted)
        for (_, own, size), places, stored in zip(parts, wanted, images, strict=True):
            augmented = self.augmentation(stored, draws, places)
            labels, index = self.labels[order[places]], order[own]
            if self.augmentation.mixes:
                augmented, labels = self.augmentation.mix(augmented, labels, draws, own)
            yield Batch(self._normalised(augmented), labels, size, index)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images once, cropped from the middle, for evaluation."""
        parts = list(self._slices(batch_size))
        for (_, own, size), images in zip(parts, self.store.batches((own, None) for _, own, _ in parts), strict=True):
            index = torch.arange(own.start, own.stop, device=self.device)
            yield Batch(self._normalised(self.augmentation.middle(images)), self.labels[own], size, index)

    def _places(self, start: int, own: slice, size: int) -> Tensor | slice:
        """The places of a batch; with mixing one more, as each image is mixed with the one before it."""
        if not self.augmentation.mixes:
            return own
        places = torch.arange(own.start - 1, own.stop)
        if own.start == start:
            places[0] = start + size - 1  # the last one is before the first one
        return places

    def _slices(self, batch_size: int, first: int = 0) -> Iterator[tuple[int, slice, int]]:
        """The start of every global batch, this rank's share of it, and its size."""
        for start in range(first * batch_size, len(self), batch_size):
            size = min(batch_size, len(self) - start)
            own = slice(*(start + size * r // self.world_size for r in (self.rank, self.rank + 1)))
            yield start, own, size

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
