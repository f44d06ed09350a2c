"""What is known while a network is followed: the labels of its tensors and the modules that are running."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from repr_ray.method.tracing.labels import CONSTANT, MIXED, by_row, laid_out_like, present, scalar, unexpanded
from repr_ray.method.tracing.ownership import Ownership, not_silent


@dataclass(frozen=True)
class Origin:
    """A tensor made of a parameter's or buffer's elements: where each comes from, along its dimensions 0 and 1."""

    name: str
    rows: Tensor
    columns: Tensor


class Trace(Ownership):
    """The labels of every tensor while a network runs, and what follows from them.

    `layers` are the convolutions in order of execution; `readers` are, by layer, the operations that read its output
    and the modules they run in; `inputs` is the input of the network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.inputs: tuple[Any, ...] = ()
        self.layers: list[str] = []
        self.readers: dict[str, set[tuple[str, str]]] = {}
        self.modules = {module: name for name, module in reversed(list(model.named_modules()))}
        self.stack: list[nn.Module] = []  # the modules that are running, the outermost first
        self.twins = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in self.tensors.values()}
        self.label_of = WeakIdKeyDictionary()  # each broadcasts to the tensor, in as many dimensions
        self.laid_out = WeakIdKeyDictionary()  # tensors whose labels have their strides, and views of them
        self.sources = WeakIdKeyDictionary()
        self.outputs = WeakIdKeyDictionary()  # the layer of each output of a convolution
        for name, tensor in self.tensors.items():
            self.sources[self.twins[id(tensor)]] = _source(name, tensor)
        self._model = model

    def labels(self, t: Tensor) -> Tensor:
        """The labels of a tensor's elements, broadcasting to it; not to be written to."""
        if t in self.label_of:
            return self.label_of[t]
        source = self.sources.get(t)
        if source is not None and source.name in self.parameter_labels:
            return self.parameter_labels[source.name][unexpanded(source.rows).long()]
        return scalar(CONSTANT, t)

    def writable_labels(self, t: Tensor) -> Tensor:
        """Labels with the strides of the tensor, so that its views share them and what is written to them."""
        if t not in self.laid_out:
            self.label_of[t] = laid_out_like(self.labels(t), t)
            self.laid_out[t] = True
        return self.label_of[t]

    def along(self, t: Tensor, dim: int) -> tuple[Tensor, list[float]]:
        """The label of each slice along `dim` that has one label (zeros aside), and the labels inside the others."""
        labels = self.labels(t)
        found, lost = by_row(labels.movedim(dim, 0).reshape(labels.shape[dim], -1))
        return found.expand(t.shape[dim]), lost

    def is_whole(self, t: Tensor) -> bool:
        """Whether a tensor is a parameter itself."""
        source = self.sources.get(t)
        return source is not None and t is self.twins[id(self.tensors[source.name])]

    @property
    def running(self) -> str | None:
        """The name of the innermost module that is running."""
        return self.modules.get(self.stack[-1] if self.stack else self._model)

    def site(self, operation: str) -> str:
        """The place of an operation in a message: the innermost module, or a function."""
        module = self.stack[-1] if self.stack else self._model
        name = self.modules.get(module, "")
        return name if name and not any(module.children()) else operation or name

    def unknown(self, name: str, given: dict[str, Any]) -> Tensor:
        """The labels of an operation without a rule; the layers of every filter that reaches it are left out."""
        every = [self.labels(t) for t in tree_leaves(list(given.values())) if isinstance(t, Tensor)]
        for z in every:
            self.consume(present(z), not_silent(self.site(name)))
        return torch.tensor(MIXED if any(bool((z != CONSTANT).any()) for z in every) else CONSTANT)


def _source(name: str, tensor: Tensor) -> Origin:
    def count(dim: int) -> Tensor:
        if tensor.dim() <= dim:
            return torch.zeros(()).expand(tensor.shape)
        places = torch.arange(tensor.shape[dim], dtype=torch.float32)
        return places.view([-1 if d == dim else 1 for d in range(tensor.dim())]).expand(tensor.shape)

    return Origin(name, count(0), count(1))
