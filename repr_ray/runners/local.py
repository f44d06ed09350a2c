"""The twin of the Ray runner: the same trials, one after the other, in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repr_ray.config import ConfigError, Resources
from repr_ray.plan import Trial


def run(
    trials: Sequence[Trial],
    results: Path,
    on_update: Callable[[dict[str, Any]], None],
    provenance: dict[str, Any],
) -> None:
    """Run every trial; a failure is recorded in the trial's folder and the next one starts.

    Raises ConfigError for what one process cannot do.
    """
    import torch

    from repr_ray.training.trial import run_trial

    resources = trials[0].resources
    gpus = gpus_per_worker(resources, torch.cuda.device_count())
    if resources.workers > 1:
        raise ConfigError(
            f"resources.workers={resources.workers}: --runner local is one process; use --runner ray, or workers=1"
        )
    if gpus > torch.cuda.device_count():
        raise ConfigError(
            f"resources.gpus_per_worker={gpus:g}: this machine has {torch.cuda.device_count()}; use fewer, or auto"
        )
    for trial in trials:
        try:
            run_trial(trial, results, torch.device("cuda" if gpus else "cpu"), on_update, provenance)
        except Exception:  # the trial's folder says why
            continue


def gpus_per_worker(resources: Resources, available: float) -> float:
    """GPUs each worker takes where `available` are there: `auto` is one, or none."""
    wanted = resources.gpus_per_worker
    return float(available >= 1) if wanted == "auto" else wanted
