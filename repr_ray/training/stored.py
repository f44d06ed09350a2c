"""The logits of a teacher on all training images."""

from collections.abc import Callable

import torch
from torch import Tensor

from repr_ray import distributed
from repr_ray.data.batches import Batches


class StoredLogits:
    """A teacher whose logits of all training images were computed at once; `choose` sets the images it is called on.

    Every rank computes those of its own images, in batches of `batch_size`; `most` images are chosen at most.
    """

    def __init__(
        self, teacher: Callable[[Tensor], Tensor], classes: int, train: Batches, batch_size: int, most: int
    ) -> None:
        self.logits = torch.zeros(len(train), classes, device=train.device)
        for batch in train.in_order(batch_size):
            self.logits[batch.index] = teacher(batch.images).float()
        distributed.all_reduce(self.logits)
        self.index = torch.zeros(most, dtype=torch.int64, device=train.device)

    def choose(self, index: Tensor) -> None:
        """Set the places of the next images, in the same memory, so that a recorded step reads them."""
        self.index[: len(index)].copy_(index)

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (n x classes) of the images that were chosen (n x ...)."""
        return self.logits[self.index[: len(images)]]
