"""Images that stream: the bits of decoded ones, for any number of ranks and loaders; no process lost in silence."""

import copy
import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import given, settings
from PIL import Image
from support import results_of, rows, tiny

from repr_ray.data import copying, decoded, stream
from repr_ray.data.augment import Crops, Cut
from repr_ray.data.batches import Batch, Batches
from repr_ray.data.decoded import Decoded, load
from repr_ray.data.describe import copy_bytes
from repr_ray.data.encoded import Encoded, pack
from repr_ray.data.images import Target
from repr_ray.data.source import ArrayRows, silent
from repr_ray.data.stream import StreamError, StreamStopped, cropped
from repr_ray.estimate import amount, data_lines
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data, RandomResizedCrop
from repr_ray.training.messages import RETRIES, Preempted
from repr_ray.training.trial import run_trial

CPU = torch.device("cpu")


def photo(width: int, height: int, seed: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture: JPEG and resizing keep it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def folders(root: Path, train: int = 60, test: int = 20) -> Path:
    """Class folders of pictures of many sizes and kinds: grey, with a palette, lying on their side, transparent."""
    for split, count in (("train", train), ("test", test)):
        for k in range(count):
            image = photo(40 + 7 * (k % 5), 30 + 5 * (k % 7), 1000 * (split == "test") + k)
            path = root / split / ("cat", "dog", "owl")[k % 3] / f"{k:03}"
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = (1, 3, 6, 8)[k % 4]
            match k % 6:
                case 0 | 1:
                    image.save(path.with_suffix(".jpg"), exif=exif)
                case 2:
                    image.convert("L").save(path.with_suffix(".jpg"))
                case 3:
                    image.convert("CMYK").save(path.with_suffix(".jpeg"))
                case 4:
                    image.convert("P").save(path.with_suffix(".png"))
                case 5:
                    image.putalpha(image.convert("L"))
                    image.save(path.with_suffix(".webp"), lossless=True)
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders(tmp_path_factory.mktemp("source"))


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPR_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def data_of(source: Path, **fields: Any) -> Data:
    given = {"name": "own", "source": str(source), "size": 24, "resize": 28, "evaluation_resize": 26}
    return Data.model_validate(given | {"store": "stream", "validation_images": 12} | fields)


CROPS = {"flip": True, "augment": {"random_resized_crop": {"scale": [0.2, 1.0]}}}
MIXED = {"flip": True, "augment": {"random_resized_crop": {}, "mixup": 0.4, "cutmix": 1.0}}


def batches(found: Decoded, data: Data, split: str = "train", **options: Any) -> Batches:
    return Batches(
        getattr(found, split), found.mean, found.std, data, CPU, classes=found.classes, **{"loaders": 0} | options
    )


def shuffled(made: Batches, size: int, first: int = 0) -> list[Batch]:
    return list(made.shuffled(size, torch.Generator().manual_seed(7), first))


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size
        assert torch.equal(one.labels, other.labels) and torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crop_padding": 3, "flip": True, "channels": 1, "evaluation_resize": None},
        {
            "resize": None,
            "evaluation_resize": None,
            "augment": {"policy": {"kind": "trivial_augment"}, "cutmix": 1.0},
        },
        {"label_noise": 0.2, "split_by_seed": True, "flip": True, "normalise": "none"},
    ],
    ids=["crop", "grey", "augmented", "noise"],
)
def test_streamed_and_decoded_images_are_the_same(source: Path, fields: dict[str, Any]) -> None:
    """All but random resized crops, which are of the whole image where it streams."""
    found = {store: load(data_of(source, store=store, **fields), seed=3) for store in ("stream", "memory_map")}
    ours, theirs = found.values()
    assert isinstance(ours.train.images, Encoded) and isinstance(theirs.train.images, np.ndarray)
    assert ours.digest == theirs.digest and ours.names == theirs.names and ours.size == theirs.size
    np.testing.assert_array_equal([ours.mean, ours.std], [theirs.mean, theirs.std])
    for split in ("train", "validation", "test"):
        made = [batches(one, data_of(source, **fields), split) for one in found.values()]
        assert_equal(*(list(one.in_order(7)) for one in made))
    assert_equal(*(shuffled(batches(one, data_of(source, **fields)), 9) for one in found.values()))


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 30),
    world=st.integers(1, 4),
    first=st.integers(0, 3),
    fields=st.sampled_from([CROPS, MIXED, {"flip": True}]),
)
def test_ranks_take_slices_of_the_same_batches_from_any_step_on(
    source: Path, batch: int, world: int, first: int, fields: dict[str, Any]
) -> None:
    data = data_of(source, **fields)
    found = load(data)
    alone = shuffled(batches(found, data), batch)
    ranks = [shuffled(batches(found, data, rank=r, world_size=world), batch, first) for r in range(world)]
    for step, whole in enumerate(alone[first:]):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert {part.size for part in parts} == {len(whole.labels)}
    assert sum(len(one.labels) for one in alone) == 48


