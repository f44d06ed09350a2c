"""Trials in W&B's offline store, read as its own client would to upload them."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from studies import make_trial

from repr_ray import report
from repr_ray.results.wandb import connect, log_to_wandb

Make = Callable[..., Path]


def stored_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a header of 7 bytes, then a LevelDB log in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def run_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"history": [], "summary": {}}
    for record in stored_records(path):
        if record.HasField("run"):
            run = record.run
            config = {item.key: json.loads(item.value_json) for item in run.config.update}
            found |= {"name": run.display_name, "group": run.run_group, "project": run.project, "config": config}
        elif record.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found["history"].append(row)
        elif record.HasField("summary"):
            for item in record.summary.update:
                found["summary"][item.key or item.nested_key[0]] = json.loads(item.value_json)
        elif record.HasField("exit"):
            found["exit"] = record.exit.exit_code
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trials_become_runs_once(experiment: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, curves and figures, as MLflow gets them; a trial that failed is a run that failed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    results = experiment({"standard": [0.7], "repr": [0.75]})
    make_trial(results, scheme="repr", seed=1, done=3)
    make_trial(results, scheme="repr", seed=2, done=3, error="loss is nan", status="diverged")
    assert log_to_wandb([results], "team/pruning") == 3
    runs = [run_of(path) for path in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))]
    assert {(run["project"], run["group"]) for run in runs} == {("pruning", "study")}
    by_scheme = {(run["config"]["scheme"], run["config"]["seed"]): run for run in runs}
    assert set(by_scheme) == {("standard", 0), ("repr", 0), ("repr", 2)}
    done = by_scheme["repr", 0]
    [folder] = results.glob("trials/*-repr-s0-*")
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert done["name"] == folder.name and done["config"]["train.optimizer.learning_rate"] == 0.01
    assert [row["_step"] for row in done["history"]] == list(range(12))
    for name in ("train_loss", "val_accuracy", "test_accuracy"):
        assert [row[name] for row in done["history"]] == [line[name] for line in lines]
    assert done["summary"]["wall_seconds"] == 60.0 and done["summary"]["parameters"] == 20_000
    assert done["summary"]["dataset"] == "cifar10"
    assert [by_scheme["repr", seed]["exit"] for seed in (0, 2)] == [0, 1]
    assert log_to_wandb([results], "team/pruning") == 0
    make_trial(results, scheme="repr", seed=3)
    assert log_to_wandb([results], "team/pruning") == 1


def test_without_the_library_it_is_one_line(
    experiment: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    arguments = [str(experiment({"standard": [0.7]})), "--format", "csv", "--wandb", "pruning"]
    assert report.main(arguments) == 2
    assert capsys.readouterr().err == "--wandb: W&B is not installed: pip install 'repr-ray[wandb]'\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_a_key_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no key; set WANDB_API_KEY, or WANDB_MODE=offline"):
        connect("pruning")
