"""Batches as tensor operations on the training device: no worker processes, no work per image in Python."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repr_ray.data.augment import Augmentation
from repr_ray.data.decoded import Split
from repr_ray.study.data import Data


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch: images (b x c x h x w, channels last), labels (b).

    Labels are classes, or where images are mixed the shares of every class (b x classes). `size` is the number of
    images in the global batch, over all ranks.
    """

    images: Tensor
    labels: Tensor
    size: int


class Resident:
    """The images of a split, asked for by index: uint8 on the device, or mapped into memory where that is a CPU."""

    def __init__(self, split: Split, device: torch.device) -> None:
        if split.index is not None and device.type != "cpu":
            split = Split(split.images[split.index], split.targets)
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.targets).to(device)
        self.index = None if split.index is None else torch.from_numpy(split.index)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Tensor:
        """Images, b x h x w x c, uint8, at some places of the split."""
        return self.images[index if self.index is None else self.index[index]]


class Batches:
    """One split of a data set, handed out as normalised float32 batches of size x size images."""

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
    ) -> None:
        self.store = Resident(split, device)
        self.labels, self.device = self.store.labels, device
        self.scale = torch.tensor(1 / (255 * std), dtype=torch.float32, device=device)
        self.shift = torch.tensor(-mean / std, dtype=torch.float32, device=device)
        self.augmentation = Augmentation(data, split.images.shape[1], mean, classes, device)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(self, batch_size: int, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        """One epoch of augmented training batches from the `first` one on; the last one may be smaller.

        Order and augmentation are drawn for the whole epoch from `generator` (on the CPU), then sliced: an image
        gets the same augmentation however many ranks there are, and on whatever device.
        """
        order = torch.randperm(len(self), generator=generator)
        draws = self.augmentation.draw(len(self), generator)
        order = order.to(self.device)
        for start, own, size in self._slices(batch_size, first):
            if not self.augmentation.mixes:
                images = self.augmentation(self.store.take(order[own]), draws, own)
                yield Batch(self._normalised(images), self.labels[order[own]], size)
                continue
            # Each image is mixed with the one before it in the global batch, the first one with the last.
            places = torch.arange(own.start - 1, own.stop)
            if own.start == start:
                places[0] = start + size - 1
            index = order[places.to(self.device)]
            images = self.augmentation(self.store.take(index), draws, places)
            mixed, labels = self.augmentation.mix(images, self.labels[index], draws, own)
            yield Batch(self._normalised(mixed), labels, size)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images once, from their middle, for evaluation."""
        for _, own, size in self._slices(batch_size):
            images = self.augmentation.middle(self.store.take(own))
            yield Batch(self._normalised(images), self.labels[own], size)

    def _slices(self, batch_size: int, first: int = 0) -> Iterator[tuple[int, slice, int]]:
        """The start of every global batch, this rank's share of it, and its size."""
        for start in range(first * batch_size, len(self), batch_size):
            size = min(batch_size, len(self) - start)
            own = slice(*(start + size * r // self.world_size for r in (self.rank, self.rank + 1)))
            yield start, own, size

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
