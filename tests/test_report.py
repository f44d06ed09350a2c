"""`python -m repr_ray.report`: what it writes, where, and what it says."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from studies import make_experiment, make_trial

from repr_ray.report import main, report

SCHEMES = {"standard": [0.70, 0.71, 0.72], "repr": [0.71, 0.73, 0.74]}
FILES = {f"{name}.parquet" for name in ("trials", "epochs", "layers", "cycles", "comparison")}


def test_everything_beside_the_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    make_trial(results, scheme="repr", seed=3, done=1, error="boom: the real reason\nmore")
    assert main([str(results)]) == 0
    made = {path.name for path in results.iterdir()}
    assert made >= FILES | {
        "comparison.md",
        "comparison.csv",
        "comparison.tex",
        "report.html",
        "plots",
        "claims.parquet",
    }
    said = capsys.readouterr().out
    assert "Cannot tell yet whether repr is better or worse than standard" in said
    assert said.rstrip().endswith("boom: the real reason")  # failures are the last thing on the screen


def test_again_without_training_gives_the_same_files(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    report([results], pictures=0)
    first = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    shutil.rmtree(results / "trials")
    report([results], pictures=0)
    for path, content in first.items():
        if "trials" not in path.parts and path.name != "report.html":  # the page shows the logs
            assert path.read_bytes() == content, path.name


def test_several_experiments_are_joined(tmp_path: Path) -> None:
    one = make_experiment(tmp_path / "one", {"standard": SCHEMES["standard"]})
    two = make_experiment(tmp_path / "two", {"repr": SCHEMES["repr"]})
    comparison = report([one, two], formats=["md"])
    assert comparison.table["pairs"].iloc[1] == 3
    assert (tmp_path / "joined" / "comparison.md").exists()
    assert not (one / "comparison.md").exists()
    assert main([str(one), str(two), "--output", str(tmp_path / "there"), "--format", "csv"]) == 0
    expected = FILES | {"comparison.csv", "claims.parquet", "details.csv", "details.parquet"}
    assert {path.name for path in (tmp_path / "there").iterdir()} == expected


@pytest.mark.parametrize("stored", [False, True])
def test_a_trial_that_failed_in_one_folder_and_is_done_in_another_has_not_failed(
    tmp_path: Path, stored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_experiment(tmp_path / "one", {"standard": [0.7, 0.71]})
    for seed in (0, 1):
        make_trial(one, scheme="repr", seed=seed, done=3, error=f"boom {seed}")
    two = make_experiment(tmp_path / "two", {"repr": [0.72]})
    make_trial(two, scheme="repr", seed=1, done=3, error="boom 1")
    if stored:
        report([two], formats=())
        shutil.rmtree(two / "trials")
    assert main([str(one), str(two), "--format", "md"]) == 0
    for said in (capsys.readouterr().out, (tmp_path / "joined" / "comparison.md").read_text()):
        assert "boom 0" not in said
        assert said.count("boom 1") == 1


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    mine = ("comparison.csv", "comparison.md", "comparison.tex", "report.html", "epochs.parquet", "plots/curves.png")
    (results / "plots").mkdir()
    for name in mine:
        (results / name).write_text("my own")
    notes = "\n".join(report([results]).notes)
    for name in mine:
        assert (results / name).read_text() == "my own"
        assert f"{name} was not written by repr_ray" in notes
    assert (results / "comparison.parquet").exists()


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    (results / "plots").write_text("my own")
    (results / "report.html").mkdir()
    notes = "\n".join(report([results]).notes)
    assert "plots is a file" in notes
    assert "report.html was not written by repr_ray" in notes
    assert (results / "comparison.md").exists()


def test_ours_are_replaced(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", {"standard": [0.7]})
    report([results])
    make_trial(results, scheme="repr", accuracy=0.8)
    assert report([results]).notes == []
    assert len(pd.read_parquet(results / "comparison.parquet")) == 2
    assert not list(results.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["empty"], "has no trials (it holds nothing)"),
        (["nowhere", "empty"], "does not exist"),
        (["file.txt"], "is a file"),
    ],
)
def test_input_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    assert main([str(tmp_path / name) for name in arguments]) == 2
    captured = capsys.readouterr()
    assert error in captured.err
    assert "Traceback" not in captured.err
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_unknown_format_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["x", "--format", "md,docx"])
    assert stopped.value.code == 2
    assert "--format docx: known are md,csv,tex,html" in capsys.readouterr().err


def test_bad_claims_stop_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    assert main([str(results), "--claims", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    assert not (results / "trials.parquet").exists()


def test_watch_follows_a_running_experiment(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", {"standard": [0.7]})
    waiting = make_trial(results, scheme="repr", done=3)
    command = [sys.executable, "-m", "repr_ray.report", str(results), "--watch", "0.2", "--format", "md"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "100"}) as process:
        page = results / "comparison.md"
        deadline = time.monotonic() + 30
        while not page.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "1 running (25%)" in page.read_text()
        assert process.poll() is None
        shutil.rmtree(waiting)
        make_trial(results, scheme="repr", accuracy=0.72)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "1 running (25%)" in output
    assert "1 running" not in output[output.rindex("Scheme") :]


def test_help_is_instant_and_needs_no_heavy_import() -> None:
    code = "import sys, repr_ray.report as r\ntry: r.main(['--help'])\nexcept SystemExit: pass\n"
    code += (
        "bad = {'pandas', 'torch', 'ray', 'matplotlib', 'pyarrow', 'scipy'} & set(sys.modules)\nassert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_reading_results_needs_neither_torch_nor_ray(tmp_path: Path) -> None:
    results = make_experiment(tmp_path / "study", SCHEMES)
    code = f"import sys; from repr_ray.report import report; report([{str(results)!r}], pictures=0)\n"
    code += "bad = {'torch', 'ray'} & set(sys.modules)\nassert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_study_of_more_trials_than_a_byte_counts(tmp_path: Path) -> None:
    """Categories of 128 names and more have wider codes than those of a part of them; nothing may depend on it."""
    schemes = {name: [0.7 + 0.001 * (seed % 7) for seed in range(47)] for name in ("standard", "repr", "inverse")}
    results = make_experiment(tmp_path / "study", schemes, epochs=6)
    comparison = report([results], pictures=1)
    assert len(comparison.trials) == 141
    details = pd.read_parquet(results / "details.parquet")
    assert details["reached"].tolist() == details["baseline_reached"].tolist()
    assert (details["trials"] == 47).all()
