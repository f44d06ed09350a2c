"""The step on a pretended GPU: torch's fake tensors refuse to mix devices, and refuse every read by the host.

What runs is the CUDA path of batches, forward pass, loss and masks, without numbers. Backward passes of fake tensors
need a real device: gradients here are made up.
"""

from collections.abc import Iterator

import pytest
import torch
from support import tiny
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from repr_ray.data import decoded
from repr_ray.method import repr
from repr_ray.method.filters import map_filters
from repr_ray.training import loop, setup
from repr_ray.training.step import Setup

CUDA = torch.device("cuda")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setup]:
    """A trial with dropped filters on a GPU that is not there, in S2."""
    trial = tiny(train={"batch_size": 48, "precision": "bf16"}, data={"crop_padding": 1, "flip": True})[1]
    decoded.load(trial.data)
    build, found = setup.build_model, map_filters(setup.build_model(trial), torch.empty(2, 1, 8, 8))

    def on_device(trial: setup.Trial) -> torch.nn.Module:
        with CUDA:
            model = build(trial)
        model.to = lambda *args, **kwargs: model  # fake parameters cannot be converted
        return model

    def backward(objective: torch.Tensor) -> None:
        assert objective.device.type == "cuda" and objective.dim() == 0
        for parameter in one.model.parameters():
            parameter.grad = torch.empty_like(parameter)

    @torch.no_grad()
    def step() -> None:
        for parameter in one.model.parameters():
            parameter.sub_(parameter.grad)

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(repr, "map_filters", lambda *_: found)  # made of labels, which are read
    monkeypatch.setattr(setup, "build_model", on_device)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with FakeTensorMode():
        one = setup.set_up(trial, CUDA)
        monkeypatch.setattr(one.optimizer, "step", step)
        one.scheme.masks.any = True
        yield one


def test_an_epoch_is_read_once_at_its_end(fake: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataDependentOutputException):  # the sums
        loop.train_epoch(fake, 0)
    read: list[torch.Tensor] = []

    def over_ranks(totals: torch.Tensor) -> list[float]:
        read.append(totals)
        return [0.0, 0.0]

    monkeypatch.setattr(loop, "_over_ranks", over_ranks)
    loop.train_epoch(fake, 0)
    loop.evaluate(fake, fake.test)
    assert [totals.device.type for totals in read] == ["cuda", "cuda"]


def test_a_read_in_a_step_is_refused(fake: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_over_ranks", lambda totals: [0.0, 0.0])
    monkeypatch.setattr(type(fake.scheme), "after_step", lambda self: bool(fake.step.totals.sum() > 0))
    with pytest.raises(DataDependentOutputException):
        loop.train_epoch(fake, 0)


def test_a_mask_on_another_device_is_refused(fake: Setup) -> None:
    tensor, mask = next(iter(fake.scheme.masks._masked.values()))
    with pytest.raises(RuntimeError, match="device"), torch.no_grad():
        tensor.masked_fill_(torch.zeros(mask.shape, dtype=torch.bool), 0.0)
