"""What runs in the process of a trial of one worker on Ray."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from repr_ray.runners.ray_private import show_as
from repr_ray.storage.folder import Folder, StorageError, opened, redact
from repr_ray.study.plan import Trial
from repr_ray.training import checkpoint
from repr_ray.training.folder import TrialFolder
from repr_ray.training.messages import RETRIES, Preempted

PROBE = ".probe"  # a file beside the results, for a node to check that it sees what the launcher writes


@dataclass(frozen=True)
class Launch:
    """Data shared by all trials of a launch. `scratch` is a folder of the launcher, and the launch's key."""

    trials: dict[str, Trial]
    results: Path | str
    probe: str
    mailbox: Any
    origin: dict[str, Any]
    gpus: float
    scratch: str

    def start(self, trial: Trial) -> Callable[[], bool]:
        """Called in a trial's process before it trains; raises if the trial must not start.

        Returns a function that is true when the process has to stop.
        """
        import ray

        stop = self.stop()
        if stop():
            raise Preempted("this node will be drained")
        require_seen(self.results, self.probe)
        with opened(self.results) as storage:
            folder = TrialFolder(storage.path, trial, storage)
            folder.pull()
            place = checkpoint.newest_place(folder.path)
        starts = ray.get(self.mailbox.start.remote(trial.name, place))
        if starts > 1 + RETRIES:
            raise RuntimeError(f"its process died {starts - 1} times in a row between epoch {place[0]} and the next")
        return stop

    def stop(self) -> Callable[[], bool]:
        """A function that is true when this process has to stop; a thread per process waits for the mailbox."""
        import ray

        if self.scratch not in _stopping:
            event = _stopping[self.scratch] = threading.Event()
            node = ray.get_runtime_context().get_node_id()

            def wait() -> None:
                with contextlib.suppress(Exception):  # the launch has ended
                    ray.get(self.mailbox.until_leaving.remote(node))
                    event.set()

            threading.Thread(target=wait, daemon=True).start()
        return _stopping[self.scratch].is_set


_stopping: dict[str, threading.Event] = {}
"""For each launch: set when its trials in this process have to stop."""


def require_seen(results: Path | str, probe: str) -> None:
    """Raise FileNotFoundError unless this node sees what the launcher wrote."""
    try:
        with opened(results, waits=(1, 2)) as storage:
            deadline = monotonic() + 5  # a network file system may lag
            while _probe(storage) != probe:
                if monotonic() > deadline:
                    raise FileNotFoundError(
                        f"cannot read what the launcher wrote to {redact(results)}; mount that folder on every node,"
                        " or name one that they all see with --results"
                    )
                sleep(0.5)
    except StorageError as error:
        raise FileNotFoundError(f"cannot read what the launcher wrote: {error}") from None


def _probe(storage: Folder) -> str:
    try:
        return storage.read(PROBE).decode()
    except FileNotFoundError:
        return ""


def train_here(config: dict[str, str], launch: Launch) -> dict[str, Any]:
    """Train a trial of one worker in this process, which Tune has started for it."""
    import torch

    from repr_ray.training.trial import failure, run_trial

    trial = launch.trials[config["trial"]]
    show_as(trial.name)
    device = torch.device("cuda" if launch.gpus else "cpu")
    if 0 < launch.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(launch.gpus)  # a trial that needs more fails alone
    try:
        stop = launch.start(trial)
        run_trial(trial, launch.results, device, launch.mailbox.put.remote, launch.origin, stop)
    except Preempted:
        raise
    except Exception as error:
        return {"failure": failure(error)}
    return {"failure": None}
