"""Tuning curves against exact expectations and by simulation; sensitivity by hand."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from studies import make_trial

from repr_ray.report import report
from repr_ray.results import store
from repr_ray.results.compare import compare
from repr_ray.results.grids import grids
from repr_ray.results.tuned import sensitivity, tried, tuned_sheet, tuning_curve


def test_the_curve_is_the_mean_best_of_all_draws() -> None:
    curve = tuning_curve(np.array([0.2, 0.4, 0.9]))
    assert curve["budget"].tolist() == [1, 2, 3]
    best_of_two = (1 * 0.2 + 3 * 0.4 + 5 * 0.9) / 9  # of nine ordered draws with replacement
    assert curve["mean"].tolist()[:2] == pytest.approx([0.5, best_of_two])
    assert (curve["mean"].diff().dropna() > 0).all()
    assert (curve["low"] <= curve["mean"]).all() and (curve["mean"] <= curve["high"]).all()
    assert curve["low"].min() >= 0 and curve["high"].max() <= 1


def test_a_failed_trial_is_the_worst() -> None:
    failed, zero = tuning_curve(np.array([0.6, np.nan, 0.8])), tuning_curve(np.array([0.6, 0.0, 0.8]))
    pd.testing.assert_frame_equal(failed, zero)


def test_bands_hold_for_all_budgets_together() -> None:
    rng, budgets = np.random.default_rng(0), np.arange(1, 6)
    truth = budgets / (budgets + 1)  # the best of k uniform draws
    held = 0
    for _ in range(20):
        curve = tuning_curve(rng.random(5))
        held += bool(((curve["low"] <= truth) & (truth <= curve["high"])).all())
    assert held >= 18


def test_the_choice_is_that_of_the_compared_trials(tmp_path: Path) -> None:
    """Two points are equally good; the table names the one that was taken, whatever its trial is called."""
    folder = tmp_path / "x"
    rates = [0.01, 0.02, 0.03]
    for rate in rates:
        tuned = {"train.optimizer.learning_rate": rate}
        make_trial(folder, seed=77, stage="tuning", tuned=tuned, settings={"train.batch_size": int(1e4 * rate)})
    for chosen in rates:
        for old in folder.glob("trials/*-s0-*"):
            shutil.rmtree(old)
        make_trial(folder, tuned={"train.optimizer.learning_rate": chosen})
        tables = store.gather([folder], tmp_path)
        [row] = tuned_sheet(tried(tables)).rows
        assert row[2].text == f"learning_rate={chosen}"


def test_a_schemes_own_choice_does_not_part_it(tmp_path: Path) -> None:
    """It is chosen anew in each cell of a grid; names of schemes may have dots."""
    folder = tmp_path / "x"
    for noise, ratio in ((0.0, 0.1), (0.2, 0.4)):
        for seed in range(3):
            where: dict[str, Any] = {"seed": seed, "variant": f"data.label_noise={noise}"}
            where["settings"] = {"data.label_noise": noise}
            make_trial(folder, **where)
            where["settings"] |= {"scheme.prune_ratio": ratio}
            make_trial(folder, scheme="v1.5", tuned={"schemes.v1.5.prune_ratio": ratio}, **where)
    comparison = compare(store.gather([folder], tmp_path))
    assert comparison.table["scheme"].tolist() == ["standard", "v1.5"] * 2
    assert {tuple(grid.levels) for grid in grids(comparison)} == {("data.label_noise",)}


def test_other_choices_of_joined_experiments_are_told_apart(tmp_path: Path) -> None:
    """Neither is their mean taken, nor is one of two trials of a seed left out as if it were the other."""
    rate = "train.optimizer.learning_rate"

    def tuned(name: str, chosen: dict[str, float], seeds: range) -> Path:
        for scheme, value in chosen.items():
            settings = {"train.optimizer": {"kind": "sgd", "learning_rate": value}}
            for seed in seeds:
                make_trial(tmp_path / name, scheme=scheme, seed=seed, tuned={rate: value}, settings=settings)
        return tmp_path / name

    one = tuned("one", {"standard": 0.01, "repr": 0.02}, range(3))
    two = tuned("two", {"standard": 0.01, "repr": 0.08}, range(2, 5))
    comparison = compare(store.gather([one, two], tmp_path))
    seeds = comparison.table.set_index("scheme")["n"].to_dict()
    assert seeds == {"standard": 5, f"repr {rate}=0.02": 3, f"repr {rate}=0.08": 3}
    assert not [note for note in comparison.notes if note.startswith("convnet-3x32-cifar10-repr")]
    three = tuned("three", {"standard": 0.04, "repr": 0.02}, range(5, 8))
    comparison = compare(store.gather([one, three], tmp_path))
    assert set(comparison.table["scheme"]) == {f"standard {rate}=0.01", "repr", f"standard {rate}=0.04"}
    assert "no trial of the baseline 'standard'" in comparison.notes[0]


@pytest.mark.parametrize("nothing", ["null", "[]", "", None])
def test_nothing_in_foreign_tables_is_no_choice(tmp_path: Path, nothing: str) -> None:
    folder = make_trial(tmp_path / "x").parents[1]
    make_trial(folder, seed=1)
    report([folder], formats=())
    shutil.rmtree(folder / "trials")
    table = pq.read_table(folder / "trials.parquet")
    place = table.schema.get_field_index("tuned")
    pq.write_table(table.set_column(place, table.schema.field(place), [[nothing, "{}"]]), folder / "trials.parquet")
    assert compare(store.gather([folder], tmp_path)).table["n"].tolist() == [2]


def test_a_report_of_trials_that_are_only_tuned(tmp_path: Path) -> None:
    rate = "train.optimizer.learning_rate"
    make_trial(tmp_path / "x", stage="tuning", tuned={rate: 0.1})
    make_trial(tmp_path / "x", seed=1, stage="tuning", tuned={rate: 0.2}, done=3, error="out of memory")
    make_trial(tmp_path / "x", seed=2, stage="tuning", tuned={rate: 0.3}, done=3)
    assert report([tmp_path / "x"]).unfinished == 1  # `--watch` goes on
    page = (tmp_path / "x" / "report.html").read_text()
    assert "1 of 3 trials are unfinished" in page
    assert "There is nothing yet to compare" in page
    assert "1 of 3 points failed, 1 of 3 points not tried yet" in page


def test_sensitivity() -> None:
    flat = sensitivity(np.array([0.70, 0.701, 0.699, 0.702]))
    steep = sensitivity(np.array([0.70, 0.40, np.nan, 0.10]))
    assert (flat["near_best"], steep["near_best"]) == (1.0, 0.25)
    assert (steep["best"], steep["worst"]) == (0.7, 0.0)
    assert steep["median"] == pytest.approx(0.25)
    assert sensitivity(np.array([0.5006, 0.4906]))["near_best"] == 1.0, "a point apart, whatever the rounding"
