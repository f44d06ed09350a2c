"""One copy of a data set per machine, mapped into memory by every trial: decoded or, if that is large, encoded."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from repr_ray.data.cache import cache_folder, make, unusable
from repr_ray.data.encoded import Encoded, Survey, pack
from repr_ray.data.images import Damaged, Look, Target, decode_all, look_at_all
from repr_ray.data.source import Rows, Source, Splits, Subset, Track, silent
from repr_ray.data.sources import source_of
from repr_ray.data.split import check_classes, check_labels, choose, divide, with_noise
from repr_ray.storage.text import listed
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

FORMAT = 3
"""Increased when the layout or the content of the decoded files changes."""

FACTS = "facts.json"
AT_ONCE = 10_000
"""Images per step of the statistics."""

LARGEST = 100_000_000_000
"""Bytes of a decoded copy; with `data.store=auto` a larger data set stays encoded, on every machine."""


@dataclass(frozen=True)
class Split:
    """Images (uint8, n x height x width x channels, or encoded), labels (int64, n), and the index of the split.

    `index` has the places of the split's images, None for all; the images themselves are not copied.
    """

    images: NDArray[np.uint8] | Encoded
    labels: NDArray[np.int64]
    index: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.index is None else self.index)

    @property
    def targets(self) -> NDArray[np.int64]:
        """The labels of the split's images."""
        return self.labels if self.index is None else self.labels[self.index]

    def take(self, places: NDArray[np.int64]) -> "Split":
        """The images at some places of the split."""
        return replace(self, index=places if self.index is None else self.index[places])


@dataclass(frozen=True)
class Decoded:
    """The splits of one trial as views of memory-mapped files, and the statistics for normalisation.

    Mean and standard deviation (pixels in [0, 1], one number per channel) are those of `Data.normalise`, or of the
    whole training set, so that they do not depend on the split. `size` is the side of the images that a network gets,
    in pixels; those of `train` may be larger. `digest` is sixteen hex digits of all images and labels of the source,
    in order, and of the splits unless they depend on the seed. `notes` are decisions about the source, `warning` is a
    problem with it.
    """

    train: Split
    validation: Split
    test: Split
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    size: int
    classes: int
    names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()
    warning: str = ""


def load(data: Data, progress: Track = silent, seed: int = 0) -> Decoded:
    """Map the data set into memory, decoding it first if this machine has not done so yet.

    `seed` draws what depends on the seed by the settings: validation images, label noise. Raises ConfigError
    naming the file or field for sources that cannot be read and splits that do not fit.
    """
    folder, facts = _copy(data, progress)
    pool, test = _split(folder, facts, "train"), _split(folder, facts, "test")
    if len(skipped := facts["skipped"]) > data.skip_damaged:
        raise _too_many_damaged(data, skipped)
    train_index, validation_index = divide(pool.labels, data, seed)
    train = _part(pool, train_index)
    held_out = replace(pool, images=_images(folder, facts, "held_out")) if facts["held_out"] else pool
    validation, notes = _part(held_out, validation_index), [*facts["notes"]]
    if skipped:
        notes.append(f"{len(skipped):,} images that cannot be used are left out: {listed(skipped, 3, '; ')}")
    if facts["validation"] and data.validation_images:
        notes.append("the source's validation split is not used: validation images come from its training images")
    elif facts["validation"]:
        validation = _split(folder, facts, "validation")
    for name, split in (("training", train), ("validation", validation), ("test", test)):
        check_classes(name, split.targets, facts["classes"], tuple(facts["names"]), data)
    digest = [facts["digest"]]
    if data.split_by_seed:
        digest += [f"{len(train_index)} and {len(validation_index)} by seed"]
    else:
        digest += [_sha(train_index), _sha(validation_index)]
    if facts["validation"] and not data.validation_images:
        digest += [facts["validation"]]
    if data.label_noise:
        digest += [f"{data.label_noise} of labels by seed"]
        noisy = train.labels.copy()
        places = slice(None) if train.index is None else train.index
        noisy[places] = with_noise(train.targets, data.label_noise, facts["classes"], seed)
        train = replace(train, labels=noisy)
    shared, (mean, std) = facts["shared"], _statistics(data, facts, pool.images.shape[-1])
    return Decoded(
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        size=facts["size"],
        classes=facts["classes"],
        names=tuple(facts["names"]),
        digest=hashlib.sha256(" ".join(digest).encode()).hexdigest()[:16],
        notes=tuple(notes),
        warning=f"{shared:,} of {len(test):,} test images occur in the training set as well" if shared else "",
    )


