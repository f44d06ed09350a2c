"""python -m repr_ray.launch: from a config to trials, from trials to the comparison table.

Exit status: 0 all trials done, 1 some failed, 2 bad config or input, 130 interrupted, 143 terminated.
"""

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repr_ray.config import ConfigError, load
from repr_ray.experiment import claim, merge
from repr_ray.method.settings import RePrSettings, Selection
from repr_ray.plan import Trial, plan
from repr_ray.training.folder import TrialFolder

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_CONFIG = "configs/quickstart.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_intermixed_args(arguments)
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)  # stays the terminal when Ray's output is muted
    try:
        experiment = load(args.config, args.overrides)
        trials = plan(experiment)
        results = Path(args.results).resolve() / experiment.name
        if args.dry_run:
            _show_plan(console, trials, results)
            return 0
        merge(results, experiment)
        pending = [trial for trial in trials if not TrialFolder(results, trial).done]
        if pending:
            console.print(f"{len(pending)} of {len(trials)} trials to run, results in {results}", soft_wrap=True)
            _check(console, pending)
        with claim(results, experiment):
            if pending:
                command = shlex.join([*_COMMAND, *arguments])
                _run(console, trials, pending, results, args.runner, command)
            else:
                console.print(f"all {len(trials)} trials are done already, results in {results}", soft_wrap=True)
            _report(console, results)
        return 0 if all(TrialFolder(results, trial).done for trial in trials) else 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        print(f"{error}\nmake room; the same command resumes from the last checkpoints", file=sys.stderr)
        return 1
    except BaseException as error:
        if (number := _signal_behind(error)) is None:
            raise
        word = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"\n{word}; the same command resumes from the last checkpoints", file=sys.stderr)
        return 128 + number


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COMMAND = ("python", "-m", "repr_ray.launch")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(_COMMAND),
        description="Train every scheme of an experiment with every seed, side by side on Ray, and compare them.",
        epilog="Launching again skips what is done and resumes what is not. Example: "
        "python -m repr_ray.launch --config configs/cifar10.yaml train.epochs=200 'seeds=[0, 1]' name=longer",
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="experiment (default: %(default)s)")
    parser.add_argument(
        "--results",
        default=os.environ.get("REPR_RAY_RESULTS", "results"),
        metavar="DIR",
        help="DIR/NAME holds the results; default: $REPR_RAY_RESULTS, else results",
    )
    parser.add_argument("--runner", choices=("ray", "local"), default="ray", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print every trial, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted field and YAML value")
    return parser


def _run(
    console: "Console", trials: list[Trial], pending: list[Trial], results: Path, runner: str, command: str
) -> None:
    from repr_ray.progress import Progress
    from repr_ray.runners import local, ray

    for trial in pending:
        TrialFolder(results, trial).announce()
    provenance = {"command": command, "commit": _commit()}
    with Progress(console, {t.name: t.train.epochs for t in pending}, len(trials) - len(pending)) as progress:
        (ray if runner == "ray" else local).run(pending, results, progress.update, provenance)


def _check(console: "Console", trials: list[Trial]) -> None:
    """Everything that could be wrong with the input, before anything is trained."""
    from repr_ray.data import decoded
    from repr_ray.progress import bar
    from repr_ray.training.setup import check

    for data in {trial.data for trial in trials}:
        decoded.load(data, lambda items, total, title: bar(console, items, total, title))
    for trial in {(t.model, t.settings, t.train, t.data.name): t for t in trials}.values():
        check(trial)


def _show_plan(console: "Console", trials: list[Trial], results: Path) -> None:
    """Every trial with its resources, and the convolutions that a network keeps whole."""
    from repr_ray.progress import plan_table

    rows = [(t.name, t.scheme, t.variant or "-", str(t.seed), str(t.train.epochs)) for t in trials]
    console.print(plan_table(rows, ("trial", "scheme", "variant", "seed", "epochs")))
    for (label, scheme), left_out in _left_out(trials).items():
        for layer, reason in left_out.items():
            console.print(f"{label}, {scheme}: no filter of {layer} is dropped: {reason}", soft_wrap=True)
    r = trials[0].resources
    gpus = r.gpus_per_worker if r.gpus_per_worker == "auto" else f"{r.gpus_per_worker:g}"
    console.print(
        f"{len(trials)} trials, each {r.workers} x ({r.cpus_per_worker} CPU, {gpus} GPU);"
        f" results would go to {results}",
        soft_wrap=True,
    )


def _left_out(trials: list[Trial]) -> dict[tuple[str, str], Mapping[str, str]]:
    """Per network and scheme, the layers that cannot lose filters, with the reason.

    Plain stacks of convolutions lose filters anywhere; only other networks, and selections that name layers, are
    built and traced, which is what torch is imported for.
    """
    traced = {
        (t.model, t.data.name, t.settings): t
        for t in trials
        if isinstance(t.settings, RePrSettings) and (t.model.kind != "convnet" or t.settings.selection != Selection())
    }
    if not traced:
        return {}
    from repr_ray.training.setup import check

    return {(t.model.label, t.scheme): check(t) for t in traced.values()}


def _report(console: "Console", results: Path) -> None:
    from repr_ray.report import report

    report([results], console=console)


def _commit() -> str | None:
    """The commit of this package's checkout, marked when it has uncommitted changes; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class _Stopped(BaseException):
    """A signal, raised in the main thread."""


def _stop(number: int, frame: object) -> None:
    raise _Stopped(number)


def _signal_behind(error: BaseException | None) -> int | None:
    """The number of the signal that led to an exception, also where Ray raised another one from it."""
    while error is not None:
        if isinstance(error, _Stopped):
            return int(error.args[0])
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _stop)
    status = main()
    if status > 128:  # taking the interpreter down would take seconds, and nothing is left to do
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
