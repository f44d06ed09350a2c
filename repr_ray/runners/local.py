"""The twin of the Ray runner: the same trials, one after the other, in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repr_ray.config import ConfigError
from repr_ray.plan import Trial


def run(trials: Sequence[Trial], results: Path, on_update: Callable[[dict[str, Any]], None], provenance: Any) -> None:
    """Run every trial; a failure is recorded in the trial's folder and the next one starts.

    Raises ConfigError for what one process cannot do.
    """
    import torch

    from repr_ray.training.trial import run_trial

    for trial in trials:
        if trial.resources.workers > 1:
            raise ConfigError(
                f"resources.workers={trial.resources.workers}: --runner local is one process;"
                " use --runner ray, or resources.workers=1"
            )
        if gpus_of(trial, torch.cuda.device_count()) > torch.cuda.device_count():
            raise ConfigError(
                f"resources.gpus_per_worker={trial.resources.gpus_per_worker}: this machine has"
                f" {torch.cuda.device_count()} GPUs; use fewer, or auto"
            )
    for trial in trials:
        device = torch.device("cuda" if gpus_of(trial, torch.cuda.device_count()) else "cpu")
        try:
            run_trial(trial, results, device, on_update, provenance)
        except Exception as error:
            on_update({"trial": trial.name, "failed": f"{type(error).__name__}: {error}"})


def gpus_of(trial: Trial, available: int) -> float:
    """GPUs a worker of this trial takes where `available` are there."""
    wanted = trial.resources.gpus_per_worker
    return float(available > 0) if wanted == "auto" else wanted
