"""Seeds until decided: the trials of an experiment that its results so far require.

A launch runs the required trials and calls `trials_due` again, until no new trial is required. Decisions are read
from the results, so that a resumed launch comes to the same ones.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from repr_ray.study.config import Experiment, Looks
from repr_ray.study.plan import Trial


def trials_due(experiment: Experiment, trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """Those of `trials` that the results in `folder` require; all of them if the seeds are a list.

    A scheme requires the seeds of its next look, or of the look that decided it; the baseline as many as any scheme
    that is compared with it.
    """
    if not isinstance(experiment.seeds, Looks):
        return list(trials)
    looks, looked = experiment.seeds.looks, _looked(folder, experiment.baseline)
    needed = {_cell(trial): looks[0] for trial in trials}
    for trial in trials:
        if trial.name in looked:
            seeds, decided = looked[trial.name]
            needed[_cell(trial)] = seeds if decided else next((look for look in looks if look > seeds), looks[-1])
    for *block, scheme in list(needed):
        if scheme == experiment.baseline:
            others = [seeds for cell, seeds in needed.items() if [*cell[:3]] == block and cell[3] != scheme]
            needed[(*block, scheme)] = max(others, default=looks[0])
    return [trial for trial in trials if trial.seed < needed[_cell(trial)]]


def bounds_line(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """The fewest and the most trials of an experiment with looks, for a dry run; empty for a list of seeds."""
    if not isinstance(experiment.seeds, Looks):
        return ""
    looks = experiment.seeds.looks
    fewest = sum(trial.seed < looks[0] for trial in trials)
    return (
        f"looks after {', '.join(map(str, looks))} seeds: {fewest} trials at least, {len(trials)} at most;"
        " a scheme with a verdict gets no more seeds"
    )


def _cell(trial: Trial) -> tuple[str, ...]:
    return (trial.data.name, trial.model.label, trial.variant, trial.scheme)


def _looked(folder: Path, baseline: str) -> dict[str, tuple[int, bool]]:
    """Per trial of a scheme with a baseline, the seeds of the scheme's last look and whether it has a verdict."""
    from repr_ray.results import store
    from repr_ray.results.blocks import GROUP
    from repr_ray.results.compare import compare

    if not any(folder.glob("trials/*/config.yaml")):
        return {}
    with tempfile.TemporaryDirectory() as work:
        comparison = compare(store.gather([folder], Path(work)), baseline)
    rows = comparison.trials.merge(comparison.table[[*GROUP, "looked", "verdict"]], on=GROUP).dropna(subset="looked")
    return {
        str(trial): (int(seeds), verdict != "cannot tell")
        for trial, seeds, verdict in zip(rows["trial"], rows["looked"], rows["verdict"], strict=True)
    }
