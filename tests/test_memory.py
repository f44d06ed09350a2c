"""What a trial takes of a GPU: measured by training it a little."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from repr_ray.training import loop, memory, setup
from repr_ray.training.step import Setup

GB = 2**30


def test_a_little_training_and_a_whole_evaluation_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a GPU of 80 GB pretended, of which 2 are taken by contexts and 3 were once allocated."""
    set_up, evaluate, done = setup.set_up, loop.evaluate, {"steps": 0, "evaluated": 0}

    def on_cpu(trial: Any, device: torch.device) -> Setup:
        assert device.type == "cuda"
        made = set_up(trial, torch.device("cpu"))
        train = made.step._train

        def step(*args: Any) -> None:
            done["steps"] += 1
            train(*args)

        monkeypatch.setattr(made.step, "_train", step)
        return made

    def evaluated(state: Setup, split: Any) -> Any:
        done["evaluated"] += len(split)
        return evaluate(state, split)

    monkeypatch.setattr(loop, "evaluate", evaluated)
    monkeypatch.setattr(setup, "set_up", on_cpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (76 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3 * GB)
    monkeypatch.chdir(tmp_path)
    [trial, _] = tiny(train={"batch_size": 16})
    assert memory.measure_memory(trial) == memory.Memory(5 * GB, 80 * GB)
    assert done["steps"] == memory.STEPS
    assert done["evaluated"] == 360
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("trial", "fit"), [(5, 14), (72, 1), (73, 0)])
def test_a_tenth_of_a_gpu_stays_free(trial: int, fit: int) -> None:
    assert memory.Memory(trial, 80).fit == fit
