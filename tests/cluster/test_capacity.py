"""How many trials a cluster holds, and waiting for room in the open."""

import pytest

from repr_ray.runners import capacity
from repr_ray.runners.capacity import Room, slots, trials_per_gpu
from repr_ray.study.config import ConfigError, Resources

NODE = {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "expected"),
    [
        ([NODE], 1, 0, 16),
        ([NODE], 1, 1, 4),
        ([NODE], 8, 1, 2),
        ([NODE] * 3, 2, 0.25, 3 * 8),
        ([NODE], 1, 0.1, 16),
        ([{"CPU": 64.0, "GPU": 1.0}], 1, 0.1, 10),
        ([{"CPU": 64.0, "GPU": 4.0}], 1, 0.3, 4 * 3),  # not 13: none spans two GPUs
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, 1, 2, 0),  # not 1: none spans two nodes
        ([{"CPU": 3.0}] * 2, 2, 0, 2),  # not 3
        ([{"node:__internal_head__": 1.0}, NODE], 1, 1, 4),  # a head that trains nothing
        ([], 1, 1, 0),
    ],
)
def test_workers_are_packed_node_by_node(
    nodes: list[dict[str, float]], cpus: int, gpus: float, expected: int
) -> None:
    assert slots(nodes, cpus, gpus) == expected


@pytest.mark.parametrize(
    ("nodes", "cpus", "trials", "fit", "expected"),
    [
        ([NODE], 1, 60, 100, 4),  # 16 cores beside 4 GPUs
        ([NODE], 8, 60, 100, 1),
        ([NODE], 1, 60, 3, 3),
        ([NODE], 1, 60, 0, 1),  # whether one fits is for the trial to find out
        ([NODE], 1, 10, 100, 3),  # 12 slots for 10 trials; with 4 on each Ray would leave a GPU empty
        ([NODE], 1, 2, 100, 1),
        ([{"CPU": 64.0, "GPU": 1.0}], 1, 60, 100, capacity.MOST_ON_A_GPU),
        ([{"CPU": 64.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}], 1, 60, 100, 2),
    ],
)
def test_as_many_trials_share_a_gpu_as_memory_cores_and_trials_allow(
    nodes: list[dict[str, float]], cpus: int, trials: int, fit: int, expected: int
) -> None:
    assert trials_per_gpu(nodes, cpus, trials, fit) == expected


def test_what_shares_a_gpu_takes_a_part_of_it(cluster: "Cluster") -> None:
    cluster.nodes = [NODE]
    room = cluster.room(0)
    assert room.check()
    room.share(4)
    assert room.gpus == 0.25
    assert room.trials() == 16


class Cluster:
    """A cluster and a clock, both set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[dict[str, float]] = []
        self.now = 0.0
        self.said: list[str] = []
        monkeypatch.setattr(capacity, "monotonic", lambda: self.now)

    def room(self, wait_minutes: float, **resources: object) -> Room:
        return Room(Resources(**resources), lambda: self.nodes, self.said.append, wait_minutes)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_waiting_is_said_every_minute_and_ends_when_a_node_comes(cluster: Cluster) -> None:
    cluster.nodes = [{"CPU": 8.0, "GPU": 2.0}]
    room = cluster.room(30, workers=2, gpus_per_worker=2)
    for cluster.now in range(0, 200, 10):
        assert not room.check()
    assert cluster.said == [
        "waiting for resources: a trial needs 4 GPUs and 2 CPUs (2 workers), the cluster has 2 GPUs and 8 CPUs on 1"
        f" node; waited {waited}, gives up in {left} min"
        for waited, left in (("0 s", 30), ("1 min", 29), ("2 min", 28), ("3 min", 27))
    ]
    cluster.nodes *= 2
    assert room.check()
    assert cluster.said[-1] == "the cluster has room for a trial after 3 min"
    assert room.trials() == 1


def test_gives_up_after_the_configured_time(cluster: Cluster) -> None:
    room = cluster.room(2, gpus_per_worker=1)
    assert not room.check()
    cluster.now = 119
    assert not room.check()
    cluster.now = 120
    with pytest.raises(ConfigError, match=r"a trial needs 1 GPUs and 1 CPUs, .* for 2 min.*the same command resumes"):
        room.check()


def test_does_not_wait_where_nobody_adds_nodes(cluster: Cluster) -> None:
    cluster.nodes = [{"CPU": 2.0}]
    with pytest.raises(
        ConfigError, match=r"needs 3 CPUs, the cluster has 2 CPUs on 1 node; lower workers, .*_worker$"
    ):
        cluster.room(0, cpus_per_worker=3).check()
    assert not cluster.said


def test_auto_takes_a_gpu_once_the_first_node_shows_what_there_is(cluster: Cluster) -> None:
    """A cluster scaled to zero has no GPUs yet: deciding then would train on the CPUs of GPU nodes."""
    cluster.nodes = [{"node:__internal_head__": 1.0}]
    room = cluster.room(30)
    assert not room.check()
    cluster.nodes.append({"CPU": 8.0, "GPU": 1.0})
    assert room.check()
    assert room.gpus == 1
    cluster.nodes.pop()  # all spot nodes are gone: what a trial takes stays what it was
    assert not room.check()
    assert room.gpus == 1
