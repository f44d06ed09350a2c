"""Trials on Ray: Tune schedules them, Train runs the ranks of one with DistributedDataParallel.

A trial of one worker runs directly in its Tune process: a Train worker group around it would only add its start-up
(benchmarks/README.md has the measurement). What a trial learns goes through its folder, which every node must see;
only messages go through Ray. A trial whose process dies is started again and resumes from its folder, as often as it
takes while it gets further in between. On a node that is drained (a spot instance that will be taken away), and in
every process when the launch is told to end, a trial saves after its next step.
"""

import contextlib
import io
import itertools
import logging
import math
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, ClassVar

from repr_ray.config import ConfigError, Resources
from repr_ray.estimate import amount, size
from repr_ray.plan import Trial
from repr_ray.remote import Folder, StorageError, light, opened, shown
from repr_ray.runners.capacity import Room, trials_per_gpu
from repr_ray.runners.mailbox import Mailbox
from repr_ray.scratch import scratch
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder
from repr_ray.training.memory import measure_memory

RETRIES = 2
"""How often in a row a trial is started again that died before its next checkpoint."""

# Read by Ray when it is imported or starts its processes. Preemption: `_watch` looks for drained nodes, once for all
# worker groups. Pending trials: what an autoscaler sees as demand.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}

_CALLS = 100_000
"""Calls of the mailbox at once: those that wait for something stay open, a few for every process ever started."""

SAVE_SECONDS = 1.5
"""How long a launch that was told to end waits for its trials to save: three seconds later it may be killed."""

# Trials train in a thread, which would get an arena of its own, whose large blocks `keep_freed_memory` cannot keep.
_WORKERS = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}

_STOP = (signal.SIGINT, signal.SIGTERM)

_HEAD = {"node:__internal_head__": 0.001}
"""Places what needs no resources of its own on the head node, also where that has no CPUs."""

Update = Callable[[dict[str, Any]], None]


def run(trials: Sequence[Trial], results: Path | str, on_update: Update, provenance: dict[str, Any]) -> None:
    """Run all trials, as many at once as the cluster or `resources.concurrent` allows.

    Joins the cluster that `RAY_ADDRESS` or a running `ray start` names, else starts one on this machine. Raises
    ConfigError when no trial can get its resources (on a cluster that was joined: within `resources.wait_minutes`),
    or when a node does not see `results`.
    """
    if isinstance(results, Path) and "working_dir_files" in results.parts:
        raise ConfigError(
            f"--results: {results} is the job's own copy of the working folder and goes with the job;"
            " give a folder that every node sees, or set REPR_RAY_RESULTS in the job's environment"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune
    from ray._private import ray_constants, services

    running: Any = services.canonicalize_bootstrap_address  # takes None, whatever its annotation says
    if running(None) is None:  # a cluster of our own listens on loopback, not on every network
        ray_constants.ENABLE_RAY_CLUSTER = False
    resources = trials[0].resources
    with contextlib.ExitStack() as stack:
        handlers = {number: signal.getsignal(number) for number in _STOP}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_WORKERS)
        logging.getLogger("ray.tune.execution").setLevel(logging.CRITICAL)  # what failed is told by us, in a line
        stack.callback(ray.shutdown)
        _install(handlers)  # Ray has put its own in their place, which abort with a stack trace
        room = _wait_for_room(resources, on_update)
        storage = stack.enter_context(opened(results))
        probe = stack.enter_context(_seen_by_every_node(storage))
        if room.gpus and resources.trials_per_gpu != 1:
            room.share(_trials_per_gpu(trials, room, on_update))
        mailbox = ray.remote(Mailbox).options(num_cpus=0, resources=_HEAD, max_concurrency=_CALLS).remote()
        names, folder = {trial.name: trial for trial in trials}, stack.enter_context(scratch())
        launch = _Launch(names, results, probe, mailbox, provenance | {"gpus": room.gpus}, room.gpus, folder)
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
            _record(TrialFolder(storage.path, trial, storage), grid[index], watch.deaths, on_update)


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


def _trials_per_gpu(trials: Sequence[Trial], room: Room, on_update: Update) -> int:
    """How many trials share each GPU: what the settings say, or with `auto` what the largest one leaves room for."""
    import ray

    resources = trials[0].resources
    if resources.trials_per_gpu != "auto":
        return resources.trials_per_gpu
    largest = max(trials, key=lambda trial: size(trial.model, trial.data.name).parameters * trial.train.batch_size)
    measure = ray.remote(measure_memory).options(num_cpus=resources.cpus_per_worker, num_gpus=1)
    try:
        memory = ray.get(measure.remote(largest))
    except ray.exceptions.RayError as error:
        from repr_ray.training.trial import first_line

        why = first_line(getattr(error, "cause", error))
        on_update({"note": f"one trial on a GPU: what it takes cannot be measured ({why})"})
        return 1
    together = trials_per_gpu(room.nodes(), resources.cpus_per_worker, len(trials), memory.fit)
    on_update({"note": f"{together} trials share a GPU: one takes {amount(memory.trial)} of {amount(memory.gpu)}"})
    return together


