"""Several trials on a device that one small net does not fill: as processes, or stacked in one process.

python -m benchmarks.sharing [--device cuda] [--images 12800] [--rounds 3] [--trials 1 2 4 8]: images a second of all
trials together, the 3x32 net, batch 128. `processes` are what `resources.trials_per_gpu=N` gives, on a GPU with and
without `resources.cuda_graph`; run it again under MPS (`nvidia-cuda-mps-control -d`) to see what that adds. `stacked`
maps one step over the trials' weights with torch.func, every trial with its own batches; on a CPU with all its
threads, where a process has one.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from benchmarks.tables import device_named, interleaved, ratio_table, write
from benchmarks.training import epoch_rate
from benchmarks.trials import cifar_trial, random_images, set_up_on
from repr_ray.training.precision import resolve_precision
from repr_ray.training.step import Setup


def main() -> None:
    """Measure every number of trials each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    device = device_named(args.device)
    rates: dict[str, Callable[[], float]] = {}
    pools = []
    for count in args.trials:
        for graph in (False, True) if args.device == "cuda" else (False,):
            pools.append(Processes(count, args.images, args.device, graph))
            rates[f"{count} in processes" + ", graphs" * graph] = pools[-1].rate
        rates[f"{count} stacked"] = Stacked(count, args.images, device).rate
    arms = interleaved(rates, args.rounds, "convnet-3x32, batch 128")
    lines = ratio_table(arms, f"{args.trials[0]} in processes", "images/s")
    write("sharing", "Several trials on one device", lines, device, 1)


def _setup(images: int, device: torch.device, seed: int, graph: bool = False) -> Setup:
    trial = replace(cifar_trial({"kind": "convnet"}), seed=seed)
    resources = trial.resources.model_copy(update={"cuda_graph": graph})
    return set_up_on(
        replace(trial, resources=resources), random_images(images), resolve_precision(trial.train, device), device
    )


class Processes:
    """Trials in processes of their own, all of which train an epoch at once."""

    def __init__(self, count: int, images: int, device: str, graph: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pools = [ProcessPoolExecutor(1, spawn, _prepare, (images, device, seed, graph)) for seed in range(count)]
        self.images = images

    def rate(self) -> float:
        """Images a second of all together, from the first one's start to the last one's end."""
        started = perf_counter()
        for future in [pool.submit(_run) for pool in self.pools]:
            future.result()
        return len(self.pools) * self.images / (perf_counter() - started)


_rate: Callable[[], float]


def _prepare(images: int, device: str, seed: int, graph: bool) -> None:
    global _rate
    torch.set_num_threads(1)
    _rate = epoch_rate(_setup(images, torch.device(device), seed, graph))
    _rate()


def _run() -> float:
    return _rate()


class Stacked:
    """Trials of one shape in one process: each step is one step of all of them."""

    def __init__(self, count: int, images: int, device: torch.device) -> None:
        self.setups = [_setup(images, device, seed) for seed in range(count)]
        self.model: nn.Module = self.setups[0].model
        self.parameters, self.buffers = stack_module_state([setup.model for setup in self.setups])
        self.step = vmap(grad(self._loss))
        self.images = images

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with self.setups[0].autocast():
            logits = functional_call(self.model, (parameters, buffers), (x,))
        return F.cross_entropy(logits.float(), y)

    def rate(self) -> float:
        """Images a second of all together."""
        started = perf_counter()
        train = self.setups[0].trial.train
        orders = [torch.Generator().manual_seed(seed) for seed in range(len(self.setups))]
        each = zip(
            *(s.train.shuffled(train.batch_size, o) for s, o in zip(self.setups, orders, strict=True)), strict=True
        )
        for batches in each:
            images, labels = torch.stack([b.images for b in batches]), torch.stack([b.labels for b in batches])
            gradients = self.step(self.parameters, self.buffers, images, labels)
            with torch.no_grad():
                names = list(self.parameters)
                torch._foreach_add_(
                    [self.parameters[n] for n in names],
                    [gradients[n] for n in names],
                    alpha=-train.optimizer.learning_rate,
                )
        if self.setups[0].device.type == "cuda":
            torch.cuda.synchronize()
        return len(self.setups) * self.images / (perf_counter() - started)


if __name__ == "__main__":
    main()
