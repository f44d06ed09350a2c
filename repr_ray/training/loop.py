"""The training loop of every scheme, on one rank of one trial."""

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repr_ray import distributed
from repr_ray.data.batches import Batches
from repr_ray.method.events import LayerEvent
from repr_ray.method.measurement import FiltersDone
from repr_ray.method.scores import overlap, zero_filters
from repr_ray.records import Averaged, EpochLine, LayerState
from repr_ray.training.messages import Preempted
from repr_ray.training.setup import derive_seed
from repr_ray.training.step import Setup, sums

EVALUATION_BATCH = {"cpu": 128, "cuda": 2000}
"""Images of an evaluation batch: few enough for a core's cache, enough to keep a GPU busy."""


AGREE_EVERY = 16
"""Optimizer steps between two exchanges of several ranks on whether one of them has to stop."""

Stop = Callable[[], bool]
"""Whether this process has to stop; called after every step, so it must not block."""

PartialEpoch = dict[str, Any]
"""An interrupted epoch: `steps` done, `seconds` of training and `seconds_before` it; sums, random state by rank."""


Record = Callable[[int, list[LayerEvent]], None]
"""Called with an epoch, and what the scheme did before or after it."""


class Diverged(RuntimeError):
    """A loss or a weight is no longer a finite number."""


def never() -> bool:
    """The process never has to stop."""
    return False


def run_epoch(
    setup: Setup,
    epoch: int,
    record: Record | None = None,
    progress: FiltersDone | None = None,
    part: PartialEpoch | None = None,
    stop: Stop = never,
) -> EpochLine:
    """Train one epoch and evaluate it: its line of `epochs.jsonl`.

    `record` is called with what the scheme did before and after it, `progress(filters done, filters in all)` during
    ranking and re-initialisation. `part` resumes an interrupted epoch. Raises Preempted when a rank's `stop()` is
    true, Diverged, and RanksDiffer if the ranks no longer hold the same model.
    """
    trial, started = setup.trial, perf_counter()
    if part:
        started -= part["seconds"] + part.get("seconds_before", 0)
    torch.manual_seed(derive_seed(trial.seed, "epoch", epoch))
    if not part:
        with setup.taking_over():
            events = setup.scheme.start_epoch(epoch, setup.ranking, progress)
        if record:
            record(epoch, events)
    training_started = perf_counter() - (part["seconds"] if part else 0)
    try:
        loss, accuracy, rate = train_epoch(setup, epoch, part, stop)
    except Preempted as left:
        if left.part:
            left.part["seconds_before"] = training_started - started
        raise
    training_seconds = perf_counter() - training_started
    _assert_finite_loss(loss, "training", epoch)
    with setup.taking_over():
        events = setup.scheme.end_epoch()
    if record:
        record(epoch, events)
    distributed.assert_same_model(setup.model, f"after epoch {epoch + 1}")
    distributed.broadcast(setup.model.buffers())
    if setup.average:
        setup.average.synchronise()
    due = (epoch + 1) % trial.train.evaluate_every == 0 or epoch + 1 == trial.train.epochs
    validation = evaluate(setup, setup.validation) if due else (None, None)
    test = evaluate(setup, setup.test) if due else (None, None)
    _assert_finite_loss(validation[0], "validation", epoch)
    _assert_finite_loss(test[0], "test", epoch)
    averaged = _of_average(setup, due)
    for loss_of_average in (averaged.get("ema_val_loss"), averaged.get("ema_test_loss")):
        _assert_finite_loss(loss_of_average, "averaged weights'", epoch)
    return {
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
        **averaged,
    }


def _of_average(setup: Setup, due: bool) -> Averaged:
    """The columns of the average of the weights; none without one."""
    if not setup.average:
        return {}
    splits = (setup.validation, setup.test)
    val, test = [evaluate(setup, split, setup.average.network) if due else (None, None) for split in splits]
    return {
        "ema_val_loss": val[0],
        "ema_val_accuracy": val[1],
        "ema_test_loss": test[0],
        "ema_test_accuracy": test[1],
    }


def _assert_finite_loss(loss: float | None, of: str, epoch: int) -> None:
    if loss is not None and not math.isfinite(loss):
        raise Diverged(f"the {of} loss of epoch {epoch + 1} is {loss}; lower train.optimizer.learning_rate")


