"""Gathering trial folders, whole, broken and foreign."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from studies import LAYERS, make_trial

from repr_ray.records import read_result
from repr_ray.results import store
from repr_ray.results.compare import compare
from repr_ray.results.tables import comparison_sheet
from repr_ray.storage.foreign import Unusable

Make = Callable[..., Path]


def gather(tmp_path: Path, *folders: Path) -> store.Tables:
    work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return store.gather(folders, work)


def hashes(folder: Path) -> dict[Path, str]:
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_the_tables_hold_what_the_trials_wrote(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7], "repr": [0.75]})
    tables = gather(tmp_path, results)
    [name] = tables.trials.loc[tables.trials["scheme"] == "repr", "trial"]
    lines = [json.loads(line) for line in (tables.sources[name] / "epochs.jsonl").read_text().splitlines()]
    epochs = tables.read("epochs", ["epoch", "phase", "val_accuracy", "test_loss"], [name])
    assert epochs["phase"].tolist() == [line["phase"] for line in lines]
    for key in ("epoch", "val_accuracy", "test_loss"):
        assert epochs[key].tolist() == [line[key] for line in lines]
    layers = tables.read("layers", ["epoch", "layer", "overlap", "dropped", "filters"], [name])
    assert layers["layer"].tolist() == list(LAYERS) * len(lines)
    assert layers["overlap"].tolist() == [line["layers"][key]["overlap"] for line in lines for key in LAYERS]
    assert set(layers["filters"]) == {8}
    events = [json.loads(line) for line in (tables.sources[name] / "cycles.jsonl").read_text().splitlines()]
    cycles = tables.read("cycles", ["cycle", "event", "layer", "filter", "score", "dropped"], [name])
    assert len(cycles) == sum(len(event["dropped"]) for event in events)
    first = cycles[(cycles["event"] == "drop") & (cycles["cycle"] == 0) & (cycles["layer"] == "features.1.conv")]
    [event] = [e for e in events if (e["event"], e["cycle"], e["layer"]) == ("drop", 0, "features.1.conv")]
    assert first["filter"].tolist() == list(range(8))
    np.testing.assert_allclose(first["score"], event["scores"], rtol=1e-6)
    assert first["dropped"].tolist() == [bool(value) for value in event["dropped"]]
    assert cycles.loc[cycles["event"] == "reinit", "score"].isna().all()


def test_final_and_best_figures(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"repr": [0.75]})
    [folder] = (results / "trials").iterdir()
    lines = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    lines[4] |= {"val_accuracy": 0.99, "test_accuracy": 0.6}
    lines[5] |= {"val_accuracy": 0.999, "test_accuracy": None}  # not evaluated on the test set
    lines[7] |= {"test_accuracy": 0.9}
    (folder / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [row] = gather(tmp_path, results).trials.to_dict("records")
    assert (row["test_accuracy"], row["epochs_done"], row["status"]) == (0.75, 12, "done")
    assert (row["best_val_epoch"], row["best_val_test_accuracy"]) == (4, 0.6)
    assert (row["best_test_epoch"], row["best_test_accuracy"]) == (7, 0.9)
    assert json.loads(row["versions"])["torch"] == "2.15.0"


def test_every_status(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]})
    make_trial(results, seed=1, done=0)
    make_trial(results, seed=2, done=3)
    make_trial(results, seed=3, done=3, error="loss is nan\nmore", status="diverged")
    make_trial(results, seed=4, done=0, error="CUDA out of memory", status="out of memory")
    tables = gather(tmp_path, results)
    assert tables.trials["status"].tolist() == ["done", "waiting", "running", "diverged", "out of memory"]
    assert [(f.status, f.message, f.epoch) for f in store.failures(results)] == [
        ("diverged", "loss is nan", 3),
        ("out of memory", "CUDA out of memory", 0),
    ]
    assert tables.notes == []


def test_a_cut_off_line_costs_that_line_only(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.71]})
    folder = next(path for path in (results / "trials").iterdir() if "-s1-" in path.name)
    (folder / "result.json").unlink()
    content = (folder / "epochs.jsonl").read_bytes()
    (folder / "epochs.jsonl").write_bytes(content[:-70])
    tables = gather(tmp_path, results)
    assert tables.trials["epochs_done"].tolist() == [12, 11]
    assert tables.trials["status"].tolist() == ["done", "running"]
    assert tables.notes == [f"{folder.name}: 1 of 12 lines of epochs.jsonl cannot be read"]


def test_a_line_written_twice_counts_once(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7], "repr": [0.7]})
    [folder] = (results / "trials").glob("*repr*")
    for name in ("epochs.jsonl", "cycles.jsonl"):
        lines = (folder / name).read_text().splitlines()
        again = json.dumps(json.loads(lines[0]) | {"train_loss": 9.0, "dropped": [0] * 8})
        (folder / name).write_text("\n".join([*lines, again]) + "\n")
    tables = gather(tmp_path, results)
    assert tables.notes == [
        f"{folder.name}: lines of {name} are there twice, the last counts"
        for name in ("epochs.jsonl", "cycles.jsonl")
    ]
    epochs = tables.read("epochs", ["epoch", "train_loss"], [folder.name])
    assert sorted(epochs["epoch"]) == list(range(12))
    assert epochs["train_loss"].max() == 9.0
    cycles = tables.read("cycles", ["event", "cycle", "layer", "filter"], [folder.name])
    assert not cycles.duplicated().any()


def test_values_that_are_not_numbers_survive(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]}, validation=False)
    folder = make_trial(results, seed=1, done=3, error="loss is nan", status="diverged", validation=False)
    text = (folder / "epochs.jsonl").read_text().splitlines()
    last = json.loads(text[-1]) | {"train_loss": float("nan"), "test_loss": float("inf")}
    (folder / "epochs.jsonl").write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    tables = gather(tmp_path, results)
    assert tables.notes == []
    assert np.isnan(tables.trials["train_loss"].iloc[1])
    assert tables.trials["best_val_epoch"].isna().all()


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.yaml", {"seed": "abc"}, "is not a trial (seed='abc' is not of type int64)"),
        ("config.yaml", {"epochs": "ten"}, "is not a trial (epochs='ten' is not of type int64)"),
        ("config.yaml", {"settings": {"scheme": "repr"}}, "is not a trial (scheme='repr' is not a mapping)"),
        ("config.yaml", {"seed": True}, "is not a trial (seed=True is not of type int64)"),
        ("config.yaml", {"scheme": ["repr"]}, "is not a trial (scheme=['repr'] is not of type string)"),
        ("config.yaml", {"settings": {1: 2}}, "has the key 1, which is not text"),
        ("epochs.jsonl", {"layers": {"a": {"overlap": "x"}}}, "1 of 1 lines of epochs.jsonl cannot be read"),
        ("epochs.jsonl", {"test_accuracy": 7.1}, "1 lines of epochs.jsonl are left out"),
        ("epochs.jsonl", {"epoch": 2**62}, "1 lines of epochs.jsonl are left out"),
    ],
)
def test_a_value_that_does_not_belong_is_named(
    experiment: Make, tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    results = experiment({"standard": [0.7, 0.71]})
    path = next(path for path in (results / "trials").iterdir() if "-s1-" in path.name) / file
    text = path.read_text()
    content = json.loads(text.splitlines()[0]) if file == "epochs.jsonl" else yaml.safe_load(text)
    written = yaml.safe_dump(content | change) if file == "config.yaml" else json.dumps(content | change)
    path.write_text(written)
    notes = "\n".join(gather(tmp_path, results).notes)
    assert path.parent.name in notes
    assert said in notes
    tables = gather(tmp_path, results)
    finished = tables.trials.loc[tables.trials["epochs_done"] == 12, "test_accuracy"]
    assert finished.tolist() == [0.7]


WRONG_RESULTS = {
    "empty": b"",
    "half": b'{"status": "done", "wall_sec',
    "nothing": b"{}",
    "a list": b"[1]",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "long": b"9" * 5_000,
    "large": b" " * (1 << 21),
    "not done": {"status": "failed"},
    "no time": {"finished": "2025-13-45"},
    "no number": {"wall_seconds": "long"},
    "infinite": {"wall_seconds": float("inf")},
    "true": {"workers": True},
    "beyond 64 bits": {"parameters": 10**30},
    "no checksum": {"checksum": None},
    "no mapping": {"versions": "x"},
}


@pytest.mark.parametrize("content", WRONG_RESULTS.values(), ids=WRONG_RESULTS)
def test_only_a_whole_result_is_done(experiment: Make, tmp_path: Path, content: bytes | dict[str, Any]) -> None:
    results = experiment({"standard": [0.7, 0.71]})
    path = next(path for path in (results / "trials").iterdir() if "-s1-" in path.name) / "result.json"
    whole = json.loads(path.read_text())
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(whole | content).encode())
    tables = gather(tmp_path, results)
    assert tables.trials["status"].tolist() == ["done", "running"]
    [note] = tables.notes
    assert note.startswith(f"{path} ")
    assert note.endswith(": the trial does not count as done")
    assert len(note) < 500
    with pytest.raises(Unusable):
        read_result(path.parent)


@pytest.mark.parametrize(
    "content", [b"\x00\xff garbage", b'{"epoch": 0, "phase": "f\xe9ll"}\n', b"[1, 2]\n", b'{"epoch": "three"}\n']
)
def test_a_file_of_something_else_is_left_out(experiment: Make, tmp_path: Path, content: bytes) -> None:
    results = experiment({"standard": [0.7, 0.71]})
    folder = next(path for path in (results / "trials").iterdir() if "-s1-" in path.name)
    (folder / "epochs.jsonl").write_bytes(content)
    tables = gather(tmp_path, results)
    assert any(folder.name in note for note in tables.notes)
    assert tables.trials["epochs_done"].tolist() == [12, 0]


def test_foreign_folders_are_named_and_the_rest_goes_on(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]})
    (results / "trials" / "holiday").mkdir()
    (results / "trials" / "broken").mkdir()
    (results / "trials" / "broken" / "config.yaml").write_text("a: [1")
    (results / "trials" / "other").mkdir()
    (results / "trials" / "other" / "config.yaml").write_text("name: x")
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    empty.mkdir()
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"x")
    tables = gather(tmp_path, results, empty, foreign, tmp_path / "nowhere")
    assert len(tables.trials) == 1
    notes = "\n".join(tables.notes)
    for said in ("holiday is not a trial", "broken is not a trial", "lacks dataset", "(it holds nothing)"):
        assert said in notes
    assert "(it holds photo.jpg)" in notes
    assert "nowhere does not exist" in notes
    with pytest.raises(ValueError, match="has no trials"):
        gather(tmp_path, empty, foreign)


def test_stored_tables_stand_for_their_trials(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.71], "repr": [0.72, 0.73]})
    tables = gather(tmp_path, results)
    for name in store.SCHEMAS:
        tables.publish(results / f"{name}.parquet")
    shutil.rmtree(results / "trials")
    again = gather(tmp_path, results)
    for name in store.SCHEMAS:
        one, two = (pq.read_table(where / f"{name}.parquet") for where in (tables.folder, again.folder))
        assert one.num_rows
        assert one.equals(two)


def test_tables_of_another_version_are_named(experiment: Make, tmp_path: Path) -> None:
    results, other = experiment({"standard": [0.7]}), tmp_path / "other"
    tables = gather(tmp_path, results)
    for name in store.SCHEMAS:
        tables.publish(other / f"{name}.parquet")
    old = pq.read_table(other / "trials.parquet").replace_schema_metadata({"repr_ray.tables": "0"})
    pq.write_table(old, other / "trials.parquet")
    pq.write_table(pa.table({"x": [1]}), other / "epochs.parquet")
    pq.write_table(pq.read_table(other / "layers.parquet").drop_columns(["overlap"]), other / "layers.parquet")
    (other / "cycles.parquet").unlink()
    before = hashes(other)
    notes = "\n".join(gather(tmp_path, results, other).notes)
    assert "trials.parquet is of version 0, this reads version " + store.VERSION in notes
    assert "epochs.parquet is not a table of repr_ray" in notes
    assert "layers.parquet has other columns than version " + store.VERSION in notes
    assert "cycles.parquet is missing" in notes
    assert hashes(other) == before


def test_a_done_trial_without_its_last_epochs_has_no_accuracy(experiment: Make, tmp_path: Path) -> None:
    """Its last line is that of an earlier epoch, in the middle of a training."""
    folder = experiment({"standard": [0.7, 0.7]})
    cut = sorted(folder.glob("trials/*/epochs.jsonl"))[0]
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-4]))
    tables = gather(tmp_path, folder)
    assert tables.trials["test_accuracy"].isna().tolist() == [True, False]
    assert any("done, but epochs.jsonl ends after epoch 8 of 12" in note for note in tables.notes)


def test_what_is_done_without_accuracies_is_not_told_as_unfinished(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7], "repr": [0.72]})
    make_trial(results, scheme="inverse", done=3)
    [path] = results.glob("trials/*-repr-*/epochs.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert compare(store.gather([results], tmp_path)).answers == [
        "No trial of repr that is done has accuracies (1 done).",
        "No trial of inverse has finished yet (1 running (25%)).",
    ]


def test_the_same_trial_in_two_folders_counts_once(experiment: Make, tmp_path: Path) -> None:
    one = experiment({"standard": [0.7, 0.71]}, name="one")
    two = experiment({"standard": [0.7, 0.71], "repr": [0.75, 0.76]}, name="two")
    unfinished = next(path for path in (one / "trials").iterdir() if "-s1-" in path.name)
    (unfinished / "result.json").unlink()
    tables = gather(tmp_path, one, two)
    assert tables.trials["status"].tolist() == ["done"] * 4
    assert tables.notes == ["2 of the trials are in more than one folder: counted once"]


def test_gathering_changes_nothing_and_is_deterministic(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.71], "repr lr=10": [0.7], "repr lr=9": [0.7], "a": [0.6]})
    before = hashes(results)
    one, two = gather(tmp_path, results), gather(tmp_path, results)
    assert hashes(results) == before
    assert hashes(one.folder).values() != []
    assert sorted(hashes(one.folder).values()) == sorted(hashes(two.folder).values())
    assert one.trials["scheme"].unique().tolist() == ["standard", "repr lr=9", "repr lr=10", "a"]


def test_trials_of_several_networks_some_stored_some_broken(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    deep = {f"features.{k}.conv": 4 for k in (0, 2, 1)}
    for seed in range(2):
        make_trial(one, scheme="repr", seed=seed, accuracy=0.7, layers=deep)
        make_trial(two, scheme="repr", seed=seed, accuracy=0.75, model="other", layers=LAYERS)
    whole = gather(tmp_path, one, two)
    stored = gather(tmp_path, one)
    shutil.rmtree(one)
    for name in store.SCHEMAS:
        stored.publish(one / f"{name}.parquet")
    broken = next((two / "trials").glob("*-s0-*"))
    with (broken / "cycles.jsonl").open("a") as file:
        file.write('{"cycle": 9, "lay')
    again = gather(tmp_path, one, two)
    assert again.notes == [f"{broken.name}: 1 of 13 lines of cycles.jsonl cannot be read"]
    assert again.trials.equals(whole.trials)
    layers = again.read("layers", ["epoch", "layer"], [again.trials["trial"].iloc[0]])
    assert layers.loc[layers["epoch"] == 0, "layer"].tolist() == list(deep)
    for name in ("epochs", "layers", "cycles"):
        columns = [column for column in store.SCHEMAS[name].names if column != "trial"]
        tables = [t.read(name, columns, t.trials["trial"]) for t in (whole, again)]
        assert tables[0].equals(tables[1])


@pytest.mark.parametrize(("version", "lacking"), [("2", 4), ("3", 2), ("4", 1)])
def test_tables_of_earlier_versions_are_read(experiment: Make, tmp_path: Path, version: str, lacking: int) -> None:
    """What they lack is empty; the version says what that may be."""
    results, old = experiment({"standard": [0.7], "repr": [0.75]}), tmp_path / "old"
    tables = gather(tmp_path, results)
    lost = [("trials", "teacher_seconds"), ("trials", "stage"), ("layers", "zero"), ("trials", "data_digest")]
    for name in store.SCHEMAS:
        tables.publish(old / f"{name}.parquet")
        table = pq.read_table(old / f"{name}.parquet")
        table = table.drop_columns([column for column in table.column_names if column.startswith("ema_")])
        table = table.drop_columns([column for of, column in lost[:lacking] if of == name])
        metadata = {**(table.schema.metadata or {}), b"repr_ray.tables": version.encode()}
        pq.write_table(table.replace_schema_metadata(metadata), old / f"{name}.parquet")
    found = gather(tmp_path, old)
    assert not found.notes
    assert sorted(found.trials["test_accuracy"]) == [0.7, 0.75]
    assert found.trials["ema_test_accuracy"].isna().all()
    assert len(found.read("epochs", ["ema_val_loss"], found.trials["trial"])) == 24


def test_figures_of_averaged_weights(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7]})
    [folder] = (results / "trials").iterdir()
    rows = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    lines = [
        json.dumps(row | {"ema_test_accuracy": row["test_accuracy"] + 0.01, "ema_val_loss": 1.5}) for row in rows
    ]
    (folder / "epochs.jsonl").write_text("\n".join(lines))
    tables = gather(tmp_path, results)
    assert tables.trials["ema_test_accuracy"].tolist() == [pytest.approx(0.71)]
    assert tables.trials["ema_val_loss"].tolist() == [1.5] and tables.trials["ema_val_accuracy"].isna().all()
    comparison = compare(tables)
    sheets = [
        comparison_sheet(comparison),
        comparison_sheet(compare(gather(tmp_path, experiment({"standard": [0.7]}, name="x")))),
    ]
    assert [["EMA test, %" in [column.name for column in sheet.columns]] for sheet in sheets] == [[True], [False]]
    assert "71.0" in [cell.text for cell in sheets[0].rows[0]]
