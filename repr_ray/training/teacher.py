"""The network that a trial learns from."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from repr_ray import distributed
from repr_ray.data.shape import shape_of
from repr_ray.method.losses import Distillation
from repr_ray.study.plan import Trial
from repr_ray.training.loop import EVALUATION_BATCH
from repr_ray.training.setup import build_model
from repr_ray.training.step import Setup

LARGEST = 2**28
"""Bytes of logits that are stored at most."""


def teach(setup: Setup, teacher: Trial, weights: Mapping[str, Tensor]) -> None:
    """Give a trial a teacher: the network of another trial with these weights (a state_dict). Every rank calls it.

    Where every epoch has the same images, the logits of each are computed once, here.
    """
    network = build_model(teacher).to(setup.device).to(memory_format=torch.channels_last)
    network.load_state_dict(weights)
    network.requires_grad_(False).eval()

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad(), setup.autocast():
            return network(images)

    setup.scheme.term.teacher = logits
    classes = shape_of(setup.trial.data).classes
    as_they_are = type(setup.scheme.term) is Distillation  # a plug-in may ask about images that it has changed
    if as_they_are and setup.train.same_every_epoch and 4 * len(setup.train) * classes <= LARGEST:
        setup.scheme.term.teacher = setup.stored = StoredLogits(logits, classes, setup)


class StoredLogits:
    """A teacher that has the logits of all training images; `choose` says which images it is asked about next."""

    def __init__(self, teacher: Callable[[Tensor], Tensor], classes: int, setup: Setup) -> None:
        self.logits = torch.zeros(len(setup.train), classes, device=setup.device)
        for batch in setup.train.in_order(EVALUATION_BATCH[setup.device.type]):
            self.logits[batch.index] = teacher(batch.images).float()
        distributed.all_reduce(self.logits)  # each rank has its own images
        self.index = torch.zeros(setup.trial.train.batch_size, dtype=torch.int64, device=setup.device)

    def choose(self, index: Tensor) -> None:
        """The places of the next images; they stay at one place in memory, for a recorded step."""
        self.index[: len(index)].copy_(index)

    def __call__(self, images: Tensor) -> Tensor:
        """The logits (n x classes) of the images that were chosen (n x ...)."""
        return self.logits[self.index[: len(images)]]
