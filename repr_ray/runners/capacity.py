"""The number of trials that fit on the nodes of a cluster, and waiting until one fits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, inf
from time import monotonic

from repr_ray.runners.local import gpus_per_worker
from repr_ray.study.config import ConfigError, Resources

REMIND_EVERY = 60.0  # seconds between two lines about missing resources


def slots(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Workers of `cpus` and `gpus` that fit at once; none spans two nodes, and a share of a GPU lies on one GPU.

    The cluster's sum is too high: two nodes with one GPU each hold no worker of two GPUs.
    """
    return sum(_on_one(node.get("CPU", 0), node.get("GPU", 0), cpus, gpus) for node in nodes)


def _on_one(node_cpus: float, node_gpus: float, cpus: float, gpus: float) -> int:
    by_cpu = int(node_cpus / cpus + _ROUNDING)
    if not gpus:
        return by_cpu
    by_gpu = int(node_gpus) * int(1 / gpus + _ROUNDING) if gpus < 1 else int(node_gpus / gpus + _ROUNDING)
    return min(by_cpu, by_gpu)


_ROUNDING = 1e-6  # 1 / 0.1 must be ten


MOST_ON_A_GPU = 8
"""Trials that `resources.trials_per_gpu: auto` puts on one GPU at most; benchmarks/sharing.py measures the gain."""


def trials_per_gpu(nodes: Iterable[Mapping[str, float]], cpus: float, trials: int, fit: int) -> int:
    """How many trials of one worker share a GPU with `auto`: 1 to `MOST_ON_A_GPU`.

    At most `fit` (limited by memory), as many as the cores per GPU serve (`cpus` a trial), and as many as are needed
    to run all `trials` at once: Ray fills one GPU before it uses the next.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0)]
    gpus = sum(node["GPU"] for node in with_gpus)
    cores = min(node.get("CPU", 0) / node["GPU"] for node in with_gpus)
    return max(1, min(MOST_ON_A_GPU, fit, int(cores / cpus + _ROUNDING), ceil(trials / gpus)))


class Room:
    """Room for trials on a cluster whose nodes come and go.

    `nodes` returns the resources of every node that is up; `say` is called with lines about missing resources. `gpus`
    is the number of GPUs of a worker: with `auto` it is fixed when the first trial fits. `share` divides it.
    """

    def __init__(
        self,
        resources: Resources,
        nodes: Callable[[], Sequence[Mapping[str, float]]],
        say: Callable[[str], None],
        wait_minutes: float,
    ) -> None:
        self.resources, self.nodes, self.say = resources, nodes, say
        self.wait_seconds = wait_minutes * 60
        self.gpus = gpus_per_worker(resources, 0)
        self.decided = False
        self.since: float | None = None
        self.said = -inf

    def trials(self) -> int:
        """How many trials the cluster holds at once, now."""
        nodes = self.nodes()
        if not self.decided:
            self.gpus = gpus_per_worker(self.resources, sum(node.get("GPU", 0) for node in nodes))
        held = slots(nodes, self.resources.cpus_per_worker, self.gpus) // self.resources.workers
        self.decided = self.decided or held > 0
        return held

    def share(self, trials: int) -> None:
        """Run this number of trials on each GPU from now on."""
        self.gpus /= trials

    def check(self) -> bool:
        """Whether there is room for a trial; if not, a line says what is missing.

        Raises ConfigError after `wait_minutes` without room.
        """
        if self.trials():
            if self.since is not None:
                self.say(f"the cluster has room for a trial after {_minutes(monotonic() - self.since)}")
            self.since, self.said = None, -inf
            return True
        now = monotonic()
        self.since = now if self.since is None else self.since
        waited = now - self.since
        if waited >= self.wait_seconds:
            after = f" for {_minutes(waited)}" if self.wait_seconds else ""
            raise ConfigError(
                f"resources: {self._shortage()}{after}; lower workers, cpus_per_worker or gpus_per_worker"
                + (", or raise resources.wait_minutes; the same command resumes" if self.wait_seconds else "")
            )
        if now - self.said >= REMIND_EVERY:
            self.said = now
            left = _minutes(self.wait_seconds - waited)
            self.say(f"waiting for resources: {self._shortage()}; waited {_minutes(waited)}, gives up in {left}")
        return False

    def _shortage(self) -> str:
        """What a trial needs, and what the cluster has."""
        r, nodes = self.resources, self.nodes()
        need = {"GPUs": r.workers * self.gpus, "CPUs": r.workers * r.cpus_per_worker}
        there = {"GPUs": sum(n.get("GPU", 0) for n in nodes), "CPUs": sum(n.get("CPU", 0) for n in nodes)}
        wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in need.items() if amount)
        has = " and ".join(f"{there[kind]:g} {kind}" for kind, amount in need.items() if amount)
        nodes_text = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
        workers = f" ({r.workers} workers)" if r.workers > 1 else ""
        return f"a trial needs {wanted}{workers}, the cluster has {has} on {nodes_text}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
