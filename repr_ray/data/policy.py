"""Random operations on colour and shape, as RandAugment and TrivialAugment draw them (`data.augment.policy`)."""

import math

from torch import Tensor

LEVELS = 31  # magnitudes of an operation

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness"),
    *("color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)


def by_policy(images: Tensor, drawn: Tensor, narrow: bool) -> Tensor:
    """Apply to every image (b x h x w x c, uint8) the operations that were drawn for it (b x k x 3, on the CPU)."""
    images = images.permute(0, 3, 1, 2)
    for step in drawn.unbind(1):
        images = images.clone()
        kinds, group = step.unique(dim=0, return_inverse=True)
        for number, (operation, level, minus) in enumerate(kinds.tolist()):
            mine = (group == number).nonzero().flatten().to(images.device)
            name = OPERATIONS[operation]
            images[mine] = operate(
                images[mine], name, magnitude(name, level, narrow, images.shape[-1]) * (-1) ** minus
            )
    return images.permute(0, 2, 3, 1)


def magnitude(name: str, level: int, narrow: bool, side: int) -> float:
    """The magnitude of a level from 0 to 30: in RandAugment's range, or in the wide one of TrivialAugment."""
    share = level / (LEVELS - 1)
    if name == "posterize":
        return 8 - round(share * (4 if narrow else 6))
    if name == "solarize":
        return 1 - share
    largest = {"translate": (150 / 331 * side, 32), "shear": (0.3, 0.99), "rotate": (30, 135)}
    return share * largest.get(name.partition("_")[0], (0.9, 0.99))[0 if narrow else 1]


def operate(images: Tensor, name: str, by: float) -> Tensor:
    """One operation of a policy on images (b x c x h x w, uint8), by torchvision's functions; `by` has its sign."""
    import torchvision.transforms.v2.functional as tv

    match name:
        case "shear_x" | "shear_y":
            degrees = math.degrees(math.atan(by))
            shear = [degrees, 0.0] if name == "shear_x" else [0.0, degrees]
            return tv.affine(images, 0.0, [0, 0], 1.0, shear, center=[0.0, 0.0])
        case "translate_x" | "translate_y":
            shift = [int(by), 0] if name == "translate_x" else [0, int(by)]
            return tv.affine(images, 0.0, shift, 1.0, [0.0, 0.0])
        case "rotate":
            return tv.rotate(images, by)
        case "posterize":
            return tv.posterize(images, int(abs(by)))
        case "solarize":
            return tv.solarize(images, abs(by) * 255)
        case "autocontrast" | "equalize":
            return getattr(tv, name)(images)
        case "brightness" | "contrast" | "sharpness":
            return getattr(tv, f"adjust_{name}")(images, 1 + by)
        case "color" if images.shape[1] == 3:
            return tv.adjust_saturation(images, 1 + by)
    return images  # identity, and colour of grey images
