"""Follow the filters of any network: one call in training mode and one in evaluation mode, without data."""

import itertools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repr_ray.method.tracing.labels import CannotTrace
from repr_ray.method.tracing.run import Interpreter
from repr_ray.method.tracing.trace import Trace

SIZES = (32, 64, 224, 28, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Image sizes tried first if none is given; others up to 256 follow until `MOST_OPERATIONS` is reached."""

MOST_OPERATIONS = 20_000  # operations, over all sizes, after which no further size is tried: some seconds


def follow(model: nn.Module, example: Any = None) -> Trace:
    """The trace of one call in training mode and one in evaluation mode, on tensors without data.

    `example` is an input, or a tuple of them; without one, image sizes are tried until one fits. The network is
    left as it was. Raises CannotTrace when it cannot be run, or when what it does depends on the values of tensors.
    """
    furthest: tuple[int, Exception] = (-1, CannotTrace("it takes no input"))
    operations = 0
    with torch.device("cpu"), _left_as_it_was(model):  # the caller may be making all else on another device
        given = tuple(example) if isinstance(example, tuple | list) else (example,)
        for inputs in [given] if example is not None else _guesses(model):
            interpreter = Interpreter(model)
            try:
                for training, labels in ((True, False), (True, True), (False, True)):
                    if labels or operations:  # most networks take the first size
                        model.train(training)
                        interpreter.run(*inputs, labels=labels)
                return interpreter.trace
            except Exception as error:
                operations += interpreter.operations
                if interpreter.operations > furthest[0]:
                    furthest = (interpreter.operations, error)
                if isinstance(error, CannotTrace | NotImplementedError | TypeError | AttributeError):
                    break
                if operations > MOST_OPERATIONS:
                    break
    raise CannotTrace(_explanation(model, furthest[1], example is not None)) from furthest[1]


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore modes, attributes and random numbers: a hook or a forward pass may have set attributes."""
    before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, attributes, parameters, buffers in before:
            every: list[tuple[dict[str, Any], dict[str, Any]]] = [
                (vars(module), attributes),
                (module._parameters, parameters),
                (module._buffers, buffers),
            ]
            for own, saved in every:
                own.clear()
                own.update(saved)


def _guesses(model: nn.Module) -> Iterator[tuple[Tensor]]:
    """Two images of every likely shape: with the channels of the first convolution, or three."""
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for sizes in (SIZES, [size for size in range(1, 257) if size not in SIZES]):
        for channels, size in itertools.product(dict.fromkeys((first, 3)), sizes):
            yield (torch.empty(2, channels, size, size, device="meta", dtype=dtype),)


def _explanation(model: nn.Module, error: Exception, given: bool) -> str:
    """One line: what went wrong, where in the user's code, and the way out."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    where = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    what = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    way = "make the forward pass a function of shapes alone (torch.where in place of `if` on values)"
    if not isinstance(error, CannotTrace | NotImplementedError):
        way = "check that it takes that input" if given else "pass example=, an input of the network as it is trained"
    return f"model: {type(model).__name__} cannot be followed: {what}{where}; {way}"


def _is_library(file: str) -> bool:
    return file.startswith((torch.__path__[0], __file__.removesuffix("follow.py"))) or "<" in file
