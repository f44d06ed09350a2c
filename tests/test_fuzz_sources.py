"""Random Parquet sources and class folders: read, or refused in one line; nothing hangs, nothing is a traceback."""

import os
import random
import shutil
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_data import encode, pictures

from repr_ray.data.decoded import load
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data

SECONDS = float(os.environ.get("REPR_RAY_FUZZ_SECONDS", "10"))
SLOWEST = 20.0
"""Seconds of one source on a machine that others use too."""

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
IMAGES = [encode(picture, kind) for kind in ("png", "webp", "jpeg") for picture in pictures(3)]


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, cut off, doubled or put in."""
    for _ in range(dice.randint(1, 8)):
        place = dice.randrange(len(content) + 1)
        end = min(len(content), place + dice.randint(1, 40))
        new = dice.choice([b"", dice.randbytes(end - place), b"\0" * 8, b"\xff" * 4, content[place:end] * 2])
        content = content[:place] + new + content[end:]
    return content


def column(n: int, dice: random.Random) -> Any:
    """A column of images or of labels, right or in some way odd."""
    images = [dice.choice(IMAGES) for _ in range(n)]
    for _ in range(dice.choice([0, 0, 0, 1, n])):
        k = dice.randrange(n)
        images[k] = dice.choice([b"", mutated(images[k], dice)])
    labels = [k % 3 for k in range(n)]
    return dice.choice(
        [
            pa.array([{"bytes": image, "path": None} for image in images], STRUCT),
            pa.array([{"bytes": image, "path": "x.png"} for image in images], STRUCT),
            pa.array(images, pa.binary()),
            pa.array(images, pa.large_binary()),
            pa.array([{"path": "/dev/zero"}] * n),
            pa.array([[1, 2]] * n),
            pa.array(labels),
            pa.array(labels, pa.uint8()),
            pa.array([dice.choice([0, 1, None]) for _ in range(n)]),
            pa.array([dice.choice([0, 2**62, -5]) for _ in range(n)]),
            pa.array([dice.choice([0.5, float("nan"), 1.0]) for _ in range(n)]),
            pa.array(["1"] * n),
            pa.array(labels).dictionary_encode(),
            pa.nulls(n),
        ]
    )


def write(root: Path, dice: random.Random) -> None:
    """A source that is nearly right, most often."""
    usual = {
        "img": pa.array([{"bytes": dice.choice(IMAGES), "path": None} for _ in range(9)], STRUCT),
        "label": pa.array([k % 3 for k in range(9)]),
    }
    for split in ("train", "test"):
        columns = dict(usual)
        for _ in range(dice.choice([0, 0, 1, 2])):
            columns[dice.choice(["img", "label", "note", "\x1b[31m", ""])] = column(9, dice)
        table = pa.table(columns).slice(0, dice.choice([9, 9, 9, 9, 9, 9, 0, 1]))
        odd = [f"{split}-00000-of-00002.parquet", f"{split} (1).parquet", "x.parquet"]
        name = dice.choice(odd) if dice.random() < 0.1 else f"{split}.parquet"
        pq.write_table(table, root / name, compression=dice.choice(["snappy", "none", "zstd"]))
    files = sorted(root.iterdir())
    for _ in range(dice.choice([0, 0, 0, 1])):
        victim = dice.choice(files)
        victim.write_bytes(mutated(victim.read_bytes(), dice))
    if dice.random() < 0.1:
        files_named = dice.choice([b"'*'", b"../..", b"[{", b"train.parquet"])
        readme = b"---\nconfigs:\n- config_name: x\n  data_files: " + files_named + b"\n---\n"
        (root / "README.md").write_bytes(readme)
    if dice.random() < 0.1:
        (root / "link.parquet").symlink_to(dice.choice([root, root / "none", "/dev/zero"]))


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")
def test_random_sources_are_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, seed, read, refused = monotonic(), 0, 0, 0
    while monotonic() - started < SECONDS:
        seed += 1
        root = tmp_path / "source"
        root.mkdir()
        monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))
        write(root, random.Random(seed))
        began = monotonic()
        try:
            found = load(Data(name="own", source=str(root), partial=True))
        except ConfigError as error:
            refused += 1
            text = str(error)
            assert text.isprintable(), (seed, text)
            assert len(text) < 2_000, (seed, text)
        else:
            read += 1
            assert found.train.images.dtype == np.uint8, seed
            assert len(found.train) == len(found.train.targets) > 0, seed
            assert np.isfinite(found.mean).all(), seed
            assert (found.std > 0).all(), seed
        assert monotonic() - began < SLOWEST, seed
        for folder in (root, tmp_path / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{seed} sources: {read} read, {refused} refused")
    assert read > 0
    assert refused > 0
