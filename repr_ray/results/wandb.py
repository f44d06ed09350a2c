"""Trials as runs of Weights & Biases, made from stored results: `pip install repr-ray[wandb]`.

A trial becomes a run once it has ended, with the settings, curves and figures that MLflow gets too; its experiment is
the run's group. A run has an id of its trial's, so that one that is logged again takes the place of the first. With
`WANDB_MODE=offline` runs are stored below `WANDB_DIR`, for `wandb sync`; those are not written again.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repr_ray.results.trackers import ended
from repr_ray.storage.text import line

_OFFLINE = ("offline", "dryrun", "disabled")


def log_to_wandb(folders: Sequence[Path], project: str) -> int:
    """Log the trials of results folders that have ended; returns how many.

    `project` is `PROJECT` or `ENTITY/PROJECT`. Raises ModuleNotFoundError, saying what to install, without the extra,
    and ValueError without a key, where there is no trial or W&B fails.
    """
    wandb = connect(project)
    entity, _, name = project.rpartition("/")
    stored = Path(os.environ.get("WANDB_DIR", ".")) / "wandb"
    quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True)

    def is_there(experiment: str, trial: str, done: bool) -> bool:
        return any(stored.glob(f"offline-run-*-{_id(experiment, trial, done)}"))

    logged = 0
    try:
        for trial in ended(folders, is_there):
            run = wandb.init(
                project=name,
                entity=entity or None,
                id=_id(trial.experiment, trial.name, trial.done),
                name=trial.name,
                group=trial.experiment,
                config=trial.parameters,
                reinit="create_new",
                settings=quiet,
            )
            for epoch, row in trial.curves:
                run.log(row, step=epoch)
            run.summary.update(trial.figures | trial.tags)
            run.finish(exit_code=0 if trial.done else 1)
            logged += 1
    except wandb.Error as error:
        raise ValueError(f"--wandb {project}: {line(error)}") from None
    return logged


def connect(project: str) -> Any:
    """The library. Raises ModuleNotFoundError without the extra, ValueError without a key unless it is offline."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--wandb: W&B is not installed: pip install 'repr-ray[wandb]'") from None
    if os.environ.get("WANDB_MODE") not in _OFFLINE and not wandb.login(prompt=False):
        raise ValueError(f"--wandb {project}: no key; set WANDB_API_KEY, or WANDB_MODE=offline and sync later")
    return wandb


def _id(experiment: str, trial: str, done: bool) -> str:
    return hashlib.sha256(f"{experiment}/{trial}/{done}".encode()).hexdigest()[:16]
