"""The local runner: trials one after the other in this process, with the results of the Ray runner."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repr_ray.runners import signals
from repr_ray.study.config import ConfigError, Resources
from repr_ray.study.plan import Trial
from repr_ray.training.messages import Tell


def run(trials: Sequence[Trial], results: Path | str, tell: Tell, origin: dict[str, Any]) -> None:
    """Run every trial; a failure is recorded in the trial's folder, and the next trial starts.

    After a signal the trial has up to `SAVE_SECONDS` to save. Raises ConfigError for resources that one process
    cannot have.
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
    device = torch.device("cuda" if gpus else "cpu")
    with _signals_wait() as came:
        for trial in trials:
            try:
                run_trial(trial, results, device, tell, origin | {"gpus": gpus}, stop=lambda: bool(came))
            except Exception:  # recorded in the trial's folder
                if came:
                    break


SAVE_SECONDS = 1.5


@contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """Collect signals; the former handler of the first is called at the end, or after `SAVE_SECONDS`."""
    came: list[int] = []
    handlers = signals.handlers()

    def pass_on(number: int, frame: object) -> None:
        signals.install(handlers)
        signal.raise_signal(came[0])

    def wait(number: int, frame: object) -> None:
        came.append(number)
        signals.leave_terminal(number)
        signal.signal(signal.SIGALRM, pass_on)
        signal.setitimer(signal.ITIMER_REAL, SAVE_SECONDS)

    signals.install(dict.fromkeys(handlers, wait))
    try:
        yield came
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signals.install(handlers)
    if came:
        signal.raise_signal(came[0])


def gpus_per_worker(resources: Resources, available: float) -> float:
    """GPUs of each worker when `available` exist: `auto` is one, or none."""
    wanted = resources.gpus_per_worker
    return float(available >= 1) if wanted == "auto" else wanted
