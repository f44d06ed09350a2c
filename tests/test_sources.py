"""Usual and damaged sources: found, or refused in one line that names the file and column."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from support import ROOT, STANDARD, TINY, write_config
from test_data import encode, pictures

from repr_ray.data import decoded
from repr_ray.data.decoded import cache_folder, load
from repr_ray.data.describe import describe
from repr_ray.data.images import look, plain
from repr_ray.data.source import ArrayRows, Splits
from repr_ray.data.split import by_class, check_labels, choose, divide, with_noise
from repr_ray.launch import main
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data
from repr_ray.study.facts import FACTS
from repr_ray.study.plan import Trial
from repr_ray.training import trial
from repr_ray.training.step import Setup


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def own(source: object, **fields: Any) -> Data:
    return Data.model_validate({"name": "own", "source": str(source), **fields})


def table(n: int, classes: int = 3, seed: int = 0, image: str = "picture", label: str = "kind") -> pa.Table:
    """`n` images of 32 x 32 pixels in columns that no data set of ours has."""
    rows = [{"bytes": encode(picture, "png"), "path": None} for picture in pictures(n, seed)]
    return pa.table({image: pa.array(rows, STRUCT), label: [k % classes for k in range(n)], "note": ["x"] * n})


def write(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def class_folders(root: Path, sizes: tuple[tuple[int, int], ...] = ((8, 8),), **splits: int) -> Path:
    """Images of three kinds of file in class folders."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for k in range(count):
            folder = root / split.replace("none", "") / ("cat", "dog")[k % 2]
            folder.mkdir(parents=True, exist_ok=True)
            width, height = sizes[k % len(sizes)]
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.save(folder / f"{k}.{('png', 'jpg', 'webp')[k % 3]}")
    return root


@pytest.mark.parametrize(
    "layout", ["{}-00000-of-00001.parquet", "data/{}-00000-of-00001.parquet", "plain/{}/0.parquet"]
)
def test_columns_and_splits_of_parquet_are_found(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "p" / layout.format("train"), table(30))
    write(tmp_path / "p" / layout.format("validation"), table(12, seed=1))
    write(tmp_path / "p" / layout.format("test"), table(9, seed=2))
    data = load(own(tmp_path / "p"))
    np.testing.assert_array_equal(data.train.images, pictures(30))
    np.testing.assert_array_equal(data.validation.images, pictures(12, 1))
    np.testing.assert_array_equal(data.test.images, pictures(9, 2))
    assert (data.classes, data.size) == (3, 32)
    again = load(own(tmp_path / "p", validation_images=6))
    assert len(again.validation) == 6
    assert "the source's validation split is not used" in again.notes[0]
    named = load(own(tmp_path / "p", image="picture", label="kind", splits={"train": "validation", "test": "train"}))
    np.testing.assert_array_equal(named.train.images, pictures(12, 1))


def named(path: Path, names: list[str], labels: list[int]) -> None:
    """A Parquet file with the names of its classes, as `datasets` writes it; an image has the colour of its class."""
    import datasets

    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
    files = [encode(np.full((8, 8, 3), colours.get(names[label].lower(), 0), np.uint8), "png") for label in labels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [{"bytes": file, "path": None} for file in files], "label": labels}
    path.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_every_file_keeps_its_own_order_of_classes(tmp_path: Path) -> None:
    """A label is the place of a name in its own file; each shard and split may have the names in another order."""
    orders = {
        "train-00000-of-00002": "red green blue",
        "train-00001-of-00002": "blue red green",
        "test": "green blue red",
    }
    for name, order in orders.items():
        named(tmp_path / "p" / f"{name}.parquet", order.split(), [0, 1, 2, 2])
    data = load(own(tmp_path / "p"))
    assert data.names == ("red", "green", "blue")
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.images[:, 0, 0].argmax(1), split.targets)
    named(tmp_path / "p" / "test.parquet", ["Green", "red"], [1, 0])  # a part of them, written otherwise
    part = load(own(tmp_path / "p", partial=True)).test
    assert part.targets.tolist() == [0, 1] and part.images[0, 0, 0].tolist() == [200, 0, 0]
    named(tmp_path / "p" / "test.parquet", ["red", "green", "yellow"], [0, 1, 2])
    with pytest.raises(ConfigError, match=r"has the classes red, green, yellow; in \S+ red, green, blue: "):
        load(own(tmp_path / "p"))


def test_labels_in_parquet_may_be_texts_or_true_and_false(tmp_path: Path) -> None:
    texts, flags = np.array(["dog", "cat", "cow"]), np.array([True, False])
    for split, seed in (("train", 0), ("test", 1)):
        rows = table(12, seed=seed, label="label")
        for name, labels in (("texts", texts), ("flags", flags)):
            column = pa.array(labels[np.arange(12) % len(labels)])
            write(tmp_path / name / f"{split}.parquet", rows.set_column(1, "label", column))
    data = load(own(tmp_path / "texts"))
    assert (data.names, data.train.targets[:3].tolist()) == (("cat", "cow", "dog"), [2, 0, 1])
    assert load(own(tmp_path / "flags")).test.targets[:3].tolist() == [1, 0, 1]
    order = ["dog", "cow", "cat"]
    assert load(own(tmp_path / "texts", classes=order)).names == tuple(order)


