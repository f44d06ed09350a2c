"""From scores to the filters that are dropped."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from repr_ray.method.settings import Selection
from repr_ray.storage.text import hint


def excluded_layers(
    selection: Selection, layers: Sequence[str], left_out: Mapping[str, str] | None = None
) -> frozenset[str]:
    """The layers that `selection` excludes, among those whose filters can be dropped.

    `left_out` are the convolutions that cannot be dropped from, with the reason. Raises ValueError for a layer
    that the network does not have or that cannot be dropped from, and if no layer would be left.
    """
    left_out = left_out or {}

    def resolve(field: str, names: Sequence[str]) -> set[str]:
        for name in names:
            if name in left_out:
                raise ValueError(f"selection.{field}: {name} is never dropped from: {left_out[name]}")
            if name != "first" and name not in layers:
                near = nearest(name, ["first", *layers])
                raise ValueError(f"selection.{field}: no droppable layer is called {name}{near}")
        return {layers[0] if name == "first" else name for name in names}

    spared = resolve("exclude", selection.exclude)
    if selection.layers:
        spared |= set(layers) - resolve("layers", selection.layers)
    if spared >= set(layers):
        raise ValueError("selection: leaves no layer to drop from")
    return frozenset(spared.intersection(layers))


def nearest(name: str, layers: Sequence[str]) -> str:
    """A hint for a layer that there is not: the layer of the nearest name, or else all of them."""
    return hint(name, layers) or f"; there are {', '.join(layers)}"


def check_ratio(sizes: Mapping[str, int], prune_ratio: float, selection: Selection) -> None:
    """Raise ValueError if more filters would be dropped than `selection` allows in a network of these layers."""
    room = _room(sizes, selection)
    for scope in _scopes(sizes, selection):
        wanted, allowed = floor(prune_ratio * sum(sizes[n] for n in scope)), sum(room[n] for n in scope)
        if wanted > allowed and (allowed or selection.scope == "global"):
            network = "the network" if selection.prune_ratio_of == "all" else "the layers dropped from"
            what = network if selection.scope == "global" else f"layer {scope[0]}"
            raise ValueError(
                f"prune_ratio={prune_ratio:g} would drop {wanted} of the {sum(sizes[n] for n in scope)} filters of"
                f" {what}, selection allows {allowed}: lower it, exclude fewer layers or raise max_per_layer"
            )


def select(scores: Mapping[str, Tensor], prune_ratio: float, order: str, selection: Selection) -> dict[str, Tensor]:
    """The dropped filters of each layer as bool tensors (J).

    `scores[layer]` is (J), in order of execution. `global` drops floor(prune_ratio x filters of the network, or of
    the layers that take part) in one ranking over these, `layer` drops floor(prune_ratio x J) of each. No layer
    loses more than floor(max_per_layer x J), and never its last filter. Equal scores go by layer, then by filter.
    """
    room = _room({name: len(s) for name, s in scores.items()}, selection)
    dropped = {name: torch.zeros(len(s), dtype=torch.bool, device="cpu") for name, s in scores.items()}
    for scope in _scopes(scores, selection):
        owners = [(name, f) for name in scope for f in range(len(scores[name]))]
        values = torch.cat([scores[name].detach().double().cpu() for name in scope])
        values = values if order == "worst" else -values
        count = floor(prune_ratio * len(values))
        if selection.count == "percentile":
            count = int((values.numpy() > np.percentile(values.numpy(), 100 * (1 - prune_ratio))).sum())
        for index in torch.argsort(-values, stable=True).tolist():
            name, f = owners[index]
            if count > 0 and room[name] > 0:
                dropped[name][f] = True
                room[name] -= 1
                count -= 1
    return dropped


def _scopes(layers: Mapping[str, object], selection: Selection) -> list[list[str]]:
    """The groups of layers that are ranked together; the ratio is of the filters of a group."""
    out = excluded_layers(selection, list(layers)) if selection.prune_ratio_of == "droppable" else frozenset()
    names = [name for name in layers if name not in out]
    return [[name] for name in names] if selection.scope == "layer" else [names]


def _room(sizes: Mapping[str, int], selection: Selection) -> dict[str, int]:
    """The most filters that each layer may lose."""
    spared = excluded_layers(selection, list(sizes))
    return {
        name: 0 if name in spared else min(floor(selection.max_per_layer * size), size - 1)
        for name, size in sizes.items()
    }


def floor(value: float) -> int:
    """The floor of a product, with tolerance for a rounding error just below a whole number."""
    return int(value + 1e-9)
