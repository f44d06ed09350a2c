"""Trials on Ray: Tune schedules them, Train runs the ranks of one with DistributedDataParallel.

A trial of one worker runs directly in its Tune process: a Train worker group around it would only add its start-up
(benchmarks/README.md has the measurement). What a trial learns goes through its folder, which every node must see;
only progress messages go through Ray. A trial whose process dies is started again and resumes from its folder.
"""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repr_ray.config import ConfigError, Resources
from repr_ray.plan import Trial
from repr_ray.runners.local import gpus_per_worker
from repr_ray.training.folder import TrialFolder

RETRIES = 2
"""How often a trial whose process died without an error of its own is started again."""

# Read by Ray when it is imported or starts its processes.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


def run(
    trials: Sequence[Trial],
    results: Path,
    on_update: Callable[[dict[str, Any]], None],
    provenance: dict[str, Any],
) -> None:
    """Run all trials, as many at once as the cluster or `resources.concurrent` allows.

    Joins the cluster that `RAY_ADDRESS` or a running `ray start` names, else starts one on this machine. Raises
    ConfigError when no trial could ever get its resources.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune

    resources = trials[0].resources
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        gpus, fitting = _fit(resources, ray.cluster_resources())
        mailbox = ray.remote(_Mailbox).options(num_cpus=0, resources={_HEAD: 0.001}).remote()
        shared = {
            "trials": {trial.name: trial for trial in trials},
            "results": results,
            "mailbox": mailbox,
            "provenance": provenance,
            "gpus": gpus,
        }
        if resources.workers == 1:
            function, wanted = _train_here, {"CPU": resources.cpus_per_worker, "GPU": gpus}
        else:
            function, wanted = _train_on_ranks, {_HEAD: 0.001}
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(function, **shared), wanted),
            param_space={"trial": tune.grid_search([trial.name for trial in trials])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=resources.concurrent or fitting,
                reuse_actors=resources.workers == 1,
                trial_name_creator=lambda t: t.config["trial"],
                trial_dirname_creator=lambda t: t.config["trial"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(results / "ray"),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
        # Tune prints its own tables at any verbosity; ours go to the terminal itself
        with _Forwarding(mailbox, on_update), contextlib.redirect_stdout(io.StringIO()):
            grid = tuner.fit()
        for index, trial in enumerate(trials):
            if (error := grid[index].error) is not None:
                _record_death(TrialFolder(results, trial), error, on_update)
    finally:
        ray.shutdown()


_HEAD = "node:__internal_head__"


def _fit(resources: Resources, cluster: dict[str, float]) -> tuple[float, int]:
    """GPUs per worker, and how many trials the cluster holds at once."""
    gpus = gpus_per_worker(resources, cluster.get("GPU", 0))
    need = {"CPU": float(resources.workers * resources.cpus_per_worker), "GPU": resources.workers * gpus}
    fitting = min(int(cluster.get(kind, 0) // amount) for kind, amount in need.items() if amount)
    if fitting < 1 and resources.concurrent is None:
        short = next(kind for kind, amount in need.items() if amount > cluster.get(kind, 0))
        raise ConfigError(
            f"resources: a trial needs {need[short]:g} {short}s ({resources.workers} workers), the whole cluster has"
            f" {cluster.get(short, 0):g}; ask for fewer, or set resources.concurrent on a cluster that grows"
        )
    return gpus, max(fitting, 1)


def _train_here(
    config: dict[str, str],
    trials: dict[str, Trial],
    results: Path,
    mailbox: Any,
    provenance: dict[str, Any],
    gpus: float,
) -> None:
    """A trial of one worker, in its Tune process."""
    import torch

    from repr_ray.training.trial import run_trial

    device = torch.device("cuda" if gpus else "cpu")
    trial, folder = trials[config["trial"]], TrialFolder(results, trials[config["trial"]])
    try:
        run_trial(trial, results, device, mailbox.put.remote, provenance)
    except Exception:
        if not folder.failed:  # not even the folder could be written: let Tune hear of it
            raise


def _train_on_ranks(
    config: dict[str, str],
    trials: dict[str, Trial],
    results: Path,
    mailbox: Any,
    provenance: dict[str, Any],
    gpus: float,
) -> None:
    """A trial of several workers: the driver of its Train worker group."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    trial = trials[config["trial"]]
    folder, resources = TrialFolder(results, trial), trial.resources
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={"trial": trial, "results": results, "mailbox": mailbox, "provenance": provenance},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray.train.RunConfig(name=trial.name, storage_path=str(results / "ray" / "train")),
    )
    for attempt in range(1 + RETRIES):
        try:
            trainer.fit()
            return
        except Exception:
            if folder.failed:  # an error of the training itself: a second try would meet it again
                return
            if attempt == RETRIES:
                raise


def _train_rank(config: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    from repr_ray.training.trial import run_trial

    run_trial(config["trial"], config["results"], get_device(), config["mailbox"].put.remote, config["provenance"])


def _record_death(folder: TrialFolder, error: BaseException, on_update: Callable[[dict[str, Any]], None]) -> None:
    """A process that was killed could not say so itself."""
    from repr_ray.training.trial import failure, first_line

    folder.fail(failure(error))
    on_update({"trial": folder.trial.name, "failed": first_line(error)})


class _Mailbox:
    """Collects progress messages on the head node."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def put(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def drain(self) -> list[dict[str, Any]]:
        messages, self.messages = self.messages, []
        return messages


class _Forwarding:
    """Forwards messages from the mailbox to `on_update` twice a second, in a thread of its own."""

    def __init__(self, mailbox: Any, on_update: Callable[[dict[str, Any]], None]) -> None:
        self.mailbox, self.on_update = mailbox, on_update
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._forward, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join(timeout=5)

    def _forward(self) -> None:
        import ray

        last = False
        while not last:
            last = self.ended.wait(0.5)
            for message in ray.get(self.mailbox.drain.remote()):
                self.on_update(message)