@pytest.mark.parametrize("old", [["dog", "cow", "cat"], ["other"]])
def test_texts_in_place_of_numbers_need_no_names(tmp_path: Path, old: list[str]) -> None:
    """Arrow keeps the names of the numbers that a column had before."""
    features = {"image": {"_type": "Image"}, "label": {"names": old, "_type": "ClassLabel"}}
    stale = {"huggingface": json.dumps({"info": {"features": features}})}
    texts = pa.array(["cat", "cow", "dog"] * 4)
    for split, column in (("train", texts), ("test", texts.dictionary_encode())):
        rows = table(12, image="image", label="label").select(["image", "label"])
        write(tmp_path / "p" / f"{split}.parquet", rows.set_column(1, "label", column).replace_schema_metadata(stale))
    data = load(own(tmp_path / "p"))
    assert data.names == ("cat", "cow", "dog")
    assert data.train.targets.tolist() == data.test.targets.tolist() == [0, 1, 2] * 4


def test_labels_that_begin_at_one_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = table(12, label="label")
        labels = pa.array(np.arange(12) % 3 + 1)
        write(tmp_path / "p" / f"{split}.parquet", rows.set_column(1, "label", labels))
    with pytest.raises(ConfigError, match=r"labels go from 1 to 3, but must begin at 0: subtract 1"):
        load(own(tmp_path / "p"))
    assert load(own(tmp_path / "p", partial=True)).classes == 4


def test_a_dry_run_counts_what_is_left_and_has_the_notes(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "c", none=40)
    data = own(root, skip_damaged=1, size=8)
    (root / "cat" / "0.png").write_bytes(b"")
    load(data)
    said = describe(data)
    assert "31 train, 8 test images" in said and "decoded already" in said
    assert "the source has no test split: 8 of its 40 images" in said and "1 images that cannot be used" in said
    with pytest.raises(ConfigError, match=r"skip_damaged=1"):
        describe(own(root, size=8))
    with pytest.raises(ConfigError, match=r"too few for validation_images=50"):
        describe(own(root, skip_damaged=1, size=8, validation_images=50))


@pytest.mark.parametrize("fields", [{}, {"size": 8, "channels": 3}, {"size": 8, "channels": 3, "store": "stream"}])
def test_a_split_without_a_usable_image_is_named(tmp_path: Path, fields: dict[str, Any]) -> None:
    root = class_folders(tmp_path / "c", train=8, test=2)
    for file in (root / "test").rglob("*.*"):
        file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"mend or remove them, no test image would be left without them"):
        load(own(root, skip_damaged=2, **fields))


def test_an_orientation_that_there_is_not_is_upright(tmp_path: Path) -> None:
    """EXIF has the orientations 1 to 8; from 5 on the sides are swapped."""
    exif = Image.Exif()
    for orientation, size in ((1, (20, 10)), (6, (10, 20)), (8, (10, 20)), (9, (20, 10)), (77, (20, 10))):
        exif[0x112] = orientation
        Image.new("RGB", (20, 10)).save(tmp_path / "i.jpg", exif=exif)
        with Image.open(tmp_path / "i.jpg") as image:
            found = look(image)
            assert (found.width, found.height) == plain(image, 3).size == size


def test_classes_that_are_not_found_can_be_said(tmp_path: Path) -> None:
    root = tmp_path / "p"
    write(root / "train.parquet", table(30))
    write(root / "test.parquet", table(9, seed=1))
    said = own(root, classes=["cat", "dog", "frog"])
    assert load(said).names == ("cat", "dog", "frog")
    assert "9 test images of 3 classes (cat, dog, frog)" in describe(said)
    with pytest.raises(ConfigError, match=r"no training image .* is of class 3; .*data\.partial=true"):
        load(own(root, classes=4))
    assert load(own(root, classes=4, partial=True)).classes == 4
    with pytest.raises(ConfigError, match="label 2: 10 labels of train are outside 0-1"):
        load(own(root, classes=2))
    folders = class_folders(tmp_path / "c", train=20, test=6)
    assert load(own(folders, classes=["cat", "dog"])).names == ("cat", "dog")
    for other in (3, ["dog", "cat"]):
        with pytest.raises(ConfigError, match=r"data\.classes: the source has 2 of its own, cat, dog; leave it out"):
            load(own(folders, classes=other))
    for wrong in (1, ["cat"], ["cat", "cat"], "cat", 0.5):
        with pytest.raises(ValidationError, match="classes"):
            own(root, classes=wrong)
    with pytest.raises(ValidationError, match="classes: those of cifar10 are known"):
        Data(name="cifar10", classes=10)


