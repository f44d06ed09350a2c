"""Sources, decoding and the decoded copy: on files made here, in the layouts users have."""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import torchvision.transforms.v2.functional as tvf
import yaml
from numpy.typing import NDArray
from PIL import Image
from support import STANDARD, TINY, results_of, write_config

from repr_ray.data import copying
from repr_ray.data.batches import Batches
from repr_ray.data.decoded import cache_folder, load
from repr_ray.data.shape import Shape, shape_is_known, shape_of
from repr_ray.launch import main
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate
from repr_ray.training.folder import TrialFolder
from repr_ray.training.messages import Preempted
from repr_ray.training.trial import run_trial


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))


def pictures(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def encode(pixels: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def write_parquet(path: Path, images: NDArray[np.uint8], kind: str = "webp", label: str = "label") -> None:
    structs = [{"bytes": encode(image, kind), "path": f"{i}.{kind}"} for i, image in enumerate(images)]
    pq.write_table(pa.table({"img": structs, label: [i % 10 for i in range(len(images))]}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of 30 + 20 training images in two files and 10 test images."""
    made = tmp_path / "parquet"
    made.mkdir()
    write_parquet(made / "train-00000-of-00002.parquet", pictures(30))
    write_parquet(made / "train-00001-of-00002.parquet", pictures(20, 1), "png")
    write_parquet(made / "test-00000-of-00001.parquet", pictures(10, 2))
    return made


def test_parquet_in_the_hugging_face_layout(folder: Path) -> None:
    data = load(Data(name="cifar10", partial=True, source=str(folder), validation_images=5, train_images=40))
    everything = np.concatenate([pictures(30), pictures(20, 1)])
    np.testing.assert_array_equal(data.train.images, everything[:40])
    np.testing.assert_array_equal(data.validation.images, everything[45:])
    np.testing.assert_array_equal(data.test.images, pictures(10, 2))
    assert data.test.labels.tolist() == list(range(10))
    np.testing.assert_allclose(data.mean, everything.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(data.std, everything.std((0, 1, 2)) / 255)


def test_images_are_normalised_by_what_is_asked_for(folder: Path) -> None:
    given = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    data = load(Data(name="cifar10", partial=True, source=str(folder), normalise=given))
    batches = Batches(data.test, data.mean, data.std, Data(name="cifar10"), torch.device("cpu"))
    [batch] = batches.in_order(10)
    images = torch.from_numpy(pictures(10, 2)).permute(0, 3, 1, 2).double() / 255
    torch.testing.assert_close(batch.images, tvf.normalize(images, **given).float(), rtol=0, atol=1e-6)
    none = load(Data(name="cifar10", partial=True, source=str(folder), normalise="none"))
    assert (none.mean.tolist(), none.std.tolist()) == ([0, 0, 0], [1, 1, 1])
    with pytest.raises(ConfigError, match=r"data\.normalise: 1 means and standard deviations, .* have 3 channels"):
        load(Data(name="cifar10", partial=True, source=str(folder), normalise={"mean": [0.5], "std": [0.5]}))


def test_a_part_of_a_known_data_set_has_as_many_images_as_its_source(folder: Path) -> None:
    part = Data(name="cifar10", partial=True, source=str(folder))
    assert not shape_is_known(part)
    assert shape_of(part) == Shape(10, 3, 32, 50)
    assert shape_of(part.model_copy(update={"train_images": 40})).train_images == 40


def test_decoded_once_and_mapped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Data(name="cifar10", partial=True, source=str(folder))
    load(settings)
    monkeypatch.setattr(Image, "open", None)  # a second decode would fail
    assert isinstance(load(settings).train.images, np.memmap)


def test_changed_files_are_decoded_again(folder: Path) -> None:
    settings = Data(name="cifar10", partial=True, source=str(folder))
    load(settings)
    write_parquet(folder / "test-00000-of-00001.parquet", pictures(11, 3))
    assert len(load(settings).test) == 11


def test_a_killed_decode_leaves_nothing_half_made(folder: Path) -> None:
    script = (
        "import os, signal\n"
        "from repr_ray.study.data import Data\n"
        "from repr_ray.data.decoded import load\n"
        "from repr_ray.data import copying\n"
        "write = copying._write_images\n"
        "def killed(folder, name, *rest):\n"
        "    damaged = write(folder, name, *rest)\n"
        "    if name == 'test': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return damaged\n"
        "copying._write_images = killed\n"
        f"load(Data(name='cifar10', partial=True, source={str(folder)!r}))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, check=False).returncode == -9
    assert len(load(Data(name="cifar10", partial=True, source=str(folder))).test.labels) == 10
    assert not list(cache_folder().glob("*.*/"))


@pytest.mark.parametrize(
    "where", ["truncated", "one image", "no image column", "label range", "size", "missing half"]
)
def test_a_damaged_file_is_named(folder: Path, where: str) -> None:
    victim = folder / "train-00001-of-00002.parquet"
    expected = victim.name
    if where == "truncated":
        victim.write_bytes(victim.read_bytes()[:-100])
    elif where == "one image":
        pq.write_table(pa.table({"img": [{"bytes": b"RIFF", "path": "0"}], "label": [0]}), victim)
    elif where == "no image column":
        pq.write_table(pa.table({"picture": [b"x"], "label": [0]}), victim)
        expected = r"train-00001-of-00002.parquet: there is no column img; there are picture, label"
    elif where == "label range":
        pq.write_table(pa.table({"img": [{"bytes": encode(pictures(1)[0], "png")}], "label": [10]}), victim)
        expected = r"train-00001-of-00002.parquet, row 0, column img: label 10: 1 labels of train are outside 0-9"
    elif where == "size":
        pq.write_table(pa.table({"img": [{"bytes": encode(pictures(1)[0, :16], "png")}], "label": [1]}), victim)
        expected = r"train-00001-of-00002.parquet, row 0, column img: 32 x 16 pixels, expected 32 x 32"
    else:
        (folder / "test-00000-of-00001.parquet").unlink()
        expected = r"there is no test split \(test-\*.parquet"
    with pytest.raises(ConfigError, match=expected) as caught:
        load(Data(name="cifar10", partial=True, source=str(folder)))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(cache_folder().glob("cifar10-*/"))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        load(Data(name="cifar10", partial=True, source=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("split", [{"train_images": 50, "validation_images": 1}, {"validation_images": 50}])
def test_a_split_that_does_not_fit(folder: Path, split: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="50 training images"):
        load(Data.model_validate({"name": "cifar10", "partial": True, "source": str(folder), **split}))


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", pictures(10), "png", "fine_label")
    assert load(Data(name="cifar100", partial=True, source=str(tmp_path))).classes == 100


def torchvision_archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 archive of 10 images a batch in torchvision's layout, which it takes for the real one."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        rows = pictures(10, i).transpose(0, 3, 1, 2).reshape(10, -1)
        (base / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, base.name)
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[name, md5(base / name)] for name in names[:5]])
    monkeypatch.setattr(cifar, "test_list", [[names[5], md5(base / names[5])]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5(base / "batches.meta")})
    monkeypatch.setattr(cifar, "tgz_md5", md5(archive))
    return archive


def test_torchvision_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = torchvision_archive(tmp_path / "server", monkeypatch)
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}"
        )
        data = load(Data(name="cifar10", partial=True))
        server.shutdown()
    np.testing.assert_array_equal(data.train.images[:10], pictures(10, 0))
    assert len(data.train.labels) == 50


def test_torchvisions_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_archive(tmp_path / "mine", monkeypatch)
    assert len(load(Data(name="cifar10", partial=True, source=str(tmp_path / "mine"))).test.labels) == 10
    (tmp_path / "mine" / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"\(missing or damaged: data_batch_3\)"):
        load(Data(name="cifar10", partial=True, source=str(tmp_path / "mine")))


def test_without_a_network_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_archive(tmp_path / "server", monkeypatch)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")  # refuses at once
    with pytest.raises(ConfigError, match="download it where there is a network, or name a folder with train-"):
        load(Data(name="cifar10", partial=True))


def moved(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a data set with some of its Parquet files written anew."""
    shutil.copytree(source, target)
    for name, write in changes.items():
        write(target / f"{name}-0000{int(name == 'train')}-of-0000{1 + (name == 'train')}.parquet")  # type: ignore[operator]
    return target


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"train": lambda path: write_parquet(path, pictures(20, 1), "webp")}, True),  # another encoding
        ({"train": lambda path: write_parquet(path, pictures(20, 9))}, False),
        ({"test": lambda path: write_parquet(path, pictures(10, 2)[::-1])}, False),
        ({"test": lambda path: write_parquet(path, pictures(10, 9))}, False),
    ],
)
def test_the_digest_is_of_images_labels_and_order(
    folder: Path, tmp_path: Path, changes: dict[str, object], same: bool
) -> None:
    there = moved(folder, tmp_path / "moved", **changes)
    digests = [load(Data(name="cifar10", partial=True, source=str(source))).digest for source in (folder, there)]
    assert (digests[0] == digests[1]) == same


