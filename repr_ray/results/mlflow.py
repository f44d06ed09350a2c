"""Trials as MLflow runs, made from stored results: `pip install repr-ray[mlflow]`.

A trial becomes a run when it has ended: its settings are parameters, columns of the epochs table metrics. A run that
exists already, by the trial's name and status in its experiment, is not changed, so the same results can be logged
again; a trial that failed and was done later has two runs.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from repr_ray.records import Epoch, columns
from repr_ray.results.compare import records
from repr_ray.results.settings import flatten
from repr_ray.results.store import UNFINISHED, gather
from repr_ray.storage.text import line, lines

_CURVES = [name for name, kind in columns(Epoch).items() if kind is float and name != "seconds"] + ["filters_dropped"]
_FIGURES = ("best_val_test_accuracy", "wall_seconds", "parameters", "collapsed_epoch")
_TAGS = (
    "dataset",
    "model",
    "scheme",
    "variant",
    "fingerprint",
    "status",
    "commit",
    "precision",
    "versions",
    "hardware",
)
_BATCH = 900  # MLflow takes 1,000 metrics and 100 parameters at once


def log_to_mlflow(folders: Sequence[Path], tracking_uri: str) -> int:
    """Log the trials of results folders that have ended and are not there yet; returns how many.

    `tracking_uri` is MLflow's own: a server (`http://...`) or a database (`sqlite:///mlflow.db`). Raises
    ModuleNotFoundError, saying what to install, without the extra, and ValueError where there is no trial or MLflow
    fails.
    """
    client = connect(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        return _log_ended(client, folders)
    except MlflowException as error:
        raise ValueError(f"--mlflow {tracking_uri}: {line(error)}") from None


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


def _log_ended(client: Any, folders: Sequence[Path]) -> int:
    logged = 0
    with TemporaryDirectory() as work:
        tables = gather(folders, Path(work))
        ended = tables.trials[~tables.trials["status"].isin(UNFINISHED)]
        for name, trials in ended.groupby("experiment", sort=False):
            called = line(name)
            found = client.get_experiment_by_name(called)
            experiment = found.experiment_id if found else client.create_experiment(called)
            there = _there(client, experiment)
            for trial in records(trials):
                if _STATUS[trial["status"] == "done"] in there.get(line(trial["trial"]), ()):
                    continue
                epochs = tables.read("epochs", ["epoch", *_CURVES], [trial["trial"]])
                _log(client, experiment, trial, epochs)
                logged += 1
    return logged


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


def _log(client: Any, experiment: str, trial: dict[str, Any], epochs: pd.DataFrame) -> None:
    from mlflow.entities import Metric, Param

    started, finished = _milliseconds(trial["started"]), _milliseconds(trial["finished"])
    tags = {key: lines(trial[key])[:5000] for key in _TAGS if not pd.isna(trial[key]) and trial[key] != ""}
    run = client.create_run(experiment, start_time=started, run_name=line(trial["trial"]), tags=tags).info.run_id
    settings = {"seed": trial["seed"]} | flatten(json.loads(trial["settings"] or "{}"))
    parameters = [Param(line(key), lines(value)[:6000]) for key, value in settings.items()]
    metrics = [
        Metric(key, float(row[key]), started or 0, int(row["epoch"]))
        for row in records(epochs)
        for key in _CURVES
        if not pd.isna(row[key])
    ]
    metrics += [Metric(key, float(trial[key]), finished or 0, 0) for key in _FIGURES if not pd.isna(trial[key])]
    for start in range(0, len(parameters), 100):
        client.log_batch(run, params=parameters[start : start + 100])
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run, metrics=metrics[start : start + _BATCH])
    client.set_terminated(run, status=_STATUS[trial["status"] == "done"], end_time=finished)


def _milliseconds(time: str | None) -> int | None:
    """An ISO 8601 time since 1970."""
    return None if time is None or pd.isna(time) else math.floor(1000 * datetime.fromisoformat(time).timestamp())
