"""Trials in a real MLflow store."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import make_trial
from support import write_config

from repr_ray import launch, report
from repr_ray.results import mlflow as adapter
from repr_ray.results.mlflow import log_to_mlflow
from repr_ray.storage.text import lines

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: to make one takes longer than all that is logged to it."""
    pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return f"sqlite:///{shutil.copy(empty, tmp_path / 'mlflow.db')}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A launch whose trials are done already."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = ["--config", str(write_config(folder)), "--results", str(folder), "--runner", "local"]
    assert launch.main(arguments) == 0
    return arguments


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_trials_become_runs_once(experiment: Make, store: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    results = experiment({"standard": [0.7], "repr": [0.75]})
    make_trial(results, scheme="repr", seed=1, done=3)
    make_trial(results, scheme="repr", seed=2, done=3, error="loss is nan", status="diverged")
    assert log_to_mlflow([results], store) == 3
    client = mlflow.MlflowClient(tracking_uri=store)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    by_scheme = {(run.data.tags["scheme"], run.data.params["seed"]): run for run in runs}
    assert set(by_scheme) == {("standard", "0"), ("repr", "0"), ("repr", "2")}
    done = by_scheme["repr", "0"]
    assert done.info.status == "FINISHED"
    assert by_scheme["repr", "2"].info.status == "FAILED"
    assert done.data.params["train.optimizer.learning_rate"] == "0.01"
    assert done.data.metrics["test_accuracy"] == pytest.approx(0.75)
    history = client.get_metric_history(done.info.run_id, "train_loss")
    assert [point.step for point in history] == list(range(12))
    assert log_to_mlflow([results], store) == 0
    make_trial(results, scheme="repr", seed=3)
    assert log_to_mlflow([results], store) == 1
    failed = next(results.glob("trials/*/error.json"))  # and is done later
    shutil.copy(next(results.glob("trials/*/result.json")), failed.parent)
    assert log_to_mlflow([results], store) == 1
    assert log_to_mlflow([results], store) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_launch_logs_its_trials(trained: list[str], store: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    assert launch.main([*trained, "--mlflow", store]) == 0
    client = mlflow.MlflowClient(tracking_uri=store)
    assert len(client.search_runs([client.get_experiment_by_name("tiny").experiment_id])) == 2


def test_a_store_that_fails_costs_a_line(
    trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the results."""
    monkeypatch.setattr(adapter, "connect", lambda uri: None)
    monkeypatch.setattr(adapter, "log_to_mlflow", fail)
    assert launch.main([*trained, "--mlflow", "http://gone"]) == 0
    assert "--mlflow http://gone: no answer" in capsys.readouterr().out
    assert report.main([str(Path(trained[3]) / "tiny"), "--mlflow", "http://gone"]) == 2


def fail(folders: object, uri: str) -> int:
    raise ValueError(f"--mlflow {uri}: no answer")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_control_characters_do_not_reach_the_store(experiment: Make, store: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    results = experiment({"standard": [0.7]}, settings={"data.source": "a\x1b[31mb\nc"})
    [result] = results.glob("trials/*/result.json")
    stored = json.loads(result.read_text()) | {"commit": "f\x1b]0;title\x07g\u202e"}
    result.write_text(json.dumps(stored))
    assert log_to_mlflow([results], store) == 1
    client = mlflow.MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    texts = {**run.data.tags, **run.data.params}
    assert texts["commit"] == "f ]0;title g "
    assert texts["data.source"] == "a [31mb\nc"
    assert not [text for text in texts.values() if text != lines(text)]


def test_a_store_of_no_known_kind_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    arguments = ["--config", str(write_config(tmp_path)), "--results", str(tmp_path), "--runner", "local"]
    assert launch.main([*arguments, "--mlflow", "nonsense://x"]) == 2
    assert capsys.readouterr().err.startswith("--mlflow nonsense://x: ")
    assert not (tmp_path / "tiny").exists()


def test_without_mlflow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ModuleNotFoundError, match=r"repr-ray\[mlflow\]"):
        log_to_mlflow([tmp_path], "sqlite:///nowhere.db")
