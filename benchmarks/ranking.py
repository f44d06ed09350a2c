"""What ranking, selection and re-initialisation cost: python benchmarks/ranking.py [threads, 1 if not given]

For each network: seconds of one drop and one return with the default settings (orthogonality, null space, clip), and
with a drop spread evenly over the layers, which meets more large null spaces.
"""

import os
import resource
import sys
from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from repr_ray import RePr
from repr_ray.config import ConvNet, DenseNet, ResNet, Torchvision
from repr_ray.models import build

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convnet-3x32": lambda: build(ConvNet(), 10, 3, 32),
    "resnet110": lambda: build(ResNet(kind="resnet", depth=110), 10, 3, 32),
    "densenet-40-12": lambda: build(DenseNet(kind="densenet"), 10, 3, 32),
    "torchvision-resnet50": lambda: build(Torchvision(kind="torchvision", name="resnet50"), 1000, 3, 224),
}


def main(threads: int) -> None:
    """Print a line per network and selection."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {threads} threads of {os.cpu_count()}, network on {device}")
    for name, make in NETWORKS.items():
        for scope in ("global", "layer"):
            torch.manual_seed(0)
            model = make().to(device)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            scheme = RePr(model, optimizer, epochs=4, s1=1, s2=1, selection={"scope": scope})
            scheme.start_epoch(0)
            seconds = []
            for epoch in (1, 2):
                started = perf_counter()
                events = scheme.start_epoch(epoch)
                seconds.append(perf_counter() - started)
            relaxed, count = sum(e.relaxed for e in events), sum(sum(e.dropped) for e in events)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(
                f"{name:21} {scope:6} drop {seconds[0]:6.2f} s  return {seconds[1]:6.2f} s"
                f"  ({count} filters, {relaxed} relaxed)  peak {memory:.1f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
