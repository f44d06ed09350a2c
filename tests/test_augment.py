"""Augmentation of whole batches: as torchvision's functions on single images, and the same on any number of ranks."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as tvf
from hypothesis import given, settings
from torch import Tensor

from repr_ray.data import policy
from repr_ray.data.augment import jittered, resized_crops
from repr_ray.data.batches import Batches
from repr_ray.data.decoded import Split
from repr_ray.data.policy import magnitude, operate
from repr_ray.study.data import ColorJitter, Data

SETTINGS: dict[str, dict[str, Any]] = {
    "random_resized_crop": {"size": 6, "augment": {"random_resized_crop": {"scale": [0.2, 1]}}},
    "rand_augment": {"augment": {"policy": {"kind": "rand_augment"}}},
    "trivial_augment": {"augment": {"policy": {"kind": "trivial_augment"}}},
    "color_jitter": {"augment": {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "hue": 0.1}}},
    "random_erasing": {"augment": {"random_erasing": {}}},
    "cutout": {"augment": {"cutout": 4}},
    "mixup": {"augment": {"mixup": 0.2}},
    "cutmix": {"augment": {"cutmix": 1.0}},
    "crop from larger images": {"size": 5, "resize": 8, "flip": True},
    "everything": {
        "size": 6,
        "flip": True,
        "augment": {
            "random_resized_crop": {},
            "policy": {"kind": "trivial_augment"},
            "color_jitter": {"brightness": 0.2},
            "random_erasing": {},
            "cutout": 2,
            "mixup": 0.2,
            "cutmix": 1.0,
        },
    },
}


def batches(n: int, rank: int = 0, world: int = 1, **data: Any) -> Batches:
    """`n` random 8x8 colour images of 7 classes, not normalised."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    made = Data.model_validate({"name": "cifar10", "source": "x", **data})
    zeros, ones = np.zeros(3), np.ones(3)
    return Batches(Split(pixels, np.arange(n) % 7), zeros, ones, made, torch.device("cpu"), rank, world, classes=7)


def epoch(made: Batches, batch: int, first: int = 0, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    return [(b.images, b.labels) for b in made.shuffled(batch, torch.Generator().manual_seed(seed), first)]


@pytest.mark.parametrize("data", SETTINGS.values(), ids=SETTINGS)
def test_ranks_and_a_resumed_epoch_see_what_one_process_sees(data: dict[str, Any]) -> None:
    alone = epoch(batches(30, **data), 8)
    ranks = [epoch(batches(30, rank, 3, **data), 8) for rank in range(3)]
    for step, (images, labels) in enumerate(alone):
        torch.testing.assert_close(torch.cat([rank[step][0] for rank in ranks]), images, rtol=1e-6, atol=1e-6)
        assert torch.equal(torch.cat([rank[step][1] for rank in ranks]), labels)
    for ours, theirs in zip(epoch(batches(30, **data), 8, first=2), alone[2:], strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"mixup", "cutmix", "everything"}))
def test_what_an_image_gets_does_not_depend_on_the_size_of_the_batch(name: str) -> None:
    """But for mixing, whose partner is of the same batch; a pixel of a scaled image may be rounded the other way."""
    whole = epoch(batches(30, **SETTINGS[name]), 30)[0][0]
    for size in (1, 7):
        parts = torch.cat([images for images, _ in epoch(batches(30, **SETTINGS[name]), size)])
        differ = (parts - whole).abs()
        assert differ.max() < 1.01 / 255
        assert (differ > 1e-6).float().mean() < (0.002 if name == "random_resized_crop" else 1e-9)


