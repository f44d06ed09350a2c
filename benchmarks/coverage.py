"""How many filters of other people's networks can be dropped, and why the others cannot.

python -m benchmarks.coverage [torchvision] [segmentation] [detection] [timm] [--every N] [--names NAME ...]: every
classifier of torchvision, its segmentation networks, the backbones of its detectors, and every network of timm that
has more than a few convolutions before attention; their weights are on the meta device, and nothing is downloaded.
Written to benchmarks/results/coverage_LIBRARY.md after each network. Networks whose row there comes from the present
code of the mapping (its digest is in the row) are not measured again. `timm` is an optional extra.
"""

import argparse
import hashlib
import importlib
import textwrap
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import repr_ray.method
from benchmarks.tables import CPU, RESULTS, write
from repr_ray.method.filters import map_filters

TITLES = {
    "torchvision": "Filters of torchvision's classifiers that can be dropped",
    "segmentation": "Filters of torchvision's segmentation networks that can be dropped",
    "detection": "Filters of the backbones of torchvision's detectors that can be dropped",
    "timm": "Filters of timm's networks that can be dropped",
}


@dataclass(frozen=True)
class Reached:
    """The droppable filters of a network, and the reasons for the others; `code` is the digest of the code."""

    name: str
    attaches: bool
    droppable: int
    dense: int
    why: str
    seconds: float
    code: str

    def row(self) -> str:
        """A line of the table."""
        share = self.droppable / self.dense if self.dense else 0
        attaches = "yes" if self.attaches else "no"
        reached = f"{self.droppable} of {self.dense} | {share:.0%}"
        return f"| {self.name} | {attaches} | {reached} | {self.why} | {self.seconds:.1f} | {self.code} |"

    @classmethod
    def read(cls, row: str) -> "Reached":
        """Read a line of the table."""
        name, attaches, reached, _, why, seconds, code = (cell.strip() for cell in row.strip("|\n").split("|"))
        droppable, dense = map(int, reached.split(" of "))
        return cls(name, attaches == "yes", droppable, dense, why, float(seconds), code)


def main() -> None:
    """Follow the networks and write a table per library."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="*", default=["torchvision"])
    parser.add_argument("--every", type=int, default=1, help="only every n-th network")
    parser.add_argument("--names", nargs="*", help="only these, measured anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    code = digest()
    for library in args.libraries:
        known = stored(library)
        for name in (args.names or networks(library))[:: args.every]:
            if not args.names and name in known and known[name].code == code:
                continue
            model = make(library, name)
            if library != "timm" or is_convolutional(model):
                known[name] = reach(name, model, code)
                print(known[name].row(), flush=True)
                lines = table([known[name] for name in sorted(known)], code)
                write(f"coverage_{library}", TITLES[library], lines, CPU, 1, show=False)


def digest() -> str:
    """The digest of the code that maps filters."""
    folder = Path(repr_ray.method.__file__).parent
    files = sorted({folder / "filters.py", *folder.glob("tracing*"), *folder.glob("tracing/*.py")})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()[:7]


def stored(library: str) -> dict[str, Reached]:
    """The networks in the existing table."""
    file = RESULTS / f"coverage_{library}-cpu.md"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [Reached.read(line) for line in lines if " of " in line and line.startswith("| ")]
    return {row.name: row for row in rows}


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


def reach(name: str, model: nn.Module, code: str) -> Reached:
    """Follow one network."""
    dense = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
    start = time.perf_counter()
    try:
        found = map_filters(model)
    except ValueError as error:
        why = textwrap.shorten(str(error).replace("|", "/"), 200, placeholder=" ...")
        return Reached(name, False, 0, sum(dense.values()), why, time.perf_counter() - start, code)
    seconds = time.perf_counter() - start
    reasons: Counter[str] = Counter()
    for layer, reason in found.left_out.items():
        if layer in dense:
            kind = reason.partition("reaches ")[2].partition(",")[0].rpartition(".")[2]
            reasons[f"reaches {kind}" if kind else reason] += dense[layer]
    why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    droppable = sum(layer.filters for layer in found.layers)
    return Reached(name, True, droppable, sum(dense.values()), why, seconds, code)


def table(every: list[Reached], code: str) -> list[str]:
    """Totals, and a line for each network."""
    attached = [of for of in every if of.attaches]
    half = sum(2 * of.droppable >= of.dense for of in attached)
    older = sum(of.code != code for of in every)
    return [
        f"{len(attached)} of {len(every)} networks attach, {half} with at least half of their dense"
        " filters (those of grouped and depthwise convolutions do not count)."
        f" {len(every) - older} rows are from the code with digest {code}, {older} from older code.",
        "",
        "| network | attaches | dense filters reached | share | why the others are left out (filters) | seconds"
        " | code |",
        "|:---|:---|---:|---:|:---|---:|:---|",
        *(of.row() for of in every),
    ]


if __name__ == "__main__":
    main()
