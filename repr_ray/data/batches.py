"""Batches as tensor operations on the training device: no worker processes, no work per image in Python."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repr_ray.config import Data
from repr_ray.data.sources import Split


@dataclass(frozen=True)
class Batch:
    """This rank's slice of a global batch: images (b x c x h x w, channels last), labels (b).

    `size` is the number of images in the global batch, over all ranks.
    """

    images: Tensor
    labels: Tensor
    size: int


class Batches:
    """One split of a data set, resident on a device as uint8, handed out as normalised float32 batches."""

    def __init__(
        self,
        split: Split,
        mean: np.ndarray,
        std: np.ndarray,
        data: Data,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        self.scale = torch.tensor(1 / (255 * std), dtype=torch.float32, device=device)
        self.shift = torch.tensor(-mean / std, dtype=torch.float32, device=device)
        self.crop_padding, self.flip = data.crop_padding, data.flip
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(self, batch_size: int, generator: torch.Generator, first: int = 0) -> Iterator[Batch]:
        """One epoch of augmented training batches from the `first` one on; the last one may be smaller.

        Order and augmentation are drawn for the whole epoch from `generator` (on the CPU), then sliced: an image
        gets the same crop and flip however many ranks there are, and on whatever device.
        """
        n, pad = len(self), self.crop_padding
        order = torch.randperm(n, generator=generator)
        crops = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator) if pad else None
        flips = torch.rand(n, generator=generator) < 0.5 if self.flip else None
        order = order.to(self.images.device)
        crops, flips = (None if t is None else t.to(self.images.device) for t in (crops, flips))
        for own, size in self._slices(batch_size, first):
            index = order[own]
            images = self.images[index]
            if crops is not None or flips is not None:
                images = self._augment(images, crops, flips, own)
            yield Batch(self._normalised(images), self.labels[index], size)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images once, unchanged, for evaluation."""
        for own, size in self._slices(batch_size):
            yield Batch(self._normalised(self.images[own]), self.labels[own], size)

    def _slices(self, batch_size: int, first: int = 0) -> Iterator[tuple[slice, int]]:
        """This rank's share of every global batch, with the global batch's size."""
        for start in range(first * batch_size, len(self), batch_size):
            size = min(batch_size, len(self) - start)
            first, last = (start + size * r // self.world_size for r in (self.rank, self.rank + 1))
            yield slice(first, last), size

    def _augment(self, images: Tensor, crops: Tensor | None, flips: Tensor | None, own: slice) -> Tensor:
        """Random crop from the zero-padded image, random left-right flip: one gather for both."""
        n, height, width, _ = images.shape
        rows = torch.arange(height, device=images.device).expand(n, -1)
        columns = torch.arange(width, device=images.device).expand(n, -1)
        if flips is not None:
            columns = torch.where(flips[own, None], width - 1 - columns, columns)
        if crops is not None:
            pad = self.crop_padding
            images = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
            rows, columns = rows + crops[own, :1], columns + crops[own, 1:]
        each = torch.arange(n, device=images.device)[:, None, None]
        return images[each, rows[:, :, None], columns[:, None, :]]

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
