"""The loop that the public reproductions use, written for this comparison: a user's loop without this package.

DataLoader with worker processes, torchvision transforms image by image, float32, channels first, `loss.item()` every
step.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from repr_ray.data.decoded import Split
from repr_ray.study.plan import Trial
from repr_ray.training.setup import build_model


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images as from torchvision's CIFAR10: a PIL image per item, then the transforms."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class Baseline:
    """One model trained epoch by epoch; worker processes live across epochs."""

    def __init__(
        self, model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device
    ) -> None:
        self.model, self.device = model.to(device), device
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.loader = DataLoader(
            Pictures(images, labels),
            batch_size=128,
            shuffle=True,
            num_workers=2,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )

    def images_per_second(self) -> float:
        """Train one epoch; its rate. The worker processes are idle between two calls."""
        started, running, correct = perf_counter(), 0.0, 0
        self.model.train()
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            self.optimizer.step()
            running += loss.item()
            correct += int((logits.argmax(1) == labels).sum().item())
        return len(self.loader.dataset) / (perf_counter() - started)  # type: ignore[arg-type]


class BaselineProcess:
    """The baseline in a process of its own, as its users run it, without the set-up of this package."""

    def __init__(self, trial: Trial, split: Split, device: torch.device, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, _prepare, (trial, split, device, threads))

    def images_per_second(self) -> float:
        """Train one epoch there; its rate by that process's clock."""
        return self.pool.submit(_run).result()


_baseline: Baseline


def _prepare(trial: Trial, split: Split, device: torch.device, threads: int) -> None:
    global _baseline
    torch.set_num_threads(threads)
    _baseline = Baseline(build_model(trial), split.images, split.labels, device)


def _run() -> float:
    return _baseline.images_per_second()