def test_configurations_of_a_data_set_are_told_apart(tmp_path: Path) -> None:
    root, one = tmp_path / "p", "- config_name: {0}\n  data_files:\n  - {{split: train, path: {0}/*}}\n"
    root.mkdir()
    (root / "README.md").write_text(f"---\nconfigs:\n{one.format('cropped')}{one.format('full')}---\n")
    write(root / "cropped" / "0.parquet", table(30))
    write(root / "full" / "0.parquet", table(50, seed=1))
    for said in ({}, {"configuration": "cropt"}):
        with pytest.raises(ConfigError, match=r"configurations cropped, full; set one, as in data\.configuration=cr"):
            load(own(root, **said))
    sizes = {name: load(own(root, configuration=name)) for name in ("cropped", "full")}
    assert {name: len(found.train) + len(found.test) for name, found in sizes.items()} == {"cropped": 30, "full": 50}
    with pytest.raises(ConfigError, match=r"has no Parquet files, and data\.configuration names a part of one"):
        load(own(class_folders(tmp_path / "c", train=20, test=6), configuration="full"))


def test_a_validation_split_is_the_test_set_where_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", table(30))
    write(tmp_path / "p" / "validation.parquet", table(9, seed=1))
    unlabelled = table(5, seed=2).set_column(1, "kind", pa.array([-1] * 5))
    write(tmp_path / "p" / "test.parquet", unlabelled)
    data = load(own(tmp_path / "p"))
    np.testing.assert_array_equal(data.test.images, pictures(9, 1))
    assert data.notes[0].endswith("test split has no labels and is left out")
    assert data.notes[1].endswith("its validation split is the test set")


def test_no_test_split_a_share_is_drawn_by_class(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", table(100, classes=5))
    data = load(own(tmp_path / "p", test_share=0.3))
    assert np.bincount(data.test.targets).tolist() == [6] * 5
    assert data.notes == ("the source has no test split: 30 of its 100 images, drawn by class, are the test set",)
    together = np.concatenate([data.train.images, data.test.images]).reshape(100, -1)
    assert len(np.unique(together, axis=0)) == 100
    np.testing.assert_allclose(data.mean, data.train.images.mean((0, 1, 2)) / 255)  # of training images only
    write(tmp_path / "p" / "test.parquet", table(10, classes=5))
    with pytest.raises(ConfigError, match=r"data\.test_share=0\.3: the source has test images"):
        load(own(tmp_path / "p", test_share=0.3))


@pytest.mark.parametrize("splits", [{"train": 20, "test": 6}, {"train": 20, "val": 6}, {"training": 20, "dev": 6}])
def test_class_folders(tmp_path: Path, splits: dict[str, int]) -> None:
    data = load(own(class_folders(tmp_path / "c", **splits)))
    assert data.names == ("cat", "dog")
    assert np.bincount(data.train.targets).tolist() == [10, 10]
    assert len(data.test) == 6


def test_class_folders_without_splits_and_a_class_called_like_one(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "c", none=20)
    data = load(own(root))
    assert (len(data.train), len(data.test)) == (16, 4)
    (class_folders(tmp_path / "d", train=20, test=4) / "train" / "cat").rename(
        tmp_path / "d" / "train" / "test_tubes"
    )
    (tmp_path / "d" / "test" / "cat").rename(tmp_path / "d" / "test" / "test_tubes")
    assert load(own(tmp_path / "d")).names == ("dog", "test_tubes")


@pytest.mark.parametrize("names", [("Train", "Test"), ("training_set", "test_set"), ("TRAIN", "valid_data")])
def test_splits_under_other_names_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    root = class_folders(tmp_path / "own", **{names[0]: 20, names[1]: 6})
    with pytest.raises(
        ConfigError, match=rf"{min(names)}, {max(names)} look like splits.*data\.splits\.test="
    ) as caught:
        load(own(root))
    assert len(str(caught.value).splitlines()) == 1
    data = load(own(root, splits={"train": names[0], "test": names[1]}))
    assert (len(data.train), len(data.test), data.names) == (20, 6, ("cat", "dog"))


def test_images_in_folders_that_tell_nothing_apart(tmp_path: Path) -> None:
    """One folder around those of the classes is one class."""
    with pytest.raises(ConfigError, match=r"one class \(images\); there is nothing to learn"):
        load(own(class_folders(tmp_path / "own", images=12)))


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "ppm"])
def test_images_that_are_not_read_are_not_left_out_in_silence(tmp_path: Path, suffix: str) -> None:
    root = class_folders(tmp_path / "own", train=20, test=6)
    Image.new("RGB", (8, 8)).save(root / "train" / "cat" / f"x.{suffix}")
    with pytest.raises(ConfigError, match=rf"train/cat/x\.{suffix}: 1 images of such formats are not read, only jpg"):
        load(own(root))
    (root / "train" / "cat" / f"x.{suffix}").unlink()
    (root / "train" / "cat" / "2.webp").rename(root / "train" / "cat" / "2.jfif")
    assert len(load(own(root)).train) == 20


