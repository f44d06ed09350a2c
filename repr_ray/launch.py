"""python -m repr_ray.launch: train the trials of a config, and compare them.

Exit status: 0 all trials done, 1 some failed, 2 bad config or input, 130 interrupted, 143 terminated.
"""

import argparse
import contextlib
import errno
import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from repr_ray.data.shape import shape_is_known, shape_of
from repr_ray.experiment import has_other_source, hold, merge, refuse_other_data, refuse_other_plug_ins
from repr_ray.method.settings import RePrSettings, Selection
from repr_ray.report import add_trackers, job_console
from repr_ray.runners import signals
from repr_ray.storage.folder import Folder, Remote, StorageError, join, light, opened, redact
from repr_ray.storage.text import lines
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import load
from repr_ray.training.folder import TrialFolder

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
        rest = "the same command resumes from the last checkpoints" if args.trains else "no trial had begun"
        print(f"\n{_ENDED[signal.Signals(number)]}; {rest}", file=sys.stderr)
        return 128 + number


def _launch(console: "Console", args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from repr_ray import estimate, stages  # not at the top: --help does without them

    experiment = load(args.config, args.overrides)
    every = plan(experiment)
    location = join(args.results, experiment.name)
    where = redact(location)
    if args.dry_run:
        _show_data(console, every)
        shown_trials = every if experiment.tuning is None else stages.called_for(experiment, Path("none"))
        _show_plan(console, shown_trials, where)
        if said := stages.stages_line(experiment, every):
            _say(console, said)
        _show_cost(console, stages.most(experiment), location, [a for a in arguments if a != "--dry-run"])
        return 0
    if args.mlflow or args.wandb:
        _check_trackers(args)
    with contextlib.ExitStack() as stack:
        storage = stack.enter_context(_open(location))
        merged = merge(storage.path, experiment, storage)
        moved = has_other_source(storage.path, experiment)
        storage.pull(wanted=light)
        trials = stages.called_for(experiment, storage.path)
        folders = [TrialFolder(storage.path, trial) for trial in trials]
        pending = [folder.trial for folder in folders if not stages.ended(folder)]
        for folder in folders:
            if broken := folder.broken:
                _say(console, f"{redact(folder.path)}: {broken}: it runs again", "yellow")
        if pending:
            _say(console, f"{len(pending)} of {len(trials)} trials to run, results in {where}")
        digests = {}
        if pending or moved:
            everything = plan(merged)
            digests = _load(console, {trial.data for trial in [*everything, *trials]})
            refuse_other_data(storage.path, everything, digests)
        refuse_other_plug_ins(storage.path, trials)
        runner = _runner(args.runner, pending, stack) if pending else None
        if pending:
            _say(console, "importing PyTorch and building every network once, to check it")
            _check(pending)
            if args.runner == "ray" and estimate.starts_longer_than_it_trains(pending):
                _say(console, "these trials are small: --runner local trains them at once, without Ray")
            disk, enough = estimate.disk_line(pending, location)
            if not enough:  # a warning: space may become free, and a full disk gives a clear error
                _say(console, disk, "yellow")
        args.trains = True
        with hold(storage.path, experiment, storage):
            if not pending:
                _say(console, f"all {len(trials)} trials are done already, results in {where}")
            command, tried = shlex.join([*_COMMAND, *map(redact, arguments)]), set[tuple[str, int]]()
            while runner and pending:
                if now := stages.ready(pending, storage.path):
                    waiting = {trial.name for trial in pending} - {trial.name for trial in now}
                    if waiting:
                        _say(console, _waiting_line(pending, waiting))
                    known = [trial for trial in trials if trial.name not in waiting]
                    _run(console, known, now, digests, storage, runner, command)
                else:
                    _fail_without_teacher(pending, storage)
                tried |= {(trial.name, trial.last_epoch) for trial in now or pending}
                trials = stages.called_for(experiment, storage.path)
                folders = [TrialFolder(storage.path, trial) for trial in trials]
                open_ = [folder.trial for folder in folders if not stages.ended(folder)]
                pending = [trial for trial in open_ if (trial.name, trial.last_epoch) not in tried]
                if pending:
                    _say(console, f"{stages.why(experiment, pending)}: {len(pending)} more trials to run")
            stages.mark_stopped(trials, storage)
            _report(console, storage, args)
            _first_failure(console, folders)
        return 0 if all(map(stages.ended, folders)) else 1


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


def _waiting_line(pending: Sequence[Trial], waiting: set[str]) -> str:
    teachers = {trial.teacher.name for trial in pending if trial.teacher and trial.name in waiting}
    schemes = dict.fromkeys(trial.scheme for trial in pending if trial.name in waiting)
    first = next(trial for trial in pending if trial.name in waiting)
    return (
        f"{len(waiting)} trials ({', '.join(schemes)}) learn from {len(teachers)} others and wait for them:"
        f" {first.name} for {first.teacher.name if first.teacher else ''}, ..."
    )


def _fail_without_teacher(students: Sequence[Trial], storage: Folder) -> None:
    for trial in students:
        if trial.teacher:
            teacher, own = TrialFolder(storage.path, trial.teacher), TrialFolder(storage.path, trial, storage)
            why = teacher.message if teacher.failed else "it has not been trained"
            message = f"its teacher {trial.teacher.name} failed: {why}"
            own.fail({"status": "failed", "message": message, "traceback": message})


def _run(
    console: "Console",
    trials: list[Trial],
    pending: list[Trial],
    digests: Mapping[Data, str],
    storage: Folder,
    runner: Callable[..., None],
    command: str,
) -> None:
    from repr_ray.progress import Progress
    from repr_ray.training.provenance import commit

    for trial in pending:
        TrialFolder(storage.path, trial).announce(digests[trial.data])
    storage.push()
    origin = {"command": command, "commit": commit()}
    with Progress(console, {t.name: t.last_epoch for t in pending}, len(trials) - len(pending)) as progress:
        runner(pending, storage.location, progress.update, origin)
    storage.pull(wanted=light)


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


def _load(console: "Console", wanted: Iterable[Data]) -> dict[Data, str]:
    """Decode the images that this machine has not decoded yet; returns the digest of each data set."""
    from repr_ray.data import decoded
    from repr_ray.progress import bar

    wanted = list(wanted)
    _say(console, f"loading the images of {', '.join(dict.fromkeys(data.name for data in wanted))}")
    loaded = {
        data: decoded.load(data, lambda items, total, title: bar(console, items, total, title)) for data in wanted
    }
    for text in dict.fromkeys(f"data: {note}" for one in loaded.values() for note in one.notes):
        _say(console, text)
    for text in dict.fromkeys(f"WARNING: data: {one.warning}" for one in loaded.values() if one.warning):
        _say(console, text, "yellow")
    return {data: one.digest for data, one in loaded.items()}


def _runner(name: str, trials: Sequence[Trial], stack: contextlib.ExitStack) -> Callable[..., None]:
    """The function that runs trials. Ray, which takes seconds to start, begins to."""
    from repr_ray.runners import local, ray

    if name == "local":
        return local.run
    return functools.partial(ray.run, connection=stack.enter_context(ray.Connection(trials)))


def _check(trials: list[Trial]) -> None:
    """Raise ConfigError unless every network fits its images, and every scheme its network."""
    from repr_ray.training.setup import check

    for trial in {(t.model, t.settings, t.train, shape_of(t.data)): t for t in trials}.values():
        check(trial)


def _show_data(console: "Console", trials: list[Trial]) -> None:
    """Print what each source holds, or that it was not read."""
    from repr_ray.data.describe import describe

    for text in dict.fromkeys(describe(data) for data in {trial.data: None for trial in trials}):
        _say(console, text)


def _show_plan(console: "Console", trials: list[Trial], results: str) -> None:
    """Print every trial with its resources, and the layers that keep all their filters."""
    from repr_ray.progress import plan_table

    rows = [(t.name, t.scheme, t.variant or "-", str(t.seed), str(t.train.epochs)) for t in trials]
    console.out(lines(plan_table(rows, ("trial", "scheme", "variant", "seed", "epochs"))))
    for (label, scheme), left_out in _left_out([t for t in trials if shape_is_known(t.data)]).items():
        for layer, reason in left_out.items():
            _say(console, f"{label}, {scheme}: no filter of {layer} is dropped: {reason}")
    r = trials[0].resources
    shared = f", {r.trials_per_gpu} on each GPU" if r.trials_per_gpu != 1 else ""
    _say(
        console,
        f"{len(trials)} trials, each {r.workers} x ({r.cpus_per_worker} CPU, {r.gpus_per_worker} GPU){shared};"
        f" results would go to {results}",
    )


def _show_cost(console: "Console", trials: list[Trial], results: Path | str, arguments: list[str]) -> None:
    """Print the disk space and time that the pending trials need; on object storage all trials count as pending."""
    from repr_ray import estimate

    here = results if isinstance(results, Path) else None
    pending = [trial for trial in trials if not (here and TrialFolder(here, trial).done)]
    for line, enough in estimate.data_lines(pending).items():
        _say(console, line if enough else f"WARNING: {line}", style="" if enough else "yellow")
    if not all(shape_is_known(trial.data) for trial in pending):
        _say(console, "disk and time: known once a launch has decoded the images")
        return
    if pending:
        disk, enough = estimate.disk_line(pending, results)
        _say(console, disk, style="" if enough else "yellow")
    for line in estimate.time_lines(pending, here, arguments) if here else ():
        _say(console, line)


def _left_out(trials: list[Trial]) -> dict[tuple[str, str], Mapping[str, str]]:
    """The layers whose filters are never dropped, with the reason, by network and scheme.

    Any layer of a convnet can lose filters; torch is imported only to trace other networks, and for selections that
    name layers.
    """
    traced = {
        (t.model, shape_of(t.data), t.settings): t
        for t in trials
        if isinstance(t.settings, RePrSettings) and (t.model.kind != "convnet" or t.settings.selection != Selection())
    }
    if not traced:
        return {}
    from repr_ray.training.setup import check

    return {(t.model.label, t.scheme): check(t) for t in traced.values()}


def _check_trackers(args: argparse.Namespace) -> None:
    from repr_ray.results import mlflow, wandb

    try:
        for connect, where in ((mlflow.connect, args.mlflow), (wandb.connect, args.wandb)):
            if where:
                connect(where)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None


def _report(console: "Console", storage: Folder, args: argparse.Namespace) -> None:
    from repr_ray.report import report, to_trackers

    _say(console, "reading the results, drawing tables and pictures")
    report([storage.path], console=console)
    storage.push()
    try:
        to_trackers([storage.path], args, console)
    except ValueError as error:  # the results are stored; `report` with the same options logs them later
        _say(console, redact(error), "yellow")


def _say(console: "Console", text: str, style: str = "") -> None:
    """Print text without its control characters."""
    console.print(lines(text), style=style, soft_wrap=True)


def _first_failure(console: "Console", folders: list[TrialFolder]) -> None:
    """Print the first failure as the last lines of a log."""
    from repr_ray import stages

    failed = {folder.path / "error.json": folder for folder in folders if folder.failed and not stages.ended(folder)}
    if failed:
        first = min(failed, key=lambda path: path.stat().st_mtime)
        told = f"failed: {len(failed)} of {len(folders)} trials, the first with {failed[first].message}"
        _say(console, f"\n{told}\ntraceback in {first}")


_ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}

UNDISTURBED = 5.0
"""Seconds in which a launch that ends after a signal ignores further signals."""


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
