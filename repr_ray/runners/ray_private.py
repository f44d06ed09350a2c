"""The names of Ray without a public twin that this package uses, all of them: what a new version of Ray may break.

tests/test_ray_private.py fails first when it does.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cluster_is_running() -> bool:
    """Whether RAY_ADDRESS or `ray start` on this machine names a cluster that `ray.init()` would join."""
    from ray._private import services

    address: Any = services.canonicalize_bootstrap_address  # takes None, whatever its annotation says
    return address(None) is not None


def listen_on_loopback() -> None:
    """Make the cluster that `ray.init()` starts here listen on loopback, not on every network."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def draining_nodes() -> Iterable[str]:
    """The ids of the nodes that are going to be taken away."""
    import ray

    return ray._private.state.state.get_draining_nodes().keys()


def show_as(title: str) -> None:
    """What the dashboard and `ps` call this process."""
    import ray

    raylet: Any = ray._raylet
    raylet.setproctitle(f"ray::{title}")


def error_of(trial: Any) -> Exception:
    """What a Tune trial ended in. Tune copies it to its storage later, and reads it from there."""
    from ray import cloudpickle

    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


def errors_of_ranks(error: Exception) -> list[Exception] | None:
    """What each rank of a Train run raised; None where the run ended in something else.

    The errors of Ray itself are left out; where there is one, a process or a node was lost, and the list is empty.
    """
    from ray.train.v2._internal.exceptions import RayTrainError

    if not isinstance(error, RayTrainError):
        return None
    failures = list(getattr(error, "worker_failures", {}).values())
    return [] if any(isinstance(failure, RayTrainError) for failure in failures) else failures
