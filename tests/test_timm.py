"""RePr in the loop of timm's train.py, with its factories, scaler and average: what docs/own_loop.md says to add."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from repr_ray import RePr

pytest.importorskip("timm")

from timm import create_model
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad

UPDATES = 2


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(epoch)
    return [(torch.randn(4, 3, 32, 32, generator=g), torch.arange(4)) for _ in range(UPDATES)]


class Script:
    """What main() of train.py makes, and its two loops."""

    def __init__(self, opt: str, scaled: bool, saved: dict[str, Any] | None = None) -> None:
        torch.manual_seed(0)
        self.model = create_model("lcnet_035", num_classes=4, drop_rate=0.0)
        self.optimizer = create_optimizer_v2(self.model, opt=opt, lr=0.01, weight_decay=0.05)
        self.ema = ModelEmaV3(self.model, decay=0.9, use_warmup=True)
        self.scaler = NativeScaler(device="cpu") if scaled else None
        self.schedule, self.num_epochs = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=7, warmup_epochs=1, updates_per_epoch=UPDATES
        )
        self.repr = RePr(self.model, self.optimizer, epochs=self.num_epochs, s1=2, s2=1, prune_ratio=0.1)
        self.loss, self.start, self.dropped = LabelSmoothingCrossEntropy(), 0, [0] * self.num_epochs
        if saved is not None:
            for name in ("model", "optimizer", "ema", "repr"):
                getattr(self, name).load_state_dict(saved[name])
            self.start = saved["epoch"]
            self.schedule.step(self.start)

    def train(self, until: int) -> None:
        for epoch in range(self.start, until):
            self.repr.start_epoch(epoch)
            self.repr.carry_over(self.ema.module)
            self.train_one_epoch(epoch)
            self.schedule.step(epoch + 1)

    def train_one_epoch(self, epoch: int) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        for i, (images, labels) in enumerate(batches(epoch)):
            loss = self.loss(self.model(images), labels)
            if self.scaler:
                self.scaler(loss, self.optimizer, clip_grad=1.0, parameters=self.model.parameters())
            else:
                loss.backward()
                dispatch_clip_grad(self.model.parameters(), 1.0)
                self.optimizer.step()
            self.repr.after_step()
            self.optimizer.zero_grad()
            updates = epoch * UPDATES + i + 1
            self.ema.update(self.model, step=updates)
            self.repr.carry_over(self.ema.module)
            self.schedule.step_update(num_updates=updates)
            self.count_silent(epoch)

    def count_silent(self, epoch: int) -> None:
        masks = self.repr.masks
        self.dropped[epoch] = sum(int(mask.sum()) for mask in masks.dropped.values())
        for network in (self.model, self.ema.module):
            own = dict(network.named_parameters())
            for layer in masks.layers:
                for part in layer.silenced:
                    tensor = own[part.tensor].detach()
                    assert not tensor.masked_select(part.mask(tensor.shape, masks.dropped[layer.name])).any()

    def saved(self, epoch: int) -> dict[str, Any]:
        states = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "ema", "repr")}
        return copy.deepcopy(states | {"epoch": epoch})


@pytest.mark.parametrize("opt, scaled", [("sgd", False), ("adamw", True)])
def test_dropped_filters_are_silent_in_network_and_average_and_training_resumes(opt: str, scaled: bool) -> None:
    whole = Script(opt, scaled)
    whole.train(3)
    saved = whole.saved(3)
    whole.start = 3
    whole.train(7)
    assert [bool(count) for count in whole.dropped] == [False, False, True, False, False, True, False]
    resumed = Script(opt, scaled, saved)
    resumed.train(7)
    for one, other in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
