"""What a grid will take: against what trials of it took."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY, tiny, write_config

from repr_ray import estimate
from repr_ray.data.decoded import load
from repr_ray.data.shape import shape_of
from repr_ray.launch import main
from repr_ray.models.settings import ConvNet
from repr_ray.runners import local
from repr_ray.study.data import Data
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate
from repr_ray.training.folder import TrialFolder


def test_a_return_at_a_low_rate_is_warned_of() -> None:
    """A cosine is at 2.4% of its first rate after nine tenths of a training; restarts begin anew there."""
    schemes = {
        "standard": {"kind": "standard"},
        "repr": {"kind": "repr", "s1": 20, "s2": 10, "cycles": 3},
        "early": {"kind": "repr", "s1": 10, "s2": 10, "cycles": 1},
        "forgetting": {"kind": "later_layer_forgetting"},
    }

    def warned(**schedule: Any) -> list[str]:
        return estimate.late_lines(tiny(schemes=schemes, train={"epochs": 100, "schedule": schedule}))

    assert [line.split(":")[1].strip() for line in warned(kind="cosine")] == ["repr", "forgetting"]
    assert all("after epoch 90 of 100, trains at 2.4% of" in line for line in warned(kind="cosine"))
    assert not warned(kind="constant") and not warned(kind="steps", epochs=[60], factor=0.5)
    assert not warned(kind="cosine_restarts", first=10)


def test_the_last_return_is_where_the_scheme_returns() -> None:
    """RIFLE leaves out a re-initialisation too near the end, here after epoch 28; a rate may fall by steps."""
    rifle = {"rifle": {"kind": "rifle", "every": 7}}

    def warned(**schedule: Any) -> list[str]:
        lines = estimate.late_lines(tiny(schemes=rifle, train={"epochs": 30, "schedule": schedule}))
        return [line for line in lines if "rifle" in line]

    assert not warned(kind="cosine"), "a fifth of the rate after epoch 21"
    [line] = warned(kind="steps", every_steps=5)
    assert "rifle: its last re-initialisation, after epoch 21 of 30, trains at 0.0% of" in line


def test_a_schedule_that_goes_beyond_the_training_is_warned_of() -> None:
    def warned(**schedule: Any) -> list[str]:
        lines = estimate.late_lines(tiny(train={"epochs": 60, "schedule": schedule}))
        return [line for line in lines if "train.schedule." in line and "never comes" in line]

    [steps] = warned(kind="steps", epochs=[30, 60, 90])
    assert steps == "WARNING: train.schedule.epochs: the change after epoch 60, 90 never comes in train.epochs=60"
    [cosine] = warned(kind="cosine", warmup_epochs=60)
    assert cosine.startswith("WARNING: train.schedule.warmup_epochs: the end of 60 epochs never comes in")
    assert not warned(kind="steps", epochs=[30, 59]) and not warned(kind="cosine", warmup_epochs=59)
    assert not warned(kind="steps", every_steps=1000)


@pytest.mark.parametrize("data", ["digits", "cifar100"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth": 1, "width": 5, "kernel": 7},
        {"depth": 2, "batch_norm": True, "pool": "max2"},
        {"depth": 3, "pool": "max3", "init": "truncated_normal"},
    ],
)
def test_the_size_without_torch_is_that_of_the_built_network(settings: dict[str, Any], data: str) -> None:
    net, images = ConvNet(**settings), shape_of(Data(name=data))
    with torch.device("meta"):
        built = net.network(images.classes, images.channels, images.size)
    assert estimate.size(net, Data(name=data)) == estimate.Size(
        sum(p.numel() for p in built.parameters()), sum(b.numel() for b in built.buffers()), net.depth
    )


def test_a_data_set_has_as_many_images_as_its_entry_says() -> None:
    data = tiny()[0].data.model_copy(update={"train_images": None, "validation_images": 0})
    assert len(load(data).train) == shape_of(data).train_images


@pytest.mark.parametrize("optimizer", [{"kind": "sgd", "momentum": 0.9}, {"kind": "adam"}])
def test_disk_is_estimated_within_a_third(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    blocks = {"model": {"kind": "resnet", "depth": 8}, "train": {"epochs": 5, "optimizer": optimizer}}
    schemes = {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 1, "s2": 1, "cycles": 1}}
    data = TINY["data"] | {"train_images": 64, "validation_images": 20, "partial": True}
    trials = plan(validate(TINY | blocks | {"schemes": schemes, "data": data}, "x"))
    local.run(trials, tmp_path, lambda message: None, {})
    for trial in trials:
        held = sum(path.stat().st_size for path in TrialFolder(tmp_path, trial).path.iterdir())
        assert 0.75 < estimate.disk(trial) / held < 1.33


def test_the_best_weights_count_where_there_is_a_validation_split() -> None:
    with_split, without = (tiny(data={"validation_images": n})[0] for n in (100, 0))
    weights = 4 * estimate.size(with_split.model, with_split.data).parameters
    assert estimate.disk(with_split) - estimate.disk(without) == weights


def test_a_full_disk_is_foretold_and_what_is_there_already_is_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = tiny()
    needed = sum(map(estimate.disk, trials))
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: type("", (), {"free": needed - 1}))
    line, enough = estimate.disk_line(trials, tmp_path / "nothing" / "yet")
    assert not enough
    assert f"WARNING: disk: about {estimate.amount(needed)} for 2 trials" in line
    assert line.endswith(f"free at {tmp_path}: make room, or name another folder with --results")
    arguments = ["--config", str(write_config(tmp_path)), "--results", str(tmp_path), "--runner", "local"]
    assert main(arguments) == 0  # warned, not refused
    assert "WARNING: disk: about" in capsys.readouterr().out
    assert estimate.disk_line(trials, tmp_path / "tiny")[1]


def test_time_is_told_from_finished_trials_or_how_to_measure_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, seeds=[0, 1])
    arguments = ["--config", str(config), "--results", str(tmp_path), "--runner", "local"]
    assert main([*arguments, "--dry-run"]) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("time:"))
    assert line.startswith("time: not known for 4 trials of convnet-2x8 on digits")
    measure = shlex.split(line.partition("run one epoch to measure it: ")[2])
    assert measure[:3] == ["python", "-m", "repr_ray.launch"]
    assert main(measure[3:]) == 0
    [result] = tmp_path.glob("tiny-speed/trials/*/result.json")
    speed = json.loads(result.read_text()) | {"images_per_second": 2.0, "workers": 1, "threads": 3}
    result.write_text(json.dumps(speed))
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    hours = 4 * 8 * 256 / 2.0 * 3 / 3600  # trials, epochs, images, images/s, threads
    assert f"time: about {hours:,.2g} CPU hours for 4 trials of convnet-2x8 on digits" in capsys.readouterr().out
    assert main([*arguments, "--dry-run", "resources.hour_price=30"]) == 0
    cost = f"CPU hours, {30 * hours:,.0f} at 30 an hour, for 4 trials"
    assert cost in capsys.readouterr().out.replace("\n", " ")


def test_tuning_counts_and_its_speed_is_measured_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = {"schemes": {"repr": {"prune_ratio": {"uniform": [0.1, 0.5]}}}, "budget": 3, "halve_after": [2]}
    config = write_config(tmp_path, seeds=[0, 1], tuning=tuning)
    assert main(["--config", str(config), "--results", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "for 8 trials" in out  # one of standard, which has nothing to tune, and three of RePr; two seeds of both
    measure = shlex.split(out.partition("run one epoch to measure it: ")[2])
    assert main([*measure[3:], "--dry-run"]) == 0


@pytest.mark.parametrize("other", [{"data": {"size": 16}}, {"model": {"width": 16}}, {"data": {"channels": 3}}])
def test_only_the_same_work_is_a_measure(tmp_path: Path, other: dict[str, Any]) -> None:
    """Folders of trials are named alike where their images are of other sizes."""
    result = {"images_per_second": 100.0, "workers": 1, "threads": 1, "hardware": {"cpu": "x", "gpu": None}}
    for number, changed in enumerate((other, {"train": {"batch_size": 16}})):
        folder = TrialFolder(tmp_path / "other", tiny(name="other", **changed)[0])
        folder.announce()
        folder.take_over()
        folder.finish(result)
        assert (estimate.measured(tiny()[0], tmp_path) is not None) == bool(number)


def test_a_gpu_is_not_estimated_from_a_cpu(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "other", tiny()[0])
    folder.announce()
    folder.take_over()
    folder.finish({"images_per_second": 100.0, "workers": 2, "threads": 4, "hardware": {"cpu": "x", "gpu": None}})
    on_gpu, either, on_cpu = (tiny(resources={"gpus_per_worker": g})[0] for g in (1, "auto", 0))
    assert estimate.measured(on_gpu, tmp_path) is None
    for trial in (either, on_cpu):
        assert estimate.measured(trial, tmp_path) == estimate.Speed(0.08, "CPU", "x", 1)
    faster = TrialFolder(tmp_path / "other", tiny(seeds=[1], resources={"trials_per_gpu": 2})[0])
    faster.announce()
    faster.take_over()
    speed = {"images_per_second": 1000.0, "workers": 1, "threads": 4, "gpus": 0.5}
    faster.finish(speed | {"hardware": {"cpu": "x", "gpu": "G"}})
    for trial in (either, on_gpu):
        assert estimate.measured(trial, tmp_path) == estimate.Speed(0.0005, "GPU", "G", 1)
