"""What runs on a GPU equals what runs on a CPU, waits for nothing, and resumes; `make test-gpu` asks a real one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from support import launch, results_of, rows, tiny, write_config

from repr_ray.data.batches import Batches
from repr_ray.data.decoded import load
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial
from repr_ray.training import loop, memory, setup
from repr_ray.training.messages import Preempted
from repr_ray.training.step import Setup
from repr_ray.training.trial import run_trial

CPU = torch.device("cpu")
Measured = Callable[[str], None]


def epochs_on(trial: Trial, device: torch.device, epochs: int) -> tuple[Setup, list[float], list[Any]]:
    """Train some epochs: the set-up, the losses, and the dropped filters of each epoch."""
    one = setup.set_up(trial, device)
    losses, dropped = [], []
    for epoch in range(epochs):
        one.scheme.start_epoch(epoch)
        losses.append(loop.train_epoch(one, epoch)[0])
        dropped.append({name: mask.tolist() for name, mask in one.scheme.dropped.items()})
    return one, losses, dropped


def run(trial: Trial, results: Path, device: torch.device, **options: Any) -> dict[str, Any]:
    """Train a whole trial; its result."""
    run_trial(trial, results, device, lambda message: None, {}, **options)
    return results_of(results)[trial.name]


def fp32(**changes: Any) -> Trial:
    """The tiny RePr trial in deterministic float32."""
    train = {"precision": "fp32", "deterministic": True} | changes.pop("train", {})
    return tiny(train=train, **changes)[1]


def test_training_equals_that_of_a_cpu(device: torch.device, measured: Measured) -> None:
    """Losses, dropped filters and weights through a whole cycle, up to floating-point order."""
    ours, losses, dropped = epochs_on(fp32(), device, 5)
    theirs, expected, same = epochs_on(fp32(), CPU, 5)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert dropped == same and any(map(any, dropped[2].values())) and not any(map(any, dropped[4].values()))
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    difference = max(float((a.detach().cpu() - b.detach()).abs().max()) for a, b in pairs)
    measured(f"largest difference of a weight {difference:.1e}")
    assert difference < 1e-2


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True},
        {"kind": "adam", "learning_rate": 0.01},
        {"kind": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    ],
    ids=lambda optimizer: optimizer["kind"],
)
@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
def test_dropped_filters_are_exactly_zero(device: torch.device, optimizer: dict[str, Any], graph: bool) -> None:
    """Through fused optimizers, and through recorded steps."""
    if graph and device.type != "cuda":
        pytest.skip("no CUDA device")
    one = setup.set_up(fp32(train={"optimizer": optimizer}, resources={"cuda_graph": graph}), device)
    for epoch in range(4):
        one.scheme.start_epoch(epoch)
        loop.train_epoch(one, epoch)
        assert one.scheme.filters_dropped == (4 if epoch in (2, 3) else 0)
        tensors = dict(one.model.named_parameters())
        for layer in one.scheme.masks.layers:
            for part in layer.silenced:
                mask = part.mask(tensors[part.tensor].shape, one.scheme.dropped[layer.name])
                assert not tensors[part.tensor].detach().masked_select(mask).any()


def test_recorded_steps_train_like_plain_ones(cuda: torch.device, tmp_path: Path, measured: Measured) -> None:
    """Masks and filters brought back through a captured graph."""
    plain = run(fp32(), tmp_path / "plain", cuda)
    recorded = run(fp32(resources={"cuda_graph": True}), tmp_path / "recorded", cuda)
    name = fp32().name
    ours, theirs = (rows(tmp_path / folder, name, "epochs") for folder in ("recorded", "plain"))
    assert [row["filters_dropped"] for row in ours] == [row["filters_dropped"] for row in theirs]
    assert [row["train_loss"] for row in ours] == pytest.approx([row["train_loss"] for row in theirs], rel=1e-4)
    measured(f"same bits: {plain['checksum'] == recorded['checksum']}")


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
def test_steps_never_synchronise(cuda: torch.device, graph: bool) -> None:
    """CUDA itself refuses to wait between the first and the last batch of an epoch."""
    one = setup.set_up(tiny(train={"batch_size": 32}, resources={"cuda_graph": graph})[1], cuda)
    batches = list(one.train.shuffled(32, torch.Generator().manual_seed(0)))
    for epoch in range(3):
        one.scheme.start_epoch(epoch)
        with one.step.epoch():
            for batch in batches:
                one.step(batch, 0.01)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for batch in batches:
                    one.step(batch, 0.01)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def test_bfloat16_learns_like_float32(device: torch.device, measured: Measured) -> None:
    _, exact, _ = epochs_on(fp32(), device, 6)
    _, rounded, _ = epochs_on(tiny(train={"precision": "bf16"})[1], device, 6)
    measured(f"loss {rounded[-1]:.3f} in bfloat16, {exact[-1]:.3f} in float32")
    assert rounded[-1] == pytest.approx(exact[-1], abs=0.15)


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
def test_a_stopped_trial_resumes_to_the_same_bits(device: torch.device, tmp_path: Path, graph: bool) -> None:
    if graph and device.type != "cuda":
        pytest.skip("no CUDA device")
    trial = fp32(resources={"cuda_graph": graph})
    undisturbed = run(trial, tmp_path / "undisturbed", device)
    steps = iter(range(1000))
    with pytest.raises(Preempted):
        run(trial, tmp_path / "stopped", device, stop=lambda: next(steps) == 13)
    assert run(trial, tmp_path / "stopped", device)["checksum"] == undisturbed["checksum"]


def test_images_that_stream_arrive_whole(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through memory that the processes write again, pinned memory, and copies that nothing waits for."""
    monkeypatch.setenv("REPR_RAY_CACHE", str(tmp_path / "cache"))
    for k in range(400):
        path = tmp_path / "images" / ("test" if k < 8 else "train") / str(k % 2) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
    block = {"name": "noise", "source": str(tmp_path / "images"), "store": "stream", "flip": True, "crop_padding": 4}
    data = Data.model_validate(block)
    found = load(data)

    def epoch(on: torch.device, loaders: int) -> list[torch.Tensor]:
        made = Batches(found.train, found.mean, found.std, data, on, classes=2, loaders=loaders)
        return [batch.images.cpu() for batch in made.shuffled(48, torch.Generator().manual_seed(0))]

    for ours, theirs in zip(epoch(device, 1), epoch(CPU, 0), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_speed(cuda: torch.device, measured: Measured) -> None:
    """Images a second of the paper's net on images of CIFAR's size, resident on the GPU."""
    for graph in (False, True):
        trial = tiny(
            model={"depth": 3, "width": 32},
            train={"batch_size": 128, "precision": "bf16"},
            resources={"cuda_graph": graph},
        )[0]
        one = setup.set_up(trial, cuda)
        images = torch.randint(0, 255, (25_600, 8, 8, 1), dtype=torch.uint8, device=cuda)
        one.train.images, one.train.labels = images, torch.randint(0, 10, (25_600,), device=cuda)
        loop.train_epoch(one, 0)
        torch.cuda.synchronize()
        began = time.perf_counter()
        loop.train_epoch(one, 1)
        torch.cuda.synchronize()
        measured(f"{25_600 / (time.perf_counter() - began):,.0f} images/s {'recorded' if graph else 'plain'}")


def test_a_trials_memory_is_measured(cuda: torch.device, measured: Measured) -> None:
    found = memory.measure_memory(tiny()[0])
    assert 0 < found.trial < found.gpu
    measured(f"{found.trial / 1e9:.2f} GB of {found.gpu / 1e9:.0f} GB, {found.fit} would fit")


def test_trials_share_a_gpu(cuda: torch.device, tmp_path: Path, measured: Measured) -> None:
    """`trials_per_gpu: auto`, through Ray."""
    pytest.importorskip("ray")
    config = write_config(tmp_path, seeds=[0, 1], resources={"trials_per_gpu": "auto"})
    began = time.perf_counter()
    done = launch("--config", config, "--results", tmp_path / "results", timeout=500)
    assert done.returncode == 0, done.stderr
    shared = {result["gpus"] for result in results_of(tmp_path / "results" / "tiny").values()}
    assert len(results_of(tmp_path / "results" / "tiny")) == 4 and all(0 < part <= 1 for part in shared)
    measured(f"each trial on {shared} of a GPU, {time.perf_counter() - began:.0f} s in all")


def _rank(rank: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    run_trial(fp32(), Path(folder) / "two", torch.device("cuda", rank), lambda message: None, {})
    dist.destroy_process_group()


def test_two_gpus_train_like_one(cuda: torch.device, tmp_path: Path, measured: Measured) -> None:
    """NCCL: the same batches and dropped filters, losses up to floating-point order."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    run(fp32(), tmp_path / "one", cuda)
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    ours, theirs = (rows(tmp_path / folder, fp32().name, "epochs") for folder in ("two", "one"))
    assert [row["train_loss"] for row in ours] == pytest.approx([row["train_loss"] for row in theirs], rel=1e-3)
    measured(f"loss {ours[-1]['train_loss']:.4f} on two, {theirs[-1]['train_loss']:.4f} on one")
