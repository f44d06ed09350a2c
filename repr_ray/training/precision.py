"""The precision of a trial's forward and backward passes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repr_ray.method.measurement import evaluating
from repr_ray.study.config import Train


def resolve_precision(train: Train, device: torch.device) -> str:
    """The precision; `auto` is bf16 if the hardware multiplies it faster, else fp32."""
    if train.precision != "auto":
        return train.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def padded_kernel(model: nn.Module, images: Tensor) -> str:
    """A convolution with weights that only read padding, in words; empty if the network has none.

    In bfloat16 on a CPU, PyTorch 2.15 (oneDNN) leaves the gradient of such weights uninitialised: in fp32 it is 0.
    """
    with evaluating(model), torch.random.fork_rng(devices=[]), torch.no_grad(), _Convolutions() as convolutions:
        model(images)
    return convolutions.found


class _Convolutions(TorchDispatchMode):
    """Finds the first convolution with a position of its kernel that lies in the padding for every output."""

    found = ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.convolution.default and not self.found:
            image, kernel, _, stride, padding, dilation, transposed, *_ = args
            dims = image.dim() - 2
            steps = [each * dims if len(each) == 1 else each for each in (stride, padding, dilation)]
            sides = zip(image.shape[2:], kernel.shape[2:], *steps, strict=True)
            if not transposed and any(_only_padding(*side) for side in sides):
                self.found = f"a kernel of {_by(kernel.shape[2:])} on {_by(image.shape[2:])} pixels"
        return function(*args, **(kwargs or {}))


def _only_padding(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a position of the kernel along one side reads no pixel of the image."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    reads = [[place * stride - padding + at * dilation for place in range(outputs)] for at in range(kernel)]
    return not all(any(0 <= place < size for place in places) for places in reads)


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
