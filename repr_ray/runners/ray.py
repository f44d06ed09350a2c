"""Trials on Ray: Tune schedules them, Train runs the ranks of one with DistributedDataParallel.

A trial of one worker runs directly in its Tune process: a Train worker group around it would only add its start-up
(benchmarks/README.md has the measurement). What a trial learns goes through its folder, which every node must see;
only progress messages go through Ray. A trial whose process dies is started again and resumes from its folder, as
often as it takes while it gets further in between.
"""

import contextlib
import io
import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from repr_ray.config import ConfigError, Resources
from repr_ray.plan import Trial
from repr_ray.runners.capacity import Room
from repr_ray.storage import write_atomic
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder

RETRIES = 2
"""How often in a row a trial is started again that died before its next checkpoint."""

# Read by Ray when it is imported or starts its processes. Pending trials: what an autoscaler sees as demand.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}

_STOP = (signal.SIGINT, signal.SIGTERM)

_HEAD = {"node:__internal_head__": 0.001}
"""Places what needs no resources of its own on the head node, also where that has no CPUs."""

Update = Callable[[dict[str, Any]], None]


def run(trials: Sequence[Trial], results: Path, on_update: Update, provenance: dict[str, Any]) -> None:
    """Run all trials, as many at once as the cluster or `resources.concurrent` allows.

    Joins the cluster that `RAY_ADDRESS` or a running `ray start` names, else starts one on this machine. Raises
    ConfigError when no trial can get its resources (on a cluster that was joined: within `resources.wait_minutes`),
    or when a node does not see `results`.
    """
    if "working_dir_files" in results.parts:
        raise ConfigError(
            f"--results: {results} is the job's own copy of the working folder and goes with the job;"
            " give a folder that every node sees, or set REPR_RAY_RESULTS in the job's environment"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune

    resources = trials[0].resources
    with contextlib.ExitStack() as stack:
        handlers = {number: signal.getsignal(number) for number in _STOP}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        stack.callback(ray.shutdown)
        _install(handlers)  # Ray has put its own in their place, which abort with a stack trace
        room = _wait_for_room(resources, on_update)
        probe = stack.enter_context(_seen_by_every_node(results))
        mailbox = ray.remote(_Mailbox).options(num_cpus=0, resources=_HEAD).remote()
        launch = _Launch({trial.name: trial for trial in trials}, results, probe, mailbox, provenance, room.gpus)
        if resources.workers == 1:
            function, wanted = _train_here, {"CPU": resources.cpus_per_worker, "GPU": room.gpus}
            concurrent = resources.concurrent  # Tune itself starts no more than the nodes hold
        else:
            function, wanted = _train_on_ranks, _HEAD
            concurrent = resources.concurrent or room.trials()
        watch = _watch(mailbox, on_update, room, handlers)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(function, launch=launch), wanted),
            param_space={"trial": tune.grid_search([trial.name for trial in trials])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent,
                reuse_actors=resources.workers == 1,
                trial_name_creator=lambda t: t.config["trial"],
                trial_dirname_creator=lambda t: t.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=stack.enter_context(tempfile.TemporaryDirectory(prefix="repr_ray-")),
                failure_config=tune.FailureConfig(max_failures=-1),
                callbacks=[watch],
                verbose=0,
            ),
        )
        # Tune prints its own tables at any verbosity; ours go to the terminal itself
        with contextlib.redirect_stdout(io.StringIO()):
            _install(dict.fromkeys(_STOP, watch.stop))
            try:
                grid = tuner.fit()
            except Exception:
                if watch.gave_up:
                    raise watch.gave_up from None
                raise
            finally:
                _install(handlers)
        watch.forward()
        for index, trial in enumerate(trials):
            _record(TrialFolder(results, trial), grid[index], watch.deaths, on_update)


def _wait_for_room(resources: Resources, on_update: Update) -> Room:
    """Wait until the cluster holds a trial; what is missing is requested, so that an autoscaler brings it."""
    import ray

    def nodes() -> list[dict[str, float]]:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    node: Any = ray._private.worker._global_node
    ours = node.is_head()  # nobody adds nodes to a cluster that was started just now
    room = Room(resources, nodes, lambda text: on_update({"note": text}), 0 if ours else resources.wait_minutes)
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


@contextlib.contextmanager
def _seen_by_every_node(results: Path) -> Iterator[Path]:
    """A file beside the results that all nodes read; raises ConfigError naming one that does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = results / f".probe-{uuid.uuid4().hex[:8]}"
    write_atomic(probe, b"")
    try:
        here = ray.get_runtime_context().get_node_id()
        others = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here}
        asked = {
            ray.remote(_require)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(probe): address
            for node, address in others.items()
        }
        for answer, address in asked.items():
            try:
                ray.get(answer, timeout=120)
            except FileNotFoundError as error:
                raise ConfigError(f"--results: node {address} {str(error).splitlines()[-1]}") from None
            except ray.exceptions.RayError:
                continue  # the node has died or is slow; a trial that starts there asks again
        yield probe
    finally:
        probe.unlink(missing_ok=True)


def _require(probe: Path) -> None:
    """Raise FileNotFoundError unless this node sees what the launcher wrote."""
    deadline = monotonic() + 5  # a network file system may be behind
    while not probe.exists():
        if monotonic() > deadline:
            raise FileNotFoundError(
                f"cannot read what the launcher wrote to {probe.parent}; mount that folder on every node,"
                " or name one that they all see with --results"
            )
        sleep(0.5)


@dataclass(frozen=True)
class _Launch:
    """What every trial of a launch shares."""

    trials: dict[str, Trial]
    results: Path
    probe: Path
    mailbox: Any
    provenance: dict[str, Any]
    gpus: float

    def start(self, trial: Trial) -> None:
        """Called in a trial's process before it trains; raises when it had better not."""
        import ray

        _require(self.probe)
        epochs = checkpoint.newest_epoch(TrialFolder(self.results, trial).path)
        starts = ray.get(self.mailbox.start.remote(trial.name, epochs))
        if starts > 1 + RETRIES:
            raise RuntimeError(f"its process died {starts - 1} times in a row between epoch {epochs} and the next")


