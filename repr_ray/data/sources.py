"""Where images come from. To add a data set: its name in config.py (`Data.name`) and a line in `DATASETS`."""

import io
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repr_ray.config import ConfigError
from repr_ray.remote import filesystem

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iterable of known length in a progress bar with a title."""


ROWS_PER_TASK = 500


@dataclass(frozen=True)
class Split:
    """Decoded images (uint8, n x height x width x channels) and labels (int64, n)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is read. `image_size` is in pixels, `read` decodes it from a source."""

    classes: int
    channels: int
    image_size: int
    train_images: int
    read: Callable[["Dataset", str, Path, Progress], tuple[Split, Split]]
    torchvision_name: str = ""


def read_digits(dataset: Dataset, source: str, download_to: Path, progress: Progress) -> tuple[Split, Split]:
    """The 1,797 handwritten digits that scikit-learn ships (8 x 8, 16 grey levels); a fixed fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def read_cifar(dataset: Dataset, source: str, download_to: Path, progress: Progress) -> tuple[Split, Split]:
    """CIFAR from torchvision's files (downloaded when asked for) or from Parquet in the Hugging Face layout."""
    if source != "torchvision" and (files := _parquet_files(source)):
        return _read_parquet(dataset, source, files, progress)
    return _read_torchvision(dataset, source, download_to)


def _read_torchvision(dataset: Dataset, source: str, download_to: Path) -> tuple[Split, Split]:
    import torchvision

    make = getattr(torchvision.datasets, dataset.torchvision_name)
    root = download_to if source == "torchvision" else Path(source)
    try:
        halves = [make(root, train=train, download=source == "torchvision") for train in (True, False)]
    except Exception as error:  # the network, the disk, a damaged archive: torchvision raises many kinds
        reason = _damaged(make, root) or " ".join(str(error).split())
        raise ConfigError(
            f"data.source={source}: torchvision cannot give {dataset.torchvision_name} in {root} ({reason}); download"
            " it where there is a network, or name a folder with train-*.parquet and test-*.parquet"
        ) from None
    train, test = (Split(half.data, np.asarray(half.targets, dtype=np.int64)) for half in halves)
    return train, test


def _damaged(make: Any, root: Path) -> str:
    """Which of torchvision's files are missing or not what they should be."""
    from torchvision.datasets.utils import check_integrity

    base = root / make.base_folder
    bad = [name for name, md5 in (*make.train_list, *make.test_list) if not check_integrity(str(base / name), md5)]
    return f"missing or damaged: {', '.join(bad)}" if bad and base.exists() else ""


def _parquet_files(source: str) -> dict[str, list[str]]:
    """The Parquet files of each split under a folder or URL; empty when there is none at all."""
    from pyarrow import fs

    try:
        storage, path = filesystem(source)
        entries = storage.get_file_info(fs.FileSelector(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.source={source}: {' '.join(str(error).split())}") from None
    names = sorted(entry.path for entry in entries if entry.base_name.endswith(".parquet"))
    files = {s: [n for n in names if n.rsplit("/", 1)[-1].startswith(f"{s}-")] for s in ("train", "test")}
    if names and not all(files.values()):
        missing = " and ".join(f"{split}-*.parquet" for split, found in files.items() if not found)
        raise ConfigError(f"data.source={source}: there is no {missing}")
    return files if names else {}


def _read_parquet(
    dataset: Dataset, source: str, files: dict[str, list[str]], progress: Progress
) -> tuple[Split, Split]:
    storage, _ = filesystem(source)
    train, test = (_decode(dataset, storage, paths, split, progress) for split, paths in files.items())
    return train, test


def _decode(dataset: Dataset, storage: Any, paths: list[str], split: str, progress: Progress) -> Split:
    """Decode one split, a record batch per task; the decoder releases the interpreter lock."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = [], []
    for path in paths:
        try:
            with storage.open_input_file(path) as opened, ThreadPoolExecutor() as pool:
                file = pq.ParquetFile(opened)
                columns = _columns(file.schema_arrow.names)
                batches = file.iter_batches(ROWS_PER_TASK, columns=list(columns))
                decoded = pool.map(lambda batch, columns=columns: _decode_batch(batch, *columns), batches)
                tasks = -(-file.metadata.num_rows // ROWS_PER_TASK)
                for pixels, targets in progress(decoded, tasks, f"decoding {path.rsplit('/', 1)[-1]}"):
                    images.append(pixels)
                    labels.append(targets)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ConfigError(
                f"data.source: {path} is damaged or not images in the Hugging Face layout"
                f" ({' '.join(str(error).split())}); fetch that file again"
            ) from None
    size = dataset.image_size
    if odd := {batch.shape[1:] for batch in images} - {(size, size, dataset.channels)}:
        raise ConfigError(f"data.source: {split} has images of shape {odd.pop()}, expected {size}x{size}")
    split_labels = np.concatenate(labels)
    if split_labels.min() < 0 or split_labels.max() >= dataset.classes:
        raise ConfigError(f"data.source: {split} has labels outside 0-{dataset.classes - 1}")
    return Split(np.concatenate(images), split_labels)


def _columns(names: list[str]) -> tuple[str, str]:
    image = next((name for name in ("img", "image") if name in names), None)
    label = next((name for name in ("label", "fine_label") if name in names), None)
    if image is None or label is None:
        raise ValueError(f"columns img and label expected, found {', '.join(names)}")
    return image, label


def _decode_batch(batch: Any, image: str, label: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    from PIL import Image

    encoded = batch.column(image).field("bytes").to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    return np.stack(pixels), batch.column(label).to_numpy(zero_copy_only=False).astype(np.int64)


DATASETS: Mapping[str, Dataset] = {
    "digits": Dataset(10, 1, 8, 1_437, read_digits),
    "cifar10": Dataset(10, 3, 32, 50_000, read_cifar, "CIFAR10"),
    "cifar100": Dataset(100, 3, 32, 50_000, read_cifar, "CIFAR100"),
}
