"""RePr in the loop of timm's train.py, with its task, scaler and average: the lines of docs/own_loop.md."""

import copy
from textwrap import indent
from typing import Any

import pytest
import torch
from support import documented
from torch import Tensor

from repr_ray import RePr

pytest.importorskip("timm")

from timm import create_model
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import NativeScaler, dispatch_clip_grad

UPDATES = 2

IMPORT, ATTACH, EPOCH, STEP = documented("**timm's training script.**").split("\n\n")
MADE, REST = STEP.split("\n", 1)
LOOP = f"""
{IMPORT}
{ATTACH.replace("s1=20, s2=10", "s1=2, s2=1").replace("0.3", "0.1")}
resume(repr_)
{EPOCH}
    task.train()
    for images, labels in batches(epoch):
        step(task(images, labels)["loss"])
        num_updates += 1
{indent(REST, "    ")}
        schedule.step_update(num_updates=num_updates)
        look(repr_, epoch)
    schedule.step(epoch + 1)
"""
"""The loops of main() and train_one_epoch(), with the documented lines in their places and shorter cycles."""


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(epoch)
    return [(torch.randn(4, 3, 32, 32, generator=g), torch.arange(4)) for _ in range(UPDATES)]


class Script:
    """What main() of train.py makes, and its loop."""

    def __init__(self, opt: str, scaled: bool, average: bool) -> None:
        torch.manual_seed(0)
        model = create_model("lcnet_035", num_classes=4, drop_rate=0.0)
        self.task = ClassificationTask(model, LabelSmoothingCrossEntropy(), verbose=False)
        if average:
            self.task.setup_ema(decay=0.9, use_warmup=True)
        self.optimizer = create_optimizer_v2(model, opt=opt, lr=0.01, weight_decay=0.05)
        self.scaler = NativeScaler(device="cpu") if scaled else None
        self.schedule, self.num_epochs = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=7, warmup_epochs=1, updates_per_epoch=UPDATES
        )
        self.dropped = [0] * self.num_epochs
        self.states: dict[int, dict[str, Any]] = {}

    def train(self, first: int = 0, saved: dict[str, Any] | None = None) -> None:
        """Train from epoch `first` on, with a state to resume from."""

        def resume(scheme: RePr) -> None:
            if saved is not None:
                self.task.load_state_dict(saved["task"])
                self.optimizer.load_state_dict(saved["optimizer"])
                scheme.load_state_dict(saved["repr"])
                self.schedule.step(first)

        names = vars(self) | {"start_epoch": first, "num_updates": first * UPDATES, "batches": batches}
        exec(LOOP, names | {"resume": resume, "step": self.step, "look": self.look})  # noqa: S102

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        if self.scaler:
            self.scaler(loss, self.optimizer, clip_grad=1.0, parameters=self.task.get_clip_parameters())
        else:
            loss.backward()
            dispatch_clip_grad(self.task.get_clip_parameters(), 1.0)
            self.optimizer.step()

    def look(self, scheme: RePr, epoch: int) -> None:
        """Count the dropped filters, which are silent in the network and in its average."""
        masks = scheme.masks
        self.dropped[epoch] = sum(int(mask.sum()) for mask in masks.dropped.values())
        average = self.task.get_trainable_module(ema=True)
        for network in [self.task.get_trainable_module(), *([average.module] if average else [])]:
            own = dict(network.named_parameters())
            for layer in masks.layers:
                for part in layer.silenced:
                    tensor = own[part.tensor].detach()
                    assert not tensor.masked_select(part.mask(tensor.shape, masks.dropped[layer.name])).any()
        own = {"task": self.task, "optimizer": self.optimizer, "repr": scheme}
        self.states[epoch] = copy.deepcopy({name: part.state_dict() for name, part in own.items()})


@pytest.mark.parametrize("opt, scaled, average", [("sgd", False, False), ("adamw", True, True)])
def test_dropped_filters_are_silent_in_network_and_average_and_training_resumes(
    opt: str, scaled: bool, average: bool
) -> None:
    assert "optimizer.step()" in MADE
    whole, resumed = Script(opt, scaled, average), Script(opt, scaled, average)
    whole.train()
    assert [bool(count) for count in whole.dropped] == [False, False, True, False, False, True, False]
    resumed.train(3, whole.states[2])
    assert any("ema" in key for key in whole.task.state_dict()) == average
    for key, value in whole.task.state_dict().items():
        assert torch.equal(value, resumed.task.state_dict()[key]), key
