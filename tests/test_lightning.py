"""RePr in the real Trainer of Lightning: cycles, silent filters, and the same weights when training is resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import documented
from torch import Tensor, nn

from repr_ray import distributed

pl = pytest.importorskip("pytorch_lightning")

from repr_ray.lightning import RePrCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Classifier(pl.LightningModule):
    """A small network that checks, in every step, what is silent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def loader() -> torch.utils.data.DataLoader:
    g = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(24, 1, 8, 8, generator=g), torch.arange(24) % 3)
    return torch.utils.data.DataLoader(data, 8)


def trainer(folder: Path, epochs: int, *callbacks: Any, **more: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=epochs, default_root_dir=folder, callbacks=list(callbacks), **quiet, **more)


class Watch(pl.Callback):
    """Counts dropped filters, and looks whether they are zero after every step."""

    def __init__(self, followed: RePrCallback) -> None:
        self.followed, self.counts = followed, []

    def on_train_epoch_end(self, _: Any, module: Classifier) -> None:
        dropped = self.followed.repr.dropped
        self.counts.append(sum(int(mask.sum()) for mask in dropped.values()))
        for name, mask in dropped.items():
            layer = name.removeprefix("network.")
            assert not module.network.get_submodule(layer).weight[mask].any()


@pytest.mark.parametrize("network, score", [(None, "orthogonality"), ("network", "activation")])
def test_cycles_in_a_trainer_and_resumed(tmp_path: Path, network: str | None, score: str) -> None:
    def callback() -> RePrCallback:
        return RePrCallback(network, s1=1, s2=2, prune_ratio=0.25, ranking={"score": score})

    whole, followed = Classifier(), callback()
    watch = Watch(followed)
    trainer(tmp_path, 7, followed, watch, enable_checkpointing=False).fit(whole, loader())
    assert watch.counts == [0, 4, 4, 0, 4, 4, 0]
    assert {event.event for event in followed.events} == {"drop", "reinit"}
    first, part = Classifier(), callback()
    stop = trainer(tmp_path, 7, part, enable_checkpointing=False)
    stop.fit_loop.epoch_loop.max_steps = 6  # two epochs of three steps: in the middle of S2
    stop.fit(first, loader())
    stop.save_checkpoint(tmp_path / "c.ckpt")
    second = Classifier()
    trainer(tmp_path, 7, callback(), enable_checkpointing=False).fit(second, loader(), ckpt_path=tmp_path / "c.ckpt")
    assert distributed.checksum(second) == distributed.checksum(whole) != distributed.checksum(first)


class Save(pl.Callback):
    """Saves a checkpoint in the epoch `at`, and stops."""

    def __init__(self, path: Path, at: int) -> None:
        self.path, self.at = path, at

    def save(self, trainer: Any, due: bool) -> None:
        if due and trainer.current_epoch == self.at:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


class AfterTheLastBatch(Save):
    """Of an epoch, as ModelCheckpoint(every_n_train_steps=...) may do."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        self.save(trainer, number == 2)


class BeforeTheFirstBatch(Save):
    """Of an epoch that has begun."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.save(trainer, True)


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("save", [AfterTheLastBatch, BeforeTheFirstBatch])
def test_resumed_where_lightning_begins_no_epoch_or_one_again(tmp_path: Path, save: type[Save], at: int) -> None:
    """Before a drop, within S2, and before a return: every epoch begins once."""

    def callback() -> RePrCallback:
        return RePrCallback("network", s1=1, s2=2, prune_ratio=0.25, ranking={"score": "activation"})

    followed, path = callback(), tmp_path / "c.ckpt"
    watch = Watch(followed)
    trainer(tmp_path, 5, callback(), save(path, at), enable_checkpointing=False).fit(Classifier(), loader())
    resumed = Classifier()
    trainer(tmp_path, 5, followed, watch, enable_checkpointing=False).fit(resumed, loader(), ckpt_path=path)
    assert watch.counts == [0, 4, 4, 0, 0][-len(watch.counts) :] and len(watch.counts) >= 4 - at
    if save is AfterTheLastBatch:
        whole = Classifier()
        trainer(tmp_path, 5, callback(), enable_checkpointing=False).fit(whole, loader())
        assert distributed.checksum(resumed) == distributed.checksum(whole)


class Twice(Classifier):
    """Two steps of the optimizer in each step of the Trainer; checks what is silent before each."""

    def __init__(self, followed: RePrCallback) -> None:
        super().__init__()
        self.automatic_optimization, self.moved, self.dropped = False, 0, 0
        self.followed = followed

    def training_step(self, batch: Any, _: int) -> None:
        images, labels = batch
        for _ in range(2):
            for name, mask in self.followed.repr.dropped.items():
                self.moved += int(self.network.get_submodule(name).weight[mask].count_nonzero())
                self.dropped += int(mask.sum())
            self.optimizers().zero_grad()
            self.manual_backward(F.cross_entropy(self(images), labels))
            self.optimizers().step()


def test_filters_are_silent_after_every_step_of_manual_optimisation(tmp_path: Path) -> None:
    followed = RePrCallback("network", s1=1, s2=2, prune_ratio=0.25)
    model = Twice(followed)
    trainer(tmp_path, 4, followed, enable_checkpointing=False).fit(model, loader())
    assert model.dropped and not model.moved


def test_the_documented_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred epochs in three cycles, with the Trainer's own settings."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"Trainer": pl.Trainer}
    exec(documented("**Lightning.**"), names)  # noqa: S102
    made = names["trainer"]
    made.limit_train_batches = 1
    made.fit(Classifier(), loader())
    [callback] = [one for one in made.callbacks if isinstance(one, RePrCallback)]
    assert [(event.event, event.epoch) for event in callback.events if event.layer == "network.0"] == [
        (event, epoch + when) for epoch in (20, 50, 80) for event, when in (("drop", 0), ("reinit", 10))
    ]


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_epochs"):
        trainer(tmp_path, -1, RePrCallback(), max_steps=2, enable_checkpointing=False).fit(Classifier(), loader())
