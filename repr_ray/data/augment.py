"""Augmentation of whole batches on their device. Draws belong to places in the epoch's order, and so to images.

Parameters that differ from image to image go into one tensor operation where that exists; an operation of a policy
runs once for all images of a batch that drew it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from repr_ray.data.policy import LEVELS, OPERATIONS, by_policy
from repr_ray.study.data import Augment, ColorJitter, Data, RandAugment, RandomErasing, RandomResizedCrop

Places = Tensor | slice

ATTEMPTS = 10  # boxes drawn for a random resized crop; if none fits, the largest one in the middle is used

GREY = (0.2989, 0.587, 0.114)

_FIELDS = tuple(Augment.model_fields)

Uniform = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Uniform numbers in [0, 1) for n images: n x ATTEMPTS areas, n x ATTEMPTS ratios, n x 2 corners."""


@dataclass(frozen=True)
class Crops:
    """The random resized crops of an epoch of `n` images. Each place in the order has its own random numbers."""

    settings: RandomResizedCrop
    n: int
    seed: tuple[int, ...]

    def drawn(self, places: NDArray[np.int64]) -> Uniform:
        """The random numbers of some places; the generator skips to them."""
        runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)

        def uniform(first: int, width: int) -> NDArray[np.float64]:
            parts = []
            for run in runs:
                bits = np.random.PCG64(self.seed)
                bits.advance(first * self.n + int(run[0]) * width if len(run) else 0)
                parts.append(np.random.Generator(bits).random((len(run), width)))
            return np.concatenate(parts)

        return uniform(0, ATTEMPTS), uniform(ATTEMPTS, ATTEMPTS), uniform(2 * ATTEMPTS, 2)

    def boxes(self, drawn: Uniform, sides: NDArray[np.int64]) -> NDArray[np.int64]:
        """n x (top, left, height, width) in images of n x (height, width), as of torchvision's RandomResizedCrop."""
        (least, most), (narrow, wide) = self.settings.scale, self.settings.ratio
        area = sides.prod(1)[:, None] * (least + (most - least) * drawn[0])
        ratio = np.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * drawn[1])
        attempts = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], -1))).astype(np.int64)
        fits = np.all((attempts > 0) & (attempts <= sides[:, None]), axis=-1)
        found, first = np.any(fits, axis=1)[:, None], fits.argmax(1)
        height, width = sides.T
        largest = np.stack([np.minimum(height, width / narrow), np.minimum(width, height * wide)], -1)
        largest = np.rint(largest).astype(np.int64).clip(1)
        chosen = np.where(found, attempts[np.arange(len(sides)), first], largest)
        corner = np.where(found, drawn[2] * (sides - chosen + 1), (sides - chosen) / 2).astype(np.int64)
        return np.concatenate([corner, chosen], 1)


@dataclass(frozen=True)
class Cut:
    """How images are cropped and flipped while they are decoded; `places` are those in the epoch's order."""

    crops: Crops
    places: NDArray[np.int64]
    flips: NDArray[np.bool_]

    def take(self, which: Places) -> "Cut":
        """The cuts of some of these images."""
        here = which if isinstance(which, slice) else which.numpy()
        return Cut(self.crops, self.places[here], self.flips[here])


@dataclass(frozen=True)
class Draws:
    """The draws of an epoch: tensors with an entry for each place in its order, and the cuts if there are any."""

    by_name: dict[str, Tensor]
    cut: Cut | None = None