@pytest.mark.parametrize("loaders", [1, 3])
def test_any_number_of_processes_decodes_the_same(
    source: Path, loaders: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "AT_ONCE", 4)
    data = data_of(source, **MIXED)
    found = load(data)
    state = torch.get_rng_state()
    assert_equal(shuffled(batches(found, data, loaders=loaders), 10), shuffled(batches(found, data), 10))
    assert torch.equal(torch.get_rng_state(), state)  # else a trial that resumes in an epoch would go another way
    order = [list(batches(found, data, "test", loaders=n).in_order(15)) for n in (loaders, 0)]
    assert_equal(*order)
    assert not multiprocessing.active_children()


def test_no_process_writes_into_memory_that_is_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes get as far ahead as they can before a part is looked at; the memory is used many times."""
    monkeypatch.setattr(stream, "AT_ONCE", 1)
    monkeypatch.setattr(stream, "AHEAD", 2)
    data = data_of(source)
    store = batches(load(data), data, loaders=2).store
    assert isinstance(store, stream.Streamed)
    asked = [stream.Request(np.array([row]), None) for row in range(24)]
    alone, memory = torch.empty(1, *store.decoder.shape(None), dtype=torch.uint8), set()
    for request, part in zip(asked, store._decoded(asked, 0), strict=True):
        time.sleep(0.05)
        assert not store.decoder.decode(request, alone)
        assert torch.equal(part, alone)
        memory.add(part.data_ptr())
    assert len(memory) == 1 + 2 * 2


def test_two_batches_are_decoded_ahead(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one process too; a batch alone would be used up whenever a step takes longer than usual."""
    decoded, pixels = multiprocessing.Value("i", 0), Encoded.pixels

    def counted(images: Encoded, row: int) -> Any:
        with decoded.get_lock():
            decoded.value += 1
        return pixels(images, row)

    monkeypatch.setattr(stream, "AT_ONCE", 2)
    monkeypatch.setattr(Encoded, "pixels", counted)
    data = data_of(source)
    epoch = batches(load(data), data, loaders=1).shuffled(8, torch.Generator())
    next(epoch)
    until = time.monotonic() + 20
    while decoded.value < 3 * 8 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert decoded.value == 3 * 8
    epoch.close()


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("world", [1, 3, 30])
def test_evaluation_covers_every_image_once_on_any_number_of_ranks(source: Path, world: int, split: str) -> None:
    """Also where there are fewer images than ranks."""
    data = data_of(source)
    found = load(data)
    ranks = [list(batches(found, data, split, rank=r, world_size=world).in_order(7)) for r in range(world)]
    [whole] = batches(found, data, split).in_order(1000)
    parts = [[rank[step] for rank in ranks] for step in range(len(ranks[0]))]
    assert torch.equal(torch.cat([part.images for step in parts for part in step]), whole.images)
    assert torch.equal(torch.cat([part.labels for step in parts for part in step]), whole.labels)


