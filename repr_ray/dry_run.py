"""What `--dry-run` prints: the data, every trial, and what the trials cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from repr_ray import estimate, stages
from repr_ray.data.describe import describe
from repr_ray.data.shape import shape_is_known, shape_of
from repr_ray.method.settings import RePrSettings, Selection
from repr_ray.progress import plan_table, say
from repr_ray.storage.folder import redact
from repr_ray.storage.text import lines
from repr_ray.study.config import Experiment
from repr_ray.study.plan import Trial, plan
from repr_ray.training.folder import TrialFolder


def dry_run(console: Console, experiment: Experiment, location: Path | str, arguments: Sequence[str]) -> None:
    """Check an experiment, and print its data, its trials and what they need; nothing is written to `location`."""
    every = plan(experiment)
    for text in dict.fromkeys(describe(data) for data in dict.fromkeys(trial.data for trial in every)):
        say(console, text)
    shown = every if experiment.tuning is None else stages.called_for(experiment, Path("none"))
    _show_plan(console, shown, redact(location))
    if more := stages.stages_line(experiment, every):
        say(console, more)
    _show_cost(console, stages.most(experiment, every), location, arguments)


def _show_plan(console: Console, trials: list[Trial], results: str) -> None:
    """Print every trial with its resources, and the layers that keep all their filters."""
    rows = [(t.name, t.scheme, t.variant or "-", str(t.seed), str(t.train.epochs)) for t in trials]
    console.out(lines(plan_table(rows, ("trial", "scheme", "variant", "seed", "epochs"))))
    for (label, scheme), left_out in _left_out([t for t in trials if shape_is_known(t.data)]).items():
        for layer, reason in left_out.items():
            say(console, f"{label}, {scheme}: no filter of {layer} is dropped: {reason}")
    for text in estimate.late_lines(trials):
        say(console, text, "yellow")
    r = trials[0].resources
    shared = f", {r.trials_per_gpu} on each GPU" if r.trials_per_gpu != 1 else ""
    say(
        console,
        f"{len(trials)} trials, each {r.workers} x ({r.cpus_per_worker} CPU, {r.gpus_per_worker} GPU){shared};"
        f" results would go to {results}",
    )


def _show_cost(console: Console, trials: list[Trial], results: Path | str, arguments: Sequence[str]) -> None:
    """Print the disk space and time that the pending trials need; on object storage all trials count as pending."""
    here = results if isinstance(results, Path) else None
    pending = [trial for trial in trials if not (here and TrialFolder(here, trial).done)]
    for line, enough in estimate.data_lines(pending).items():
        say(console, line if enough else f"WARNING: {line}", style="" if enough else "yellow")
    if not all(shape_is_known(trial.data) for trial in pending):
        say(console, "disk and time: known once a launch has decoded the images")
        return
    if pending:
        disk, enough = estimate.disk_line(pending, results)
        say(console, disk, style="" if enough else "yellow")
    for line in estimate.time_lines(pending, here, arguments) if here else ():
        say(console, line)


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
    from repr_ray.training.check import check

    return {(t.model.label, t.scheme): check(t) for t in traced.values()}