def _train_here(config: dict[str, str], launch: _Launch) -> dict[str, Any]:
    """A trial of one worker, in its Tune process."""
    import torch

    from repr_ray.training.trial import failure, run_trial

    trial = launch.trials[config["trial"]]
    device = torch.device("cuda" if launch.gpus else "cpu")
    try:
        launch.start(trial)
        run_trial(trial, launch.results, device, launch.mailbox.put.remote, launch.provenance)
    except Exception as error:
        return {"failure": failure(error)}
    return {"failure": None}


def _train_on_ranks(config: dict[str, str], launch: _Launch) -> dict[str, Any]:
    """A trial of several workers: the driver of its Train worker group."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from repr_ray.training.trial import failure, first_line

    trial = launch.trials[config["trial"]]
    resources, gpus = trial.resources, launch.gpus
    with tempfile.TemporaryDirectory(prefix="repr_ray-", ignore_cleanup_errors=True) as scratch:
        while True:
            trainer = TorchTrainer(
                _train_rank,
                train_loop_config={"trial": trial, "launch": launch},
                torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=resources.workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
                ),
                run_config=ray.train.RunConfig(storage_path=scratch),
            )
            try:
                launch.start(trial)
                trainer.fit()
                return {"failure": None}
            except Exception as error:
                if not _died(error):
                    return {"failure": failure(error)}
                launch.mailbox.put.remote({"trial": trial.name, "note": f"a rank died: {first_line(error)}"})


def _died(error: Exception) -> bool:
    """Whether a rank's process or node died, however the other ranks then failed."""
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    if isinstance(error, WorkerGroupError):
        return not all(isinstance(e, UserExceptionWithTraceback) for e in error.worker_failures.values())
    return isinstance(error, ControllerError)


def _train_rank(config: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    from repr_ray.training.trial import run_trial

    launch: _Launch = config["launch"]

    def tell(message: dict[str, Any]) -> None:
        if "failed" not in message:  # perhaps only because another rank died; the driver of the ranks decides
            launch.mailbox.put.remote(message)

    run_trial(config["trial"], launch.results, get_device(), tell, launch.provenance)


def _record(folder: TrialFolder, result: Any, deaths: dict[str, str], on_update: Update) -> None:
    """A process that was killed, or could not write, could not say so in the folder itself."""
    from repr_ray.training.trial import failure

    why = failure(result.error) if result.error else result.metrics.get("failure")
    if why is None or folder.done:
        return
    if last := deaths.get(folder.trial.name):
        why = {**why, "message": f"{why['message']} (the last time: {last})"}
    with contextlib.suppress(OSError):
        folder.fail(why)
    on_update({"trial": folder.trial.name, "failed": why["message"]})


class _Mailbox:
    """Lives on the head node: collects progress messages, counts the starts of trials."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.starts: dict[str, tuple[int, int]] = {}

    def put(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def drain(self) -> list[dict[str, Any]]:
        messages, self.messages = self.messages, []
        return messages

    def start(self, trial: str, epochs: int) -> int:
        """How often the trial has been started from this epoch, this start included."""
        before, count = self.starts.get(trial, (epochs, 0))
        self.starts[trial] = (epochs, count + 1 if before == epochs else 1)
        return self.starts[trial][1]


def _install(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _watch(mailbox: Any, on_update: Update, room: Room, handlers: Mapping[signal.Signals, Any]) -> Any:
    """A Tune callback: forwards messages, tells of deaths, gives up on a cluster that has lost its nodes.

    A signal waits for the end of Tune's step, a tenth of a second: raised inside Ray's own code it comes out as
    another exception, for which Tune cleans up for ten seconds.
    """
    import ray
    from ray import tune

    class Watch(tune.Callback):
        def __init__(self, drain: Callable[[], list[dict[str, Any]]], *rest: Any) -> None:
            self.drain, (self.on_update, self.room, self.handlers) = drain, rest
            self.stopped: signal.Signals | None = None
            self.deaths: dict[str, str] = {}
            self.gave_up: ConfigError | None = None
            self.forwarded = self.checked = 0.0

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune stores its callbacks, and a terminal cannot be stored

        def forward(self) -> None:
            for message in self.drain():
                self.on_update(message)

        def stop(self, number: int, frame: object) -> None:
            self.stopped = signal.Signals(number)

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if self.stopped is not None:
                self.handlers[self.stopped](self.stopped, None)
            if monotonic() - self.forwarded > 0.5:
                self.forward()
                self.forwarded = monotonic()
            if monotonic() - self.checked > 5:
                try:
                    self.room.check()
                except ConfigError as error:
                    self.gave_up = error
                    raise
                self.checked = monotonic()

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error()
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.deaths[str(trial)] = lines[0]
            self.on_update({"trial": str(trial), "note": f"its process died: {lines[0]}"})

    return Watch(lambda: ray.get(mailbox.drain.remote()), on_update, room, handlers)