@pytest.mark.parametrize("content", [b"", b"no image", b"RIFF"])
def test_a_dry_run_says_that_the_first_image_is_damaged(tmp_path: Path, content: bytes) -> None:
    root = class_folders(tmp_path / "own", train=20, test=6)
    (root / "train" / "cat" / "0.png").write_bytes(content)
    assert "train begins with" in describe(own(root))
    assert "train/cat/0.png: is not a JPEG, PNG, WEBP, BMP, GIF image" in describe(own(root))
    with pytest.raises(ConfigError, match=r"train/cat/0\.png: is not a .*data\.skip_damaged=1"):
        load(own(root))


def test_mixed_sizes_are_scaled_and_cropped(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "c", ((20, 12), (9, 30)), train=20, test=8)
    with pytest.raises(ConfigError, match=r"data\.size: images from 9 x 30 to 20 x 12 pixels are scaled to squares"):
        load(own(root))
    data = load(own(root, size=8, resize=10, evaluation_resize=9, validation_images=4))
    assert data.train.images.shape[1:] == (10, 10, 3)
    assert data.validation.images.shape[1:] == data.test.images.shape[1:] == (8, 8, 3)
    assert data.size == 8
    path = next(path for path in sorted((root / "test" / "cat").iterdir()) if path.suffix == ".png")
    with Image.open(path) as image:
        shorter = image.resize([round(side * 9 / min(image.size)) for side in image.size], Image.Resampling.BILINEAR)
    expected = np.asarray(torchvision.transforms.v2.functional.center_crop(shorter, [8, 8]))
    assert min(np.abs(one.astype(int) - expected).max() for one in data.test.images) == 0


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_modes_of_images(tmp_path: Path, mode: str, channels: int) -> None:
    rng, suffix = np.random.default_rng(0), "jpg" if mode == "CMYK" else "png"
    for split, count in (("train", 6), ("test", 4)):
        for k in range(count):
            path = tmp_path / "m" / split / str(k % 2) / f"{k}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode).save(path)
    assert load(own(tmp_path / "m")).train.images.shape[-1] == channels
    for wanted in (1, 3):
        assert load(own(tmp_path / "m", channels=wanted)).train.images.shape[-1] == wanted


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for k in range(2):
            path = tmp_path / "m" / split / str(k) / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGBA", (4, 4), (k * 200, 0, 0, 0 if k else 255)).save(path)
    data = load(own(tmp_path / "m", normalise="none"))
    assert data.train.images[0].tolist() == [[[0, 0, 0]] * 4] * 4
    assert data.train.images[1].tolist() == [[[255, 255, 255]] * 4] * 4


