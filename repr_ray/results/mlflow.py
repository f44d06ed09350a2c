"""Trials as MLflow runs, made from stored results: `pip install repr-ray[mlflow]`.

A trial becomes a run when it has ended: its settings are parameters, columns of the epochs table metrics. A run that
exists already, by the trial's name and status in its experiment, is not changed, so the same results can be logged
again; a trial that failed and was done later has two runs.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from repr_ray.results.trackers import Tracked, ended
from repr_ray.storage.text import line, lines

_BATCH = 900  # MLflow takes 1,000 metrics and 100 parameters at once


def log_to_mlflow(folders: Sequence[Path], tracking_uri: str) -> int:
    """Log the trials of results folders that have ended and are not there yet; returns how many.

    `tracking_uri` is MLflow's own: a server (`http://...`) or a database (`sqlite:///mlflow.db`). Raises
    ModuleNotFoundError, saying what to install, without the extra, and ValueError where there is no trial or MLflow
    fails.
    """
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    experiments: dict[str, tuple[str, dict[str, set[str]]]] = {}  # by name: its id, and the statuses of its runs

    def is_there(experiment: str, name: str, done: bool) -> bool:
        if experiment not in experiments:
            found = client.get_experiment_by_name(experiment)
            number = found.experiment_id if found else client.create_experiment(experiment)
            experiments[experiment] = number, _there(client, number)
        return _STATUS[done] in experiments[experiment][1].get(name, ())

    logged = 0
    try:
        for trial in ended(folders, is_there):
            _log(client, experiments[trial.experiment][0], trial)
            logged += 1
    except MlflowException as error:
        raise ValueError(f"--mlflow {tracking_uri}: {line(error)}") from None
    return logged


def connect(tracking_uri: str) -> Any:
    """A client of a store. Raises ModuleNotFoundError without the extra, ValueError for a URI that MLflow refuses."""
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--mlflow: MLflow is not installed: pip install 'repr-ray[mlflow]'") from None
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except MlflowException as error:
        raise ValueError(f"--mlflow {tracking_uri}: {line(error)}") from None


_STATUS = {True: "FINISHED", False: "FAILED"}  # of a run, by whether its trial is done


def _there(client: Any, experiment: str) -> dict[str, set[str]]:
    """The statuses of the runs of each name."""
    there: dict[str, set[str]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            there.setdefault(run.info.run_name, set()).add(run.info.status)
        token = page.token
        if not token:
            return there


def _log(client: Any, experiment: str, trial: Tracked) -> None:
    from mlflow.entities import Metric, Param

    started, finished = _milliseconds(trial.started), _milliseconds(trial.finished)
    tags = {key: text[:5000] for key, text in trial.tags.items()}
    run = client.create_run(experiment, start_time=started, run_name=trial.name, tags=tags).info.run_id
    settings = {key: value for key, value in trial.parameters.items() if key not in tags}
    parameters = [Param(key, lines(value)[:6000]) for key, value in settings.items()]
    metrics = [Metric(k, v, started or 0, epoch) for epoch, row in trial.curves for k, v in row.items()]
    metrics += [Metric(key, value, finished or 0, 0) for key, value in trial.figures.items()]
    for start in range(0, len(parameters), 100):
        client.log_batch(run, params=parameters[start : start + 100])
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run, metrics=metrics[start : start + _BATCH])
    client.set_terminated(run, status=_STATUS[trial.done], end_time=finished)


def _milliseconds(time: str | None) -> int | None:
    """An ISO 8601 time since 1970."""
    return None if time is None else math.floor(1000 * datetime.fromisoformat(time).timestamp())