@contextlib.contextmanager
def _seen_by_every_node(storage: Folder) -> Iterator[str]:
    """A file beside the results that all nodes read; raises ConfigError naming one that does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = f".probe-{uuid.uuid4().hex[:8]}"
    storage.write(probe, b"")
    try:
        here = ray.get_runtime_context().get_node_id()
        others = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != here}
        asked = {
            ray.remote(_require)
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
                continue  # the node has died or is slow; a trial that starts there asks again
        yield probe
    finally:
        storage.delete(probe)


def _require(results: Path | str, probe: str) -> None:
    """Raise FileNotFoundError unless this node sees what the launcher wrote."""
    try:
        with opened(results, waits=(1, 2)) as storage:
            deadline = monotonic() + 5  # a network file system may be behind
            while storage.time(probe) == -math.inf:
                if monotonic() > deadline:
                    raise FileNotFoundError(
                        f"cannot read what the launcher wrote to {shown(results)}; mount that folder on every node,"
                        " or name one that they all see with --results"
                    )
                sleep(0.5)
    except StorageError as error:
        raise FileNotFoundError(f"cannot read what the launcher wrote: {error}") from None


@dataclass(frozen=True)
class _Launch:
    """What every trial of a launch shares."""

    trials: dict[str, Trial]
    results: Path | str
    probe: str
    mailbox: Any
    provenance: dict[str, Any]
    gpus: float
    scratch: str

    def start(self, trial: Trial) -> Callable[[], bool]:
        """Called in a trial's process before it trains; raises when it had better not.

        Returns what tells whether the process has to leave.
        """
        import ray

        leaving = _hear_of_leaving(self.mailbox)
        if leaving():
            raise _Left("this node is leaving")
        _require(self.results, self.probe)
        with opened(self.results) as storage:
            folder = TrialFolder(storage.path, trial, storage)
            folder.pull()
            place = checkpoint.newest_place(folder.path)
        starts = ray.get(self.mailbox.start.remote(trial.name, place))
        if starts > 1 + RETRIES:
            raise RuntimeError(f"its process died {starts - 1} times in a row between epoch {place[0]} and the next")
        return leaving


class _Left(Exception):
    """A trial saved and stopped because its process has to leave; it goes on elsewhere."""


_leaving: dict[Any, threading.Event] = {}


def _hear_of_leaving(mailbox: Any) -> Callable[[], bool]:
    """Whether this process has to leave; a thread, one per process, hears of it."""
    import ray

    key = mailbox._actor_id
    if key not in _leaving:
        event = _leaving[key] = threading.Event()
        node = ray.get_runtime_context().get_node_id()

        def wait() -> None:
            with contextlib.suppress(Exception):  # the launch has ended
                ray.get(mailbox.until_leaving.remote(node))
                event.set()

        threading.Thread(target=wait, daemon=True).start()
    return _leaving[key].is_set


def _show_as(title: str) -> None:
    """What the dashboard and `ps` call this process."""
    import ray

    raylet: Any = ray._raylet
    raylet.setproctitle(f"ray::{title}")


def _train_here(config: dict[str, str], launch: _Launch) -> dict[str, Any]:
    """A trial of one worker, in its Tune process."""
    import torch

    from repr_ray.training.folder import TakenOver
    from repr_ray.training.loop import Stopped
    from repr_ray.training.trial import failure, run_trial

    trial = launch.trials[config["trial"]]
    _show_as(trial.name)
    device = torch.device("cuda" if launch.gpus else "cpu")
    if 0 < launch.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(launch.gpus)  # a trial that wants more fails, not its neighbours
    try:
        stop = launch.start(trial)
        run_trial(trial, launch.results, device, launch.mailbox.put.remote, launch.provenance, stop)
    except _Left:
        raise
    except (Stopped, TakenOver) as left:
        raise _Left(str(left)) from None
    except Exception as error:
        return {"failure": failure(error)}
    return {"failure": None}


def _train_on_ranks(config: dict[str, str], launch: _Launch) -> dict[str, Any]:
    """A trial of several workers: the driver of its Train worker group."""
    from repr_ray.training.trial import failure, first_line

    trial = launch.trials[config["trial"]]
    _show_as(trial.name)
    while True:
        try:
            launch.start(trial)
            if _Ranks.of(launch, trial.resources).train(trial.name):
                return {"failure": None}
        except _Left:
            raise
        except Exception as error:
            if own := _own_error(error):
                launch.mailbox.put.remote({"trial": trial.name, "failed": first_line(own)})
                return {"failure": failure(own)}
            launch.mailbox.put.remote({"trial": trial.name, "note": f"a rank died: {first_line(error)}"})


class _Ranks:
    """A Train worker group that trains one trial after the other: to start one takes longer than small trials do.

    It ends with the first trial that does not end well, or with the Tune process that drives it.
    """

    warm: ClassVar["_Ranks | None"] = None

    @classmethod
    def of(cls, launch: _Launch, resources: Resources) -> "_Ranks":
        """The worker group of this process."""
        if cls.warm is None or cls.warm.ended.done():
            cls.warm = cls(launch, resources)
        return cls.warm

    def __init__(self, launch: _Launch, resources: Resources) -> None:
        self.mailbox, self.key = launch.mailbox, uuid.uuid4().hex[:8]
        self.ended: Future[None] = Future()
        threading.Thread(target=self._run, args=(launch, resources), daemon=True).start()

    def train(self, trial: str) -> bool:
        """Whether the trial was trained to its end, and not left. Raises what the worker group ended with in it."""
        import ray

        self.mailbox.give.remote(self.key, trial)
        trained = self.mailbox.until_trained.remote(trial)
        while not self.ended.done():
            if ray.wait([trained], timeout=0.5)[0]:
                ray.get(trained)
                return True
        if ray.get(self.mailbox.was_taken.remote(self.key, trial)):  # else it ended before, of something else
            self.ended.result()
        return False

    def _run(self, launch: _Launch, resources: Resources) -> None:
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        function: Any = _train_rank
        once: Any = {"max_failures": 0, "max_preemption_failures": 0}  # starting again is up to us
        gpus = launch.gpus
        trainer = TorchTrainer(
            function,
            train_loop_config={"launch": launch, "key": self.key},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=resources.workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"ranks-{self.key}",
                storage_path=launch.scratch,
                failure_config=ray.train.FailureConfig(**once),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)


def _own_error(error: Exception) -> Exception | None:
    """What a rank itself raised; None where its process, its node or a connection was lost."""
    from ray.train.v2._internal.exceptions import RayTrainError

    from repr_ray import distributed

    if not isinstance(error, RayTrainError):
        return error
    failures = list(getattr(error, "worker_failures", {}).values())
    if any(isinstance(failure, RayTrainError) for failure in failures):
        return None
    return next((failure for failure in failures if not distributed.lost_connection(failure)), None)


def _train_rank(config: dict[str, Any]) -> None:
    """What a rank does: train the trials that its worker group is given, until it has to leave."""
    import ray
    from ray.train.torch import get_device

    from repr_ray.training.loop import Stopped
    from repr_ray.training.trial import run_trial

    launch: _Launch = config["launch"]

    def tell(message: dict[str, Any]) -> None:
        if "failed" not in message:  # perhaps only because another rank died; the driver of the ranks decides
            launch.mailbox.put.remote(message)

    stop = _hear_of_leaving(launch.mailbox)
    for place in itertools.count():
        trial = launch.trials[ray.get(launch.mailbox.take.remote(config["key"], place))]
        try:
            run_trial(trial, launch.results, get_device(), tell, launch.provenance, stop)
        except Stopped:
            return


def _record(folder: TrialFolder, result: Any, deaths: dict[str, str], on_update: Update) -> None:
    """A process that was killed, or could not write, could not say so in the folder itself."""
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
    on_update({"trial": folder.trial.name, "failed": why["message"]})


def _install(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _watch(mailbox: Any, on_update: Update, room: Room, handlers: Mapping[signal.Signals, Any]) -> Any:
    """A Tune callback: forwards messages, tells of deaths, gives up on a cluster that has lost its nodes.

    A signal waits for the end of Tune's step, a tenth of a second: raised inside Ray's own code it comes out as
    another exception, for which Tune cleans up for ten seconds.
    """
    import ray
    from ray import cloudpickle, tune

    class Watch(tune.Callback):
        # Tune pickles this class with everything that it closes over, and `on_update` leads to a terminal
        def __init__(self, on_update: Update, room: Room, handlers: Mapping[signal.Signals, Any]) -> None:
            self.on_update, self.room, self.handlers = on_update, room, handlers
            self.stopped: signal.Signals | None = None
            self.deaths: dict[str, str] = {}
            self.gave_up: ConfigError | None = None
            self.drained: set[str] = set()
            self.forwarded = self.checked = 0.0

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def forward(self, timeout: float | None = None) -> None:
            for message in ray.get(mailbox.drain.remote(), timeout=timeout):
                self.on_update(message)

        def stop(self, number: int, frame: object) -> None:
            self.stopped = signal.Signals(number)

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
                self.forwarded = monotonic()
            if monotonic() - self.checked > 5:
                try:
                    self.room.check()
                except ConfigError as error:
                    self.gave_up = error
                    raise
                self.checked = monotonic()

        def tell_drained(self) -> None:
            if new := ray._private.state.state.get_draining_nodes().keys() - self.drained:
                self.drained |= new
                mailbox.leave.remote(sorted(new))
                self.on_update(
                    {"note": f"{len(new)} node{'s' * (len(new) > 1)} will be taken away: trials there move"}
                )

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            # Tune copies it to its storage later, and reads it from there
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            if isinstance(error, _Left):
                return
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            self.deaths[str(trial)] = lines[0]
            self.on_update({"trial": str(trial), "note": f"its process died: {lines[0]}"})

    return Watch(on_update, room, handlers)
