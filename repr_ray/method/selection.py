"""From scores to the filters that are dropped."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from repr_ray.method.settings import Selection


def excluded_layers(selection: Selection, layers: Sequence[str]) -> frozenset[str]:
    """Resolve `selection.exclude` against the network's layer names.

    Raises ValueError for a name the network does not have, or when no layer would be left.
    """
    names = {layers[0] if name == "first" else name for name in selection.exclude}
    if unknown := names.difference(layers):
        raise ValueError(
            f"selection.exclude: no droppable layer is called {', '.join(sorted(unknown))};"
            f" there are {', '.join(layers)} (and `first`)"
        )
    if names == set(layers):
        raise ValueError("selection.exclude: leaves no layer to drop from")
    return frozenset(names)


def select(scores: Mapping[str, Tensor], prune_ratio: float, order: str, selection: Selection) -> dict[str, Tensor]:
    """The dropped filters of each layer as bool tensors (J).

    `scores[layer]` is (J), in order of execution. `global` drops floor(prune_ratio x all filters of the network)
    in one ranking over the layers that take part, `layer` drops floor(prune_ratio x J) of each of them. No layer
    loses more than floor(max_per_layer x J), and never its last filter. Equal scores go by layer, then by filter.
    """
    excluded = excluded_layers(selection, list(scores))
    sign = 1.0 if order == "inverse" else -1.0
    room = {
        name: min(int(selection.max_per_layer * len(s) + 1e-9), len(s) - 1) if name not in excluded else 0
        for name, s in scores.items()
    }
    if selection.scope == "layer":
        rankings = [{name: s} for name, s in scores.items()]
        wanted = [int(prune_ratio * len(s) + 1e-9) for s in scores.values()]
    else:
        rankings = [dict(scores)]
        wanted = [int(prune_ratio * sum(len(s) for s in scores.values()) + 1e-9)]

    dropped = {name: torch.zeros(len(s), dtype=torch.bool) for name, s in scores.items()}
    for ranking, count in zip(rankings, wanted, strict=True):
        owners = [(name, f) for name, s in ranking.items() for f in range(len(s))]
        flat = torch.cat([s.detach().double().cpu() for s in ranking.values()])
        for index in torch.argsort(sign * flat, stable=True).tolist():
            name, f = owners[index]
            if count > 0 and room[name] > 0:
                dropped[name][f] = True
                room[name] -= 1
                count -= 1
    return dropped
