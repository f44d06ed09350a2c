"""One copy of a data set per machine, mapped into memory by every trial: decoded or, if that is large, encoded."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from repr_ray.data.cache import cache_folder, make, unusable
from repr_ray.data.copying import decode, mapped, too_many_damaged
from repr_ray.data.encoded import Encoded
from repr_ray.data.images import Target
from repr_ray.data.source import Source, Track, silent
from repr_ray.data.sources import source_of
from repr_ray.data.split import check_classes, divide, with_noise
from repr_ray.storage.text import listed
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

FORMAT = 3  # increased when the layout or the content of the decoded files changes

FACTS = "facts.json"


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
        raise too_many_damaged(data, skipped)
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
    return Split(_images(folder, facts, name), mapped(folder, f"{name}_labels"))


def _images(folder: Path, facts: dict[str, Any], name: str) -> NDArray[np.uint8] | Encoded:
    if "encoded" not in facts:
        return mapped(folder, f"{name}_images")
    split = "train" if name == "held_out" else name
    file = folder / f"{split}_content.npy"
    return Encoded(file, mapped(folder, f"{split}_offsets"), Target(**facts["encoded"][name]))


def _part(split: Split, index: NDArray[np.int64]) -> Split:
    """Some images of a split: a view if they are consecutive."""
    if isinstance(split.images, np.ndarray) and len(index) and index[-1] - index[0] + 1 == len(index):
        places = slice(int(index[0]), int(index[-1]) + 1)
        return Split(split.images[places], split.labels[places])
    return Split(split.images, split.labels, index)


def _sha(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _statistics(data: Data, facts: dict[str, Any], channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, for normalisation."""
    if data.normalise == "none":
        return np.zeros(channels), np.ones(channels)
    if data.normalise == "channel":
        mean, std = np.asarray(facts["mean"]), np.asarray(facts["std"])
        if not (std > 0).all():
            raise ConfigError(
                f"data.source={data.source}: {facts['where']}: channel {int(std.argmin())} has the same"
                " value in all training images, so that its deviation is 0; set data.normalise=none"
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
                " another data.name, or set data.partial=true"
            )
    return folder, facts


def _place(data: Data) -> tuple[Source, Path]:
    """The source, and the folder that its decoded copy has or will have."""
    source, stamps = source_of(data)
    shaping = data.model_dump(mode="json", include=_SHAPING, exclude_defaults=True)
    key = hashlib.sha256(json.dumps([FORMAT, stamps, shaping], sort_keys=True).encode()).hexdigest()[:12]
    return source, cache_folder() / f"{data.name}-{key}"


_SHAPING = {
    *("image", "label", "splits", "configuration", "classes", "store"),
    *("channels", "size", "resize", "evaluation_resize", "test_share"),
}
"""Fields of `Data` that the content of the copy depends on."""


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
            array = mapped(folder, name)
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
            facts = decode(partial, data, source.read(Path(scratch)), progress)
        (partial / FACTS).write_text(json.dumps(facts))
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
