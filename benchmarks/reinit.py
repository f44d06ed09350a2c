"""Time of the slowest re-initialisation: directions of the relaxed rule, with clipping.

python -m benchmarks.reinit [--threads 1]: wall and processor seconds of one return of VGG-11 with
`direction: relaxed` and a ratio of 0.7, and of torchvision's resnet50 with a drop of 0.3 in every layer.
"""

import argparse
from time import perf_counter, process_time
from typing import Any

import torch

from benchmarks.tables import device_named, table, write
from repr_ray import RePr
from repr_ray.models.settings import Model, Torchvision, Vgg

CASES: dict[str, tuple[Model, dict[str, Any]]] = {
    "vgg11-bn, relaxed, 0.7": (Vgg(kind="vgg", depth=11), {"reinit": {"direction": "relaxed"}, "prune_ratio": 0.7}),
    "torchvision-resnet50, 0.3 of each layer": (
        Torchvision(kind="torchvision", name="resnet50"),
        {"selection": {"scope": "layer"}},
    ),
}


def main() -> None:
    """Measure both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    rows = []
    for name, (model, settings) in CASES.items():
        torch.manual_seed(0)
        network = model.network(10, 3, 32)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        scheme = RePr(network, optimizer, epochs=4, s1=1, s2=1, **settings)
        scheme.start_epoch(0)
        scheme.start_epoch(1)
        started, began = perf_counter(), process_time()
        events = scheme.start_epoch(2)
        seconds, busy = perf_counter() - started, process_time() - began
        returned, relaxed = (sum(found) for found in zip(*((sum(e.dropped), e.relaxed) for e in events), strict=True))
        rows.append((name, f"{seconds:.1f}", f"{busy:.1f}", f"{returned:,}", f"{relaxed:,}"))
        print(*rows[-1], sep="  ", flush=True)
    columns = ("network", "return, s", "CPU, s", "filters", "by the relaxed rule")
    write("reinit", "Re-initialisation where it takes longest", table(columns, rows), device_named("cpu"), threads)


if __name__ == "__main__":
    main()