def test_epochs_differ_and_repeat(source: Path) -> None:
    data = data_of(source, **CROPS)
    made = batches(load(data), data)
    one, again, other = (
        torch.cat([b.images for b in made.shuffled(48, torch.Generator().manual_seed(seed))]) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one.sort(0).values, other.sort(0).values)  # other crops, not another order alone


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("sides", "scaled"), [((90, 70), False), ((1100, 900), True)])
def test_a_crop_is_torchvisions(mode: str, sides: tuple[int, int], scaled: bool) -> None:
    """With scaled decoding close to it, else to a step of rounding."""
    rng = np.random.default_rng(0)
    for seed in range(8):
        content = saved(photo(*sides, seed, mode), quality=95)
        size = 128 if scaled else 32
        height, width = rng.integers(2 * size if scaled else 20, sides[1] - 10, 2).tolist()
        top, left = int(rng.integers(sides[1] - height)), int(rng.integers(sides[0] - width))
        ours = cropped(stream.open_bytes(content), content, [top, left, height, width], size, 3)
        whole = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB"))).permute(2, 0, 1)
        theirs = tvf.resized_crop(whole, top, left, height, width, [size, size], antialias=True).permute(1, 2, 0)
        difference = (ours.int() - theirs.int()).abs()
        assert difference.float().mean() < (1.5 if scaled else 0.05)
        assert difference.max() <= (8 if scaled else 1)


def test_boxes_are_those_of_torchvision() -> None:
    """Areas and ratios within their ranges; where no draw fits, the largest box in the middle."""
    crops, n = Crops(RandomResizedCrop(), 3000, (1, 2)), 3000
    drawn = crops.drawn(np.arange(n))
    top, left, height, width = crops.boxes(drawn, np.full((n, 2), (300, 400))).T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 300).all() and (left + width <= 400).all()
    share, ratio = height * width / 120_000, width / height
    assert 0.075 < share.min() < 0.1 and share.max() > 0.9 and ratio.min() > 0.74 and ratio.max() < 1.35
    square = crops.boxes(drawn, np.full((n, 2), 400))
    assert abs(np.log(square[:, 3] / square[:, 2]).mean()) < 0.02  # as often lying as standing
    assert crops.boxes(drawn, np.full((n, 2), (10, 400)))[:, 2:].max(0).tolist() == [10, 13]
    assert [0, 193, 10, 13] in crops.boxes(drawn, np.full((n, 2), (10, 400))).tolist()
    narrow = Crops(RandomResizedCrop(ratio=(20, 30)), n, (1, 2))
    assert narrow.boxes(drawn, np.full((n, 2), 8))[:, 2:].min() == 1  # 8 / 20 pixels would be none
    places = np.array([2999, 5, 6, 7, 0])
    for some, every in zip(crops.drawn(places), drawn, strict=True):
        np.testing.assert_array_equal(some, every[places])
    cut = Cut(crops, np.arange(n), np.zeros(n, dtype=bool))
    assert cut.take(slice(3, 5)).places.tolist() == [3, 4]


def test_images_that_cannot_be_decoded_are_named_or_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "s", 12, 6)
    (root / "train" / "dog" / "bad.jpg").write_bytes(saved(photo(40, 30, 0))[:400])
    with pytest.raises(ConfigError, match=r"bad\.jpg: cannot be decoded .*data\.skip_damaged=1"):
        load(data_of(root, validation_images=3))
    data = data_of(root, validation_images=3, skip_damaged=1)
    streamed, mapped = load(data), load(data_of(root, validation_images=3, skip_damaged=1, store="memory_map"))
    assert streamed.digest == mapped.digest and len(streamed.train) == 9
    assert "1 images that cannot be used are left out" in "".join(streamed.notes)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_has_no_encoding_of_its_own_is_packed_without_loss(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (70, 9, 9, channels), dtype=np.uint8)
    shape, content = Target(channels, 9, 9), hashlib.sha256()
    survey, damaged = pack(tmp_path, "train", ArrayRows(images, np.zeros(70, np.int64)), shape, True, content, silent)
    packed = Encoded(tmp_path / "train_content.npy", np.load(tmp_path / "train_offsets.npy"), shape)
    assert not damaged and len(packed) == 70
    np.testing.assert_array_equal(np.stack([packed.pixels(k) for k in range(70)]), images)
    np.testing.assert_allclose(survey.moments()[0], images.mean((0, 1, 2)) / 255)
    assert copy.copy(packed).content(3) == packed.content(3)


