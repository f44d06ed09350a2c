"""Networks of torchvision and timm, untrained or from a file of weights."""

import errno
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from repr_ray.storage.text import hint


def torchvision(
    *, name: str, options: Mapping[str, Any], weights: str | None, classes: int, channels: int, image_size: int
) -> nn.Module:
    """torchvision.models.NAME(**options), for images of this size if it has such an option.

    Raises ValueError for images that the network does not take, and for options that it does not have.
    """
    from torchvision.models import get_model, get_model_builder

    if channels != 3:
        raise ValueError(f"model: torchvision's {name} takes images of 3 channels, not {channels}")
    _refuse_given(options, "weights", "num_classes")

    given: dict[str, Any] = {"num_classes": classes, "weights": None, **_WITHOUT_SIDE_OUTPUTS.get(name, {})}

    def make(options: Mapping[str, Any]) -> nn.Module:
        return _made(name, get_model_builder(name), get_model, options, given)

    return _started(_fitting(name, make, options, (channels, image_size, classes)), weights, classes)


def timm(
    *, name: str, options: Mapping[str, Any], weights: str | None, classes: int, channels: int, image_size: int
) -> nn.Module:
    """timm.create_model(NAME, **options), for images of this size if it has such an option.

    Raises ValueError if timm or the network is missing, or the network does not take these images or an option.
    """
    try:
        library = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ValueError(f"model.kind=timm: {error}; pip install 'repr-ray[timm]'") from None
    if not library.is_model(name):
        raise ValueError(f"model.name={name}: timm has no such network{hint(name, library.list_models())}")
    _refuse_given(options, "pretrained", "num_classes", "in_chans", "checkpoint_path", "pretrained_cfg")

    def make(options: Mapping[str, Any]) -> nn.Module:
        given: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "pretrained": False}
        return _made(name, None, library.create_model, options, given)

    return _started(_fitting(name, make, options, (channels, image_size, classes)), weights, classes)


_WITHOUT_SIDE_OUTPUTS = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
"""Options of networks that give more than logits in training by default."""

Make = Callable[[Mapping[str, Any]], nn.Module]

_SIDE_OUTPUTS = ("aux1.", "aux2.", "AuxLogits.")
"""Weights that a file may have alone: those of the side outputs that are left out."""

_SIZE_OPTIONS = ("img_size", "image_size", "input_size")
_COMMON_SIZES = (224, 256, 299, 384)


def _fitting(name: str, make: Make, options: Mapping[str, Any], images: tuple[int, int, int]) -> nn.Module:
    """The network, made for the size of the images if it takes none of this size otherwise.

    `images` are their channels, pixels a side and classes. The network is tried in training without data, or on
    images of zeros if it only computes with data. Raises ValueError if it takes no such images, or gives no logits.
    """
    channels, size, classes = images
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = make(options)
        if not (reason := _reason(network, make, options, images)):
            sized = options
        elif sized := _for_size(network, options, size):
            try:
                reason = _reason(make(sized), make, sized, images)
            except ValueError as error:
                reason = str(error).partition(f"{name}: ")[2] or str(error)
        if reason:
            taken = [side for side in _COMMON_SIZES if not _refusal(network, channels, side, classes)]
            if not taken:
                what = "model.options" if options else "model"
                raise ValueError(f"{what}: {name} cannot be trained on images of {size} x {size} pixels: {reason}")
            other = next((side for side in taken if side > size), taken[0])
            raise ValueError(
                f"data.size: {name} takes no images of {size} x {size} pixels ({reason}); set another data.size, such"
                f" as {other}, to which images are scaled, or choose another network"
            )
    return make(sized)


def _for_size(network: nn.Module, options: Mapping[str, Any], size: int) -> Mapping[str, Any]:
    """The options with that of the size of images, if the network has one that is not given; else none."""
    own = {name for part in type(network).__mro__[:-1] for name in inspect.signature(part).parameters}
    option = next((option for option in _SIZE_OPTIONS if option in own and option not in options), None)
    return {**options, option: (size, size) if option == "input_size" else size} if option else {}


