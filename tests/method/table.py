"""Every scheme in a setting in which it acts within a few epochs: what is asked of all of them is asked of these."""

from typing import Any, NamedTuple

import torch
from networks import batches, stack
from torch import nn

import repr_ray
from repr_ray.method.events import LayerEvent
from repr_ray.method.scheme import Scheme

EPOCHS = 7


class Case(NamedTuple):
    """A scheme by its public name, its settings, and the events that it leads to."""

    name: str
    settings: dict[str, Any]
    events: tuple[str, ...] = ()

    @property
    def scheme(self) -> type[Scheme]:
        return getattr(repr_ray, self.name)


_LAYER = {"scope": "layer"}
SCHEMES = {
    "standard": Case("Scheme", {}),
    "repr": Case("RePr", {"s1": 2, "s2": 2, "selection": _LAYER}, ("drop", "reinit")),
    "dsd": Case("DSD", {"sparse_at": 2, "dense_at": 4}, ("mask", "unmask")),
    "soft_filter_pruning": Case("SoftFilterPruning", {"prune_ratio": 0.4, "every": 2}, ("drop",)),
    "shrink_perturb": Case("ShrinkPerturb", {"every": 2}, ("shrink",)),
    "later_layer_forgetting": Case("LaterLayerForgetting", {"every": 3}, ("renew",)),
    "rifle": Case("Rifle", {"every": 2}, ("renew",)),
    "continual_backprop": Case(
        "ContinualBackprop", {"replacement_rate": 0.03, "maturity": 5, "decay": 0.9}, ("replace",)
    ),
    "redo": Case("ReDo", {"every": 6, "threshold": 0.6}, ("replace",)),
    "srip": Case("Scheme", {"loss": {"kind": "srip", "decay": [[2, 0.1], [5, 0.0]]}}),
    "label_smoothing": Case("Scheme", {"loss": {"kind": "label_smoothing"}}),
    "repr+orthogonality": Case(
        "RePr", {"s1": 1, "s2": 2, "selection": _LAYER, "loss": {"kind": "orthogonality"}}, ("drop", "reinit")
    ),
    "soft_filter_pruning+ocnn": Case("SoftFilterPruning", {"loss": {"kind": "ocnn", "weight": 0.01}}, ("drop",)),
}


def make(
    case: str, optimizer: str = "adam", seed: int = 0, model: nn.Module | None = None
) -> tuple[nn.Module, torch.optim.Optimizer, Scheme]:
    from networks import OPTIMIZERS

    torch.manual_seed(seed)
    model = model or stack()
    opt = OPTIMIZERS[optimizer](model.parameters())
    return model, opt, SCHEMES[case].scheme(model, opt, epochs=EPOCHS, seed=seed, **SCHEMES[case].settings)


def epoch_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheme: Scheme, epoch: int, first: int = 0, last: int = 4
) -> list[LayerEvent]:
    """Steps first..last - 1 of an epoch of four; its begin and its end where they are among them."""
    torch.manual_seed(100 * epoch + first)
    events = scheme.start_epoch(epoch) if first == 0 else []
    for number, (images, labels) in enumerate(batches()[first:last], start=first):
        torch.manual_seed(100 * epoch + number)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * scheme.rate_factor
        optimizer.zero_grad()
        scheme.objective(model(images), labels, images).backward()
        scheme.before_step()
        optimizer.step()
        scheme.after_step()
    return events + (scheme.end_epoch() if last == 4 else [])