def test_what_is_too_large_to_be_decoded_streams(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of the set alone: another machine takes the same way, and so the same crops."""
    assert isinstance(load(data_of(source, store="auto", size=20, resize=20)).train.images, np.ndarray)
    monkeypatch.setattr(copying, "LARGEST", 10_000)
    found = load(data_of(source, store="auto", size=21, resize=21, evaluation_resize=21))
    assert isinstance(found.train.images, Encoded)
    assert found.notes[-1] == "images are decoded as they are needed: decoded at once they would take 0.0 GB"


def test_a_disk_that_is_too_small_for_decoded_images_is_said(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = copying.shutil.disk_usage("/")
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda folder: usage._replace(free=50_000))
    with pytest.raises(
        ConfigError, match=r"data\.store=memory_map: decoded images take .* GB, .* data\.store=stream"
    ):
        load(data_of(source, store="memory_map", size=25))


@pytest.mark.parametrize(
    "shaping", [{"store": "stream"}, {"store": "memory_map"}, {"store": "auto", "evaluation_resize": 28}]
)
def test_a_copy_takes_the_space_that_a_dry_run_says(
    source: Path, shaping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))
    [trial] = tiny(data=data_of(source, **shaping).model_dump(mode="json"))[:1]
    [(line, enough)] = data_lines([trial]).items()
    assert enough and line.startswith(f"disk: about {amount(said := copy_bytes(trial.data) or 0)} for the images of ")
    load(trial.data)
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.npy"))
    assert 0.8 < said / held < 1.2
    assert copy_bytes(trial.data) == 0 and not data_lines([trial])
    assert copy_bytes(Data.model_validate({"name": "cifar10", "store": "memory_map"})) == 60_000 * 32 * 32 * 3


@pytest.mark.parametrize("damage", ["content", "offsets"])
def test_a_damaged_pack_is_made_again(source: Path, damage: str) -> None:
    data = data_of(source, size=23, resize=23, evaluation_resize=23)
    found = load(data)
    assert isinstance(found.train.images, Encoded)
    path = found.train.images.file.with_name(f"train_{damage}.npy")
    content = np.load(path)
    np.save(path, content[:-5] if damage == "content" else content[::-1])
    assert load(data).digest == found.digest
    assert len(np.load(path)) == len(content)


def assert_fails(made: Batches, reason: str) -> float:
    started = time.monotonic()
    with pytest.raises(StreamError, match=reason):
        list(made.shuffled(8, torch.Generator()))
    assert not multiprocessing.active_children()
    return time.monotonic() - started


def test_a_process_that_dies_ends_in_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(source)
    made = batches(load(data), data, loaders=2)
    monkeypatch.setattr(stream, "AT_ONCE", 4)
    monkeypatch.setattr(stream, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(Encoded, "pixels", lambda self, row: os.kill(os.getpid(), signal.SIGKILL))
    assert assert_fails(made, "a process that decodes images has died: DataLoader worker") < 20


def test_a_process_that_hangs_ends_in_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(source)
    made = batches(load(data), data, loaders=1)
    monkeypatch.setattr(stream, "LOOK_EVERY", 0.1)
    monkeypatch.setattr(stream, "PATIENCE", 0.3)
    monkeypatch.setattr(Encoded, "pixels", lambda self, row: time.sleep(60))
    assert assert_fails(made, r"no image arrived for 0\.3 s") < 20


def test_a_process_that_hangs_in_its_fork_is_replaced(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one never begins; the batches are the same."""
    forks, begin = multiprocessing.Value("i", 0), stream._begin

    def first_hangs(started: torch.Tensor, worker: int) -> None:
        with forks.get_lock():
            forks.value += 1
            hangs = forks.value == 1
        if hangs:
            time.sleep(60)
        begin(started, worker)

    monkeypatch.setattr(stream, "AT_ONCE", 4)
    monkeypatch.setattr(stream, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(stream, "START", 0.5)
    monkeypatch.setattr(stream, "_begin", first_hangs)
    data = data_of(source, **CROPS)
    found = load(data)
    began = time.monotonic()
    assert_equal(shuffled(batches(found, data, loaders=2), 10), shuffled(batches(found, data), 10))
    assert time.monotonic() - began < 30 and forks.value == 4
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_image_that_changes_under_a_trial_is_named(source: Path, loaders: int, tmp_path: Path) -> None:
    data = data_of(source, **CROPS)
    found = load(data)
    assert isinstance(found.train.images, Encoded)
    content = np.load(found.train.images.file)
    first = int(found.train.images.offsets[7])
    content[first : first + 100] = 0
    np.save(tmp_path / "content.npy", content)
    spoiled = Encoded(tmp_path / "content.npy", found.train.images.offsets, found.train.images.target)
    train = decoded.Split(spoiled, found.train.labels)
    made = Batches(train, found.mean, found.std, data, CPU, loaders=loaders)
    assert_fails(made, r"content\.npy: image 7: is not a JPEG.* image; has the file changed\?")


def test_a_trial_whose_loader_was_killed_resumes_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    """By itself in the middle of its second epoch, and by a new launch where it was asked to stop."""
    block = data_of(source, **CROPS).model_dump(mode="json")
    train = {"epochs": 4, "batch_size": 8, "precision": "fp32"}
    [trial] = tiny(data=block, train=train, schemes={"repr": {"kind": "repr", "s1": 1, "s2": 1}})[:1]
    run_trial(trial, tmp_path / "undisturbed", CPU, lambda message: None, {})

    calls = iter(range(1000))

    def stop() -> bool:
        call = next(calls)
        if call == 7:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join()
        return call == 16

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "AT_ONCE", 2)
        patch.setattr(stream, "AHEAD", 1)
        patch.setattr(stream, "LOOK_EVERY", 0.2)
        with pytest.raises(Preempted, match="stopped at epoch 3, step "):
            run_trial(trial, tmp_path / "killed", CPU, lambda message: None, {}, stop)
    assert not list((tmp_path / "killed").glob("trials/*/error.json"))
    [log] = (tmp_path / "killed").glob("trials/*/log.txt")
    died, resumed = (log.read_text().index(text) for text in ("images has died", "resumes at epoch 2"))
    assert died < resumed
    run_trial(trial, tmp_path / "killed", CPU, lambda message: None, {})
    ours, theirs = (results_of(tmp_path / name)[trial.name]["checksum"] for name in ("killed", "undisturbed"))
    assert ours == theirs
    assert rows(tmp_path / "killed", trial.name, "epochs") == rows(tmp_path / "undisturbed", trial.name, "epochs")


@pytest.mark.parametrize("error, starts", [(StreamStopped("gone"), 1 + RETRIES), (StreamError("bad image"), 1)])
def test_a_trial_whose_images_never_come_is_given_up(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, starts: int
) -> None:
    """An image that cannot be decoded will not be decoded the next time."""
    [trial] = tiny(data=data_of(source).model_dump(mode="json"))[:1]

    def fail(store: object, wanted: object) -> Iterator[torch.Tensor]:
        yield from ()
        raise error

    monkeypatch.setattr(stream.Streamed, "batches", fail)
    with pytest.raises(type(error)):
        run_trial(trial, tmp_path, CPU, lambda message: None, {})
    [folder] = (tmp_path / "trials").iterdir()
    assert str(error) in (folder / "error.json").read_text()
    assert (folder / "log.txt").read_text().count("starts") == starts


@pytest.mark.parametrize("store", ["stream", "memory_map"])
def test_trials_of_a_node_share_the_pages_of_the_images(store: str, tmp_path: Path) -> None:
    """Two processes read all of them, from the same pages, and keep little memory of their own."""
    for k in range(42):
        path = tmp_path / "noise" / ("train" if k > 1 else "test") / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=1)
    data = Data.model_validate({"name": "noise", "source": str(tmp_path / "noise"), "store": store, "flip": True})
    load(data)
    context = multiprocessing.get_context("fork")
    all_read, ends = context.Barrier(2), [context.Pipe() for _ in range(2)]

    def trial(end: Any) -> None:
        torch.set_num_threads(1)  # as in any process that is forked: threads are not
        before = held("", "Anonymous")
        found = load(data)
        for _ in batches(found, data).shuffled(1, torch.Generator()):
            pass
        all_read.wait(60)
        of = "train_content.npy" if store == "stream" else "train_images.npy"
        end.send([held(of, "Rss"), held(of, "Shared"), held("", "Anonymous") - before])
        all_read.wait(60)

    trials = [context.Process(target=trial, args=(end,)) for _, end in ends]
    for process in trials:
        process.start()
    for here, _ in ends:
        assert here.poll(60)
        mapped, shared, own = here.recv()
        assert shared == mapped > 7_000
        assert own < mapped  # batches; a copy would come on top of them
    for process in trials:
        process.join()


