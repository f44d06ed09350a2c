"""python -m repr_ray.launch: train the trials of a config, and compare them.

Exit status: 0 all trials done; 1 some failed, or the storage did; 2 bad config or input; 129 terminal closed, 130
interrupted, 143 terminated.
"""

import argparse
import contextlib
import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from repr_ray.experiment import hold, merge
from repr_ray.report import add_trackers, job_console
from repr_ray.runners import signals
from repr_ray.storage.folder import Folder, Remote, StorageError, join, opened, redact
from repr_ray.study.config import ConfigError
from repr_ray.study.reading import load

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_CONFIG = "quickstart"


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line, called `prog` in its help; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = _parser(prog or " ".join(_COMMAND)).parse_intermixed_args(arguments)
    try:
        return _launch(job_console(), args, arguments)
    except ConfigError as error:
        print(redact(error), file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"{redact(error)}\nthe same command resumes from the last checkpoints", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(redact(f"--results: {error.strerror}: {error.filename}"), file=sys.stderr)
            return 2
        if error.errno not in _NO_ROOM:
            raise
        print(f"{redact(error)}\nmake room; the same command resumes from the last checkpoints", file=sys.stderr)
        return 1
    except BaseException as error:
        if (number := _signal_behind(error)) is None:
            raise
        rest = "the same command resumes from the last checkpoints" if args.trains else "no trial was started"
        print(f"\n{_ENDED[signal.Signals(number)]}; {rest}", file=sys.stderr)
        return 128 + number


def _launch(console: "Console", args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from repr_ray.dry_run import dry_run  # not at the top: --help does without these
    from repr_ray.progress import say
    from repr_ray.rounds import Rounds

    experiment = load(args.config, args.overrides)
    location = join(args.results, experiment.name)
    if args.dry_run:
        dry_run(console, experiment, location, [a for a in arguments if a != "--dry-run"])
        return 0
    if args.mlflow or args.wandb:
        _check_trackers(args)
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(_open(location))
        merged = merge(storage, experiment)
        rounds = Rounds(console, experiment, storage, location)
        rounds.load_data(merged)
        ray = stack.enter_context(contextlib.ExitStack())
        runner = rounds.runner(args.runner, ray)
        args.trains = True
        if isinstance(storage, Remote):
            say(console, "making sure that no other launch writes there")
        with hold(storage, experiment):
            rounds.run(runner, shlex.join([*_COMMAND, *map(redact, arguments)]))
            ray.close()
            _report(console, storage, args)
            rounds.show_first_failure()
        return 0 if rounds.complete else 1


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COMMAND = ("python", "-m", "repr_ray.launch")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train every scheme of an experiment with every seed, side by side on Ray, and compare them.",
        epilog="Launching again skips what is done and resumes what is not. Example: "
        f"{prog} --config cifar10 train.epochs=200 'seeds=[0, 1]' name=longer",
    )
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="FILE", help="a YAML file or a shipped config (%(default)s)"
    )
    parser.add_argument(
        "--results",
        default=os.environ.get("REPR_RAY_RESULTS", "results"),
        metavar="DIR",
        help="DIR/NAME holds the results; s3://... and gs://... too; default: $REPR_RAY_RESULTS, else results",
    )
    parser.add_argument("--runner", choices=("ray", "local"), default="ray", help="default: %(default)s")
    add_trackers(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print every trial, and stop")
    parser.set_defaults(trains=False)  # set once trials run
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted field and YAML value")
    return parser


@contextlib.contextmanager
def _open(location: Path | str) -> Iterator[Folder]:
    """Open the folder of the results. Raises ConfigError at once if it cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            storage = stack.enter_context(opened(location, waits=()))
            if isinstance(storage, Remote):
                storage.now()
        except StorageError as error:
            raise ConfigError(f"--results: {error}") from None
        try:
            yield storage
        except ConfigError as error:
            raise ConfigError(redact(error)) from None  # before the mirror-to-URI mapping is dropped


def _check_trackers(args: argparse.Namespace) -> None:
    from repr_ray.results import mlflow, wandb

    try:
        for connect, where in ((mlflow.connect, args.mlflow), (wandb.connect, args.wandb)):
            if where:
                connect(where)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _report(console: "Console", storage: Folder, args: argparse.Namespace) -> None:
    from repr_ray.progress import say
    from repr_ray.report import report, to_trackers

    report([storage.path], console=console)
    storage.push()
    try:
        to_trackers([storage.path], args, console)
    except ValueError as error:  # the results are stored; `report` with the same options logs them later
        say(console, redact(error), "yellow")


_ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}

UNDISTURBED = 5.0  # seconds in which a launch that ends after a signal ignores further signals


class _Signalled(BaseException):
    """A signal, raised in the main thread."""

    since = -inf


def _stop(number: int, frame: object) -> None:
    signals.leave_terminal(number)
    if monotonic() - _Signalled.since > UNDISTURBED:
        _Signalled.since = monotonic()
        raise _Signalled(number)


def _signal_behind(error: BaseException | None) -> int | None:
    """The number of the signal that led to an exception, also where Ray raised another one from it."""
    while error is not None:
        if isinstance(error, _Signalled):
            return int(error.args[0])
        error = error.__cause__ or error.__context__
    return None


def command(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line in a process of its own: signals end it with a message, status 128 + number."""
    signals.install(dict.fromkeys(signals.handlers(), _stop))
    status = main(arguments, prog)
    if status > 128:  # a regular exit would take seconds
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(command())