def test_the_digest_is_of_the_split() -> None:
    splits = [{}, {"train_images": 100}, {"validation_images": 100}, {"train_images": 100, "validation_images": 100}]
    settings = [Data.model_validate({"name": "digits", **split}) for split in splits]
    assert len({load(data).digest for data in settings}) == 4
    assert load(settings[1].model_copy(update={"flip": True})).digest == load(settings[1]).digest


def test_the_digest_is_made_once_per_decoded_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Data(name="cifar10", partial=True, source=str(folder))
    first = load(settings).digest
    monkeypatch.setattr(copying, "Survey", None)
    assert load(settings.model_copy(update={"validation_images": 5})).digest != load(settings).digest == first


CIFAR = {
    "data": {"name": "cifar10", "partial": True, "validation_images": 5},
    "model": {"kind": "convnet", "depth": 1, "width": 2},
    "train": {"epochs": 1, "batch_size": 32},
    "schemes": STANDARD,
}


def start(folder: Path, source: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str, str]:
    """Launch a tiny study of the images in a folder, in this process: exit status, output, errors."""
    data = CIFAR["data"] | {"source": str(source)}
    config = write_config(folder, **{**CIFAR, "data": data})
    status = main(["--config", str(config), "--results", str(folder / "r"), "--runner", "local", *overrides])
    return status, *capsys.readouterr()


