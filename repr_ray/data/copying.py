"""Writing the copy of a data set: every image decoded once or, if that is large, checked and packed as it is."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repr_ray.data.encoded import Survey, pack
from repr_ray.data.images import Damaged, Look, Target, decode_all, look_at_all
from repr_ray.data.source import Rows, Splits, Subset, Track
from repr_ray.data.split import check_labels, choose
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

AT_ONCE = 10_000  # images per step of the statistics

LARGEST = 100_000_000_000  # bytes of a decoded copy; with `data.store=auto` a larger data set stays encoded


def decode(folder: Path, data: Data, found: Splits, progress: Track) -> dict[str, Any]:
    """Write the arrays of every split; returns their facts."""
    chosen, notes = choose(found, data)
    classes, names = check_labels(chosen, found, data)
    counts = {split: len(rows.labels) for split, rows in chosen.items()}
    skipped: list[str] = []
    known = data.facts
    size, channels = (data.size or (known and known.size)), (data.channels or (known and known.channels))
    if not (size and channels):
        looks, chosen, skipped = _look(chosen, data, progress)
        channels = channels or max(one.channels for one in looks)
        size = size or _one_size(looks, data)
    shapes = _shapes(data, channels, size)
    held_out = shapes["train"] != shapes["test"]
    needed = bytes_of(data, counts, channels, size)
    encoded = data.store == "stream" or (data.store == "auto" and needed > LARGEST)
    if encoded:
        notes.append(f"images are decoded as they are needed: decoded at once they would take {needed / 1e9:,.1f} GB")
    elif needed > (free := shutil.disk_usage(folder).free):
        raise ConfigError(
            f"data.store={data.store}: decoded images take {needed / 1e9:,.1f} GB, {folder.parent} has"
            f" {free / 1e9:,.1f} GB; name another REPR_RAY_CACHE, or set data.store=stream"
        )
    surveys: dict[str, Survey] = {}
    for split, rows in chosen.items():
        before = surveys["train"].content if split == "test" else hashlib.sha256()
        store = _pack if encoded else _store
        surveys[split], damaged = store(folder, split, rows, shapes[split], data, before, progress)
        skipped += [f"{rows.where(one.index)}: {one.reason}" for one in damaged]
        kept = _all_but(len(rows.labels), damaged)
        if not len(kept):
            raise too_many_damaged(data, skipped, split)
        labels = rows.labels[kept]
        surveys[split].labels(labels)
        np.save(folder / f"{split}_labels.npy", labels)
        if split == "train" and held_out and not encoded:
            _write_images(folder, "held_out", Subset(rows, kept), shapes["held_out"], data, progress)
    if len(skipped) > data.skip_damaged:
        raise too_many_damaged(data, skipped)
    mean, std = surveys["train"].moments()
    arrays = {path.stem: mapped(folder, path.stem) for path in sorted(folder.glob("*.npy"))}
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "digest": surveys["test"].content.hexdigest(),
        "classes": classes,
        "names": list(names),
        "size": size,
        "counts": counts,
        "skipped": skipped,
        "shared": surveys["test"].also_in(surveys["train"]),
        "held_out": held_out,
        "validation": surveys["validation"].content.hexdigest() if "validation" in chosen else "",
        "where": chosen["train"].where(0).rpartition(", ")[2],
        "notes": notes,
        "files": {name: [list(array.shape), array.dtype.str] for name, array in arrays.items()},
    } | ({"encoded": {split: asdict(shape) for split, shape in shapes.items()}} if encoded else {})


def _shapes(data: Data, channels: int, size: int) -> dict[str, Target]:
    """What each split is decoded to; `held_out` are training images that are validated on."""
    stored = data.resize or size
    evaluated = data.evaluation_resize or stored
    shapes = {split: Target(channels, evaluated, size) for split in ("validation", "test", "held_out")}
    return shapes | {"train": Target(channels, stored, stored)}


def bytes_of(data: Data, counts: Mapping[str, int], channels: int, size: int) -> int:
    """Bytes of a decoded copy of so many images of each split, of so many channels and pixels a side."""
    shapes = _shapes(data, channels, size)
    held_out = counts["train"] * shapes["held_out"].bytes if shapes["train"] != shapes["test"] else 0
    return held_out + sum(count * shapes[split].bytes for split, count in counts.items())


def _look(chosen: dict[str, Rows], data: Data, progress: Track) -> tuple[list[Look], dict[str, Rows], list[str]]:
    """The headers of all images, the rows with a header, and the problems of the others."""
    looks: list[Look] = []
    good: dict[str, Rows] = {}
    skipped: list[str] = []
    for split, rows in chosen.items():
        found, damaged = look_at_all(rows, progress, f"looking at {split} images")
        looks += found
        skipped += [f"{rows.where(one.index)}: {one.reason}" for one in damaged]
        good[split] = Subset(rows, _all_but(len(rows.labels), damaged)) if damaged else rows
    empty = next((split for split, rows in good.items() if not len(rows.labels)), "")
    if empty or len(skipped) > data.skip_damaged:
        raise too_many_damaged(data, skipped, empty)
    return looks, good, skipped


def _one_size(looks: list[Look], data: Data) -> int:
    sizes = sorted({(one.width, one.height) for one in looks})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        of = f"from {first} to {last}" if len(sizes) > 1 else f"of {first}"
        raise ConfigError(f"data.size: images {of} pixels are scaled to squares; set the side, as in data.size=64")
    return sizes[0][0]


def _all_but(count: int, damaged: list[Damaged]) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(count), [one.index for one in damaged])


def _pack(
    folder: Path, split: str, rows: Rows, shape: Target, data: Data, content: "hashlib._Hash", progress: Track
) -> tuple[Survey, list[Damaged]]:
    """Write a split encoded, without images that cannot be decoded, which are returned; `content` as in `Survey`."""
    fixed = data.size is None
    survey, damaged = pack(folder, split, rows, shape, fixed, content.copy(), progress)
    if 0 < len(damaged) <= data.skip_damaged:
        good = Subset(rows, _all_but(len(rows.labels), damaged))
        survey, _ = pack(folder, split, good, shape, fixed, content.copy(), progress)
    return survey, damaged


def _store(
    folder: Path, split: str, rows: Rows, shape: Target, data: Data, content: "hashlib._Hash", progress: Track
) -> tuple[Survey, list[Damaged]]:
    """Write a split decoded; see `_pack`."""
    damaged = _write_images(folder, split, rows, shape, data, progress)
    images = mapped(folder, f"{split}_images")
    survey = Survey(content.copy(), images.shape)
    for start in range(0, len(images), AT_ONCE):
        survey.add(images[start : start + AT_ONCE])
    return survey, damaged


def _write_images(folder: Path, name: str, rows: Rows, shape: Target, data: Data, progress: Track) -> list[Damaged]:
    """Write NAME_images.npy; returns the images that cannot be decoded, which are left out."""
    path = folder / f"{name}_images.npy"
    count = len(rows.labels)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, shape.crop, shape.crop, shape.channels))
    title = f"decoding {name.replace('_', '-')} images"
    damaged = decode_all(rows, shape, data.size is None, images, progress, title)
    if damaged:
        kept = _all_but(count, damaged)
        whole = path.with_suffix(".whole")
        smaller = np.lib.format.open_memmap(whole, "w+", np.uint8, (len(kept), *images.shape[1:]))
        for start in range(0, len(kept), AT_ONCE):
            smaller[start : start + AT_ONCE] = images[kept[start : start + AT_ONCE]]
        smaller.flush()
        whole.replace(path)
    images.flush()
    return damaged


def mapped(folder: Path, name: str) -> NDArray[Any]:
    try:
        # labels may be written to, in private pages; images may be larger than memory and are read-only
        return np.load(folder / f"{name}.npy", mmap_mode="c" if name.endswith("_labels") else "r")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{folder}/{name}.npy: damaged decoded data ({error}); delete that folder") from None


def too_many_damaged(data: Data, damaged: list[str], empty: str = "") -> ConfigError:
    """The error for more images that cannot be decoded than may be skipped, or for all of the split `empty`."""
    more = f" (and {len(damaged) - 1:,} more images)" if len(damaged) > 1 else ""
    leave_out = f"or leave them out by data.skip_damaged={len(damaged)}"
    way_out = f"no {empty} image would be left without them" if empty else leave_out
    return ConfigError(f"data.source={data.source}: {damaged[0]}{more}; mend or remove them, {way_out}")
