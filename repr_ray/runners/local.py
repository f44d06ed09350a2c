"""The twin of the Ray runner: the same trials, one after the other, in this process."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repr_ray.runners import signals
from repr_ray.study.config import ConfigError, Resources
from repr_ray.study.plan import Trial
from repr_ray.training.messages import Tell


def run(
    trials: Sequence[Trial],
    results: Path | str,
    tell: Tell,
    origin: dict[str, Any],
) -> None:
    """Run every trial; a failure is recorded in the trial's folder and the next one starts.

    A signal lets the trial save first, for up to `SAVE_SECONDS`. Raises ConfigError for what one process cannot do.
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
            except Exception:  # the trial's folder says why
                if came:
                    break


SAVE_SECONDS = 1.5


@contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """The signals that came, each passed on to its former handler at the end, or `SAVE_SECONDS` after it came."""
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
    """GPUs each worker takes where `available` are there: `auto` is one, or none."""
    wanted = resources.gpus_per_worker
    return float(available >= 1) if wanted == "auto" else wanted