def breaks(name: str) -> tuple[Callable[[Path], Any], str]:
    """A fault put into a folder of train.parquet and test.parquet, and the line that tells it."""
    png = encode(pictures(1)[0], "png")

    def replace(**columns: Any) -> Callable[[Path], Any]:
        if isinstance(columns["picture"], list) and isinstance(columns["picture"][0], dict):
            columns["picture"] = pa.array(columns["picture"], STRUCT)
        return lambda root: write(root / "test.parquet", pa.table(columns))

    deep = Image.fromarray(np.zeros((32, 32), np.uint16))
    good = [{"bytes": png}] * 3
    faults: dict[str, tuple[Callable[[Path], Any], str]] = {
        "label 3.7": (
            replace(picture=good, kind=[0, 1, 3.7]),
            r"test.parquet: column kind holds double; labels are",
        ),
        "label text": (replace(picture=good, kind=["0", "1", "3"]), r"test.parquet: column kind holds string"),
        "label true": (replace(picture=good, kind=[True, False, True]), r"test.parquet: column kind holds bool"),
        "label missing": (replace(picture=good, kind=[0, 1, None]), r"test.parquet: column kind is empty in 1 rows"),
        "negative": (
            replace(picture=good, kind=[0, 1, -1]),
            r"test.parquet, row 2, column picture: label -1",
        ),
        "an identifier": (
            replace(picture=good, kind=[0, 10**12, 2]),
            r"test.parquet, row 1, column picture: label 1,000,000,000,000: there can be 1,000,000 classes",
        ),
        "an escape": (
            lambda root: (
                (root / "README.md").write_text(_README.format("../q/*.parquet"))
                and write(root.parent / "q" / "train.parquet", table(9))
            ),
            r"q/train.parquet: is named by the README, but is outside this folder",
        ),
        "two kinds": (
            lambda root: class_folders(root, train=3),
            r"cat/0.png: is not a Parquet file, others are",
        ),
        "no struct": (
            replace(picture=[b"x", b"y", b"z"], kind=[0, 1, 2]),
            r"column picture holds binary, in train.parquet struct",
        ),
        "no image": (
            replace(picture=[1, 2, 3], kind=[0, 1, 2]),
            r"test.parquet: column picture holds int64, not images",
        ),
        "no bytes": (
            replace(picture=[{"bytes": None, "path": "/etc/passwd"}] * 3, kind=[0, 1, 2]),
            r"test.parquet, row 0, column picture: .*holds no bytes",
        ),
        "no rows": (
            lambda root: write(root / "test.parquet", table(3).slice(0, 0)),
            r"test.parquet: column kind has no",
        ),
        "truncated": (lambda root: os.truncate(root / "test.parquet", 900), r"test.parquet: is damaged"),
        "no Parquet": (lambda root: (root / "test.parquet").write_bytes(b"PAR1" * 9), r"test.parquet: is damaged"),
        "16 bits": (
            replace(picture=[{"bytes": _bytes(deep)}] * 3, kind=[0, 1, 2]),
            r"test.parquet, row 0, column picture: 16 bits or more",
        ),
        "dangling": (lambda root: (root / "x.parquet").symlink_to(root / "none"), r"x.parquet: is a broken link"),
        "round": (lambda root: (root / "x").symlink_to(root), r"/x: is a link to a folder that contains it"),
        "itself": (lambda root: (root / "x").symlink_to(root / "x"), r"/x: is a broken link|symbolic links"),
        "pipe": (lambda root: os.mkfifo(root / "x.parquet"), r"x.parquet: is a pipe, socket or device"),
        "one of two": (
            lambda root: (root / "test.parquet").rename(root / "test-00000-of-00002.parquet"),
            r"test-\*-of-00002.parquet: 1 of 2 files are missing",
        ),
        "copy": (
            lambda root: shutil.copy(root / "test.parquet", root / "test (1).parquet"),
            r": looks like a copy",
        ),
        "bomb": (
            replace(picture=[{"bytes": _bomb()}] * 3, kind=[0, 1, 2]),
            r"test.parquet, row 0, column picture: .*decompression bomb",
        ),
        "control": (
            lambda root: write(root / "test.parquet", table(3).rename_columns(["picture", "\x1b[31mkind", "note"])),
            r"test.parquet: there is no column kind",
        ),
    }
    return faults[name] if name else (lambda root: list(faults), "")


_README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"


