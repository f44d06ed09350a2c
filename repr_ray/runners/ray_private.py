"""All private names of Ray that this package uses; a new version of Ray may change them.

tests/test_ray_private.py then fails first.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def cluster_is_running() -> bool:
    """Whether `ray.init()` would join a cluster: one of RAY_ADDRESS, or of `ray start` on this machine."""
    from ray._private import services

    address: Any = services.canonicalize_bootstrap_address  # accepts None, unlike its annotation
    return address(None) is not None


def listen_on_loopback() -> None:
    """Make the cluster that `ray.init()` starts here listen on loopback, not on every network."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def preload(module: str) -> None:
    """Have every process of the cluster that `ray.init()` starts here import a module before it gets work."""
    os.environ["RAY_preload_python_modules"] = module  # noqa: SIM112 - the name of a setting of Ray


def use_started_processes(wanted: bool) -> None:
    """Whether Tune may use processes that Ray has started before, with the environment of this process.

    Otherwise it gives its processes a runtime environment with variables of its own, and they are started anew.
    """
    from ray.tune.execution.class_cache import _ActorClassCache

    cache: Any = _ActorClassCache
    original = _TUNES.setdefault("get", cache.get)
    cache.get = _without_environment if wanted else original


_TUNES: dict[str, Any] = {}


def _without_environment(self: Any, trainable: Any) -> Any:
    import ray

    if trainable not in self._cache:
        self._cache[trainable] = ray.remote(trainable)
    return self._cache[trainable]


def skip_tracker_imports() -> None:
    """Skip Tune's usage tag of callbacks, which imports MLflow and W&B where they are installed.

    That takes seconds, and W&B makes temporary folders.
    """
    from ray.air._internal import usage

    untagged: Any = lambda callbacks: False  # noqa: E731 - assigned to Ray's own name
    usage.tag_callbacks = untagged


def draining_nodes() -> Iterable[str]:
    """The ids of the nodes that will be drained."""
    import ray

    return ray._private.state.state.get_draining_nodes().keys()


def remove_abandoned_groups() -> None:
    """Free the resources of worker groups whose Train controller has died: Ray keeps them until the job ends."""
    import ray
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup

    table: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]  # made by protobuf
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    for row in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = table.FromString(row)
        of_an_actor = not ray.ActorID(group.creator_actor_id).is_nil()
        removed = group.state == table.REMOVED
        if group.creator_job_id == job.binary() and of_an_actor and group.creator_actor_dead and not removed:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def show_as(title: str) -> None:
    """Set the name of this process in the dashboard and `ps`."""
    import ray

    raylet: Any = ray._raylet
    raylet.setproctitle(f"ray::{title}")


def error_of(trial: Any) -> Exception:
    """The error that a Tune trial ended in, from the file that Tune has written."""
    from ray import cloudpickle

    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


def torch_trainer() -> Any:
    """A TorchTrainer without the process that Train starts to remove the placement group of a dead controller.

    That process asks Ray's dashboard, which may not run, and then outlives the launch. Use `remove_abandoned_groups`.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # untyped
            return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    return Trainer


def errors_of_ranks(error: Exception) -> list[Exception] | None:
    """The exceptions of the ranks of a Train run; None if the run ended in another error.

    The list is empty if one of them is an error of Ray: a process or a node was lost.
    """
    from ray.train.v2._internal.exceptions import RayTrainError

    if not isinstance(error, RayTrainError):
        return None
    failures = list(getattr(error, "worker_failures", {}).values())
    return [] if any(isinstance(failure, RayTrainError) for failure in failures) else failures