def _reason(network: nn.Module, make: Make, options: Mapping[str, Any], images: tuple[int, int, int]) -> str:
    """Why a network, made with these options, cannot be trained on such images; empty if it can."""
    reason = _refusal(network, *images)
    if "meta" not in reason.lower():
        return reason
    with torch.device("cpu"):
        return _refusal(make(options), *images)


def _refusal(network: nn.Module, channels: int, size: int, classes: int) -> str:
    """Why a network takes no images of this size in training, or gives no logits; empty if it does."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, channels, size, size))
    except Exception as error:  # networks raise errors of many types
        return " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    if isinstance(logits, torch.Tensor) and logits.shape == (2, classes):
        return ""
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    return f"it gives {found} for two images, not logits {(2, classes)}"


def _refuse_given(options: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if name in options:
            raise ValueError(f"model.options.{name}: the images and model.weights set it; leave it out")


def _made(
    name: str,
    builder: Callable[..., Any] | None,
    make: Callable[..., nn.Module],
    options: Mapping[str, Any],
    given: Mapping[str, Any],
) -> nn.Module:
    """The network; `options` replace what is `given`. Raises ValueError for options that it does not take."""
    taken = inspect.signature(builder).parameters if builder else {}
    if taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        for option in options:
            if option not in taken:
                raise ValueError(f"model.options.{option}: {name} takes {', '.join(taken)}")
    try:
        try:
            return make(name, **{**given, **options})
        except NotImplementedError:  # it computes with tensors while it is made: not on a device without data
            device = torch.get_default_device()
            with torch.device("cpu"):
                return make(name, **{**given, **options}).to(device)
    except Exception as error:
        if not options:
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model.options: {name}: {what}") from error


def _started(model: nn.Module, file: str | None, classes: int) -> nn.Module:
    """The network with the weights of a file, read without running code in it.

    Raises ValueError for a file that cannot be read, or that has other weights than the network.
    """
    if file is None:
        return model
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        if type(error).__name__ == "UnpicklingError":  # PyTorch's text is about its own arguments
            reason = "it is not a file of tensors alone that torch.save wrote"
        cut_off = isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EINVAL
        if cut_off or "PytorchStreamReader" in reason:
            reason = "it is empty, or its end is missing"
        raise ValueError(f"model.weights={file}: cannot be read as weights: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not all(isinstance(value, torch.Tensor) for value in saved.values()):
        raise ValueError(f"model.weights={file}: no mapping of names to tensors, as state_dict() gives it")
    if saved and all(name.startswith("module.") for name in saved):  # of DistributedDataParallel
        saved = {name.removeprefix("module."): value for name, value in saved.items()}
    own = model.state_dict()
    missing = own.keys() - saved.keys()
    unknown = {name for name in saved.keys() - own.keys() if not name.startswith(_SIDE_OUTPUTS)}
    for what, names in (("lacks", missing), ("has weights that the network lacks:", unknown)):
        if names := {name for name in names if not name.endswith("num_batches_tracked")}:
            raise ValueError(f"model.weights={file}: {what} {', '.join(sorted(names)[:3])} ({len(names)} in all)")
    other = [name for name in own.keys() & saved.keys() if own[name].shape != saved[name].shape]
    head = [name for name in other if len(own[name]) == classes and own[name].shape[1:] == saved[name].shape[1:]]
    if odd := sorted(set(other) - set(head)):
        shapes = f"{tuple(saved[odd[0]].shape)} in the file, {tuple(own[odd[0]].shape)} in the network"
        raise ValueError(f"model.weights={file}: {odd[0]} is {shapes}; check model.name and model.options")
    if next(iter(own.values())).is_meta:
        return model
    model.load_state_dict({name: value for name, value in saved.items() if name not in head}, strict=False)
    return model
