"""Batches: every image once, the same augmentation for any number of ranks, and the augmentation users expect."""

import hashlib
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from hypothesis import given, settings

from repr_ray.data.batches import Batches
from repr_ray.data.decoded import Split, load
from repr_ray.study.data import Data


def batches(
    n: int,
    rank: int = 0,
    world_size: int = 1,
    mean: Sequence[float] = (0.5, 0.4, 0.3),
    std: Sequence[float] = (0.2, 0.3, 0.4),
    **data: object,
) -> Batches:
    """`n` random 8x8 colour images whose label is their index."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    split = Split(pixels, np.arange(n))
    settings = Data.model_validate({"name": "cifar10", **data})
    return Batches(split, np.array(mean), np.array(std), settings, torch.device("cpu"), rank, world_size)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 50), batch=st.integers(1, 20), world=st.integers(1, 4), augment=st.booleans())
def test_ranks_together_see_what_one_process_sees(n: int, batch: int, world: int, augment: bool) -> None:
    data = {"crop_padding": 2, "flip": True} if augment else {}
    alone = list(batches(n, **data).shuffled(batch, generator()))
    ranks = [list(batches(n, r, world, **data).shuffled(batch, generator())) for r in range(world)]
    assert sorted(torch.cat([b.labels for b in alone]).tolist()) == list(range(n))
    for step, whole in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
        assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
        assert {p.size for p in parts} == {len(whole.labels)}


def test_crop_and_flip_are_torchvisions() -> None:
    """Each augmented image is one of the crops of the zero-padded image, flipped or not, and all of them occur."""
    n, pad = 400, 1
    made = batches(n, crop_padding=pad, flip=True, mean=(0, 0, 0), std=(1, 1, 1))
    [batch] = made.shuffled(n, generator())
    originals = made.store.images.permute(0, 3, 1, 2)
    padded = tvf.pad(originals, [pad] * 4)
    seen = set()
    for image, label in zip(batch.images, batch.labels, strict=True):
        matches = [
            (dy, dx, flip)
            for dy in range(3)
            for dx in range(3)
            for flip in (False, True)
            for crop in [tvf.crop(padded[label], dy, dx, 8, 8)]
            if torch.allclose(image * 255, (tvf.horizontal_flip(crop) if flip else crop).float(), atol=1e-3)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 18


def test_normalisation_is_per_channel() -> None:
    made = batches(20)
    [batch] = made.in_order(20)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    expected = (made.store.images.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(batch.images, expected, atol=1e-5, rtol=1e-5)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_epochs_differ_and_repeat() -> None:
    made = batches(50)
    first, again, other = (torch.cat([b.labels for b in made.shuffled(8, generator(s))]) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "382d0964243c5ab9"),
        ({"crop_padding": 2, "flip": True}, "540e8ceb20a68016"),
        ({"train_images": 300, "validation_images": 200, "flip": True}, "f5b8a18bac414d07"),
        ({"normalise": "none", "crop_padding": 1}, "d423ba3f9edf4ce3"),
    ],
)
def test_the_bits_of_batches_are_stable_across_versions(data: dict[str, object], expected: str) -> None:
    """Of the version before sources of one's own. Other bits cannot be compared with old results: on purpose only."""
    made = Data.model_validate({"name": "digits", **data})
    decoded, digest = load(made), hashlib.sha256()
    for name in ("train", "validation", "test"):
        batches = Batches(getattr(decoded, name), decoded.mean, decoded.std, made, torch.device("cpu"))
        for batch in batches.shuffled(128, generator(7)) if name == "train" else batches.in_order(100):
            digest.update(batch.images.contiguous().numpy().tobytes())
            digest.update(batch.labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == expected


def test_the_digest_of_images_is_stable_across_versions() -> None:
    """Another one would make a launch refuse to go on with every study that there is."""
    assert load(Data(name="digits")).digest == "05ebd49b69c6a93a"
    assert load(Data(name="digits", train_images=300, validation_images=200)).digest == "3d052d9688be73c0"