def test_other_images_are_refused_where_trials_have_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, folder, capsys)[0] == 0
    [(name, result)] = results_of(tmp_path / "r" / "tiny").items()
    recorded = yaml.safe_load((tmp_path / "r" / "tiny" / "trials" / name / "config.yaml").read_text())
    assert recorded["data_digest"] == result["data_digest"]
    same = moved(folder, tmp_path / "same")
    assert start(tmp_path, same, capsys)[0] == 0
    other = moved(folder, tmp_path / "other", test=lambda path: write_parquet(path, pictures(10, 9)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    for overrides in ([], ["seeds=[1]"]):  # nothing to train, and a seed to add
        status, _, error = start(tmp_path, other, capsys, *overrides)
        assert status == 2
        assert f"{name} in" in error
        assert "trained on other images (digest" in error
        assert len(error.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}


def test_other_images_are_refused_for_tuned_trials(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = "tuning={space: {train.optimizer.learning_rate: {log_uniform: [0.001, 0.01]}}, budget: 2, seeds: [7]}"
    assert start(tmp_path, folder, capsys, tuning)[0] == 0
    other = moved(folder, tmp_path / "other", test=lambda path: write_parquet(path, pictures(10, 9)))
    status, _, error = start(tmp_path, other, capsys, tuning, "seeds=[0, 1]")
    assert status == 2 and "trained on other images (digest" in error


def test_a_checkpoint_is_not_taken_on_with_other_images(folder: Path, tmp_path: Path) -> None:
    raw = TINY | CIFAR | {"data": {**CIFAR["data"], "source": str(folder)}, "train": {"epochs": 2, "batch_size": 32}}
    [trial] = plan(validate(raw, "x"))
    update = lambda message: None  # noqa: E731
    asked = iter([False, True])
    with pytest.raises(Preempted):
        run_trial(trial, tmp_path / "r", torch.device("cpu"), update, {}, stop=lambda: next(asked))
    write_parquet(folder / "test-00000-of-00001.parquet", pictures(10, 9))
    with pytest.raises(ConfigError, match="the images on this node are not those of the launch"):
        run_trial(trial, tmp_path / "r", torch.device("cpu"), update, {})
    TrialFolder(tmp_path / "r", trial).announce()  # as by a version that noted no digest there
    with pytest.raises(ConfigError, match="the checkpoint is of training on other images"):
        run_trial(trial, tmp_path / "r", torch.device("cpu"), update, {})
