"""The training loop of every scheme, on one rank of one trial."""

import math
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.data.batches import Batches
from repr_ray.method.measurement import Progress
from repr_ray.method.schemes import LayerEvent
from repr_ray.method.scores import overlap
from repr_ray.training.optimizers import learning_rate
from repr_ray.training.setup import Setup, derive_seed

EVALUATION_BATCH = {"cpu": 128, "cuda": 2000}
"""Images at a time: what keeps a core's cache warm, and what keeps a GPU busy."""


class Diverged(RuntimeError):
    """The training loss is no longer a number."""


def run_epoch(setup: Setup, epoch: int, progress: Progress | None = None) -> tuple[dict[str, Any], list[LayerEvent]]:
    """Train one epoch and evaluate it: its row of the `epochs` table, and what the scheme did before it.

    `progress(filters done, filters in all)` hears of a ranking that takes long.
    Raises Diverged, and RanksDiffer when the ranks no longer hold the same model.
    """
    trial, started = setup.trial, perf_counter()
    torch.manual_seed(derive_seed(trial.seed, "epoch", epoch))
    events = setup.scheme.start_epoch(epoch, setup.ranking, progress)
    training_started = perf_counter()
    loss, accuracy, rate = train_epoch(setup, epoch)
    training_seconds = perf_counter() - training_started
    if not math.isfinite(loss):
        raise Diverged(f"the training loss of epoch {epoch} is {loss}; lower train.optimizer.learning_rate")
    distributed.assert_same_model(setup.model, f"after epoch {epoch}")
    distributed.broadcast(setup.model.buffers())
    due = (epoch + 1) % trial.train.evaluate_every == 0 or epoch + 1 == trial.train.epochs
    validation = evaluate(setup, setup.validation) if due else (None, None)
    test = evaluate(setup, setup.test) if due else (None, None)
    row = {
        "epoch": epoch,
        "phase": setup.scheme.phase,
        "cycle": setup.scheme.cycle,
        "train_loss": loss,
        "train_accuracy": accuracy,
        "val_loss": validation[0],
        "val_accuracy": validation[1],
        "test_loss": test[0],
        "test_accuracy": test[1],
        "learning_rate": rate,
        "filters_dropped": setup.scheme.filters_dropped,
        "images_per_second": len(setup.train) / training_seconds,
        "seconds": perf_counter() - started,
        "layers": _layers(setup) if distributed.rank() == 0 else {},
    }
    return row, events


def train_epoch(setup: Setup, epoch: int) -> tuple[float, float, float]:
    """One pass over the training images: mean loss (nats), accuracy in [0, 1], the last learning rate.

    The loss of a rank's slice is scaled so that DDP's average over ranks is the mean over the global batch. Sums
    stay on the device; the only synchronisation is the one at the end.
    """
    train, world = setup.trial.train, distributed.world_size()
    order = torch.Generator().manual_seed(derive_seed(setup.trial.seed, "order and augmentation", epoch))
    steps = -(-len(setup.train) // train.batch_size)
    totals = torch.zeros(2, device=setup.device)
    rate = train.optimizer.learning_rate
    setup.forward.train()
    for step, batch in enumerate(setup.train.shuffled(train.batch_size, order), start=epoch * steps):
        rate = learning_rate(train, step, steps)
        for group in setup.optimizer.param_groups:
            group["lr"] = rate
        with setup.autocast():
            logits = setup.forward(batch.images)
        loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        setup.optimizer.zero_grad()
        (loss * (world / batch.size)).backward()
        setup.optimizer.step()
        setup.scheme.after_step()
        totals += _sums(loss, logits, batch.labels)
    loss_sum, correct = _over_ranks(totals)
    return loss_sum / len(setup.train), correct / len(setup.train), rate


def evaluate(setup: Setup, split: Batches) -> tuple[float | None, float | None]:
    """Mean loss (nats) and accuracy in [0, 1] over a split; None, None for an empty one."""
    if len(split) == 0:
        return None, None
    totals = torch.zeros(2, device=setup.device)
    setup.model.eval()
    with torch.inference_mode(), setup.autocast():
        for batch in split.in_order(EVALUATION_BATCH[setup.device.type]):
            logits = setup.model(batch.images).float()
            totals += _sums(F.cross_entropy(logits, batch.labels, reduction="sum"), logits, batch.labels)
    loss_sum, correct = _over_ranks(totals)
    return loss_sum / len(split), correct / len(split)


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).sum()])


def _over_ranks(totals: Tensor) -> list[float]:
    distributed.all_reduce(totals)
    return totals.tolist()


def _layers(setup: Setup) -> dict[str, dict[str, float]]:
    """Per convolution: mean |cos| between its filters, how many are dropped, how many there are."""
    dropped = setup.scheme.dropped
    return {
        name: {
            "overlap": overlap(module.weight),
            "dropped": int(dropped[name].sum()) if name in dropped else 0,
            "filters": module.out_channels,
        }
        for name, module in setup.model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    }
