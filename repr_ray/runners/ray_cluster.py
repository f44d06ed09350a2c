"""The connection of a launch to Ray: a cluster that is joined, or one of our own on this machine."""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from repr_ray.plug_ins import first_line
from repr_ray.runners import ray_private, signals
from repr_ray.runners.mailbox import MAILBOX, Mailbox
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import Trial

# Read by Ray when it is imported or starts its processes. Preemption: the launcher checks for drained nodes, for
# all worker groups at once. Pending trials: the demand that an autoscaler sees.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}

_CALLS = 100_000  # concurrent calls of the mailbox: waiting calls stay open, a few for every process

# Trials train in a thread. By default it gets a malloc arena of its own, which `keep_freed_memory` does not affect.
# PyTorch Lightning: what Tune sets as well.
_WORKERS = {"MALLOC_ARENA_MAX": "1", "PL_DISABLE_FORK": "1"}

MOST_PRELOADED = 16  # cores of a machine on which all processes that Ray starts import PyTorch

HEAD = {"node:__internal_head__": 0.001}
"""Places a process without resources of its own on the head node, even if that has no CPUs."""


class Connection:
    """Ray: the cluster that `RAY_ADDRESS` or a running `ray start` names, else one of our own on this machine.

    Ray starts in a thread, while the caller does something else. The thread lasts until the connection is closed: a
    cluster of our own ends with the thread that started it. `mailbox` is there once `up` is done.
    """

    mailbox: Any

    def __init__(self, trials: Sequence[Trial]) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.trials = trials
        self.joins = ray_private.cluster_is_running()
        self.up: Future[None] = Future()
        self.over = threading.Event()
        threading.Thread(target=self._hold, daemon=True).start()

    def _hold(self) -> None:
        try:
            import ray

            logging.getLogger("ray").setLevel(logging.ERROR)
            environment: Any = {"env_vars": _WORKERS}
            mailbox: Any = {}
            if not self.joins:  # inherited variables; with a runtime_env Ray cannot use its prestarted processes
                ray_private.listen_on_loopback()
                os.environ.update(_WORKERS)
                environment = None
                if self._preloads:
                    ray_private.preload("repr_ray.runners.preload")
                    mailbox = {"runtime_env": {"env_vars": {MAILBOX: "1"}}}
            with signals.sigterm_kept():
                ray.init(
                    address=None if self.joins else "local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=environment,
                )
            mailbox |= {"num_cpus": 0, "resources": HEAD, "max_concurrency": _CALLS}
            self.mailbox = ray.remote(Mailbox).options(**mailbox).remote()
        except BaseException as error:
            self.up.set_exception(error)
        else:
            self.up.set_result(None)
            self.over.wait()

    @property
    def _preloads(self) -> bool:
        """Whether the processes that Ray starts import PyTorch at once: one for each core, and trials take most."""
        few = (os.cpu_count() or 1) <= MOST_PRELOADED
        return few and bool(self.trials) and self.trials[0].resources.workers == 1

    def wait(self) -> None:
        """Wait until Ray is up. Raises ConfigError if it cannot be started or joined."""
        from ray import tune  # noqa: F401 - takes seconds, while Ray starts

        try:
            self.up.result()
        except Exception as error:
            raise ConfigError(
                f"--runner ray: Ray cannot be {'joined' if self.joins else 'started'}: {first_line(error)};"
                f" {'check RAY_ADDRESS' if self.joins else 'try again'}, or use --runner local"
            ) from error

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *error: object) -> None:
        """Disconnect; stop a cluster of our own."""
        if not self.over.is_set() and not self.up.exception():
            import ray

            with signals.sigterm_kept():
                ray.shutdown()
        self.over.set()