def _split(folder: Path, facts: dict[str, Any], name: str) -> Split:
    return Split(_images(folder, facts, name), _map(folder, f"{name}_labels"))


def _images(folder: Path, facts: dict[str, Any], name: str) -> NDArray[np.uint8] | Encoded:
    if "encoded" not in facts:
        return _map(folder, f"{name}_images")
    split = "train" if name == "held_out" else name
    file = folder / f"{split}_content.npy"
    return Encoded(file, _map(folder, f"{split}_offsets"), Target(**facts["encoded"][name]))


def _part(split: Split, index: NDArray[np.int64]) -> Split:
    """Some images of a split: a view if they are consecutive."""
    if isinstance(split.images, np.ndarray) and len(index) and index[-1] - index[0] + 1 == len(index):
        places = slice(int(index[0]), int(index[-1]) + 1)
        return Split(split.images[places], split.labels[places])
    return Split(split.images, split.labels, index)


def _sha(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _too_many_damaged(data: Data, damaged: list[str]) -> ConfigError:
    more = f" (and {len(damaged) - 1:,} more images)" if len(damaged) > 1 else ""
    return ConfigError(
        f"data.source={data.source}: {damaged[0]}{more}; mend or remove them, or leave them out by"
        f" data.skip_damaged={len(damaged)}"
    )


def _statistics(data: Data, facts: dict[str, Any], channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, for normalisation."""
    if data.normalise == "none":
        return np.zeros(channels), np.ones(channels)
    if data.normalise == "channel":
        mean, std = np.asarray(facts["mean"]), np.asarray(facts["std"])
        if not (std > 0).all():
            raise ConfigError(
                f"data.source={data.source}: {facts['where']}: channel {int(std.argmin())} has one value all over"
                " the training images, and cannot be divided by its deviation; say data.normalise=none"
            )
        return mean, std
    given = data.normalise
    if len(given.mean) != channels:
        raise ConfigError(
            f"data.normalise: {len(given.mean)} means and standard deviations, images of {data.name} have {channels}"
            f" channel{'s' * (channels > 1)}"
        )
    return np.asarray(given.mean), np.asarray(given.std)


def _copy(data: Data, progress: Track) -> tuple[Path, dict[str, Any]]:
    """The folder of the decoded copy and its facts; made now if it is missing or incomplete."""
    source, folder = _place(data)
    if (facts := _whole(folder)) is None:
        make(folder.parent)
        try:
            with FileLock(folder.with_suffix(".lock")):
                if (facts := _whole(folder)) is None:
                    _clear(folder)
                    _write(folder, data, source, progress)
                    facts = _whole(folder)
        except OSError as error:
            raise unusable(error) from None
    if facts is None:
        raise ConfigError(f"{folder}: what was decoded into it cannot be read back; name another REPR_RAY_CACHE")
    # the name is part of the copy's identity, so that only a partial set gets here
    for split in ("train", "test") if data.facts and not data.partial else ():
        if (there := facts["counts"][split]) < (expected := getattr(data.facts, split)):
            raise ConfigError(
                f"data.source={data.source}: it has {there:,} {split} images, {data.name} has {expected:,}; give it"
                " another data.name, or say data.partial=true"
            )
    return folder, facts


def _place(data: Data) -> tuple[Source, Path]:
    """The source, and the folder that its decoded copy has or will have."""
    source, stamps = source_of(data)
    shaping = data.model_dump(
        mode="json",
        include={"image", "label", "splits", "channels", "size", "resize", "evaluation_resize", "test_share"},
    )
    if data.store != "auto":
        shaping["store"] = data.store
    key = hashlib.sha256(json.dumps([FORMAT, stamps, shaping], sort_keys=True).encode()).hexdigest()[:12]
    return source, cache_folder() / f"{data.name}-{key}"


def known_facts(data: Data) -> dict[str, Any] | None:
    """The facts of a decoded copy; None without one."""
    return _whole(_place(data)[1])


def _clear(folder: Path) -> None:
    """Delete a damaged copy, and partial copies of killed processes, but no foreign file."""
    for left in folder.parent.glob(f"{folder.name}.*/"):
        shutil.rmtree(left, ignore_errors=True)
    if not folder.exists() and not folder.is_symlink():
        return
    inside = [folder] if folder.is_symlink() or not folder.is_dir() else folder.iterdir()
    if foreign := [path for path in inside if path.suffix not in (".npy", ".json")]:
        raise ConfigError(f"{foreign[0]}: was not written by this program; name another REPR_RAY_CACHE, or remove it")
    shutil.rmtree(folder)


def _whole(folder: Path) -> dict[str, Any] | None:
    """The facts of a decoded copy if its files agree with them; None if it is missing or damaged."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        values = np.asarray([facts["mean"], facts["std"]], dtype=np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
            return None
        classes = facts["classes"]
        for name, (shape, kind) in facts["files"].items():
            array = _map(folder, name)
            if list(array.shape) != shape or array.dtype.str != kind:
                return None
            if name.endswith("_labels") and not (array.min() >= 0 and array.max() < classes):
                return None
            if name.endswith("_offsets"):
                [length], _ = facts["files"][name.replace("offsets", "content")]
                if array[0] != 0 or array[-1] != length or (np.diff(array) <= 0).any():
                    return None
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None
    return facts


def _write(folder: Path, data: Data, source: Source, progress: Track) -> None:
    """Write all files or none: in a folder beside the final one, which is then renamed."""
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
            facts = _decode(partial, data, source.read(Path(scratch)), progress)
        (partial / FACTS).write_text(json.dumps(facts))
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _decode(folder: Path, data: Data, found: Splits, progress: Track) -> dict[str, Any]:
    """Write the arrays of every split; returns their facts."""
    chosen, notes = choose(found, data)
    classes = check_labels(chosen, found, data)
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
            f" {free / 1e9:,.1f} GB; name another REPR_RAY_CACHE, or say data.store=stream"
        )
    surveys: dict[str, Survey] = {}
    for split, rows in chosen.items():
        before = surveys["train"].content if split == "test" else hashlib.sha256()
        store = _pack if encoded else _store
        surveys[split], damaged = store(folder, split, rows, shapes[split], data, before, progress)
        skipped += [f"{rows.where(one.index)}: {one.reason}" for one in damaged]
        kept = _all_but(len(rows.labels), damaged)
        labels = rows.labels[kept]
        surveys[split].labels(labels)
        np.save(folder / f"{split}_labels.npy", labels)
        if split == "train" and held_out and not encoded:
            _write_images(folder, "held_out", Subset(rows, kept), shapes["held_out"], data, progress)
    if len(skipped) > data.skip_damaged:
        raise _too_many_damaged(data, skipped)
    mean, std = surveys["train"].moments()
    arrays = {path.stem: _map(folder, path.stem) for path in sorted(folder.glob("*.npy"))}
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "digest": surveys["test"].content.hexdigest(),
        "classes": classes,
        "names": list(found.names),
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
    if len(skipped) > data.skip_damaged or not all(len(rows.labels) for rows in good.values()):
        raise _too_many_damaged(data, skipped)
    return looks, good, skipped


def _one_size(looks: list[Look], data: Data) -> int:
    sizes = sorted({(one.width, one.height) for one in looks})
    if len(sizes) > 1 or sizes[0][0] != sizes[0][1]:
        first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
        of = f"from {first} to {last}" if len(sizes) > 1 else f"of {first}"
        raise ConfigError(f"data.size: images {of} pixels become squares; say of which side, as in data.size=64")
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
    images = _map(folder, f"{split}_images")
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


def _map(folder: Path, name: str) -> NDArray[Any]:
    try:
        # labels may be written to, in private pages; images may be larger than memory and are read-only
        return np.load(folder / f"{name}.npy", mmap_mode="c" if name.endswith("_labels") else "r")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{folder}/{name}.npy: damaged decoded data ({error}); delete that folder") from None
