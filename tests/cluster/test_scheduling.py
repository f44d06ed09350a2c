"""Sixty trials on clusters of pretended GPUs: how full the slots are, where drivers sit, what stays behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, results_of, tiny, write_config

from repr_ray.runners import ray as runner
from repr_ray.runners.ray_cluster import Connection
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial
from repr_ray.training.memory import Memory
from repr_ray.training.messages import Message, Note, Tell

SECONDS = 4.0
"""How long a pretended trial takes."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts a head without CPUs and a number of worker nodes; the runner joins it through RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    started: list[Any] = []

    def start(nodes: int, **resources: float) -> Any:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        started.append(cluster)
        for _ in range(nodes):
            cluster.add_node(**resources)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        return cluster

    yield start
    for one in started:
        one.shutdown()


def pretend(config: dict[str, str], launch: Any) -> dict[str, Any]:
    """Stands in for a trial: notes when and where it ran."""
    import ray

    begin = time.time()
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids()["GPU"]
    time.sleep(SECONDS)
    line = f"{begin} {time.time()} {context.get_node_id()} {','.join(gpus)}\n"
    (launch.results / config["trial"]).write_text(line)
    return {"failure": None}


def run(trials: list[Trial], results: Path, tell: Tell) -> None:
    """Run trials on the cluster."""
    with Connection(trials) as connection:
        connection.wait()
        assert connection.joins
        runner.run(trials, results, tell, {}, connection)


def schedule(
    results: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell = lambda message: None, **resources: Any
) -> list[tuple[float, float, str]]:
    """Run sixty pretended trials: start, end and slot of each."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(runner, "train_here", pretend)
    trials = tiny(seeds=list(range(30)), resources=resources)
    assert len(trials) == 60
    run(trials, results, tell)
    rows = [(results / trial.name).read_text().split() for trial in trials]
    return [(float(begin), float(end), f"{node} {gpu}") for begin, end, node, gpu in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "gpus", "shared_by"),
    [(1, 4, 1), (3, 2, 1), (8, 1, 1), (2, 1, 4), (2, 1, "auto")],
    ids=["1x4", "3x2", "8x1", "2x1/4", "2x1/auto"],
)
def test_slots_are_never_idle_for_long(
    cluster: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: int,
    gpus: int,
    shared_by: int | str,
) -> None:
    cluster(nodes, num_cpus=8, num_gpus=gpus)
    monkeypatch.setattr(runner, "measure_memory", lambda trial: Memory(trial=10, gpu=50))  # five, but for gaps
    ran = schedule(tmp_path, monkeypatch, trials_per_gpu=shared_by)
    slots = nodes * gpus * (4 if shared_by == "auto" else shared_by)
    assert len({slot for _, _, slot in ran}) == nodes * gpus
    begins = sorted(begin for begin, _, _ in ran)
    full, last = begins[slots - 1], begins[-1]  # from when every slot has started to when the last trial starts
    assert last > full
    busy = sum(max(0.0, min(end, last) - max(begin, full)) for begin, end, _ in ran)
    idle = 1 - busy / (slots * (last - full))
    print(f"{nodes} nodes x {gpus} GPUs by {shared_by}: {slots} slots, idle {idle:.1%}")
    assert -0.001 < idle < 0.05
    for moment in begins:
        assert sum(begin <= moment < end for begin, end, _ in ran) <= slots


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there, and would be measured")
def test_where_a_gpu_cannot_be_measured_trials_do_not_share_it(
    cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretended GPU has no driver."""
    cluster(1, num_cpus=2, num_gpus=1)
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.1)
    said: list[Message] = []
    ran = schedule(tmp_path, monkeypatch, said.append, trials_per_gpu="auto")
    assert len({slot for _, _, slot in ran}) == 1
    assert all(end <= begin for (_, end, _), (begin, _, _) in pairwise(sorted(ran)))
    notes = [message.text for message in said if isinstance(message, Note)]
    assert notes[-1].startswith(
        "one trial on a GPU: cannot measure the GPU memory that it takes (RuntimeError: Found no NVIDIA driver"
    )


@pytest.mark.slow
def test_too_large_a_trial_is_given_up_in_the_open(
    cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(1, num_cpus=2, num_gpus=2)
    said: list[Message] = []
    trials = tiny(resources={"workers": 2, "gpus_per_worker": 2, "wait_minutes": 0.05})
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigError, match=r"a trial needs 4 GPUs and 2 CPUs \(2 workers\), the cluster has 2 GPUs"):
        run(trials, tmp_path, said.append)
    assert isinstance(said[0], Note)
    assert said[0].text.startswith("waiting for resources: a trial needs 4 GPUs")
    assert not (tmp_path / "trials").exists()
    assert signal.getsignal(signal.SIGTERM) is handler, "a signal while the report is written would end badly"


@pytest.mark.slow
def test_a_signal_while_a_launch_waits_for_resources(cluster: Callable[..., Any], tmp_path: Path) -> None:
    """Ray, when it starts, puts a handler of its own in C that kills the process."""
    cluster(1, num_cpus=1)
    command = [sys.executable, "-m", "repr_ray.launch", "--config", str(write_config(tmp_path))]
    command += ["--results", str(tmp_path), "resources.workers=2"]
    launch = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert launch.stdout is not None
    assert any("waiting for resources" in text for text in launch.stdout)
    launch.send_signal(signal.SIGTERM)
    _, errors = launch.communicate(timeout=100)
    assert launch.returncode == 143, errors
    assert errors.strip() == "terminated; the same command resumes from the last checkpoints"
    assert not [path for path in (tmp_path / "tiny").rglob(".*") if path.name != ".lock"]


LONG = {"epochs": 300, "batch_size": 64, "optimizer": {"kind": "sgd", "learning_rate": 0.01}}


def assert_all_is_free(address: str) -> None:
    """No placement group holds anything, and every CPU can be had; Ray tells a moment later."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        deadline = time.monotonic() + 30
        while True:
            held = [group["state"] for group in ray.util.placement_group_table().values()]
            free, there = ray.available_resources().get("CPU"), ray.cluster_resources()["CPU"]
            if set(held) <= {"REMOVED"} and free == there:
                return
            assert time.monotonic() < deadline, (held, free, there)
            time.sleep(0.5)
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_launch_gives_everything_back(cluster: Callable[..., Any], tmp_path: Path) -> None:
    """Stopped in the middle, and at its end; on a cluster without a dashboard, which Ray's own clean-up needs."""
    address = cluster(2, num_cpus=2).address
    command = [sys.executable, "-m", "repr_ray.launch", "--config", write_config(tmp_path, train=LONG)]
    command += ["--results", tmp_path, "resources.workers=2", "resources.concurrent=1"]
    stopped = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("tiny/trials/*/checkpoint-*.pt")):
        assert time.monotonic() < deadline
        assert stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=60) == 143
    assert_all_is_free(address)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=400)
    assert len(results_of(tmp_path / "tiny")) == 2
    assert_all_is_free(address)