@pytest.mark.parametrize("data", SETTINGS.values(), ids=SETTINGS)
def test_every_augmentation_changes_images_and_differs_between_epochs(data: dict[str, Any]) -> None:
    plain = {key: value for key, value in data.items() if key in ("size", "resize")}
    same = [torch.equal(a[0], b[0]) for a, b in zip(epoch(batches(30, **data), 30), epoch(batches(30, **plain), 30))]  # noqa: B905
    assert plain == data or data.get("flip") or not any(same)
    first, second = (epoch(batches(30, **data), 30, seed=seed)[0][0] for seed in (0, 1))
    assert not torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1 + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_resized_crop_is_torchvisions(draw: st.DataObject) -> None:
    side, size = draw.draw(st.integers(3, 20)), draw.draw(st.integers(1, 20))
    height, width = (draw.draw(st.integers(1, side)) for _ in range(2))
    top, left = draw.draw(st.integers(0, side - height)), draw.draw(st.integers(0, side - width))
    image = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(0))
    flip = draw.draw(st.booleans())
    ours = resized_crops(image, torch.tensor([[top, left, height, width]]), torch.tensor([flip]), size)
    theirs = tvf.resized_crop(image.permute(0, 3, 1, 2), top, left, height, width, [size, size], antialias=True)
    theirs = tvf.horizontal_flip(theirs) if flip else theirs
    torch.testing.assert_close(ours.permute(0, 3, 1, 2), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "adjust"),
    [
        ("brightness", tvf.adjust_brightness),
        ("contrast", tvf.adjust_contrast),
        ("saturation", tvf.adjust_saturation),
        ("hue", tvf.adjust_hue),
    ],
)
def test_colours_are_torchvisions(field: str, adjust: Any) -> None:
    images = torch.rand(20, 8, 8, 3, generator=torch.Generator().manual_seed(0)) * 255
    draws = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = jittered(images, draws, ColorJitter(**{field: 0.4}))
    place = list(ColorJitter.model_fields).index(field)
    for image, draw, found in zip(images, draws, ours, strict=True):
        by = 0.4 * float(draw[place]) + (field != "hue")
        expected = adjust(image.permute(2, 0, 1) / 255, by) * 255
        torch.testing.assert_close(found.permute(2, 0, 1), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("narrow", [True, False], ids=["rand_augment", "trivial_augment"])
def test_operations_and_magnitudes_are_torchvisions(narrow: bool) -> None:
    theirs: Any = v2.RandAugment() if narrow else v2.TrivialAugmentWide()
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = {name.replace("_", "").lower(): name for name in policy.OPERATIONS}
    assert {name.lower() for name in theirs._AUGMENTATION_SPACE} == names.keys()
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        ours = names[name.lower()]
        values = magnitudes(31, 16, 16)
        for level in (0, 9, 30):
            value = 0.0 if values is None else float(values[level])
            if values is not None:
                assert magnitude(ours, level, narrow, 16) == pytest.approx(value, abs=1e-6), (name, level)
            for sign in (1, -1) if signed else (1,):
                expected = theirs._apply_image_or_video_transform(
                    image, name, sign * value, interpolation=v2.InterpolationMode.NEAREST, fill={}
                )
                found = operate(image, ours, magnitude(ours, level, narrow, 16) * sign)
                assert (found.int() - expected.int()).abs().max() <= 1, (
                    name,
                    level,
                    sign,
                )  # rounded from other floats


def test_a_policy_does_to_each_image_what_it_drew() -> None:
    made = batches(40, augment={"policy": {"kind": "rand_augment", "operations": 2}})
    order = torch.randperm(40, generator=(drawn := torch.Generator().manual_seed(0)))
    draws = made.augmentation.draw(40, drawn).by_name["policy"]
    [(images, _)] = epoch(made, 40)
    for place in range(40):
        expected = made.store.images[order[place]].permute(2, 0, 1)[None]
        for operation, level, minus in draws[place].tolist():
            name = policy.OPERATIONS[operation]
            expected = operate(expected, name, magnitude(name, level, True, 8) * (-1) ** minus)
        assert torch.equal((images[place] * 255).round().to(torch.uint8), expected[0])


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_mixed_images(kind: str) -> None:
    made = batches(30, augment={kind: 1.0})
    plain = epoch(batches(30), 10)
    for (images, shares), (alone, labels) in zip(epoch(made, 10), plain, strict=True):
        before, label_before = alone.roll(1, 0), labels.roll(1, 0)
        for k in range(10):
            changed = ((images[k] - before[k]).abs() < 1e-6).all(0)
            own = ((images[k] - alone[k]).abs() < 1e-6).all(0)
            assert float(shares[k].sum()) == pytest.approx(1)
            share = float(shares[k, labels[k]])
            if kind == "cutmix":
                assert bool((changed | own).all())
                if labels[k] != label_before[k]:
                    assert share == pytest.approx(float(own.float().mean()), abs=1e-5)
            elif labels[k] != label_before[k]:
                torch.testing.assert_close(images[k], share * alone[k] + (1 - share) * before[k], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("random_erasing", {"probability": 1}), ("cutout", 3)])
def test_what_is_erased_becomes_the_mean(field: str, value: Any) -> None:
    made = Data.model_validate({"name": "x", "source": "x", "augment": {field: value}})
    pixels = np.full((50, 8, 8, 1), 200, np.uint8)
    split, mean = Split(pixels, np.zeros(50, np.int64)), np.array([0.2])
    [batch] = Batches(split, mean, np.ones(1), made, torch.device("cpu")).shuffled(50, torch.Generator())
    values = batch.images.unique()
    assert len(values) == 2
    assert float(values[0]) == pytest.approx(0, abs=1e-6)
    share = (batch.images < 1e-3).float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() <= (0.5 if field == "random_erasing" else 9 / 64 + 1e-6)
