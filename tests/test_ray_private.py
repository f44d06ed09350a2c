"""The private names of Ray that the runner uses: each is there, and does what it is used for."""

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from repr_ray.data.stream import StreamStopped
from repr_ray.runners import ray, ray_private, ray_ranks
from repr_ray.runners.mailbox import MAILBOX
from repr_ray.study.config import ConfigError


def test_no_cluster_is_joined_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: set())  # of whoever runs one here
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *a: None)
    assert not ray_private.cluster_is_running()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert ray_private.cluster_is_running()


def test_a_cluster_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import ray_constants, services

    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_private.listen_on_loopback()
    assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER is False
    assert "ENABLE_RAY_CLUSTER" in inspect.getsource(services)


def test_the_callbacks_of_tune_are_not_counted() -> None:
    from ray.air._internal import usage
    from ray.tune import tune

    assert "air_usage.tag_callbacks(callbacks)" in inspect.getsource(tune)
    ray_private.skip_tracker_imports()
    assert usage.tag_callbacks([]) is False
    assert "usage" not in usage.tag_callbacks.__module__


def test_tune_uses_processes_that_were_started_before() -> None:
    """On a cluster of our own; else it propagates variables of this process."""
    from ray.tune.execution.class_cache import _ActorClassCache

    class Trainable:
        pass

    for wanted in (True, False):
        ray_private.use_started_processes(wanted)
        made = _ActorClassCache().get(Trainable)
        assert ("PL_DISABLE_FORK" not in str(made._default_options)) is wanted


def test_processes_preload_what_a_trial_needs_but_for_the_mailbox(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.workers import default_worker

    assert "worker_preload_modules" in inspect.getsource(default_worker)
    code = "import sys, repr_ray.runners.preload; sys.exit('repr_ray.training.trial' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setenv(MAILBOX, "1")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_the_state_lists_draining_nodes() -> None:
    from ray._private.state import GlobalState, state

    assert isinstance(state, GlobalState)
    assert "Dict" in str(inspect.signature(state.get_draining_nodes).return_annotation)


def test_groups_of_dead_processes_of_this_job_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Row
    from ray.util.placement_group import PlacementGroup

    ours, theirs = (ray.JobID.from_int(number) for number in (1, 2))
    actor, nobody = b"\1" * ray.ActorID.size(), ray.ActorID.nil().binary()
    rows = [
        Row(creator_job_id=ours.binary(), creator_actor_id=actor, creator_actor_dead=True, state=Row.CREATED),
        Row(creator_job_id=ours.binary(), creator_actor_id=actor, creator_actor_dead=True, state=Row.PENDING),
        Row(creator_job_id=ours.binary(), creator_actor_id=actor, creator_actor_dead=True, state=Row.REMOVED),
        Row(creator_job_id=ours.binary(), creator_actor_id=actor, creator_actor_dead=False, state=Row.CREATED),
        Row(creator_job_id=ours.binary(), creator_actor_id=nobody, creator_actor_dead=True, state=Row.CREATED),
        Row(creator_job_id=theirs.binary(), creator_actor_id=actor, creator_actor_dead=True, state=Row.CREATED),
    ]
    for number, row in enumerate(rows):
        row.placement_group_id = bytes([number]) * ray.PlacementGroupID.size()
    removed: list[PlacementGroup] = []
    table = SimpleNamespace(get_placement_group_table=lambda: [row.SerializeToString() for row in rows])
    assert hasattr(state, "_connect_and_get_accessor")
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: table)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=ours.hex))
    monkeypatch.setattr("ray.util.remove_placement_group", removed.append)
    ray_private.remove_abandoned_groups()
    assert [group.id.binary()[0] for group in removed] == [0, 1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own settings
def test_a_trainer_starts_no_process_that_asks_the_dashboard() -> None:
    from ray.train.torch import TorchTrainer

    def callbacks(trainer: Any) -> set[str]:
        return {type(callback).__name__ for callback in trainer(lambda: None)._create_default_callbacks()}

    assert callbacks(TorchTrainer) - callbacks(ray_private.torch_trainer()) == {"PlacementGroupCleanerCallback"}


def test_a_process_gets_a_title() -> None:
    import ray

    before = ray._raylet.getproctitle()
    try:
        ray_private.show_as("a trial")
        assert ray._raylet.getproctitle() == "ray::a trial"
    finally:
        ray._raylet.setproctitle(before)


def test_the_error_of_a_tune_trial(tmp_path: Path) -> None:
    from ray import cloudpickle
    from ray.tune.experiment import Trial

    class Ended:
        pickled_error_file = str(tmp_path / "error.pkl")

    Path(Ended.pickled_error_file).write_bytes(cloudpickle.dumps(KeyError("x")))
    assert repr(ray_private.error_of(Ended)) == "KeyError('x')"
    assert isinstance(inspect.getattr_static(Trial, "pickled_error_file"), property)


def test_the_errors_of_ranks() -> None:
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import RayTrainError, WorkerHealthCheckFailedError

    def ended(**failures: Exception) -> Any:
        return WorkerGroupError("some ranks failed", {int(rank[1:]): error for rank, error in failures.items()})

    own, lost = KeyError("x"), WorkerHealthCheckFailedError("gone", failure=RuntimeError())
    assert issubclass(WorkerGroupError, RayTrainError)
    assert ray_private.errors_of_ranks(own) is None
    assert ray_private.errors_of_ranks(ended(r0=own)) == [own]
    assert ray_private.errors_of_ranks(ended(r0=own, r1=lost)) == []
    gone = RuntimeError("Connection closed by peer")
    assert ray_ranks._own_error(ended(r0=gone, r1=own)) is own
    stopped = ended(r0=gone, r1=StreamStopped("a process has died"))
    assert ray_ranks._own_error(stopped) is None  # started again
    assert str(ray_ranks._loss(stopped)) == "a process has died" and ray_ranks._loss(ended(r0=gone)) is gone


@pytest.mark.parametrize(("joins", "said"), [(False, "started"), (True, "joined")])
def test_a_ray_that_does_not_start_is_one_line(joins: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*, address: str | None, **options: Any) -> None:
        assert address == (None if joins else "local")  # also where another launch starts a cluster meanwhile
        raise RuntimeError("the node has not come up\nwithin 30 s")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(ray_private, "cluster_is_running", lambda: joins)
    with ray.Connection([]) as connection, pytest.raises(ConfigError) as caught:
        connection.wait()
    assert f"Ray cannot be {said}: RuntimeError: the node has not come up;" in str(caught.value)
    assert "\n" not in str(caught.value) and "--runner local" in str(caught.value)
