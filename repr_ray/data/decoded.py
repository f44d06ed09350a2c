"""One decoded copy of a data set per machine, memory-mapped by every trial on it."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from repr_ray.config import ConfigError, Data
from repr_ray.data.sources import DATASETS, Progress, Split

FORMAT = 2
"""Raised when the layout of the decoded files changes."""


@dataclass(frozen=True)
class Decoded:
    """The splits of one experiment as views of memory-mapped files, and what images are normalised by.

    `validation` is the tail of the training set, `train` the head of the rest. Mean and standard deviation, of pixels
    in [0, 1] and one a channel, are those of the whole training set, so that they do not change with the split, or
    what `Data.normalise` says. `digest` is sixteen hex digits of what the splits hold: every image and label of the
    source, in order, and which of them are in which split.
    """

    train: Split
    validation: Split
    test: Split
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    classes: int
    digest: str


def cache_folder() -> Path:
    """Where decoded data sets and downloads are kept: `$REPR_RAY_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("REPR_RAY_CACHE", f"{base}/repr_ray")).expanduser()


def load(data: Data, progress: Progress = lambda items, total, title: items) -> Decoded:
    """Map the data set into memory, decoding it first where this machine has not done so yet.

    Raises ConfigError naming the file or field for sources that cannot be read and splits that do not fit.
    """
    dataset = DATASETS[data.name]
    folder = cache_folder() / f"{data.name}-{_source_key(data)}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                for left in folder.parent.glob(f"{folder.name}.*/"):  # by a process that was killed half-way
                    shutil.rmtree(left, ignore_errors=True)
                train, test = dataset.read(dataset, data.source, cache_folder() / "torchvision", progress)
                _write(folder, train, test)
    train, test = (Split(_map(folder, f"{s}_images"), _map(folder, f"{s}_labels")) for s in ("train", "test"))
    statistics = json.loads((folder / "statistics.json").read_text())
    mean, std = _statistics(data, statistics, train.images.shape[-1])
    kept = len(train.labels) - data.validation_images
    used = kept if data.train_images is None else data.train_images
    if not 0 < used <= kept:
        raise ConfigError(
            f"data: {data.name} has {len(train.labels):,} training images; train_images={data.train_images}"
            f" and validation_images={data.validation_images} do not fit"
        )
    return Decoded(
        train=Split(train.images[:used], train.labels[:used]),
        validation=Split(train.images[kept:], train.labels[kept:]),
        test=test,
        mean=mean,
        std=std,
        classes=dataset.classes,
        digest=_digest(statistics["digest"], np.arange(used), np.arange(kept, len(train.labels))),
    )


def _statistics(
    data: Data, measured: dict[str, Any], channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel that images are normalised by."""
    if data.normalise == "none":
        return np.zeros(channels), np.ones(channels)
    if data.normalise == "channel":
        return np.asarray(measured["mean"]), np.asarray(measured["std"])
    given = data.normalise
    if len(given.mean) != channels:
        raise ConfigError(
            f"data.normalise: {len(given.mean)} means and standard deviations, images of {data.name} have {channels}"
            f" channel{'s' * (channels > 1)}"
        )
    return np.asarray(given.mean), np.asarray(given.std)


def _digest(source: str, *splits: NDArray[np.int64]) -> str:
    """Of a decoded copy and of the places of each split in its training set."""
    of_splits = [hashlib.sha256(np.ascontiguousarray(split).data).hexdigest() for split in splits]
    return hashlib.sha256(" ".join([source, *of_splits]).encode()).hexdigest()[:16]


def _content_digest(*splits: Split) -> str:
    """Of the shapes and bytes of all images and labels."""
    digest = hashlib.sha256()
    for array in (array for split in splits for array in (split.images, split.labels)):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _source_key(data: Data) -> str:
    """Changes when the files behind a source do."""
    key: list[Any] = [FORMAT, data.source]
    if data.name != "digits" and data.source != "torchvision" and "://" not in data.source:
        source = Path(data.source)
        try:
            found = source.is_dir()
        except OSError as error:
            raise ConfigError(f"data.source={data.source}: {error.strerror}") from None
        if not found:
            raise ConfigError(f"data.source={data.source}: there is no such folder")
        files = sorted([*source.glob("*.parquet"), *source.glob("cifar-*/*")])
        key += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def _write(folder: Path, train: Split, test: Split) -> None:
    """All files or none: written beside the final name and renamed."""
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for name, split in (("train", train), ("test", test)):
            np.save(partial / f"{name}_images.npy", np.ascontiguousarray(split.images))
            np.save(partial / f"{name}_labels.npy", split.labels)
        values = np.arange(256) / 255
        pixels = train.images.reshape(-1, train.images.shape[-1])
        counts = np.stack([np.bincount(channel, minlength=256) for channel in pixels.T]) / len(pixels)
        mean = counts @ values
        std = np.sqrt(counts @ values**2 - mean**2)
        statistics = {"mean": mean.tolist(), "std": std.tolist(), "digest": _content_digest(train, test)}
        (partial / "statistics.json").write_text(json.dumps(statistics))
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _map(folder: Path, name: str) -> NDArray[Any]:
    try:
        # "c": pages are shared between processes and never written back
        return np.load(folder / f"{name}.npy", mmap_mode="c")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}/{name}.npy: damaged decoded data ({error}); delete that folder") from None