def _bytes(image: Image.Image) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _bomb() -> bytes:
    """A small PNG whose header says 30,000 x 30,000 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IEND\xaeB\x60\x82"


@pytest.mark.parametrize("name", breaks("")[0](Path()))
def test_a_fault_gets_one_line_that_names_file_and_column(tmp_path: Path, name: str) -> None:
    root = tmp_path / "p"
    write(root / "train.parquet", table(30))
    write(root / "test.parquet", table(9, seed=1))
    put, expected = breaks(name)
    put(root)
    with pytest.raises(ConfigError, match=expected) as caught:
        load(own(root))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert not list(cache_folder().glob("own-*/"))


def test_damaged_images_may_be_skipped(tmp_path: Path) -> None:
    content = table(30)
    rows = content["picture"].to_pylist()
    rows[4], rows[7] = {"bytes": b"RIFF", "path": None}, {"bytes": rows[7]["bytes"][:1500], "path": None}
    write(tmp_path / "p" / "train.parquet", content.set_column(0, "picture", pa.array(rows, STRUCT)))
    write(tmp_path / "p" / "test.parquet", table(9, seed=1))
    with pytest.raises(
        ConfigError, match=r"train.parquet, row 4, column picture: is not a .*data\.skip_damaged=[12]"
    ):
        load(own(tmp_path / "p"))
    data = load(own(tmp_path / "p", skip_damaged=2))
    np.testing.assert_array_equal(data.train.images, np.delete(pictures(30), [4, 7], axis=0))
    assert data.train.targets.tolist() == [k % 3 for k in range(30) if k not in (4, 7)]
    assert data.notes[0].startswith("2 images that cannot be used are left out: train.parquet, row 4")
    with pytest.raises(ConfigError, match=r"data\.skip_damaged=2"):  # of the copy that is there now
        load(own(tmp_path / "p", skip_damaged=1))


def test_images_of_one_value_are_refused(tmp_path: Path) -> None:
    flat = [{"bytes": encode(np.full((32, 32, 3), 7, np.uint8), "png")}] * 4
    for split in ("train", "test"):
        write(tmp_path / "p" / f"{split}.parquet", pa.table({"img": flat, "label": [0, 1, 0, 1]}))
    with pytest.raises(ConfigError, match=r"column img: channel 0 has the same value in all"):
        load(own(tmp_path / "p"))
    assert load(own(tmp_path / "p", normalise="none")).std.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "classes", "count", "names", "expected"),
    [
        ("cifar100", 10, 20, None, "its training images are of 10 classes, cifar100 has 100"),
        ("stl10", 10, 5_010, None, "5,010 train images, stl10 has 5,000"),
        ("cifar10", 10, 20, None, "20 train images, cifar10 has 50,000; .* data.partial=true for a part"),
        ("cifar10", 10, 20, [str(k) for k in range(10)], "its class '0' is 'airplane' in cifar10"),
        ("cifar10", 12, 24, None, "label 10: 4 labels of train are outside 0-9"),
    ],
)
def test_what_is_not_the_named_data_set_is_refused(
    tmp_path: Path, name: str, classes: int, count: int, names: list[str] | None, expected: str
) -> None:
    import datasets

    image = {"bytes": encode(pictures(1)[0], "png"), "path": None}
    rows = {"img": [image] * count, "label": [k % classes for k in range(count)]}
    features = {
        "img": datasets.Image(),
        "label": datasets.ClassLabel(names=names) if names else datasets.Value("int64"),
    }
    for split in ("train", "test"):
        path = tmp_path / "p" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)
    with pytest.raises(ConfigError, match=expected) as caught:
        load(Data(name=name, source=str(tmp_path / "p")))
    assert len(str(caught.value).splitlines()) == 1


DIGITS = list("0123456789")
PUBLISHED: dict[str, tuple[dict[str, int], list[str]]] = {
    "cifar10": (
        {"train": 50_000, "test": 10_000},
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    ),
    "cifar100": (
        {"train": 50_000, "test": 10_000},
        ["cra" if name == "crab" else name for name in sorted(FACTS["cifar100"].labels)],
    ),
    "mnist": ({"train": 60_000, "test": 10_000}, DIGITS),
    "fashion_mnist": ({"train": 60_000, "test": 10_000}, torchvision.datasets.FashionMNIST.classes),
    "svhn": ({"train": 73_257, "test": 26_032, "extra": 531_131}, DIGITS),
    "stl10": (
        {"train": 5_000, "test": 8_000},
        ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"],
    ),
    "tiny_imagenet": ({"train": 100_000, "valid": 10_000}, [f"n{k}" for k in range(200)]),
    "imagenette": ({"train": 9_469, "val": 3_925}, list(torchvision.datasets.Imagenette._WNID_TO_CLASS)),
    "imagenet": ({"train": 1_281_167, "validation": 50_000, "test": -100_000}, [f"n{k}" for k in range(1_000)]),
}
"""Splits and names as published: by cs.toronto.edu/~kriz, cs.stanford.edu/~acoates/stl10, torchvision, and on the hub
by uoft-cs/cifar100 (`cra`), ufldl-stanford/svhn, zh-plus/tiny-imagenet, frgfm/imagenette and ILSVRC/imagenet-1k. A
negative number of images: they have no labels."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_is_published_and_nothing_else(name: str) -> None:
    splits, names = PUBLISHED[name]
    data = Data(name=name, source="hf:any/one")
    taken = {**splits}

    def classes(names: list[str]) -> int:
        labels = {k: np.arange(n) % len(names) if n > 0 else np.full(-n, -1) for k, n in taken.items()}
        found = Splits({k: ArrayRows(np.empty(0, np.uint8), of) for k, of in labels.items()}, tuple(names))
        return check_labels(choose(found, data)[0], found, data)[0]

    assert classes(names) == len(names)
    if FACTS[name].labels:
        with pytest.raises(ConfigError, match=f"its class '{re.escape(names[1])}' is '"):
            classes([names[1], names[0], *names[2:]])
    with pytest.raises(ConfigError, match=f"it has {len(names) + 1} classes, {name} has {len(names)}"):
        classes([*names, "another"])
    for split in splits.keys() - ({"extra"} if splits.get("test", 1) > 0 else {"test"}):
        taken = splits | {split: splits[split] - 1}
        with pytest.raises(ConfigError, match=rf"{splits[split] - 1:,} \w+ images, {name} has {splits[split]:,}"):
            classes(names)


def test_the_presets_are_tested() -> None:
    assert FACTS.keys() == PUBLISHED.keys() | {"digits"}


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "c", train=20, test=6)
    shutil.rmtree(root / "test" / "dog")
    with pytest.raises(ConfigError, match=r"no test image \(3 in all\) is of class dog; .* data\.partial=true"):
        load(own(root))
    assert len(load(own(root, partial=True)).test) == 3


def test_class_sorted_images_are_split_by_class(tmp_path: Path) -> None:
    """The last images of this training set are all of one class."""
    content = table(60).sort_by("kind")
    write(tmp_path / "p" / "train.parquet", content)
    write(tmp_path / "p" / "test.parquet", table(9, seed=1))
    data = load(own(tmp_path / "p", validation_images=15, train_images=30))
    assert np.bincount(data.validation.targets).tolist() == [5, 5, 5]
    assert np.bincount(data.train.targets).tolist() == [10, 10, 10]


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_and_end_has_its_share_of_each_class(seed: int) -> None:
    labels = np.random.default_rng(seed).choice(4, 200, p=[0.6, 0.2, 0.15, 0.05])
    order, counts = by_class(labels, seed), np.bincount(labels)
    assert sorted(order) == list(range(200))
    for n in range(1, 200):
        assert (np.abs(np.bincount(labels[order[:n]], minlength=4) - counts * n / 200) <= 3).all()
    assert (by_class(labels, seed) == order).all()


