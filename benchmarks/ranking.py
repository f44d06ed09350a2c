"""Time of ranking, selection and re-initialisation beside the training of a cycle.

python -m benchmarks.ranking [--threads 1] [--device cuda]: seconds of one drop and one return with the default
settings (orthogonality, null space, clip), and with a drop spread evenly over the layers, which meets more large null
spaces. A cycle is s1 + s2 = 30 epochs over the images of the data set, at the speed of training steps measured on the
same threads.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.tables import device_named, table, write
from repr_ray import RePr
from repr_ray.models.settings import ConvNet, DenseNet, Model, ResNet, Torchvision

EPOCHS = 30
"""Epochs of a cycle: s1 and s2 of the paper."""


@dataclass(frozen=True)
class Case:
    """A network, and the images that it trains on."""

    name: str
    model: Model
    images: int = 50_000
    classes: int = 10
    pixels: int = 32
    batch: int = 128


CASES = [
    Case("convnet-3x32, CIFAR-10", ConvNet()),
    Case("resnet110, CIFAR-10", ResNet(kind="resnet", depth=110)),
    Case("densenet-40-12, CIFAR-10", DenseNet(kind="densenet")),
    Case("torchvision-resnet50, CIFAR-10", Torchvision(kind="torchvision", name="resnet50")),
    Case(
        "torchvision-resnet50, ImageNet", Torchvision(kind="torchvision", name="resnet50"), 1_281_167, 1000, 224, 16
    ),
]


def main() -> None:
    """Measure every network with both selections and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = device_named(args.device)
    rows = []
    for case in CASES:
        rate = _training_rate(case, device)
        for scope in ("global", "layer"):
            drop, back, dropped, relaxed = _cycle(case, scope, device)
            share = (drop + back) / (EPOCHS * case.images / rate)
            seconds = (f"{drop:.2f}", f"{back:.2f}", f"{rate:,.4g}", f"{share:.2%}")
            rows.append((f"{case.name}, {scope}", *seconds, f"{dropped:,}", f"{relaxed:,}"))
            print(*rows[-1], sep="  ", flush=True)
    columns = ("network, data, selection", "drop, s", "return, s", "training, images/s", "share of a cycle")
    lines = table((*columns, "filters", "by the relaxed rule"), rows)
    write("ranking", f"Ranking and re-initialisation beside {EPOCHS} epochs", lines, device, args.threads)


def _network(case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    return case.model.network(case.classes, 3, case.pixels).to(device).to(memory_format=torch.channels_last)


def _cycle(case: Case, scope: str, device: torch.device) -> tuple[float, float, int, int]:
    """Seconds of a drop and of the re-initialisation; numbers of dropped filters and of those by the relaxed rule."""
    model = _network(case, device)
    scheme = RePr(model, torch.optim.SGD(model.parameters(), 0.1), epochs=4, s1=1, s2=1, selection={"scope": scope})
    scheme.start_epoch(0)
    drop = _seconds(lambda: scheme.start_epoch(1), device)
    started = perf_counter()
    events = scheme.start_epoch(2)
    _wait(device)
    return drop, perf_counter() - started, sum(sum(e.dropped) for e in events), sum(e.relaxed for e in events)


def _training_rate(case: Case, device: torch.device, steps: int = 3) -> float:
    """Images a second of the training steps of a network in bf16, the best of some."""
    model = _network(case, device)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, fused=True)
    images = torch.randn(case.batch, 3, case.pixels, case.pixels, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(case.batch, dtype=torch.long, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    return case.batch / min(_seconds(step, device) for _ in range(steps))


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = perf_counter()
    function()
    _wait(device)
    return perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
