"""Training, validation and test images, and noise of training labels."""

import numpy as np
from numpy.typing import NDArray

from repr_ray.data.source import TEST, TRAIN, VALIDATION, Rows, Splits, Subset, plain_names
from repr_ray.storage.text import listed
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

Index = NDArray[np.int64]

MOST_CLASSES = 1_000_000
"""Classes of a source: an identifier that is taken for a label is named, not turned into a network."""


def by_class(labels: NDArray[np.int64], seed: int) -> Index:
    """A seeded order of images in which every prefix and every suffix has about the same share of each class.

    The k-th image of a class of n gets a place drawn between k/n and (k+1)/n.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    shuffled = rng.permutation(len(labels))
    grouped = shuffled[np.argsort(labels[shuffled], kind="stable")]
    for index in np.split(grouped, np.cumsum(np.unique(labels, return_counts=True)[1])[:-1]):
        place[index] = (np.arange(len(index)) + rng.random(len(index))) / len(index)
    return np.argsort(place, kind="stable")


def divide(labels: NDArray[np.int64], data: Data, seed: int) -> tuple[Index, Index]:
    """The places of training and validation images among the training images, in their order.

    Raises ConfigError if there are too few.
    """
    kept = len(labels) - data.validation_images
    used = kept if data.train_images is None else data.train_images
    if not 0 < used <= kept:
        raise ConfigError(
            f"data: {data.name} has {len(labels):,} training images, too few for"
            f" {'' if data.train_images is None else f'train_images={data.train_images} and '}"
            f"validation_images={data.validation_images}"
        )
    if data.facts and data.facts.tail and not data.split_by_seed:
        return np.arange(used), np.arange(kept, len(labels))
    order = by_class(labels, seed if data.split_by_seed else 0)
    return np.sort(order[:used]), np.sort(order[kept:])


def with_noise(labels: NDArray[np.int64], share: float, classes: int, seed: int) -> NDArray[np.int64]:
    """Labels of which a share, drawn by the seed, is replaced by another class, all with the same probability."""
    rng = np.random.default_rng(seed)
    noisy = labels.copy()
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return noisy


def choose(found: Splits, data: Data) -> tuple[dict[str, Rows], list[str]]:
    """The rows of training, validation (if the source has them) and test images, and notes on decisions.

    Raises ConfigError for a source without training images, or without the test images that its name implies.
    """
    named = dict(data.splits)
    chosen: dict[str, Rows] = {}
    notes = []
    for split, usual in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        if (name := named[split]) and name not in found.rows:
            raise ConfigError(f"data.splits.{split}={name!r}: the source has the splits {', '.join(found.rows)}")
        for name in (named[split],) if named[split] else usual:
            if name in found.rows and (named[split] or name not in named.values()):
                chosen[split] = found.rows[name]
                break
    for split in [split for split, rows in chosen.items() if len(rows.labels) and rows.labels.max() < 0]:
        notes.append(f"the source's {split} split has no labels and is left out")
        del chosen[split]
    if "train" not in chosen:
        raise ConfigError(
            f"data.splits.train: none of the splits {', '.join(found.rows)} is called train; set the one to train on"
        )
    if "test" not in chosen and "validation" in chosen and not named["validation"]:
        chosen["test"] = chosen.pop("validation")
        notes.append("the source has no labelled test split: its validation split is the test set")
    if "test" in chosen:
        if data.test_share != type(data).model_fields["test_share"].default:
            raise ConfigError(f"data.test_share={data.test_share}: the source has test images; leave it out")
        return chosen, notes
    if data.facts and not data.splits.train:
        raise ConfigError(
            f"data.source={data.source}: there is no test split (test-*.parquet, test/), {data.name} has one"
        )
    rows = chosen["train"]
    order = by_class(rows.labels, 0)
    count = round(data.test_share * len(order))
    chosen["train"] = Subset(rows, np.sort(order[: len(order) - count]))
    chosen["test"] = Subset(rows, np.sort(order[len(order) - count :]))
    notes.append(
        f"the source has no test split: {count:,} of its {len(order):,} images, drawn by class, are the test set"
    )
    return chosen, notes


def check_labels(chosen: dict[str, Rows], found: Splits, data: Data) -> tuple[int, tuple[str, ...]]:
    """The number of classes and their names, empty if they are not known.

    Raises ConfigError, naming file and row, unless the labels are those of the data set.
    """
    facts, said = data.facts, data.classes
    highest = max(int(rows.labels.max(initial=-1)) for rows in chosen.values())
    names = found.names or (said if isinstance(said, tuple) else ())
    classes = len(names) or (facts.classes if facts else said if isinstance(said, int) else highest + 1)
    lowest = min(int(rows.labels.min(initial=highest)) for rows in chosen.values())
    if lowest == 1 and not (names or facts or said or data.partial):
        raise ConfigError(
            f"data.source={data.source}: labels go from 1 to {highest}, but must begin at 0: subtract 1, or set"
            " data.partial=true if no image is of class 0"
        )
    if said and (said != classes if isinstance(said, int) else plain_names(said) != plain_names(names)):
        raise ConfigError(f"data.classes: the source has {classes} of its own, {listed(names, 3)}; leave it out")
    if facts and classes != facts.classes:
        raise _another(data, f"it has {classes} classes, {data.name} has {facts.classes}")
    if facts and found.names and facts.labels and plain_names(found.names) != plain_names(facts.labels):
        odd = next(
            pair
            for pair in zip(found.names, facts.labels, strict=True)
            if plain_names(pair[:1]) != plain_names(pair[1:])
        )
        raise _another(data, f"its class {odd[0]!r} is {odd[1]!r} in {data.name}")
    if classes > MOST_CLASSES:
        rows = max(chosen.values(), key=lambda rows: int(rows.labels.max(initial=-1)))
        where = rows.where(int(rows.labels.argmax()))
        raise ConfigError(
            f"data.source={data.source}: {where}: label {highest:,}: there can be {MOST_CLASSES:,} classes"
        )
    if classes < 2:
        called = f" ({names[0]})" if names else ""
        raise ConfigError(
            f"data.source={data.source}: its images are of one class{called}; there is nothing to learn. Folders of"
            " classes lie at the top, or below train/, val/ and test/"
        )
    used = len(np.unique(chosen["train"].labels))
    if facts and used < facts.classes and not data.partial:
        raise _another(data, f"its training images are of {used} classes, {data.name} has {facts.classes}")
    for split, rows in chosen.items():
        if not len(rows.labels):
            raise ConfigError(f"data.source={data.source}: the {split} split has no images")
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= classes))
        if len(wrong):
            where = rows.where(int(wrong[0]))
            raise ConfigError(
                f"data.source={data.source}: {where}: label {rows.labels[wrong[0]]}: {len(wrong):,} labels of {split}"
                f" are outside 0-{classes - 1}"
            )
        if not facts or split == "validation":
            continue
        count, expected = len(rows.labels), getattr(facts, split)
        if count > expected or (count < expected and not data.partial):
            raise _another(data, f"it has {count:,} {split} images, {data.name} has {expected:,}")
    return classes, names


def _another(data: Data, reason: str) -> ConfigError:
    return ConfigError(
        f"data.source={data.source}: {reason}; give it another data.name, or set data.partial=true for a part of it"
        if "images" in reason
        else f"data.source={data.source}: {reason}; give it another data.name"
    )


def check_classes(split: str, labels: NDArray[np.int64], classes: int, names: tuple[str, ...], data: Data) -> None:
    """Raise ConfigError, naming the classes, if some have no image in a split."""
    if data.partial or not len(labels):
        return
    if len(missing := np.flatnonzero(np.bincount(labels, minlength=classes) == 0)):
        called = listed([names[label] if names else str(label) for label in missing], 3)
        raise ConfigError(
            f"data: no {split} image ({len(labels):,} in all) is of class {called}; take more images, another"
            " split, or set data.partial=true"
        )
