"""S2 for less? Training the sub-network on a physically smaller copy, beside training it masked.

python -m benchmarks.compact [--rounds 5] [--images 640] [--threads N]: 30% of the filters are dropped, evenly over
the layers (`layer`) or wherever the ranking finds them (`global`). Both ways train the same steps from the same
weights; the copy's are scattered back, momenta included, and compared with the masked run's before the timing.
"""

import argparse
import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.tables import CPU, interleaved, ratio_table, write
from benchmarks.training import MODELS, epoch_rate
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.data.sources import Split
from repr_ray.method.filters import ConvLayer
from repr_ray.method.schemes import RePr
from repr_ray.training.loop import train_epoch
from repr_ray.training.optimizers import build_optimizer
from repr_ray.training.setup import Setup

TOLERANCE = 1e-5
"""Largest difference allowed after two steps, relative to a tensor's largest entry; the loss is in float32."""


def main() -> None:
    """Check, time and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    split = random_images(args.images)
    arms, notes = [], []
    for name in ("convnet-3x32", "resnet20"):
        for scope in ("layer", "global"):
            difference, kept, every = check(name, scope, random_images(256))
            notes.append(
                f"- {name}, {scope}: {kept} of {every} filters are in the copy; after two float64 steps its weights,"
                f" momenta and statistics are the masked run's up to {difference:.1e} of a tensor's largest entry."
            )
            for precision in ("fp32", "bf16"):
                masked = sub_network(name, scope, split, precision)
                rates = {"masked": epoch_rate(masked), "compact": epoch_rate(compact(masked))}
                arms += interleaved(rates, args.rounds, f"{name}, {scope}, {precision}")
    lines = [*ratio_table(arms, "masked", "images/s"), "", *notes]
    write("compact", "S2 on a smaller copy of the network", lines, CPU, args.threads)


def sub_network(name: str, scope: str, split: Split, precision: str) -> Setup:
    """A trial at the start of S2, with momenta in its optimizer. In `fp64` no ReLU switches by rounding."""
    scheme = {"kind": "repr", "s1": 1, "s2": 1, "prune_ratio": 0.3, "selection": {"scope": scope}}
    optimizer = {"kind": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    setup = set_up_on(cifar_trial(MODELS[name], scheme, epochs=4, optimizer=optimizer), split, precision, CPU)
    if precision == "fp64":
        setup.model.double().register_forward_pre_hook(lambda model, inputs: inputs[0].double())
    setup.scheme.start_epoch(0)
    train_epoch(setup, 0)
    setup.scheme.start_epoch(1)
    return setup


def check(name: str, scope: str, split: Split) -> tuple[float, int, int]:
    """The largest relative difference between the two ways after an epoch; filters in the copy, filters in all."""
    masked, full = (sub_network(name, scope, split, "fp64") for _ in range(2))
    smaller = compact(full)
    train_epoch(masked, 1)
    train_epoch(smaller, 1)
    scatter(smaller, full, steps=-(-len(split.labels) // masked.trial.train.batch_size))
    worst = max(
        (a - b).abs().max().item() / b.abs().max().item() for a, b in zip(_all(full), _all(masked), strict=True)
    )
    if worst > TOLERANCE:
        raise AssertionError(f"{name}, {scope}: the smaller copy is off by {worst:.1e}")
    filters = [sum(layer.filters for layer in _repr(s).masks.layers) for s in (smaller, full)]
    return worst, *filters


def compact(setup: Setup) -> Setup:
    """The sub-network of `setup` as a network of its own, with the momenta of its optimizer.

    A layer whose maps are added to another path's keeps its width, and its dropped filters their mask.
    """
    shrunk = _shrinkable(setup)
    model = _gathered(setup, shrunk)
    optimizer = build_optimizer(setup.trial.train, model.parameters())
    keep = _keep(setup, shrunk)
    for (name, old), new in zip(setup.model.named_parameters(), model.parameters(), strict=True):
        state = setup.optimizer.state[old]
        optimizer.state[new] = {key: _gather(value, keep.get(name, {})) for key, value in state.items()}
    scheme = RePr(model, optimizer, _repr(setup).settings, epochs=setup.trial.train.epochs)
    left = {name: mask for name, mask in setup.scheme.dropped.items() if name not in {s.name for s in shrunk}}
    scheme.masks.set(left)
    return replace(setup, model=model, forward=model, optimizer=optimizer, scheme=scheme)


@torch.no_grad()
def scatter(smaller: Setup, full: Setup, steps: int) -> None:
    """Put the copy's weights, statistics and momenta back where they came from, after `steps` steps.

    What reads a dropped filter's maps gets no gradient from them, but has momentum and weight decay to follow.
    """
    keep = _keep(full, _shrinkable(full))
    for parameter in full.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(steps):
        full.optimizer.step()
        full.scheme.after_step()
    values, targets = smaller.model.state_dict(), full.model.state_dict()
    for name, target in targets.items():
        _put(target, list(keep.get(name, {}).items()), values[name])
    for (name, old), new in zip(full.model.named_parameters(), smaller.model.parameters(), strict=True):
        for key, target in full.optimizer.state[old].items():
            _put(target, list(keep.get(name, {}).items()), smaller.optimizer.state[new][key])


Keep = dict[int, Tensor]
"""The entries of a tensor that are in the copy, by dimension."""


def _repr(setup: Setup) -> RePr:
    return cast(RePr, setup.scheme)


def _shrinkable(setup: Setup) -> list[ConvLayer]:
    """The layers without which the network still fits together."""
    found, (height, width, channels) = [], setup.train.images.shape[1:]
    for layer in _repr(setup).masks.layers:
        with contextlib.suppress(RuntimeError), torch.no_grad():
            _gathered(setup, [layer])(torch.zeros(2, channels, height, width))
            found.append(layer)
    return found


def _keep(setup: Setup, layers: Sequence[ConvLayer]) -> dict[str, Keep]:
    tensors, masks = setup.model.state_dict(), {}
    for layer in layers:
        for part in layer.parts:
            mask = part.mask(tensors[part.tensor].shape, setup.scheme.dropped[layer.name]).flatten()
            before = masks.setdefault(part.tensor, {}).get(part.dim, False)
            masks[part.tensor][part.dim] = mask | before
    return {name: {dim: (~mask).nonzero().flatten() for dim, mask in dims.items()} for name, dims in masks.items()}


def _gathered(setup: Setup, layers: Sequence[ConvLayer]) -> nn.Module:
    model = copy.deepcopy(setup.model)
    for name, keep in _keep(setup, layers).items():
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        tensor = getattr(owner, leaf)
        smaller = _gather(tensor.detach(), keep)
        setattr(owner, leaf, nn.Parameter(smaller) if isinstance(tensor, nn.Parameter) else smaller)
        if isinstance(owner, nn.Conv2d):
            owner.out_channels, owner.in_channels = owner.weight.shape[:2]
        elif isinstance(owner, nn.Linear):
            owner.in_features = owner.weight.shape[1]
    return model


def _gather(tensor: Tensor, keep: Keep) -> Tensor:
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index)
    return tensor.clone(memory_format=torch.channels_last if tensor.dim() == 4 else torch.contiguous_format)


def _put(target: Tensor, keep: list[tuple[int, Tensor]], source: Tensor) -> None:
    if not keep:
        target.copy_(source)
        return
    (dim, index), *rest = keep
    part = target.index_select(dim, index)
    _put(part, rest, source)
    target.index_copy_(dim, index, part)


def _all(setup: Setup) -> Iterator[Tensor]:
    """Weights, momenta and statistics; not those of dropped filters' batch norms, which nothing reads."""
    keep = _keep(setup, _shrinkable(setup))
    for name, tensor in setup.model.state_dict().items():
        yield (_gather(tensor, keep.get(name, {})) if "running" in name else tensor).double()
    for parameter in setup.model.parameters():
        yield setup.optimizer.state[parameter]["momentum_buffer"]


if __name__ == "__main__":
    main()