def test_a_split_by_seed_differs_between_seeds_only(tmp_path: Path) -> None:
    data = Data.model_validate({"name": "digits", "validation_images": 300, "split_by_seed": True})
    first, again, other = (load(data, seed=seed) for seed in (1, 1, 2))
    assert (first.validation.index == again.validation.index).all()
    assert (first.validation.index != other.validation.index).any()
    assert not set(first.train.index) & set(first.validation.index)
    assert first.digest == other.digest != load(data.model_copy(update={"split_by_seed": False})).digest


def test_old_names_keep_the_tail() -> None:
    labels = np.arange(100) % 10
    train, held_out = divide(labels, Data(name="cifar10", validation_images=20, train_images=50), seed=3)
    assert (train.tolist(), held_out.tolist()) == (list(range(50)), list(range(80, 100)))


def test_label_noise_is_of_training_labels_only() -> None:
    labels = np.arange(1000) % 7
    noisy = with_noise(labels, 0.2, 7, seed=1)
    changed = noisy != labels
    assert changed.sum() == 200
    assert np.bincount((noisy - labels)[changed] % 7, minlength=7)[1:].min() > 15
    assert (with_noise(labels, 0.2, 7, seed=1) == noisy).all()
    data = Data.model_validate({"name": "digits", "validation_images": 300, "label_noise": 0.2})
    clean, other = load(data.model_copy(update={"label_noise": 0.0})), load(data, seed=5)
    assert (clean.train.targets != other.train.targets).sum() == round(0.2 * 1137)
    for split in ("validation", "test"):
        assert (getattr(clean, split).targets == getattr(other, split).targets).all()
    assert clean.digest != other.digest == load(data, seed=6).digest


def test_test_images_in_the_training_set_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", table(30))
    write(tmp_path / "p" / "test.parquet", pa.concat_tables([table(6, seed=1), table(3)]))
    assert load(own(tmp_path / "p")).warning == "3 of 9 test images occur in the training set as well"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train_images.npy").write_bytes(b""),
        lambda folder: os.truncate(folder / "train_images.npy", 500),
        lambda folder: np.save(folder / "train_labels.npy", np.zeros(3, np.int64)),
        lambda folder: np.save(folder / "test_labels.npy", np.full(9, 77)),
        lambda folder: np.save(folder / "test_images.npy", np.zeros((9, 32, 32, 3), np.float32)),
        lambda folder: (folder / "test_labels.npy").unlink(),
        lambda folder: (folder / "facts.json").write_text("{}"),
        lambda folder: (folder / "facts.json").write_text(
            (folder / "facts.json").read_text().replace("0.", "NaN, 0.", 1)
        ),
    ],
)
def test_a_damaged_copy_is_made_again(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    write(tmp_path / "p" / "train.parquet", table(30))
    write(tmp_path / "p" / "test.parquet", table(9, seed=1))
    before = load(own(tmp_path / "p")).digest
    [folder] = cache_folder().glob("own-*/")
    damage(folder)
    assert load(own(tmp_path / "p")).digest == before


def test_a_cache_that_is_not_ours_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(name="digits")
    load(data)
    [folder] = cache_folder().glob("digits-*/")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis.txt: was not written by this program; name another"):
        load(data)
    assert (folder / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"REPR_RAY_CACHE=.*file: .*; name a folder that can be written"):
        load(data)


def test_changed_and_edited_readers_decode_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "c", train=20, test=6)
    load(own(root))
    Image.new("RGB", (8, 8), "red").save(root / "train" / "cat" / "0.png")
    assert (load(own(root)).train.images[0] == [255, 0, 0]).all()
    monkeypatch.setattr(decoded, "FORMAT", decoded.FORMAT + 1)
    load(own(root))
    assert len(list(cache_folder().glob("own-*/"))) == 3


def test_a_folder_on_storage_is_read_like_any(tmp_path: Path) -> None:
    write(tmp_path / "p" / "train.parquet", table(30))
    write(tmp_path / "p" / "test.parquet", table(9, seed=1))
    assert load(own((tmp_path / "p").as_uri())).digest == load(own(tmp_path / "p")).digest
    with pytest.raises(ConfigError, match=r"data\.source=file://"):
        load(own((tmp_path / "none").as_uri()))