class Augmentation:
    """From uint8 images of `stored` x `stored` pixels to images of size `data.size`, values 0 to 255.

    With `cuts`, images are cropped and flipped while they are decoded (`Draws.cut`), and not here.
    """

    def __init__(
        self,
        data: Data,
        stored: int,
        mean: NDArray[np.float64],
        classes: int,
        device: torch.device,
        encoded: bool = False,
    ) -> None:
        self.data, self.settings = data, data.augment
        self.stored, self.size = stored, data.size or stored
        self.classes, self.device = classes, device
        self.fill = torch.tensor(255 * mean, dtype=torch.float32, device=device)
        self.mixes = bool(self.settings.mixup or self.settings.cutmix)
        self.cuts = encoded and self.settings.random_resized_crop is not None

    @property
    def varies(self) -> bool:
        """Whether an image can differ from one epoch to the next."""
        augmented = self.data.flip or self.settings != type(self.settings)()
        return augmented or self.stored + 2 * self.data.crop_padding != self.size

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """The draws of an epoch of n images, on the device; the choices of a policy stay on the CPU."""
        data, settings = self.data, self.settings
        draws: dict[str, Tensor] = {}
        cut = None
        span = self.stored + 2 * data.crop_padding - self.size
        if span and not settings.random_resized_crop:
            draws["crop"] = torch.randint(0, span + 1, (n, 2), generator=generator)
        if data.flip:
            draws["flip"] = torch.rand(n, generator=generator) < 0.5
        if settings != type(settings)():
            seed = int(torch.randint(2**62, (1,), generator=generator))
            draws |= {name: torch.from_numpy(array) for name, array in self._more(n, seed).items()}
            if settings.random_resized_crop:
                crops = Crops(settings.random_resized_crop, n, (seed, _FIELDS.index("random_resized_crop")))
                places = np.arange(n)
                if self.cuts:
                    cut = Cut(crops, places, draws.pop("flip", torch.zeros(n, dtype=torch.bool)).numpy())
                else:
                    boxes = crops.boxes(crops.drawn(places), np.full((n, 2), self.stored))
                    draws["box"] = torch.from_numpy(boxes)
        return Draws({k: draw if k == "policy" else draw.to(self.device) for k, draw in draws.items()}, cut)

    def _more(self, n: int, seed: int) -> dict[str, NDArray[Any]]:
        """Draws of each augmentation from its own generator, so that it does not change those of another."""
        settings = self.settings
        of = {name: np.random.default_rng([seed, k]) for k, name in enumerate(_FIELDS)}
        draws: dict[str, NDArray[Any]] = {}
        if policy := settings.policy:
            count, rng = policy.operations if isinstance(policy, RandAugment) else 1, of["policy"]
            operation = rng.integers(len(OPERATIONS), size=(n, count))
            level = rng.integers(LEVELS, size=(n, count))
            if isinstance(policy, RandAugment):
                level[:] = policy.magnitude
            draws["policy"] = np.stack([operation, level, rng.integers(2, size=(n, count))], -1)
        if settings.color_jitter:
            draws["color"] = of["color_jitter"].uniform(-1, 1, (n, 4)).astype(np.float32)
        if settings.random_erasing:
            draws["erase"] = _rectangles(n, self.size, settings.random_erasing, of["random_erasing"])
        if settings.cutout:
            centre = of["cutout"].integers(self.size, size=(n, 2))
            draws["cutout"] = _around(centre, np.full(n, settings.cutout), self.size)
        if self.mixes:
            draws |= self._mixtures(n, of["mixup"], of["cutmix"])
        return draws

    def _mixtures(self, n: int, mixup: np.random.Generator, cutmix: np.random.Generator) -> dict[str, NDArray[Any]]:
        """The share that an image keeps of itself, and the box that the other image replaces."""
        keep = mixup.beta(self.settings.mixup, self.settings.mixup, n) if self.settings.mixup else np.ones(n)
        box = np.zeros((n, 4), dtype=np.int64)
        if self.settings.cutmix:
            area = 1 - cutmix.beta(self.settings.cutmix, self.settings.cutmix, n)
            side = np.rint(np.sqrt(area) * self.size).astype(np.int64)
            box = _around(cutmix.integers(self.size, size=(n, 2)), side, self.size)
        if self.settings.mixup and self.settings.cutmix:
            cut = cutmix.random(n) < 0.5
            keep, box = np.where(cut, 1.0, keep), np.where(cut[:, None], box, 0)
        return {"keep": keep.astype(np.float32), "paste": box}

    def __call__(self, images: Tensor, draws: Draws, places: Places) -> Tensor:
        """Augment images (b x h x w x c, uint8) by the draws for some places of an epoch."""
        here = places.to(self.device) if isinstance(places, Tensor) else places
        own = {name: draw[places if name == "policy" else here] for name, draw in draws.by_name.items()}
        flip = own.get("flip")
        if "box" in own:
            images = resized_crops(images, own["box"], flip, self.size).round_()
            if "policy" in own:
                images = images.to(torch.uint8)
        elif "crop" in own or flip is not None:
            images = self._cropped(images, own.get("crop"), flip)
        if "policy" in own:
            images = by_policy(images, own["policy"], isinstance(self.settings.policy, RandAugment))
        if self.settings.color_jitter:
            images = jittered(images.float(), own["color"], self.settings.color_jitter)
        for name in ("erase", "cutout"):
            if name in own:
                images = torch.where(self._inside(own[name]), self.fill, images.float())
        return images

    def _cropped(self, images: Tensor, crops: Tensor | None, flips: Tensor | None) -> Tensor:
        """Random crop from the zero-padded image, random left-right flip: one gather for both."""
        n, side, pad = len(images), self.size, self.data.crop_padding
        rows = torch.arange(side, device=images.device).expand(n, -1)
        columns = torch.arange(side, device=images.device).expand(n, -1)
        if flips is not None:
            columns = torch.where(flips[:, None], side - 1 - columns, columns)
        if crops is not None:
            if pad:
                images = F.pad(images, (0, 0, pad, pad, pad, pad))
            rows, columns = rows + crops[:, :1], columns + crops[:, 1:]
        each = torch.arange(n, device=images.device)[:, None, None]
        return images[each, rows[:, :, None], columns[:, None, :]]

    def middle(self, images: Tensor) -> Tensor:
        """Images for evaluation: the middle of larger images."""
        first = round((images.shape[1] - self.size) / 2)
        return images if first == 0 else images[:, first : first + self.size, first : first + self.size]

    def _inside(self, box: Tensor) -> Tensor:
        """Which pixels lie in boxes of (top, left, height, width): b x size x size x 1."""
        place = torch.arange(self.size, device=box.device)
        top, left, height, width = (column[:, None] for column in box.unbind(1))
        rows, columns = (place >= top) & (place < top + height), (place >= left) & (place < left + width)
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def mix(self, images: Tensor, labels: Tensor, draws: Draws, own: slice) -> tuple[Tensor, Tensor]:
        """All images but the first, each mixed with the one before it, and the shares of all classes."""
        paste, kept = draws.by_name["paste"][own], draws.by_name["keep"][own, None, None, None]
        keep = torch.where(self._inside(paste), 0.0, kept)
        images = images.float()
        mixed = keep * images[1:] + (1 - keep) * images[:-1]
        share = keep.mean((1, 2))
        hot = F.one_hot(labels, self.classes)
        return mixed, share * hot[1:] + (1 - share) * hot[:-1]


