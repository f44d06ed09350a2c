"""Communication between ranks: values of rank 0 are broadcast, checksums are compared. One process sends nothing."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RanksDiffer(RuntimeError):
    """The ranks of one trial no longer hold the same model."""


def rank() -> int:
    """This process's rank, 0 without torch.distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train this model, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite every rank's tensors with those of rank 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def all_reduce(*tensors: Tensor) -> None:
    """Sum each tensor over the ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def checksum(model: nn.Module) -> str:
    """Hexadecimal digest of every parameter's bits and their order; equal only for equal models."""
    total = 0
    for index, parameter in enumerate(model.parameters(), start=1):
        bits = parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()]).flatten().to(torch.int64)
        place = torch.arange(1, bits.numel() + 1, device=bits.device) * 0x9E3779B1 + index
        total += int(((bits + 1) * (place ^ (place >> 15)) * 0x85EBCA77).sum()) * (2 * index + 1)
    return f"{total & (2**64 - 1):016x}"


def assert_same_model(model: nn.Module, when: str) -> None:
    """Raise RanksDiffer on every rank, naming those that differ from rank 0, unless all hold the same bits."""
    if world_size() == 1:
        return
    every = of_every_rank(checksum(model))
    if odd := [str(r) for r, digest in enumerate(every) if digest != every[0]]:
        raise RanksDiffer(f"{when}: the parameters on rank {', '.join(odd)} differ from those on rank 0")


def lost_connection(error: BaseException) -> bool:
    """Whether an error is a lost connection to another rank."""
    return isinstance(error, dist.DistError) or "Connection closed" in str(error) or "Connection reset" in str(error)


def of_every_rank(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank."""
    if world_size() == 1:
        return [value]
    every: list[Any] = [None] * world_size()
    dist.all_gather_object(every, value)
    return every


def from_rank_0(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
    return value