def test_the_hub_is_asked_only_for_what_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    write(tmp_path / "p" / "data" / "train-00000-of-00001.parquet", table(30))
    write(tmp_path / "p" / "data" / "test-00000-of-00001.parquet", table(9, seed=1))
    asked = []

    def snapshot(name: str, local_files_only: bool, revision: str | None, **rest: Any) -> str:
        asked.append((name, revision, local_files_only))
        if local_files_only and len(asked) == 1:
            raise LocalEntryNotFoundError("nothing here")
        if name == "a/none":
            raise ConnectionError("no network")
        return str(tmp_path / "p")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load(own("hf:a/b@v1")).digest == load(own(tmp_path / "p")).digest
    assert asked == [("a/b", "v1", True), ("a/b", "v1", False)]
    with pytest.raises(ConfigError, match=r"hf:a/none: cannot be downloaded \(ConnectionError: no network\)"):
        load(own("hf:a/none"))


def test_a_torchvision_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FashionMNIST:
        def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
            self.data = pictures(40 if train else 20, int(train))[..., 0]
            self.targets = np.arange(len(self.data)) % 10

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(self.data[index]), int(self.targets[index])

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", FashionMNIST)
    data = load(own("torchvision:FashionMNIST"))
    np.testing.assert_array_equal(data.train.images[..., 0], pictures(40, 1)[..., 0])
    with pytest.raises(ConfigError, match=r"60,000|28 x 28"):
        load(Data(name="fashion_mnist"))
    with pytest.raises(ConfigError, match="has no class Nothing"):
        load(own("torchvision:Nothing"))


def test_a_study_of_ones_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dry run, training with everything in it, and the notes that are stored."""
    root = class_folders(tmp_path / "c", ((12, 8), (8, 14)), train=60)
    data = {
        "name": "pets",
        "source": str(root),
        "size": 8,
        "validation_images": 10,
        "split_by_seed": True,
        "label_noise": 0.1,
        "augment": {"random_resized_crop": {}, "mixup": 0.2},
    }
    config = write_config(
        tmp_path, data=data, schemes=STANDARD, train={**TINY["train"], "epochs": 1, "batch_size": 16}
    )
    arguments = ["--config", str(config), "--results", str(tmp_path / "r"), "--runner", "local"]
    assert main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "data: pets: 48 train, 12 test images of 2 classes (cat, dog); train begins with" in said
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "data: the source has no test split: 12 of its 60 images, drawn by class, are the test set" in said
    [stored] = (tmp_path / "r" / "tiny").glob("trials/*/result.json")
    assert "the source has no test split" in stored.read_text()
    assert "the source has no test split" in (tmp_path / "r" / "tiny" / "comparison.md").read_text()


def test_a_study_of_columns_of_parquet_whose_validation_images_depend_on_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images are held out for all schemes of a seed, and mixed ones are trained on."""
    held_out: dict[tuple[str, int], list[int]] = {}
    set_up = trial.set_up

    def noted(one: Trial, *rest: Any) -> Setup:
        made = set_up(one, *rest)
        held_out[one.scheme, one.seed] = made.validation.store.index.tolist()
        [batch] = made.train.shuffled(100, torch.Generator())
        assert batch.labels.shape == (48, 3) and batch.labels.max(1).values.min() < 1
        return made

    monkeypatch.setattr(trial, "set_up", noted)
    for split, count in (("train", 60), ("test", 9)):
        write(tmp_path / "p" / "data" / f"{split}-00000-of-00001.parquet", table(count))
    data = {"name": "own", "source": str(tmp_path / "p"), "image": "picture", "label": "kind", "size": 8, "resize": 9}
    more = {"validation_images": 12, "split_by_seed": True, "augment": {"cutmix": 1.0}}
    schemes = {**STANDARD, "orthogonal": {"kind": "standard", "loss": {"kind": "orthogonality"}}}
    train = {**TINY["train"], "epochs": 1, "batch_size": 16}
    config = write_config(tmp_path, data=data | more, schemes=schemes, train=train, seeds=[0, 1])
    assert main(["--config", str(config), "--results", str(tmp_path / "r"), "--runner", "local"]) == 0
    assert set(held_out) == {(scheme, seed) for scheme in schemes for seed in (0, 1)}
    for seed in (0, 1):
        assert held_out["standard", seed] == held_out["orthogonal", seed]
    assert held_out["standard", 0] != held_out["standard", 1]
    for index in held_out.values():
        assert np.bincount([k % 3 for k in index]).tolist() == [4, 4, 4]


def test_a_dry_run_of_a_source_that_is_not_here_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, data={"name": "mnist"})
    assert main(["--config", str(config), "--dry-run"]) == 0
    assert "data: mnist from torchvision: not read (perhaps not downloaded yet)" in capsys.readouterr().out


def test_sources_are_imported_when_they_are_needed() -> None:
    script = (
        "import sys, repr_ray.data.sources; assert not {'datasets', 'torch', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_a_tree_of_folders_is_no_data_set(tmp_path: Path) -> None:
    """Such as a home folder: it is refused before its files are listed."""
    deep = tmp_path / "a" / "b" / "c" / "train-00000-of-00001.parquet"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"a/b/c/train-00000-of-00001\.parquet: is too deep below the folder; name the folder"
    ):
        decoded.load(Data(name="mine", source=str(tmp_path)))
