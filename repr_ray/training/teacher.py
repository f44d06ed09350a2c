"""The network that a trial learns from."""

from collections.abc import Mapping

import torch
from torch import Tensor

from repr_ray.data.shape import shape_of
from repr_ray.method.losses import Distillation
from repr_ray.study.plan import Trial
from repr_ray.training.loop import EVALUATION_BATCH
from repr_ray.training.setup import build_model
from repr_ray.training.step import Setup
from repr_ray.training.stored import StoredLogits

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
        batch_size = EVALUATION_BATCH[setup.device.type]
        setup.stored = StoredLogits(logits, classes, setup.train, batch_size, setup.trial.train.batch_size)
        setup.scheme.term.teacher = setup.stored
