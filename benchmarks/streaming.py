"""Images that stream: the loader beside torchvision's ImageFolder, beside decoding alone, and in training.

python -m benchmarks.streaming [--images 20000] [--rounds 5] [--workers N] [--folder FOLDER]: JPEGs of mixed sizes
around 500 x 400, made once into FOLDER (else a temporary one), random resized crops of 224 x 224 with flips. Every
round runs each arm over all of them.
"""

import argparse
import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.tables import CPU, interleaved, ratio_table, write
from repr_ray.data.batches import Batches
from repr_ray.data.decoded import load
from repr_ray.data.stream import AT_ONCE, Request
from repr_ray.study.data import Data
from repr_ray.training.setup import keep_freed_memory

BATCH = 128
SIDE = 224


def main() -> None:
    """Make the images, measure every arm and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as trials do
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "images"
        os.environ["REPR_RAY_CACHE"] = f"{scratch}/cache"
        make_images(folder, args.images)
        data = Data.model_validate(
            {
                "name": "photos",
                "source": str(folder),
                "size": SIDE,
                "store": "stream",
                "flip": True,
                "augment": {"random_resized_crop": {}},
            }
        )
        found = load(data)

        def stream(workers: int) -> Batches:
            return Batches(found.train, found.mean, found.std, data, CPU, classes=found.classes, loaders=workers)

        decoding = Alone(stream(0), args.workers)
        arms = {
            "ImageFolder, PIL transforms": lambda: image_folder(folder / "train", args.workers),
            "stream": lambda: rate(uint8(stream(args.workers))),
            "decoding and cropping alone": decoding.rate,
        }
        loading = interleaved(arms, args.rounds, f"{args.workers} processes")
        network = Small(found.classes)
        arms = {
            "stream": lambda: rate(uint8(stream(1))),
            "network": lambda: network.on_ready_batches(len(found.train)),
            "training from the stream": lambda: network.trained_on(stream(1)),
        }
        training = interleaved(arms, args.rounds, "1 process, 1 thread")
        mean = np.mean([path.stat().st_size for path in (folder / "train").rglob("*.jpg")]) / 1000
    slower = np.minimum(training[0].values, training[1].values)
    share = np.median(np.divide(training[2].values, slower))
    alone = np.median(np.divide(loading[1].values, loading[2].values))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torchvision", "pillow", "simplejpeg"))
    lines = [f"{args.images:,} JPEGs of {mean:.0f} kB on average; {packages}.", ""]
    lines += ratio_table(loading, "ImageFolder, PIL transforms", "images/s")
    lines += ["", f"The stream reaches {alone:.2f} of the rate of decoding and cropping alone.", ""]
    lines += ratio_table(training, "stream", "images/s")
    lines += ["", f"Training reaches {share:.2f} of the slower of loader and network."]
    write("streaming", "Images that stream", lines, CPU, args.workers)


def make_images(folder: Path, count: int) -> None:
    """Pictures of ten classes with structure at four scales, and fifty test images, unless they exist."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        for split, number in (("train", count), ("test", 50)):
            paths = [folder / split / f"class{k % 10}" / f"{k:06}.jpg" for k in range(number)]
            for parent in {path.parent for path in paths}:
                parent.mkdir(parents=True, exist_ok=True)
            missing = [k for k, path in enumerate(paths) if not path.exists()]
            list(pool.map(_save, missing, [paths[k] for k in missing], chunksize=50))


def _save(k: int, path: Path) -> None:
    picture(np.random.default_rng([k, len(path.parts[-3])])).save(path, quality=90)


def picture(rng: np.random.Generator) -> Image.Image:
    """400 to 600 x 320 to 480 pixels, a third of them upright."""
    width, height = int(rng.integers(400, 600)), int(rng.integers(320, 480))
    if rng.random() < 1 / 3:
        width, height = height, width
    layers = np.zeros((height, width, 3), np.float32)
    for scale in (4, 16, 64, 160):
        coarse = rng.integers(0, 256, (height * scale // 500 + 2, width * scale // 500 + 2, 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / scale**0.5
    layers += 4 * rng.standard_normal(layers.shape, dtype=np.float32)
    layers = (layers - layers.mean()) / layers.std() * 55 + 120
    return Image.fromarray(layers.clip(0, 255).astype(np.uint8))


def image_folder(folder: Path, workers: int) -> float:
    """The usual way: a PIL image, the transforms one by one, float32 batches."""
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(datasets.ImageFolder(str(folder), transform), BATCH, shuffle=True, num_workers=workers)
    return rate(images for images, _ in loader)


def rate(batches: Iterator[torch.Tensor]) -> float:
    """Images per second, the start of the processes included."""
    started, count = perf_counter(), 0
    for images in batches:
        count += len(images)
    return count / (perf_counter() - started)


def requests(made: Batches) -> Iterator[tuple[torch.Tensor, Any]]:
    """The requests of an epoch."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(made), generator=generator)
    draws = made.augmentation.draw(len(made), generator)
    for start in range(0, len(made), BATCH):
        of = slice(start, min(start + BATCH, len(made)))
        yield order[of], draws.cut and draws.cut.take(of)


def uint8(made: Batches) -> Iterator[torch.Tensor]:
    """The batches of an epoch in uint8; the device converts and normalises them."""
    return made.store.batches(requests(made))


class Alone:
    """Processes that only decode and crop, each into the same memory all the time."""

    def __init__(self, made: Batches, workers: int) -> None:
        store: Any = made.store
        asked = [Request(index.numpy(), cut) for index, cut in requests(made)]
        parts = [part for request in asked for part in request.parts()]
        self.shares = [parts[place::workers] for place in range(workers)]
        self.images = len(made)
        context = multiprocessing.get_context("fork")
        self.pool = ProcessPoolExecutor(workers, context, _prepare, (store.decoder,))

    def rate(self) -> float:
        """Images per second of all processes."""
        started = perf_counter()
        list(self.pool.map(_decode, self.shares))
        return self.images / (perf_counter() - started)


_decoder: Any = None


def _prepare(decoder: Any) -> None:
    global _decoder
    _decoder = decoder
    torch.set_num_threads(1)


def _decode(parts: list[Request]) -> None:
    out = torch.empty(AT_ONCE, SIDE, SIDE, 3, dtype=torch.uint8)
    for part in parts:
        if problem := _decoder.decode(part, out):
            raise RuntimeError(problem)


class Small:
    """A small network of strided convolutions, about as fast as a core decodes."""

    def __init__(self, classes: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 7, 4, 3),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, classes),
        ).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Train on a batch."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        return images

    def trained_on(self, made: Batches) -> float:
        """Images per second of an epoch."""
        epoch = made.shuffled(BATCH, torch.Generator().manual_seed(0))
        return rate(self.step(batch.images, batch.labels) for batch in epoch)

    def on_ready_batches(self, images: int) -> float:
        """The same on one decoded batch, converted to float each time."""
        batch, labels = torch.randint(256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8), torch.zeros(BATCH).long()
        scale, shift = torch.full((3,), 1 / 60), torch.full((3,), -2.0)

        def ready() -> Iterator[torch.Tensor]:
            for _ in itertools.repeat(None, images // BATCH):
                yield batch.to(torch.float32).mul_(scale).add_(shift).permute(0, 3, 1, 2)

        return rate(self.step(one, labels) for one in ready())


if __name__ == "__main__":
    main()
