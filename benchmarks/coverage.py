"""How many filters of other people's networks can be dropped, and why the others cannot.

python -m benchmarks.coverage [torchvision] [segmentation] [detection] [timm] [--every N] [--names NAME ...]: every
classifier of torchvision, its segmentation networks, the backbones of its detectors, and every network of timm that
has more than a few convolutions before attention; their weights are on the meta device, and nothing is downloaded.
Written to benchmarks/results/coverage_LIBRARY.md. `timm` is an optional extra.
"""

import argparse
import importlib
import textwrap
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.tables import CPU, write
from repr_ray.method.filters import map_filters

TITLES = {
    "torchvision": "Filters of torchvision's classifiers that can be dropped",
    "segmentation": "Filters of torchvision's segmentation networks that can be dropped",
    "detection": "Filters of the backbones of torchvision's detectors that can be dropped",
    "timm": "Filters of timm's networks that can be dropped",
}


@dataclass(frozen=True)
class Reached:
    """What of one network can be dropped; `refused` says why nothing can."""

    name: str
    dense: int
    droppable: int
    reasons: Counter[str]
    refused: str
    seconds: float


def main() -> None:
    """Follow the networks and write a table a library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", default=["torchvision"])
    parser.add_argument("--every", type=int, default=1, help="only every n-th network")
    parser.add_argument("--names", nargs="*", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for library in args.libraries:
        every = []
        for name in (args.names or networks(library))[:: args.every]:
            model = make(library, name)
            if library != "timm" or is_convolutional(model):
                every.append(reach(name, model))
                print(row(every[-1]), flush=True)
        if not args.names:
            title = TITLES[library]
            write(f"coverage_{library}", title, table(every), CPU, 1)


def networks(library: str) -> list[str]:
    """The classifiers of a library, without those made for quantised arithmetic."""
    if library != "timm":
        from torchvision import models

        modules = {"torchvision": models, "segmentation": models.segmentation, "detection": models.detection}
        return models.list_models(module=modules[library])
    names: list[str] = importlib.import_module("timm").list_models()
    return [name for name in names if not name.startswith("test_")]


def make(library: str, name: str) -> nn.Module:
    """A network without weights."""
    try:
        with torch.device("meta"):
            return build(library, name)
    except NotImplementedError:  # it computes with tensors while it is made
        return build(library, name)


def build(library: str, name: str) -> nn.Module:
    """A network of a library, untrained."""
    if library != "timm":
        from torchvision.models import get_model

        backbone = {} if library == "torchvision" else {"weights_backbone": None}
        model = get_model(name, weights=None, **backbone)
        return model.backbone if library == "detection" else model
    return importlib.import_module("timm").create_model(name, pretrained=False)


def is_convolutional(model: nn.Module) -> bool:
    """Whether it has more than the few convolutions that make patches of an image, or stand before attention."""
    convs = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    mixers = sum("attention" in type(module).__name__.lower() for module in model.modules())
    return convs > max(5, 2 * mixers)


def reach(name: str, model: nn.Module) -> Reached:
    """Follow one network."""
    dense = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
    start = time.perf_counter()
    try:
        found = map_filters(model)
    except ValueError as error:
        return Reached(name, sum(dense.values()), 0, Counter(), str(error), time.perf_counter() - start)
    reasons: Counter[str] = Counter()
    for layer, reason in found.left_out.items():
        if layer in dense:
            kind = reason.partition("reaches ")[2].partition(",")[0].rpartition(".")[2]
            reasons[f"reaches {kind}" if kind else reason] += dense[layer]
    droppable = sum(layer.filters for layer in found.layers)
    return Reached(name, sum(dense.values()), droppable, reasons, "", time.perf_counter() - start)


def row(of: Reached) -> str:
    """One line of the table."""
    why = textwrap.shorten(of.refused, 200, placeholder=" ...") or "; ".join(
        f"{reason} ({count})" for reason, count in of.reasons.most_common(3)
    )
    share = of.droppable / of.dense if of.dense else 0
    attaches = "no" if of.refused else "yes"
    return f"| {of.name} | {attaches} | {of.droppable} of {of.dense} | {share:.0%} | {why} | {of.seconds:.1f} |"


def table(every: list[Reached]) -> list[str]:
    """Totals, and a line for each network."""
    attached = [of for of in every if not of.refused]
    half = sum(2 * of.droppable >= of.dense for of in attached)
    return [
        f"{len(attached)} of {len(every)} networks attach, {half} with at least half of their dense"
        " filters (those of grouped and depthwise convolutions do not count).",
        "",
        "| network | attaches | dense filters reached | share | why the others are left out (filters) | seconds |",
        "|:---|:---|---:|---:|:---|---:|",
        *map(row, every),
    ]


if __name__ == "__main__":
    main()
