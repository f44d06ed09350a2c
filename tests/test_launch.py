"""The command: through Ray as a subprocess, and through the local runner in this process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import ROOT, STANDARD, TINY, launch, results_of, rows, tiny, write_config

from repr_ray import launch as launch_module
from repr_ray import report as report_module
from repr_ray.runners import local
from repr_ray.training.folder import TrialFolder


def here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Launch in this process: exit status, standard output, standard error."""
    status = launch_module.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def through_ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Four trials side by side on Ray; the two at an absurd learning rate diverge."""
    folder = tmp_path_factory.mktemp("ray")
    config = write_config(folder, grid={"train.optimizer.learning_rate": [0.05, 1e9]})
    return launch("--config", config, "--results", folder / "results"), folder / "results" / "tiny"


def test_ray_and_local_runner_give_the_same_bits(
    through_ray: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    local.run(tiny(), tmp_path, lambda message: None, {})
    expected, found = results_of(tmp_path), results_of(through_ray[1])
    assert found.keys() == expected.keys()
    for trial in expected:
        assert found[trial]["checksum"] == expected[trial]["checksum"]
        for table in ("epochs", "cycles"):
            assert rows(through_ray[1], trial, table) == rows(tmp_path, trial, table)


def test_ray_s_steps_are_said_in_order(through_ray: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Each of these takes seconds, and begins after its line."""
    lines = iter(through_ray[0].stdout.splitlines())
    for said in (
        "4 of 4 trials to run",
        "importing PyTorch and building every network",
        "starting Ray on this machine",
        "starting the processes of the trials",
        "starts",
        "reading the results, drawing tables and pictures",
    ):
        assert any(said in line for line in lines), said