def _rectangles(n: int, side: int, erasing: RandomErasing, rng: np.random.Generator) -> NDArray[np.int64]:
    """Boxes to erase, empty for images without one; boxes that are too high or wide are cut to the image."""
    area = side * side * rng.uniform(*erasing.scale, n)
    ratio = np.exp(rng.uniform(math.log(erasing.ratio[0]), math.log(erasing.ratio[1]), n))
    sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], -1))).astype(np.int64).clip(1, side)
    corner = (rng.random((n, 2)) * (side - sides + 1)).astype(np.int64)
    return np.where((rng.random(n) < erasing.probability)[:, None], np.concatenate([corner, sides], 1), 0)


def _around(centre: NDArray[np.int64], hole: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Squares around centres, cut to the image."""
    corner = (centre - hole[:, None] // 2).clip(0, side)
    end = (centre - hole[:, None] // 2 + hole[:, None]).clip(0, side)
    return np.concatenate([corner, end - corner], 1)


def resized_crops(images: Tensor, boxes: Tensor, flip: Tensor | None, size: int) -> Tensor:
    """A box (top, left, height, width) of each image, scaled to size x size, and flipped if drawn so.

    Bilinear with antialiasing, as of torch's `interpolate`: two products with matrices of weights for each image.
    """
    down = _weights(boxes[:, 0], boxes[:, 2], size, images.shape[1])
    across = _weights(boxes[:, 1], boxes[:, 3], size, images.shape[2])
    if flip is not None:
        across = torch.where(flip[:, None, None], across.flip(1), across)
    n, _, width, channels = images.shape
    rows = (down @ images.float().flatten(2)).view(n, size, width, channels)
    return (across[:, None] @ rows).contiguous()


def _weights(first: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """b x size x side: the weight of each pixel of a line in each pixel of its scaled part."""
    scale = (length / size)[:, None, None]
    centre = first[:, None, None] + (torch.arange(size, device=first.device)[:, None] + 0.5) * scale
    place = torch.arange(side, device=first.device)
    weight = (1 - (place + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weight *= (place >= first[:, None, None]) & (place < (first + length)[:, None, None])
    return weight / weight.sum(-1, keepdim=True)


def jittered(images: Tensor, draws: Tensor, jitter: ColorJitter) -> Tensor:
    """Change brightness, contrast, saturation and hue (images b x h x w x c, 0 to 255; draws b x 4 in [-1, 1])."""
    limits = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue], device=images.device)
    by = (draws * limits)[:, :, None, None, None].unbind(1)
    colour = images.shape[-1] == 3
    if jitter.brightness:
        images = (images * (1 + by[0])).clamp(0, 255)
    if jitter.contrast:
        mean = _grey(images).mean((1, 2, 3), keepdim=True)
        images = (mean + (images - mean) * (1 + by[1])).clamp(0, 255)
    if jitter.saturation and colour:
        grey = _grey(images)
        images = (grey + (images - grey) * (1 + by[2])).clamp(0, 255)
    return _turned(images, by[3][..., 0]) if jitter.hue and colour else images


def _grey(images: Tensor) -> Tensor:
    if images.shape[-1] == 1:
        return images
    return (images * torch.tensor(GREY, device=images.device)).sum(-1, keepdim=True)


def _turned(images: Tensor, by: Tensor) -> Tensor:
    """Rotate the hue by a share of the circle, keeping saturation and value (Smith, SIGGRAPH 1978)."""
    red, green, blue = images.unbind(-1)
    value, least = images.amax(-1), images.amin(-1)
    chroma = value - least
    divisor = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * by
    parts = [(shift + hue) % 6 for shift in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(p, 4 - p).clamp(0, 1) for p in parts], -1)
