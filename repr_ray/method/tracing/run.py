"""Run a network on tensors without data and label the outputs of every operation."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from repr_ray.method.tracing.labels import FIRST, MIXED, CannotTrace, present, scalar
from repr_ray.method.tracing.moves import MOVES, moved
from repr_ray.method.tracing.ownership import not_silent
from repr_ray.method.tracing.rules import BATCH_NORMS, CONSTANTS, labels_of
from repr_ray.method.tracing.trace import Origin, Trace


class Interpreter(TorchDispatchMode):
    """Runs a network on tensors without data; `operations` are counted, `trace` is what was found."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace(model)
        self.operations = 0
        self._model = model
        self._follows = True

    def run(self, *inputs: Any, labels: bool = True) -> None:
        """Follow one call of the network, or (without labels) only try these inputs. Raises its errors."""
        self._follows, self.trace.inputs = labels, inputs
        self.trace.calls.clear()
        self.trace.computed.clear()
        self.trace.stack.clear()
        images = tree_map(lambda t: torch.empty_like(t, device="meta") if isinstance(t, Tensor) else t, inputs)
        for image in tree_leaves(images):
            if isinstance(image, Tensor):
                self.trace.label_of[image] = scalar(MIXED, image)
        pre, post = nn.modules.module.register_module_forward_pre_hook, nn.modules.module.register_module_forward_hook
        handles = [pre(self._enter), post(self._leave, always_call=True)]
        plain = mock.patch.object(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
        try:
            with torch.no_grad(), _uncompiled(), plain, self:
                outputs = self._model(*images)
        finally:
            for handle in handles:
                handle.remove()
        for output in _tensors_in(outputs) if labels else ():
            if output in self.trace.label_of:
                self.trace.leave_out(present(self.trace.label_of[output]), not_silent("the network's output"))
        for name, calls in self.trace.calls.items():
            if calls > 1:
                self.trace.left_out.setdefault(self.trace.layer_of[name], "its weights are shared by several callers")

    def _enter(self, module: nn.Module, inputs: object) -> None:
        self.trace.stack.append(module)

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self.trace.stack.pop()
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            self._note_axis(module, output)

    def _note_axis(self, module: nn.Module, output: object) -> None:
        """Note the axis of the channels in the output of a module that owns gammas or biases of filters."""
        name = self.trace.modules.get(module, "")
        tensors = [self.trace.names[id(p)] for p in module._parameters.values() if id(p) in self.trace.names]
        claims = [self.trace.claims[name, False] for name in tensors if (name, False) in self.trace.claims]
        own = [claim for claim in claims if claim.role in ("gamma", "bias")]
        if own and isinstance(output, Tensor) and output in self.trace.label_of and not isinstance(module, nn.Conv2d):
            along = [self.trace.along(output, d)[0] for d in range(output.dim())]
            axes = [d for d in range(1, output.dim()) if bool((along[d] >= FIRST).any())]
            for claim in own:
                claim.axis = axes[0] if axes else claim.axis
                if claim.role == "bias" and not (axes and torch.equal(along[axes[0]], claim.labels)):
                    self.trace.leave_out(present(claim.labels), f"{claim.tensor} is added to it within {name}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # a default device costs time in each call on labels
            return self._dispatch(func, args, kwargs)

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        base = func._schema.name.split("::")[1]
        if not any(t.is_meta or id(t) in self.trace.names for t in tensors):
            out = func(*args, **kwargs)
            if base in CONSTANTS and isinstance(out, Tensor) and out.is_floating_point() and not out.is_meta:
                out = out.to("meta")  # results may be written into it
            return out
        if base in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"):
            raise CannotTrace("what it does depends on the values of a tensor")
        self.operations += 1
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        real = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        args, kwargs = tree_map(self._twin, (args, kwargs))
        for t in tensors if self._follows else ():
            if (layer := self.trace.outputs.get(self._twin(t))) is not None and base not in ("detach", "alias"):
                self.trace.readers[layer].add((base, self.trace.modules.get(self.trace.stack[-1], "")))
        out = _without_data(func, base, args, kwargs)
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        if self._follows:
            self._follow(func, base, given, real, out)
        return out

    def _twin(self, value: Any) -> Any:
        """The tensor without data that stands for one with data."""
        if not isinstance(value, Tensor) or (value.is_meta and id(value) not in self.trace.names):
            return value
        if id(value) in self.trace.twins:
            return self.trace.twins[id(value)]
        return torch.empty_like(value, device="meta") if value.dim() else value

    def _follow(self, func: Any, base: str, given: dict[str, Any], real: dict[str, Any], out: Any) -> None:
        """Label the outputs of an operation."""
        tensors = [t for t in tree_leaves(list(given.values())) if isinstance(t, Tensor)]
        self.trace.unclaimed = {self.trace.sources[t].name for t in tensors if t in self.trace.sources}
        in_place = base.endswith("_") and not base.endswith("__")
        name = base.removesuffix("_") if in_place else base
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in MOVES:
            found_moved = moved(self.trace, func, name, given, real, out)
            if found_moved is not None:
                for one, labels in zip(outputs, found_moved, strict=True):
                    if isinstance(labels, Origin):
                        self.trace.sources[one] = labels
                    else:
                        self.trace.label_of[one] = labels
                self.trace.release_unclaimed()
                return
        found = labels_of(self.trace, func, name, given, outputs)
        for one, labels in zip(outputs, found, strict=True):
            labels = labels.reshape([1] * (one.dim() - labels.dim()) + list(labels.shape))
            if in_place and one in self.trace.sources:
                self.trace.release_unclaimed({self.trace.sources[one].name})
            elif in_place and one in self.trace.laid_out:
                self.trace.label_of[one].copy_(labels.clone())
            else:
                self.trace.label_of[one] = labels
        self.trace.release_unclaimed()


def _without_data(func: Any, base: str, args: Any, kwargs: Any) -> Any:
    """The result of an operation on tensors without data; of a batch norm, slow to decompose, by its shape alone."""
    if base in BATCH_NORMS and len(func._schema.returns) > 1:
        statistics = [torch.empty(0, device="meta") for _ in func._schema.returns[1:]]
        return torch.empty_like(args[0]), *statistics
    return func(*args, **kwargs)


def _uncompiled() -> AbstractContextManager[object]:
    """Run compiled parts of a network as written; without a compiled part, the slow compiler is not imported."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a network's output, whatever holds it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from _tensors_in(one)
    elif hasattr(value, "__dict__"):
        yield from _tensors_in(vars(value))
