"""Trials on Ray: Tune schedules them, Train runs the ranks of one with DistributedDataParallel.

A trial of one worker runs directly in its Tune process: a Train worker group would only add its start-up time
(benchmarks/README.md). Results are files in the trial's folder, which every node must see; only messages go through
Ray. A trial whose process dies is started again and resumes from its folder, as long as it makes progress. On a node
that will be drained (a preempted spot instance), and when the launch receives a signal, a trial saves after its next
step and stops.
"""

import contextlib
import io
import logging
import signal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from repr_ray.estimate import amount, size
from repr_ray.plug_ins import first_line
from repr_ray.runners import ray_private, signals
from repr_ray.runners.capacity import Room, trials_per_gpu
from repr_ray.runners.ray_cluster import HEAD, Connection
from repr_ray.runners.ray_ranks import train_on_ranks
from repr_ray.runners.ray_trial import PROBE, Launch, require_seen, train_here
from repr_ray.storage.folder import Folder, StorageError, light, opened
from repr_ray.storage.scratch import scratch
from repr_ray.study.config import ConfigError, Resources
from repr_ray.study.plan import Trial
from repr_ray.training.folder import TrialFolder
from repr_ray.training.memory import measure_memory
from repr_ray.training.messages import Failed, Note, Preempted, Tell

SAVE_SECONDS = 1.5  # seconds for trials to save after a signal; `ray job stop` kills the launch after three


def run(
    trials: Sequence[Trial],
    results: Path | str,
    tell: Tell,
    origin: dict[str, Any],
    connection: Connection,
) -> None:
    """Run all trials, as many at once as the cluster or `resources.concurrent` allows.

    Raises ConfigError if no trial gets its resources (within `resources.wait_minutes` on a running cluster),
    or if a node does not see `results`.
    """
    if isinstance(results, Path) and "working_dir_files" in results.parts:
        raise ConfigError(
            f"--results: {results} is in the job's copy of the working folder, which is deleted with the job;"
            " give a folder that every node sees, or set REPR_RAY_RESULTS in the job's environment"
        )
    import ray
    from ray import tune

    resources, handlers = trials[0].resources, signals.handlers()
    wait_minutes = resources.wait_minutes if connection.joins else 0  # else no nodes are added
    room = _wait_for_room(resources, tell, wait_minutes)
    tell(Note("starting the processes of the trials"))
    ray_private.skip_tracker_imports()
    ray_private.use_started_processes(not connection.joins)
    logging.getLogger("ray.tune.execution").setLevel(logging.CRITICAL)  # failures are reported by `_record`
    ray.get(connection.mailbox.begin.remote())
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(opened(results))
        probe = stack.enter_context(_seen_by_every_node(storage))
        if room.gpus and resources.trials_per_gpu != 1:
            room.share(_trials_per_gpu(trials, room, tell))
        names, folder = {trial.name: trial for trial in trials}, stack.enter_context(scratch())
        launch = Launch(names, results, probe, connection.mailbox, origin | {"gpus": room.gpus}, room.gpus, folder)
        if resources.workers == 1:
            function, wanted = train_here, {"CPU": resources.cpus_per_worker, "GPU": room.gpus}
            concurrent = resources.concurrent  # Tune starts no more than fit on the nodes
        else:
            function, wanted = train_on_ranks, HEAD
            concurrent = resources.concurrent or room.trials()
        watch = _watch(connection.mailbox, tell, room, handlers)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(function, launch=launch), wanted),
            param_space={"trial": tune.grid_search([trial.name for trial in trials])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_name_creator=lambda t: t.config["trial"],
                trial_dirname_creator=lambda t: t.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=-1),
                callbacks=[watch],
                verbose=0,
            ),
        )
        # Tune prints tables at any verbosity; the progress of a launch is written to the terminal itself
        with contextlib.redirect_stdout(io.StringIO()):
            signals.install(dict.fromkeys(handlers, watch.stop))
            try:
                grid = tuner.fit()
            except Exception:
                if watch.gave_up:
                    raise watch.gave_up from None
                raise
            finally:
                signals.install(handlers)
        watch.forward()
        for index, trial in enumerate(trials):
            _record(TrialFolder(storage.path, trial, storage), grid[index], watch.deaths, tell)


def _wait_for_room(resources: Resources, tell: Tell, minutes: float) -> Room:
    """Wait until a trial fits on the cluster; its resources are requested, so that an autoscaler adds them."""
    import ray

    def nodes() -> list[dict[str, float]]:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    room = Room(resources, nodes, lambda text: tell(Note(text)), minutes)
    if room.check():
        return room
    bundle = {"CPU": float(resources.cpus_per_worker), "GPU": room.gpus}
    demand = ray.util.placement_group([{k: v for k, v in bundle.items() if v}] * resources.workers)
    try:
        while not room.check():
            sleep(1)
    finally:
        ray.util.remove_placement_group(demand)
    return room


