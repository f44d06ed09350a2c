"""torchvision's classification sets, downloaded when they are missing."""

import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repr_ray.data.cache import cache_folder
from repr_ray.data.source import Rows, Source, Splits
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

_SPLITS = {"train": ("train",), "validation": ("val", "valid"), "test": ("test",)}


def torchvision(data: Data) -> Source:
    """A class of torchvision.datasets: the one of the data set's name, or `torchvision:CLASS`."""
    name = data.source.partition(":")[2] or (data.facts.torchvision if data.facts else "")
    return Source(lambda scratch: read_torchvision(data, name, cache_folder() / "torchvision", download=True))


@dataclass(frozen=True)
class _Rows:
    dataset: Any

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        for attribute in ("targets", "labels", "_labels"):
            if (found := getattr(self.dataset, attribute, None)) is not None:
                return np.asarray(found, dtype=np.int64)
        samples = getattr(self.dataset, "_samples", None) or getattr(self.dataset, "samples", None)
        if samples:
            return np.asarray([label for _, label in samples], dtype=np.int64)
        return np.asarray([self.dataset[index][1] for index in range(len(self.dataset))], dtype=np.int64)

    def image(self, index: int) -> Image.Image:
        image = self.dataset[index][0]
        if not isinstance(image, Image.Image):
            raise TypeError(f"a {type(image).__name__}, not an image")
        return image

    def where(self, index: int) -> str:
        return f"{type(self.dataset).__name__}, image {index}"


def read_torchvision(data: Data, name: str, root: Path, download: bool) -> Splits:
    """The splits of a torchvision class whose files are in `root`, or are downloaded there. Raises ConfigError."""
    from torchvision import datasets

    make = getattr(datasets, name, None)
    if name not in datasets.__all__ or not inspect.isclass(make):
        raise ConfigError(f"data.source={data.source}: torchvision {datasets.__name__} has no class {name}")
    try:
        made = _make(make, root, download)
        if not made:
            raise ValueError("it has neither `train` nor `split` as an argument")
        rows: dict[str, Rows] = {split: _Rows(dataset) for split, dataset in made.items()}
        for split in rows.values():
            split.labels  # noqa: B018 - fails for anything but a classification set
    except ConfigError:
        raise
    except Exception as error:  # the network, the disk, a damaged archive: torchvision raises many kinds
        reason = _damaged(make, root) or " ".join(str(error).split())
        raise ConfigError(
            f"data.source={data.source}: torchvision cannot make {name} in {root} ({reason}); download it where there"
            " is a network, or name a folder with train-*.parquet and test-*.parquet"
        ) from None
    return Splits(rows)


def _make(make: Any, root: Path, download: bool) -> dict[str, Any]:
    """An instance for each split that a class has."""
    parameters = inspect.signature(make).parameters
    arguments = {"download": download} if "download" in parameters else {}
    if "train" in parameters:
        return {split: make(root, train=split == "train", **arguments) for split in ("train", "test")}
    if "split" not in parameters:
        return {}
    made = {}
    for split, names in _SPLITS.items():
        for name in names:
            try:
                made[split] = make(root, split=name, **arguments)
                break
            except ValueError as error:
                if "split" not in str(error).lower():  # as "Unknown value 'val' for argument split"
                    raise
    return made


def _damaged(make: Any, root: Path) -> str:
    """The files of torchvision that are missing or have a wrong digest, as far as digests are known."""
    from torchvision.datasets.utils import check_integrity

    if not hasattr(make, "train_list"):
        return ""
    base = root / getattr(make, "base_folder", "")
    bad = [name for name, md5 in (*make.train_list, *make.test_list) if not check_integrity(str(base / name), md5)]
    return f"missing or damaged: {', '.join(bad)}" if bad and base.exists() else ""
