"""Seeds until decided: trials come look by look, through the same runners, and resume."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support import TINY, write_config

from repr_ray import launch, looks, rounds
from repr_ray.results import store
from repr_ray.results.compare import compare
from repr_ray.runners import local
from repr_ray.study.config import ConfigError, Looks
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import validate
from repr_ray.training import check
from repr_ray.training.folder import TrialFolder

Accuracy = Callable[[Trial], float | None]
UNTIL = {"looks": [4, 6, 9], "margin": 1.0}
LUCK = np.random.default_rng(0).normal(0, 0.005, (100, 2))


def record(results: Path, trial: Trial, accuracy: float | None) -> None:
    """Leave a trial as training does; without an accuracy it has failed."""
    folder = TrialFolder(results, trial)
    folder.announce()
    if accuracy is None:
        (folder.path / "error.json").write_text(json.dumps({"status": "failed", "message": "boom", "epoch": 0}))
        return
    row = {"epoch": trial.train.epochs - 1, "phase": "full", "cycle": 0, "train_accuracy": accuracy}
    row["test_accuracy"] = accuracy
    (folder.path / "epochs.jsonl").write_text(json.dumps(row) + "\n")
    result = {
        "status": "done",
        "started": "2025-01-01T10:00:00+00:00",
        "finished": "2025-01-01T10:01:00+00:00",
        "wall_seconds": 60.0,
        "precision": "fp32",
        "workers": 1,
        "checksum": "c0ffee",
        "parameters": 20_000,
        "versions": {"torch": "2.15.0"},
        "hardware": {"cpu": "test CPU"},
    }
    (folder.path / "result.json").write_text(json.dumps(result))
    (folder.path / "error.json").unlink(missing_ok=True)


def apart(*, by: dict[str, float]) -> Accuracy:
    """Accuracies of 0.7, more by scheme, with the luck of each seed and scheme."""
    return lambda trial: 0.7 + by.get(trial.scheme, 0.0) + float(LUCK[trial.seed, int(trial.scheme == "repr")])


def say_answers(console: Any, storage: Any, options: Any) -> None:
    """The report without its files."""
    work = Path(tempfile.mkdtemp(dir=storage.path.parent))
    comparison = compare(store.gather([storage.path], work))
    console.print("\n".join([comparison.answer, *comparison.answers]), soft_wrap=True)


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, list[int]]]:
    """Launch with these accuracies: exit status, output, trials of each call of the runner."""

    def run(config: Path, accuracy: Accuracy, *more: str) -> tuple[int, str, list[int]]:
        calls: list[int] = []

        def runner(trials: list[Trial], results: Path, *_: Any) -> None:
            calls.append(len(trials))
            for trial in trials:
                record(results, trial, accuracy(trial))

        monkeypatch.setattr(local, "run", runner)
        monkeypatch.setattr(launch, "_report", say_answers)
        monkeypatch.setattr(check, "check", lambda *_: None)
        monkeypatch.setattr(rounds, "_load", lambda _, data: dict.fromkeys(data, "c0ffee"))
        results = config.parent / "results"
        status = launch.main(["--config", str(config), "--results", str(results), "--runner", "local", *more])
        captured = capsys.readouterr()
        return status, captured.out + captured.err, calls

    return run


def test_a_clear_difference_stops_at_the_first_look(tmp_path: Path, train: Any) -> None:
    status, out, calls = train(write_config(tmp_path, seeds=UNTIL), apart(by={"repr": 0.1}))
    assert (status, calls) == (0, [8])
    assert "repr is 10" in out and "points better than standard" in out and "look at 4 seeds" in out
    again = train(write_config(tmp_path, seeds=UNTIL), apart(by={}))
    assert again[::2] == (0, []) and "all 8 trials are done already" in again[1]


def test_an_open_question_takes_every_look_and_only_open_schemes_go_on(tmp_path: Path, train: Any) -> None:
    schemes = {**TINY["schemes"], "inverse": {"kind": "repr", "s1": 2, "s2": 2, "prune_ratio": 0.2}}
    config = write_config(tmp_path, seeds={"looks": [4, 6, 9]}, schemes=schemes)
    status, out, calls = train(config, apart(by={"inverse": -0.2}))
    assert status == 0
    assert calls == [12, 4, 6]  # inverse is decided at the first look; standard and repr go on
    assert "not decided yet: 4 more trials to run" in out
    assert "1 worse; for 1 it cannot be told yet" in out


def test_practically_equal(tmp_path: Path, train: Any) -> None:
    config = write_config(tmp_path, seeds={"looks": [6, 9], "margin": 5.0})
    status, out, calls = train(config, apart(by={}))
    assert (status, calls) == (0, [12])
    assert "repr is practically equal to standard, within 5 points" in out


def test_a_failed_trial_is_no_pair_and_runs_again_next_time(tmp_path: Path, train: Any) -> None:
    def failing(trial: Trial) -> float | None:
        return None if (trial.scheme, trial.seed) == ("repr", 2) else apart(by={})(trial)

    config = write_config(tmp_path, seeds={"looks": [4, 6]})
    status, out, calls = train(config, failing)
    assert (status, calls) == (1, [8, 4])
    assert "failed: 1 of 12 trials" in out
    status, _, calls = train(config, apart(by={}))
    assert (status, calls) == (0, [1])


def test_interrupted_between_looks_it_goes_on(tmp_path: Path, train: Any) -> None:
    def stopping(trial: Trial) -> float | None:
        if trial.seed == 4:
            raise KeyboardInterrupt
        return apart(by={})(trial)

    config = write_config(tmp_path, seeds={"looks": [4, 6]})
    with pytest.raises(KeyboardInterrupt):
        train(config, stopping)
    status, _, calls = train(config, apart(by={}))
    assert (status, calls) == (0, [4])


def test_the_dry_run_says_the_fewest_and_the_most(tmp_path: Path, train: Any) -> None:
    status, out, calls = train(write_config(tmp_path, seeds=UNTIL), apart(by={}), "--dry-run")
    assert (status, calls) == (0, [])
    assert "looks after 4, 6, 9 seeds: 8 trials at least, 18 at most" in " ".join(out.split())


def test_looks_are_not_changed_once_there_are_results(tmp_path: Path, train: Any) -> None:
    train(write_config(tmp_path, seeds=UNTIL), apart(by={"repr": 0.1}))
    for other in ({**UNTIL, "margin": 2.0}, {"looks": [4, 6, 12], "margin": 1.0}, [0, 1, 2]):
        status, out, calls = train(write_config(tmp_path, seeds=other), apart(by={}))
        assert (status, calls) == (2, []), other
        assert "looks and margin are chosen before there are results" in out
    stored = yaml.safe_load((tmp_path / "results" / "tiny" / "experiment.yaml").read_text())
    assert stored["seeds"] == UNTIL


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ({"looks": [10, 6]}, "seeds.looks=[10, 6]: numbers of seeds that increase"),
        ({"looks": [6, 6]}, "numbers of seeds that increase"),
        ({"looks": []}, "seeds.looks=[]"),
        ({"looks": [2, 6]}, "seeds.looks.0=2: "),
        ({"looks": [6], "margin": 0}, "seeds.margin=0: "),
        ({"looks": [6], "margins": 1}, "seeds.margins: unknown field; did you mean margin?"),
        ({"margin": 1}, "seeds.looks: missing"),
    ],
)
def test_bad_looks_are_told_by_field(seeds: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="tiny: ") as error:
        validate(TINY | {"seeds": seeds}, "tiny")
    assert said in str(error.value)


def test_looks_need_a_baseline_and_a_rival() -> None:
    for schemes in ({"standard": TINY["schemes"]["standard"]}, {"repr": TINY["schemes"]["repr"]}):
        with pytest.raises(ConfigError, match="looks compare schemes with the baseline 'standard'"):
            validate(TINY | {"seeds": UNTIL, "schemes": schemes}, "tiny")


def test_a_trial_is_the_same_whether_its_seed_was_listed_or_came_with_a_look() -> None:
    by_look, listed = (validate(TINY | {"seeds": seeds}, "tiny") for seeds in ({"looks": [3, 4]}, [0, 1, 2, 3]))
    assert isinstance(by_look.seeds, Looks)
    assert [t.name for t in plan(by_look)] == [t.name for t in plan(listed)]
    assert looks.trials_due(listed, plan(listed), Path("none")) == plan(listed)
    assert len(looks.trials_due(by_look, plan(by_look), Path("none"))) == 6


def test_blocks_of_a_grid_are_decided_apart(tmp_path: Path, train: Any) -> None:
    def only_with_large_rate(trial: Trial) -> float | None:
        more = 0.2 if trial.variant.endswith("0.05") else 0.0
        return apart(by={"repr": more})(trial)

    grid = {"train.optimizer.learning_rate": [0.01, 0.05]}
    status, _, calls = train(write_config(tmp_path, seeds={"looks": [4, 6]}, grid=grid), only_with_large_rate)
    assert (status, calls) == (0, [16, 4])