def _trials_per_gpu(trials: Sequence[Trial], room: Room, tell: Tell) -> int:
    """Trials on each GPU: from the settings, or with `auto` from the memory of the largest trial."""
    import ray

    resources = trials[0].resources
    if resources.trials_per_gpu != "auto":
        return resources.trials_per_gpu
    largest = max(trials, key=lambda trial: size(trial.model, trial.data).parameters * trial.train.batch_size)
    measure = ray.remote(measure_memory).options(num_cpus=resources.cpus_per_worker, num_gpus=1)
    try:
        memory = ray.get(measure.remote(largest))
    except ray.exceptions.RayError as error:
        why = first_line(getattr(error, "cause", error))
        tell(Note(f"one trial on a GPU: cannot measure the GPU memory that it takes ({why})"))
        return 1
    together = trials_per_gpu(room.nodes(), resources.cpus_per_worker, len(trials), memory.fit)
    tell(Note(f"{together} trials share a GPU: one takes {amount(memory.trial)} of {amount(memory.gpu)}"))
    return together


@contextlib.contextmanager
def _seen_by_every_node(storage: Folder) -> Iterator[str]:
    """A file beside the results that all nodes must read. Raises ConfigError with a node that cannot."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = uuid.uuid4().hex
    storage.write(PROBE, probe.encode())
    try:
        here = ray.get_runtime_context().get_node_id()
        others = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here}
        asked = {
            ray.remote(require_seen)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(storage.location, probe): address
            for node, address in others.items()
        }
        for answer, address in asked.items():
            try:
                ray.get(answer, timeout=120)
            except FileNotFoundError as error:
                raise ConfigError(f"--results: node {address} {getattr(error, 'cause', error)}") from None
            except ray.exceptions.RayError:
                continue  # the node died or is slow; a trial that starts there checks again
        yield probe
    finally:
        storage.delete(PROBE)


def _record(folder: TrialFolder, result: Any, deaths: dict[str, str], tell: Tell) -> None:
    """Write error.json for a trial whose process was killed or could not write it."""
    from repr_ray.training.trial import failure

    why = failure(result.error) if result.error else result.metrics.get("failure")
    if why is None:
        return
    with contextlib.suppress(StorageError):
        folder.pull(light)
    if folder.done:
        return
    if last := deaths.get(folder.trial.name):
        why = {**why, "message": f"{why['message']} (the last time: {last})"}
    with contextlib.suppress(OSError):
        folder.fail(why)
        folder.push()
    tell(Failed(folder.trial.name, why["message"]))


def _watch(mailbox: Any, tell: Tell, room: Room, handlers: Mapping[signal.Signals, Any]) -> Any:
    """A Tune callback: forwards messages, reports dead processes, and stops when the cluster has lost its nodes.

    Signals are handled at the end of a Tune step, within a tenth of a second: an exception raised inside Ray's code
    is replaced by another one, after which Tune cleans up for ten seconds.
    """
    import ray
    from ray import tune

    class Watch(tune.Callback):
        # Tune pickles the class with its closure; `tell` cannot be pickled, so it is an attribute
        def __init__(self, tell: Tell, room: Room, handlers: Mapping[signal.Signals, Any]) -> None:
            self.tell, self.room, self.handlers = tell, room, handlers
            self.stopped: signal.Signals | None = None
            self.deaths: dict[str, str] = {}
            self.gave_up: ConfigError | None = None
            self.drained: set[str] = set()
            self.forwarded = self.checked = 0.0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def forward(self, timeout: float | None = None) -> None:
            for message in ray.get(mailbox.drain.remote(), timeout=timeout):
                self.tell(message)

        def stop(self, number: int, frame: object) -> None:
            self.stopped = signal.Signals(number)
            signals.leave_terminal(number)

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if self.stopped is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(mailbox.leave_all.remote(), timeout=SAVE_SECONDS)
                with contextlib.suppress(ray.exceptions.RayError):
                    self.forward(SAVE_SECONDS)
                self.handlers[self.stopped](self.stopped, None)
            if monotonic() - self.forwarded > 0.5:
                self.forward()
                self.tell_drained()
                if self.room.resources.workers > 1:
                    ray_private.remove_abandoned_groups()
                self.forwarded = monotonic()
            if monotonic() - self.checked > 5:
                try:
                    self.room.check()
                except ConfigError as error:
                    self.gave_up = error
                    raise
                self.checked = monotonic()

        def tell_drained(self) -> None:
            if new := set(ray_private.draining_nodes()) - self.drained:
                self.drained |= new
                mailbox.leave.remote(sorted(new))
                self.tell(
                    Note(f"{len(new)} node{'s' * (len(new) > 1)} will be removed: their trials will be rescheduled")
                )

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error = ray_private.error_of(trial)
            if isinstance(error, Preempted):
                return
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.deaths[str(trial)] = lines[0]
            self.tell(Note(f"its process died: {lines[0]}", str(trial)))

    return Watch(tell, room, handlers)
