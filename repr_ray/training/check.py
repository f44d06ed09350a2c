"""The check of a trial before anything is trained: its network, optimizer, schedule and scheme fit together."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from repr_ray.data.shape import shape_of, steps_per_epoch
from repr_ray.method.reinit import redraw
from repr_ray.method.repr import RePr
from repr_ray.method.scheme import Scheme
from repr_ray.method.scores import check_scores
from repr_ray.method.selection import excluded_layers
from repr_ray.plug_ins import first_line, plug_in_behind
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.setup import build_model, example_of
from repr_ray.training.step import NO_PENALTY


def check(trial: Trial) -> Mapping[str, str]:
    """Build the trial's network and scheme without data, and without memory if their values are not needed.

    Returns the layers whose filters are never dropped, with the reason; none for standard training. Raises
    ConfigError if the network does not fit the images, the scheme does not fit the network, or a plug-in raises.
    """
    compact = trial.train.compact_sub_network
    with torch.device("cpu" if trial.plug_ins or compact else "meta"):  # plug-ins may read values, meta has none
        with _refusing(trial, trial.model.kind):
            model = build_model(trial)
            if trial.model.kind in trial.plug_ins:
                _check_logits(trial, model)
        with _refusing(trial, trial.train.optimizer.kind):
            optimizer = trial.train.optimizer.optimizer(model.parameters())
            if not isinstance(optimizer, Optimizer):
                raise ConfigError(f"made {type(optimizer).__name__}, expected torch.optim.Optimizer")
        with _refusing(trial, trial.train.schedule.kind):
            _check_rates(trial)
        loss = trial.settings.loss
        with _refusing(trial, trial.settings.kind, *([loss.kind] if loss else [])):
            scheme: Scheme = trial.settings.scheme(model, optimizer, trial.train.epochs, example=example_of(trial))
            if trial.settings.kind in trial.plug_ins or (loss and loss.kind in trial.plug_ins):
                _check_loss(trial, scheme)
                checkpoint.content(scheme.state_dict(), tried=True)
        if isinstance(scheme, RePr):
            with _refusing(trial, scheme.settings.ranking.score):
                _check_score(trial, scheme)
            with _refusing(trial, scheme.settings.reinit.direction):
                _check_direction(trial, scheme)
            if compact:
                _check_compact(scheme)
    return scheme.left_out


@contextmanager
def _refusing(trial: Trial, *kinds: str) -> Iterator[None]:
    """Turn any exception of a plug-in, and ValueErrors of built-in components, into ConfigError."""
    try:
        yield
    except Exception as error:
        if plug_ins := [kind for kind in kinds if kind in trial.plug_ins]:
            reason = error if isinstance(error, ConfigError) else first_line(error)
            raise ConfigError(f"{trial.scheme}: plug-in {plug_in_behind(error) or plug_ins[-1]}: {reason}") from None
        if not isinstance(error, ValueError):
            raise
        raise ConfigError(f"{trial.scheme}: {error}") from None


def _check_logits(trial: Trial, model: nn.Module) -> None:
    """Raise ConfigError unless a plug-in network returns logits for images of the data set."""
    known = shape_of(trial.data)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"made {type(model).__name__}, expected torch.nn.Module")
    shape = (2, known.channels, known.size, known.size)
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shape))
    except Exception as error:
        raise ConfigError(f"cannot take images {shape}: {first_line(error)}") from None
    if not isinstance(logits, Tensor) or logits.shape != (2, known.classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"gives {found} for images {shape}, expected logits {(2, known.classes)}: one number per class"
        )


def _check_loss(trial: Trial, scheme: Any) -> None:
    """Raise ConfigError unless a plug-in scheme is a `Scheme` with a loss that is one number."""
    if not isinstance(scheme, Scheme):
        raise ConfigError(
            f"{trial.settings.kind} made {type(scheme).__name__}, expected a subclass of repr_ray.Scheme"
        )
    known = shape_of(trial.data)
    images = torch.zeros(2, known.channels, known.size, known.size)
    scheme.term.teacher = lambda images: torch.zeros(len(images), known.classes)
    loss = scheme.loss(torch.zeros(2, known.classes), torch.zeros(2, dtype=torch.long), images)
    if not isinstance(loss, Tensor) or loss.dim():
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"a loss is one number, summed over the batch; found {found}")


def _check_rates(trial: Trial) -> None:
    """Raise ConfigError unless the schedule gives a learning rate at the start of every epoch, or of a thousand."""
    train = trial.train
    steps = steps_per_epoch(trial.data, train.batch_size)
    for epoch in (*range(0, train.epochs, -(-train.epochs // 1_000)), train.epochs - 1):
        rate = train.schedule.rate(train.optimizer.learning_rate, epoch * steps, steps, train.epochs)
        if not 0 <= rate < math.inf:
            raise ConfigError(f"{rate} is not a learning rate (epoch {epoch + 1})")


def _check_score(trial: Trial, scheme: RePr) -> None:
    """Raise ValueError unless a plug-in score gives each filter a number; measured ones are tried on two images."""
    ranking = scheme.settings.ranking
    if ranking.score not in trial.plug_ins:
        return
    images = torch.rand(example_of(trial).shape)
    scores: dict[str, Any] = scheme.score(lambda: [(images, torch.zeros(len(images), dtype=torch.long))])
    if ranking.needs_data:  # two images before any training: what is no number there may become one
        scores = {name: s.nan_to_num() if isinstance(s, Tensor) else s for name, s in scores.items()}
    check_scores(scores, {layer.name: layer.filters for layer in scheme.masks.layers}, ranking.score)


def _check_direction(trial: Trial, scheme: RePr) -> None:
    """Raise ValueError unless a plug-in direction gives the first filter of each layer new weights."""
    if scheme.settings.reinit.direction in trial.plug_ins:
        for layer in (layer for layer in scheme.masks.layers if layer.filters > 1):  # a last filter is never dropped
            kernel = scheme.model.get_parameter(layer.kernel)
            redraw(kernel, torch.arange(layer.filters) == 0, scheme.settings.reinit, torch.Generator())


def _check_compact(scheme: RePr) -> None:
    """Raise ConfigError unless the network and its optimizer can be made smaller: every layer loses a filter."""
    if scheme.penalty() is not None:
        raise ConfigError(NO_PENALTY)
    spared = excluded_layers(scheme.settings.selection, list(scheme.dropped))
    sizes = {name: len(mask) for name, mask in scheme.dropped.items() if name not in spared and len(mask) > 1}
    scheme.masks.set({name: torch.arange(size, device="cpu") == 0 for name, size in sizes.items()})
    try:
        scheme.sub_network()
    except ValueError as error:
        raise ConfigError(f"train.compact_sub_network: {error}, by setting it to false") from None