@pytest.mark.parametrize(
    ("slow", "said"),
    [
        ("repr_ray.training.check.check", "importing PyTorch and building every network once, to check it"),
        ("repr_ray.results.store.gather", "reading the results, drawing tables and pictures"),
        ("repr_ray.data.decoded.load", "loading the images of digits"),
    ],
)
def test_a_step_that_takes_long_says_what_it_is(
    slow: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reached(Exception):
        pass

    def reached(*args: object, **kwargs: object) -> None:
        raise Reached

    monkeypatch.setattr(slow, reached)
    with pytest.raises(Reached):
        here(capsys, "--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local")
    assert said in capsys.readouterr().out.splitlines()[-1]


def test_failures_are_told_last_and_do_not_stop_the_others(
    through_ray: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = through_ray
    assert done.returncode == 1
    assert len(results_of(folder)) == 2
    errors = [json.loads(path.read_text()) for path in folder.glob("trials/*/error.json")]
    assert [error["status"] for error in errors] == ["diverged"] * 2
    *_, summary, traceback = done.stdout.splitlines()
    assert summary.startswith("failed: 2 of 4 trials, the first with Diverged: the training loss of epoch 1 is")
    assert "Traceback" in json.loads(Path(traceback.removeprefix("traceback in ")).read_text())["traceback"]
    assert done.stdout.count("FAILED: Diverged") == 2
    assert "Traceback" not in done.stdout + done.stderr


def test_a_launch_leaves_tables_and_a_comparison(
    through_ray: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = through_ray
    for name in ("experiment.yaml", "trials.parquet", "epochs.parquet", "cycles.parquet", "comparison.md"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.glob(".probe*"))
    for scheme in ("standard", "repr"):
        assert scheme in done.stdout
    assert "cycle 1: dropped 4 of 16 filters" in done.stdout


@pytest.mark.slow
def test_bad_input_costs_nothing_on_ray(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = launch("--config", config, "--results", tmp_path, "schemes.repr.selection={exclude: [conv1, conv2]}")
    assert done.returncode == 2
    assert "leaves no layer to drop from" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.slow
def test_two_workers_through_ray_train(tmp_path: Path) -> None:
    """One worker group trains several trials, and a new one comes after a failure: each as if it were alone."""
    options = ("resources.workers=2", "resources.concurrent=1")
    config = write_config(tmp_path, grid={"train.optimizer.learning_rate": [0.05, 0.02, 1e9]})
    done = launch("--config", config, "--results", tmp_path, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("FAILED: Diverged") == 2
    several = results_of(tmp_path / "tiny")
    assert [result["workers"] for result in several.values()] == [2] * 4
    for log in (tmp_path / "tiny").glob("trials/*/log.txt"):
        assert log.read_text().count("  starts") == 1, "an error of its own is no reason to try again"
    config = write_config(tmp_path, schemes={"repr": TINY["schemes"]["repr"]}, baseline="repr", name="alone")
    done = launch("--config", config, "--results", tmp_path, *options, "train.optimizer.learning_rate=0.02")
    assert done.returncode == 0, done.stdout + done.stderr
    [(name, result)] = results_of(tmp_path / "alone").items()
    assert several[name]["checksum"] == result["checksum"]


@pytest.mark.slow
def test_the_process_that_drives_two_workers_dies(tmp_path: Path) -> None:
    """Its workers' cores become free, although no dashboard runs, which Ray's own clean-up needs."""
    seed = os.getpid()  # a name that no other trial on this machine has
    config = write_config(tmp_path, seeds=[seed], schemes=STANDARD, train=TINY["train"] | {"epochs": 300})
    command = [sys.executable, "-m", "repr_ray.launch", "--config", config, "--results", tmp_path]
    cores = max(1, (os.cpu_count() or 1) // 2)  # all of them, so that no other worker group fits beside the dead one
    command += ["resources.workers=2", f"resources.cpus_per_worker={cores}"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("tiny/trials/*/checkpoint-*.pt")):
            assert time.monotonic() < deadline and started.poll() is None
            time.sleep(0.1)
        listed = subprocess.run(["ps", "-eww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        [process] = re.findall(rf"(\d+) ray::convnet\S*-s{seed}-", listed)
        os.kill(int(process), signal.SIGKILL)
        out = started.communicate(timeout=240)[0]
    finally:
        started.kill()
    assert started.returncode == 0, out
    assert "its process died" in out and "resumes at epoch" in out


@pytest.mark.slow
def test_more_gpus_than_the_cluster_has(tmp_path: Path) -> None:
    done = launch("--config", write_config(tmp_path), "--results", tmp_path, "resources.gpus_per_worker=1")
    assert done.returncode == 2
    assert "a trial needs 1 GPUs" in done.stderr
    assert not list(tmp_path.glob("tiny/trials/*/epochs.jsonl"))


def test_a_second_launch_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local")
    status, out, _ = here(capsys, *arguments)
    assert status == 0
    assert "2 of 2 trials to run" in out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/trials/*/*")}
    status, out, _ = here(capsys, *arguments)
    assert status == 0
    assert "all 2 trials are done already" in out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/trials/*/*")}


def test_a_grid_that_is_added_labels_what_was_trained_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else a cell of the grid would be two, with a part of the seeds each."""
    arguments = ("--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local")
    assert here(capsys, *arguments, "seeds=[0]")[0] == 0
    size = TINY["train"]["batch_size"]
    assert here(capsys, *arguments, "seeds=[0, 1]", f"grid.train.batch_size=[{size}, {2 * size}]")[0] == 0
    table = pd.read_parquet(tmp_path / "tiny" / "comparison.parquet")
    assert set(table["variant"]) == {f"train.batch_size={n}" for n in (size, 2 * size)}
    assert set(table["n"]) == {2}


def test_seeds_and_schemes_may_be_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, schemes={"standard": {"kind": "standard"}})
    here(capsys, "--config", config, "--results", tmp_path, "--runner", "local")
    status, out, _ = here(
        capsys, "--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local", "seeds=[1]"
    )
    assert status == 0
    assert "2 of 2 trials to run" in out
    assert len(results_of(tmp_path / "tiny")) == 3
    assert "seeds:\n- 0\n- 1\n" in (tmp_path / "tiny" / "experiment.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epochs=9"], "holds a different experiment: train.epochs is 8 there and 9 here"),
        (["schemes.repr.prune_ratio=0.5"], "schemes.repr.prune_ratio is 0.3 there and 0.5 here"),
        (["data.validation_images=0"], "data.validation_images is 100 there and 0 here"),
    ],
)
def test_a_different_experiment_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    arguments = ("--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local")
    stored = tmp_path / "tiny" / "experiment.yaml"
    here(capsys, *arguments, "schemes.standard.kind=standard")
    before = stored.read_bytes()
    status, _, err = here(capsys, *arguments, *overrides)
    assert status == 2
    assert expected in err
    assert "choose another name=" in err
    assert stored.read_bytes() == before


def test_a_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "thesis.txt").write_text("mine")
    status, _, err = here(capsys, "--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local")
    assert status == 2
    assert "holds files but no experiment.yaml" in err
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.name=cifar10", "data.source=nowhere"], "there is no such folder"),
        (["data.train_images=5000"], "digits has 1,437 training images"),
        (["schemes.repr.selection={exclude: [conv9]}"], "no droppable layer is called conv9"),
        (["schemes.repr.selection={exclude: [conv1, conv2]}"], "leaves no layer to drop from"),
        (["model.depth=9", "model.pool=max2"], "pooling leaves no pixel after layer"),
        (["resources.workers=2"], "--runner local is one process"),
        (["resources.gpus_per_worker=64"], "this machine has"),
    ],
)
def test_bad_input_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], expected: str
) -> None:
    status, _, err = here(
        capsys, "--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local", *overrides
    )
    assert status == 2
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("tiny/trials/*/epochs.jsonl"))
    if "resources" not in overrides[0]:  # nothing is claimed that would stand in the way of the corrected command
        assert not (tmp_path / "tiny").exists()


def test_a_dry_run_names_every_trial_and_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    config = write_config(tmp_path, seeds=[0, 1, 2])
    script = (
        "import sys; from repr_ray.launch import main; "
        f"status = main(['--config', {str(config)!r}, '--dry-run', '--results', {str(tmp_path / 'r')!r}]); "
        "assert not {'torch', 'ray', 'pandas', 'scipy'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for trial in tiny(seeds=[0, 1, 2]):
        assert trial.name in done.stdout
    assert "6 trials, each 1 x (1 CPU, auto GPU)" in done.stdout
    assert not (tmp_path / "r").exists()


def test_help_imports_little() -> None:
    """It takes a fraction of a second: nothing that calculates, draws or distributes."""
    script = (
        "import sys; from repr_ray.launch import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'ray', 'numpy', 'pandas', 'pyarrow', 'rich', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_leaves_in_order_and_the_same_command_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = TINY["train"] | {"epochs": 60}  # long enough for the signal to come while it trains
    arguments = [
        "--config",
        str(write_config(tmp_path, train=train)),
        "--results",
        str(tmp_path),
        "--runner",
        "local",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "repr_ray.launch", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    epochs = TrialFolder(tmp_path / "tiny", tiny(train=train)[0]).path / "epochs.jsonl"
    wait_for(lambda: epochs.exists() and epochs.read_text().count("\n") >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert here(capsys, *arguments)[0] == 0
    local.run(tiny(train=train), tmp_path / "undisturbed", lambda message: None, {})
    ours, theirs = results_of(tmp_path / "tiny"), results_of(tmp_path / "undisturbed")
    assert {t: r["checksum"] for t, r in ours.items()} == {t: r["checksum"] for t, r in theirs.items()}


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Poll until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_a_dry_run_says_which_layers_stay_whole_and_refuses_unknown_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, model={"kind": "torchvision", "name": "mobilenet_v2"}, data={"name": "cifar10"})
    status, out, _ = here(capsys, "--config", config, "--dry-run")
    assert status == 0
    assert "is dropped: it is a grouped or depthwise convolution" in out
    status, _, err = here(capsys, "--config", config, "--dry-run", "schemes.repr.selection={exclude: [nowhere]}")
    assert status == 2
    assert "nowhere" in err


def test_a_launch_ends_with_the_tables_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same text: in a job log, 100 columns wide, and once all is trained on a terminal of 80, in colours."""
    monkeypatch.setattr("repr_ray.results.plots.draw", lambda *arguments: [])  # pictures are not what is printed
    monkeypatch.delenv("COLUMNS", raising=False)
    for environment, width in (({}, range(81, 101)), ({"FORCE_COLOR": "1", "COLUMNS": "80"}, range(61, 81))):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        status, launched, _ = here(
            capsys, "--config", write_config(tmp_path), "--results", tmp_path, "--runner", "local"
        )
        assert status == 0
        assert report_module.main([str(tmp_path / "tiny")]) == 0
        reported = capsys.readouterr().out
        assert launched.endswith(reported)
        assert "baseline" in reported and "written to" in reported
        assert ("\x1b[" in reported) == bool(environment)
        tables = re.sub(r"\x1b\[[0-9;]*m", "", reported.split("written to")[0])
        assert max(map(len, tables.splitlines())) in width
