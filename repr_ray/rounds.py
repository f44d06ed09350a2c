"""The trials of a launch, run in rounds until the results require no more of them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from repr_ray import estimate, stages
from repr_ray.data.shape import shape_of
from repr_ray.experiment import has_other_source, refuse_other_data, refuse_other_sources
from repr_ray.progress import Progress, bar, say
from repr_ray.storage.folder import Folder, light, redact
from repr_ray.study.config import Experiment, Looks
from repr_ray.study.data import Data
from repr_ray.study.plan import Trial, plan
from repr_ray.training.folder import TrialFolder

Runner = Callable[..., None]


class Rounds:
    """The trials that an experiment requires, those that are not done, and what they need to start.

    `location` is the address of the results, which `storage` holds or mirrors.
    """

    def __init__(self, console: Console, experiment: Experiment, storage: Folder, location: Path | str) -> None:
        self.console, self.experiment, self.storage, self.location = console, experiment, storage, location
        self.merged = experiment
        self.digests: dict[Data, str] = {}
        self.moved = has_other_source(storage.path, experiment)
        storage.pull(wanted=light)
        self._plan()
        for folder in self.folders:
            if broken := folder.broken:
                say(console, f"{redact(folder.path)}: {broken}: it runs again", "yellow")
        if self.pending:
            results = redact(location)
            say(console, f"{len(self.pending)} of {len(self.trials)} trials to run, results in {results}")

    def _plan(self) -> None:
        if isinstance(self.experiment.seeds, Looks) and any(self.storage.path.glob("trials/*/config.yaml")):
            say(self.console, "testing the results so far")
        self.trials = stages.called_for(self.experiment, self.storage.path)
        self.folders = [TrialFolder(self.storage.path, trial) for trial in self.trials]
        self.pending = [folder.trial for folder in self.folders if not stages.ended(folder)]

    @property
    def complete(self) -> bool:
        """Whether no trial needs more training."""
        return all(map(stages.ended, self.folders))

    def load_data(self, merged: Experiment) -> None:
        """Decode the images of the pending trials, and refuse data or plug-ins that differ from the stored ones.

        `merged` is the experiment together with the one stored in the folder. Raises ConfigError.
        """
        self.merged = merged
        if self.pending or self.moved:
            every = {trial.name: trial for trial in [*plan(merged), *self.trials]}.values()
            self.digests = _load(self.console, {trial.data for trial in every})
            refuse_other_data(self.storage.path, every, self.digests)
        refuse_other_sources(self.storage.path, self.trials)

    def runner(self, name: str, stack: ExitStack) -> Runner | None:
        """The function that runs trials, after a check of every network; None without pending trials.

        Ray, which takes seconds to start, starts during the check, and ends with `stack`. Raises ConfigError unless
        every network fits its images, and every scheme its network.
        """
        if not self.pending:
            return None
        from repr_ray.runners import local, ray
        from repr_ray.runners.ray_cluster import Connection

        run: Runner = local.run
        connection = stack.enter_context(Connection(self.pending)) if name == "ray" else None
        say(self.console, "importing PyTorch and building every network once, to check it")
        from repr_ray.training.check import check

        for trial in {(t.model, t.settings, t.train, shape_of(t.data)): t for t in self.pending}.values():
            check(trial)
        if connection:
            say(self.console, "joining the Ray cluster" if connection.joins else "starting Ray on this machine")
            connection.wait()
            run = functools.partial(ray.run, connection=connection)
        if name == "ray" and estimate.starts_longer_than_it_trains(self.pending):
            say(self.console, "these trials are small: --runner local trains them at once, without Ray")
        for text in estimate.late_lines(self.pending):
            say(self.console, text, "yellow")
        disk, enough = estimate.disk_line(self.pending, self.location)
        if not enough:  # a warning: space may become free, and a full disk gives a clear error
            say(self.console, disk, "yellow")
        return run

    def run(self, runner: Runner | None, command: str) -> None:
        """Run the pending trials, and those that their results require, each once."""
        if not self.pending:
            say(self.console, f"all {len(self.trials)} trials are done already, results in {redact(self.location)}")
        for trial in stages.called_for(self.merged, self.storage.path):
            TrialFolder(self.storage.path, trial, self.storage).relabel()
        tried = set[tuple[str, int]]()
        while runner and self.pending:
            now = stages.ready(self.pending, self.storage.path)
            if now:
                self._round(runner, now, command)
            else:
                _fail_without_teacher(self.pending, self.storage)
            tried |= {(trial.name, trial.last_epoch) for trial in now or self.pending}
            self._plan()
            self.pending = [trial for trial in self.pending if (trial.name, trial.last_epoch) not in tried]
            if self.pending:
                why = stages.why(self.experiment, self.pending)
                say(self.console, f"{why}: {len(self.pending)} more trials to run")
        stages.mark_stopped(self.trials, self.storage)

    def _round(self, runner: Runner, now: list[Trial], command: str) -> None:
        """Run some of the pending trials; the others wait for their teachers."""
        from repr_ray.training.provenance import commit

        waiting = {trial.name for trial in self.pending} - {trial.name for trial in now}
        if waiting:
            say(self.console, _waiting_line(self.pending, waiting))
        if missing := {trial.data for trial in now} - self.digests.keys():  # points that optuna has chosen
            self.digests |= _load(self.console, missing)
        for trial in now:
            TrialFolder(self.storage.path, trial).announce(self.digests[trial.data])
        self.storage.push()
        done = len(self.trials) - len(self.pending)
        with Progress(self.console, {t.name: t.last_epoch for t in now}, done) as progress:
            runner(now, self.storage.location, progress.update, {"command": command, "commit": commit()})
        self.storage.pull(wanted=light)

    def show_first_failure(self) -> None:
        """Print the first failure as the last lines of a log."""
        failed = {f.path / "error.json": f for f in self.folders if f.failed and not stages.ended(f)}
        if failed:
            first = min(failed, key=lambda path: path.stat().st_mtime)
            count = f"{len(failed)} of {len(self.folders)} trials"
            say(self.console, f"\nfailed: {count}, the first with {failed[first].message}\ntraceback in {first}")


def _load(console: Console, wanted: Iterable[Data]) -> dict[Data, str]:
    """Decode the images that this machine has not decoded yet; returns the digest of each data set."""
    from repr_ray.data import decoded

    wanted = list(wanted)
    say(console, f"loading the images of {', '.join(dict.fromkeys(data.name for data in wanted))}")
    loaded = {
        data: decoded.load(data, lambda items, total, title: bar(console, items, total, title)) for data in wanted
    }
    for text in dict.fromkeys(f"data: {note}" for one in loaded.values() for note in one.notes):
        say(console, text)
    for text in dict.fromkeys(f"WARNING: data: {one.warning}" for one in loaded.values() if one.warning):
        say(console, text, "yellow")
    return {data: one.digest for data, one in loaded.items()}


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
