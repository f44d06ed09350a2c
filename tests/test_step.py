"""A recorded step trains like the plain one. The recorder is a stand-in: no CUDA graph runs on a CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from support import results_of, rows, tiny

from repr_ray.training import setup, trial
from repr_ray.training.step import GraphedStep, Step, make_step

CPU = torch.device("cpu")


class Recorded(GraphedStep):
    """Replays by running the step again, and remembers the memory that a graph would have recorded."""

    made: ClassVar[list["Recorded"]] = []

    def __init__(self, setup: setup.Setup) -> None:
        super().__init__(setup)
        self.addresses: dict[str, list[int]] = {}
        self.replays = 0
        Recorded.made.append(self)

    def memory(self) -> list[int]:
        state = self.setup.optimizer.state
        tensors = [*self.setup.model.parameters(), *self.setup.scheme.dropped.values(), self.totals]
        tensors += [
            value for values in state.values() for value in values.values() if isinstance(value, torch.Tensor)
        ]
        tensors += [group["lr"] for group in self.setup.optimizer.param_groups]
        return [tensor.data_ptr() for tensor in tensors]

    def _record(self, scale: float) -> Any:
        phase = self.setup.scheme.phase
        self.addresses[phase] = self.memory()

        def replay() -> None:
            assert self.setup.scheme.phase == phase
            assert self.memory() == self.addresses[phase], "a graph would write to memory that is no longer used"
            self.replays += 1
            self._train(self.images, self.labels, scale)

        return SimpleNamespace(replay=replay)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_recorded_and_plain_steps_train_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Through drops and re-initialisations, with a smaller batch at the end of each epoch."""
    settings = {"kind": optimizer, "learning_rate": 2**-7} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    one = tiny(train={"epochs": 8, "batch_size": 60, "optimizer": settings})[1]
    trial.run_trial(one, tmp_path / "plain", CPU, lambda message: None, {})
    Recorded.made.clear()
    monkeypatch.setattr(setup, "make_step", Recorded)
    trial.run_trial(one, tmp_path / "recorded", CPU, lambda message: None, {})
    [step] = Recorded.made
    assert set(step.addresses) == {"full", "sub"}
    assert step.replays == 8 * 4 - GraphedStep.WARM_UP
    plain, recorded = (results_of(tmp_path / name)[one.name] for name in ("plain", "recorded"))
    assert plain["checksum"] == recorded["checksum"]
    assert rows(tmp_path / "plain", one.name, "epochs") == rows(tmp_path / "recorded", one.name, "epochs")


def test_without_a_gpu_the_plain_step_is_taken(tmp_path: Path) -> None:
    one = setup.set_up(tiny(resources={"cuda_graph": True})[0], CPU)
    assert type(make_step(one)) is Step
