"""A recorded step trains like the plain one. What records is a stand-in, which replays kernels without any Python."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from support import STANDARD, results_of, rows, tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repr_ray.training import loop, setup, trial
from repr_ray.training import step as steps
from repr_ray.training.step import GraphedStep, Setup, Step, make_step

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    """Like a CUDA graph, on a CPU: every kernel with the memory that it reads and writes, run again in order.

    Numbers that Python passed to a kernel stay what they were, and a number can't be read while it records.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert kernel not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        out = kernel(*args, **(kwargs or {}))
        self.calls.append((kernel, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for kernel, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(kernel(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or in place
                    old.copy_(new)


class Recorded(GraphedStep):
    """Records on a tape, and remembers the memory that a graph would have recorded."""

    made: ClassVar[list["Recorded"]] = []

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.addresses: dict[str, list[int]] = {}
        self.replays = 0
        Recorded.made.append(self)

    def tensors(self) -> list[torch.Tensor]:
        state = self.setup.optimizer.state
        tensors = [*self.setup.model.parameters(), *self.setup.scheme.dropped.values(), self.totals]
        tensors += [
            value for values in state.values() for value in values.values() if isinstance(value, torch.Tensor)
        ]
        return [*tensors, *(group["lr"] for group in self.setup.optimizer.param_groups)]

    def memory(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors()]

    def _record(self, scale: float) -> Any:
        phase, watching = self.setup.scheme.phase, self.setup.scheme.watching
        self.addresses[phase] = self.memory()
        before = [tensor.detach().clone() for tensor in self.tensors()]
        random = torch.get_rng_state()
        self.setup.optimizer.zero_grad()
        tape = Tape()
        with tape:
            self._train(self.images, self.labels, scale)
        torch.set_rng_state(random)  # a graph does not run while it is recorded
        with torch.no_grad():
            for tensor, value in zip(self.tensors(), before, strict=True):
                tensor.copy_(value)

        def replay() -> None:
            assert (self.setup.scheme.phase, self.setup.scheme.watching) == (phase, watching)
            assert self.memory() == self.addresses[phase], "a graph would write to memory that is no longer used"
            self.replays += 1
            tape.replay()

        return SimpleNamespace(replay=replay)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_and_plain_steps_train_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Through drops and re-initialisations, changes of the rate, and a smaller batch at the end of each epoch."""
    settings = {"kind": optimizer, "learning_rate": 2**-7} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    schedule = {"kind": "steps", "epochs": [3, 6], "factor": 0.5}
    one = tiny(train={"epochs": 8, "batch_size": 60, "optimizer": settings, "schedule": schedule})[1]
    trial.run_trial(one, tmp_path / "plain", CPU, lambda message: None, {})
    Recorded.made.clear()
    monkeypatch.setattr(steps, "make_step", Recorded)
    trial.run_trial(one, tmp_path / "recorded", CPU, lambda message: None, {})
    [step] = Recorded.made
    assert set(step.addresses) == {"full", "sub"}
    assert step.replays == 8 * 4 - GraphedStep.WARM_UP
    plain, recorded = (results_of(tmp_path / name)[one.name] for name in ("plain", "recorded"))
    assert plain["checksum"] == recorded["checksum"]
    assert rows(tmp_path / "plain", one.name, "epochs") == rows(tmp_path / "recorded", one.name, "epochs")


RIVALS: dict[str, dict[str, Any]] = {
    "dsd": {"sparse_at": 2, "dense_at": 4},
    "continual_backprop": {"replacement_rate": 0.1, "maturity": 4},
    "redo": {"every": 7, "threshold": 0.8},
    "standard": {"loss": {"kind": "srip", "decay": [[2, 0.5]]}},
}


@pytest.mark.parametrize("kind", RIVALS)
def test_recorded_steps_of_rivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is done between steps, and what changes with the epoch, is not frozen in a record."""
    one = tiny(
        train={"epochs": 5, "batch_size": 64, "ema": 0.9}, schemes={"x": {"kind": kind, **RIVALS[kind]}, **STANDARD}
    )
    [one] = [trial for trial in one if trial.scheme == "x"]
    trial.run_trial(one, tmp_path / "plain", CPU, print, {})
    monkeypatch.setattr(steps, "make_step", Recorded)
    trial.run_trial(one, tmp_path / "recorded", CPU, print, {})
    plain, recorded = (results_of(tmp_path / name)[one.name] for name in ("plain", "recorded"))
    assert plain["checksum"] == recorded["checksum"]
    assert bool(rows(tmp_path / "plain", one.name, "cycles")) == (kind != "standard")
    for table in ("epochs", "cycles"):
        assert rows(tmp_path / "plain", one.name, table) == rows(tmp_path / "recorded", one.name, table)


@pytest.mark.parametrize("kind", [kind for kind in RIVALS if kind != "dsd"])
def test_rivals_never_wait_for_the_device(kind: str) -> None:
    """However many steps an epoch has, also where filters are replaced in its middle and weights are averaged."""
    counts = {}
    for batch in (64, 16):
        schemes = {"x": {"kind": kind, **RIVALS[kind]}, **STANDARD}
        [one] = [t for t in tiny(train={"batch_size": batch, "ema": 0.9}, schemes=schemes) if t.scheme == "x"]
        one = setup.set_up(one, CPU)
        one.scheme.start_epoch(0)
        loop.train_epoch(one, 0)
        with torch.profiler.profile() as profile:
            loop.train_epoch(one, 0)
        assert kind == "standard" or one.scheme._replaced.any()
        names = Counter(event.name for event in profile.events())
        counts[batch] = {name: names[name] for name in ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")}
    assert counts[64] == counts[16]


def test_without_a_gpu_the_plain_step_is_taken(tmp_path: Path) -> None:
    one = setup.set_up(tiny(resources={"cuda_graph": True})[0], CPU)
    assert type(make_step(one)) is Step


@pytest.mark.parametrize("compact", [False, True], ids=["masked", "compact"])
def test_an_epoch_never_waits_for_the_device(compact: bool) -> None:
    """However many steps it has: on a GPU, reading a number would stop it."""
    counts = {}
    for batch in (64, 16):
        one = setup.set_up(tiny(train={"batch_size": batch, "compact_sub_network": compact})[1], CPU)
        for epoch in range(3):  # the last one in S2
            one.scheme.start_epoch(epoch)
            loop.train_epoch(one, epoch)
        assert one.scheme.filters_dropped
        with torch.profiler.profile() as profile:
            loop.train_epoch(one, 2)
        names = Counter(event.name for event in profile.events())
        assert names["aten::convolution_backward"] > 0
        counts[batch] = {name: names[name] for name in ("aten::item", "aten::_local_scalar_dense", "aten::nonzero")}
    assert counts[64] == counts[16]