def assert_finite(model: nn.Module) -> None:
    """Raise Diverged, with the first name, unless all weights and buffers of a network are finite."""
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{name} is not finite after the last epoch; lower train.optimizer.learning_rate")


def train_epoch(
    setup: Setup, epoch: int, part: PartialEpoch | None = None, stop: Stop = never
) -> tuple[float, float, float]:
    """One pass over the training images: mean loss (nats), accuracy in [0, 1], the last learning rate.

    Sums stay on the device; the only synchronisation is at the end. See `run_epoch` for `part` and `stop`.
    """
    train, step = setup.trial.train, setup.step
    started = perf_counter() - (part["seconds"] if part else 0)
    order = torch.Generator().manual_seed(derive_seed(setup.trial.seed, "order and augmentation", epoch))
    steps = -(-len(setup.train) // train.batch_size)
    done = part["steps"] if part else 0
    step.totals.copy_(_restore(part["ranks"][distributed.rank()], setup)) if part else step.totals.zero_()
    base, factor = train.optimizer.learning_rate, setup.scheme.rate_factor
    rate = base * factor
    with step.epoch():
        for number, batch in enumerate(setup.train.shuffled(train.batch_size, order, done), start=done):
            rate = factor * train.schedule.rate(base, epoch * steps + number, steps, train.epochs)
            step(batch, rate)
            if number + 1 < steps and _agree_to_stop(stop, number, setup):
                raise Preempted("asked to stop", _snapshot(number + 1, perf_counter() - started, step.totals, setup))
    loss_sum, correct = _over_ranks(step.totals)
    return loss_sum / len(setup.train), correct / len(setup.train), rate


def _agree_to_stop(stop: Stop, step: int, setup: Setup) -> bool:
    """Whether any rank has to stop; the same value on all ranks."""
    if distributed.world_size() == 1:
        return stop()
    if step % AGREE_EVERY:
        return False
    asked = torch.tensor([float(stop())], device=setup.device)
    distributed.all_reduce(asked)
    return bool(asked.item())


def _snapshot(steps: int, seconds: float, totals: Tensor, setup: Setup) -> PartialEpoch:
    """The interrupted epoch: sums and random state of every rank, gathered on all."""
    own = {"totals": totals.cpu(), "random": torch.get_rng_state()}
    if setup.device.type == "cuda":
        own["cuda_random"] = torch.cuda.get_rng_state(setup.device)
    return {"steps": steps, "seconds": seconds, "ranks": distributed.of_every_rank(own)}


def _restore(own: dict[str, Tensor], setup: Setup) -> Tensor:
    """Restore a rank's random state; returns its running sums."""
    torch.set_rng_state(own["random"])
    if setup.device.type == "cuda" and "cuda_random" in own:
        torch.cuda.set_rng_state(own["cuda_random"], setup.device)
    return own["totals"]


def evaluate(setup: Setup, split: Batches, network: nn.Module | None = None) -> tuple[float | None, float | None]:
    """Mean loss (nats) and accuracy in [0, 1] over a split; None, None for an empty one.

    `network` is evaluated in place of the model.
    """
    if len(split) == 0:
        return None, None
    totals = torch.zeros(2, device=setup.device)
    network = (network or setup.model).eval()
    with torch.inference_mode(), setup.autocast():
        for batch in split.in_order(EVALUATION_BATCH[setup.device.type]):
            logits = network(batch.images).float()
            totals += sums(F.cross_entropy(logits, batch.labels, reduction="sum"), logits, batch.labels)
    loss_sum, correct = _over_ranks(totals)
    return loss_sum / len(split), correct / len(split)


def _over_ranks(totals: Tensor) -> list[float]:
    distributed.all_reduce(totals)
    return totals.tolist()


def _layers(setup: Setup) -> dict[str, LayerState]:
    """The state of each convolution without groups; `zero` counts dropped filters too."""
    dropped = setup.scheme.dropped
    return {
        name: {
            "overlap": overlap(module.weight),
            "dropped": int(dropped[name].sum()) if name in dropped else 0,
            "zero": zero_filters(module.weight),
            "filters": module.out_channels,
        }
        for name, module in setup.model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    }