def held(file: str, kind: str) -> int:
    """KB of this process in mappings of a file, or in all of them."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if " " in name:  # the first line of a mapping
            here = line.endswith(file)
        elif here and name.startswith(kind):
            total += int(rest.split()[0])
    return total


# What a trial holds of an index as large as ImageNet's, in MB: pages of its own and of its loaders, the map's apart.
MEMORY = """
import io, itertools, multiprocessing, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from repr_ray.data.batches import Batches
from repr_ray.data.decoded import Split
from repr_ray.data.encoded import Encoded
from repr_ray.data.images import Target
from repr_ray.data.split import divide
from repr_ray.study.data import Data

def held(process, kind):
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(kind)) / 1000

n, folder, stream = 1_300_000, Path(sys.argv[1]), io.BytesIO()
Image.new("RGB", (4, 4)).save(stream, "PNG")
one = np.frombuffer(stream.getvalue(), np.uint8)
np.save(folder / "content.npy", np.tile(one, n))
np.save(folder / "offsets.npy", np.arange(n + 1) * len(one))
np.save(folder / "labels.npy", np.arange(n) % 1000)
torch.randn(8, 8) @ torch.randn(8, 8)
before = held("self", "Anonymous")
labels = np.load(folder / "labels.npy", mmap_mode="c")
data = Data.model_validate({
    "name": "x", "source": "/", "size": 4, "validation_images": 50_000, "flip": True, "normalise": "none",
    "augment": {"random_resized_crop": {}, "color_jitter": {"brightness": 0.4}, "mixup": 0.2, "cutmix": 1.0},
})
train, _ = divide(labels, data, 0)
images = Encoded(folder / "content.npy", np.load(folder / "offsets.npy", mmap_mode="r"), Target(3, 4, 4))
split, cpu = Split(images, labels, train), torch.device("cpu")
made = Batches(split, np.zeros(3), np.ones(3), data, cpu, classes=1000, loaders=2)
peak = 0.0
for batch in itertools.islice(made.shuffled(256, torch.Generator()), 6):
    children = multiprocessing.active_children()
    peak = max(peak, held("self", "Anonymous") - before + sum(held(child.pid, "Private_Dirty") for child in children))
print(len(children), peak)
"""


@pytest.mark.slow
def test_an_index_of_the_size_of_imagenet_costs_a_trial_little(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    loaders, peak = done.stdout.split()
    assert loaders == "2" and 20 < float(peak) < 400
