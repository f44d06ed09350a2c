"""What the report says beside the verdicts, of studies with known figures."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from studies import make_trial

from repr_ray.report import main, report
from repr_ray.results import store
from repr_ray.results.compare import Comparison, compare
from repr_ray.results.details import details, details_sheet, power_sheet
from repr_ray.results.store import Tables
from repr_ray.results.tables import NONE, comparison_sheet

Make = Callable[..., Path]
LUCK = np.random.default_rng(0).normal(0, 0.004, (6, 6))


def gathered(tmp_path: Path, *folders: Path) -> tuple[Comparison, Tables]:
    work = tmp_path / "work"
    work.mkdir()
    tables = store.gather(folders, work)
    return compare(tables), tables


def until_decided(folder: Path, looks: list[Any], margin: float | None = None) -> Path:
    """Make the experiment of a results folder one that was looked at."""
    path = folder / "experiment.yaml"
    stored = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(stored | {"seeds": {"looks": looks, "margin": margin}}, sort_keys=False))
    return folder


def test_odds_time_and_cost(experiment: Make, tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72]
    study = experiment({"standard": base, "repr": [0.73, 0.74, 0.715], "low": [0.5, 0.5, 0.5]})
    comparison, tables = gathered(tmp_path, study)
    found = details(comparison, tables).set_index("scheme")
    assert found.loc["repr", "beats"] == pytest.approx(8 / 9)
    assert found.loc["repr", "beats_same_seed"] == pytest.approx(2 / 3)
    assert found.loc["low", ["beats", "beats_low", "beats_high"]].tolist() == [0, 0, 0]
    assert found.loc["repr", "reached"] == 3 and found.loc["low", "reached"] == 0
    assert np.isnan(found.loc["low", "epochs_to_baseline"])
    assert 1 <= found.loc["repr", "epochs_to_baseline"] <= 12
    assert found.loc["repr", "seconds_to_baseline"] == 5 * found.loc["repr", "epochs_to_baseline"]
    assert found.loc["repr", "cost"] == pytest.approx(1)
    assert found.loc["repr", "device_hours"] == pytest.approx(2 * 61 / 3600)  # two threads
    sheet = details_sheet(details(comparison, tables))
    said = {row[0].text: [cell.text for cell in row] for row in sheet.rows}
    assert said["low"][2] == "0% [0%, 0%]" and said["low"][4] == "\N{EN DASH} (0/3)"


def test_seeds_that_a_verdict_takes(experiment: Make, tmp_path: Path) -> None:
    base = 0.7 + LUCK[0]
    schemes = {"standard": base, "near": base + LUCK[1] / 2, "clear": base + 0.03 + LUCK[2] / 4}
    study = until_decided(experiment(schemes), [6, 10], margin=0.3)
    comparison, _ = gathered(tmp_path, study)
    assert comparison.table.set_index("scheme")["verdict"].to_dict()["clear"] == "better"
    sheet = power_sheet(comparison)
    [row] = sheet.rows
    assert row[0].text == "near"
    equal, more = int(row[5].text), int(row[6].text)
    assert 6 < equal < 60 and more <= equal - 6
    [said] = [answer for answer in comparison.answers if "near" in answer]
    assert said.endswith(f"Seeds that this would take: about {equal} for practical equality, if there is none.")


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_a_fixed_list_of_seeds_needs_six(experiment: Make, tmp_path: Path, seeds: int) -> None:
    gain = [0.05 + 0.001 * seed for seed in range(seeds)]
    comparison, _ = gathered(tmp_path, experiment({"standard": [0.7] * seeds, "repr": [0.7 + g for g in gain]}))
    rows = power_sheet(comparison).rows
    assert [row[4].text for row in rows] == ["6"] * (seeds > 2), "two pairs have no spread to plan with"
    assert ("Seeds that this would take: about 6 for" in comparison.answer) is (seeds > 2)


def test_seeds_needed_are_the_same_everywhere(experiment: Make, tmp_path: Path) -> None:
    """A scheme with a single pair has no row in the table, but is still open like the others."""
    base = 0.7 + LUCK[0]
    schemes = {"standard": base, "a": base + 0.003 + LUCK[1], "b": base[:1]}
    comparison, tables = gathered(tmp_path, experiment(schemes))
    [row] = power_sheet(comparison).rows
    needed = details(comparison, tables).set_index("scheme").loc["a", "seeds_to_differ"]
    assert row[4].text == f"{needed:.0f}"
    assert f"about {needed:.0f} for a difference of this size" in comparison.answers[0]


def test_a_comparison_says_its_looks_and_bounds(experiment: Make, tmp_path: Path) -> None:
    base = 0.7 + LUCK[0]
    study = until_decided(experiment({"standard": base, "repr": base + LUCK[1] / 40}), [6, 10], margin=0.5)
    comparison, _ = gathered(tmp_path, study)
    row = comparison.table.iloc[1]
    assert (row["verdict"], row["looked"], row["pairs"]) == ("practically equal", 6, 6)
    assert "repr is practically equal to standard, within 0.5 points" in comparison.answer
    [note] = [note for note in comparison.notes if note.startswith("seeds until decided")]
    assert "looks after 6, 10 seeds, margin 0.5 points" in note and "level 0.029" in note


def test_the_margin_is_told_as_it_was_set(experiment: Make, tmp_path: Path) -> None:
    base = 0.7 + LUCK[0]
    study = until_decided(experiment({"standard": base, "repr": base + LUCK[1] / 40}), [6, 10], margin=0.25)
    comparison, _ = gathered(tmp_path, study)
    assert "repr is practically equal to standard, within 0.25 points" in comparison.answer


def test_differences_without_spread_are_not_told_with_a_p_of_zero(experiment: Make, tmp_path: Path) -> None:
    study = until_decided(experiment({"standard": [0.7] * 6, "repr": [0.73] * 6}), [6, 10])
    comparison, _ = gathered(tmp_path, study)
    assert comparison.table["verdict"].iloc[1] == "better"
    assert "look at 6 seeds, p=1e-06" in comparison.answer


@pytest.mark.parametrize("accuracy", [0.5003, 0.5018])
def test_equal_runs_of_the_baseline_reach_their_mean(experiment: Make, tmp_path: Path, accuracy: float) -> None:
    """It may be rounded to a number above them."""
    comparison, tables = gathered(tmp_path, experiment({"standard": [accuracy] * 6, "repr": [accuracy] * 6}))
    [row] = details(comparison, tables).to_dict("records")
    assert (row["baseline_reached"], row["reached"]) == (6, 6)


def test_between_looks_the_last_one_stands(experiment: Make, tmp_path: Path) -> None:
    base = 0.7 + np.random.default_rng(1).normal(0, 0.004, 8)
    luck = np.random.default_rng(2).normal(0, 0.004, 8)
    whole, until_six = ({"standard": base[:n], "repr": base[:n] + luck[:n]} for n in (8, 6))
    eight = until_decided(experiment(whole, "eight"), [6, 10])
    six = until_decided(experiment(until_six, "six"), [6, 10])
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    figures = ["pairs", "looked", "difference_mean", "difference_low", "difference_high", "p", "verdict"]
    one, two = (gathered(tmp_path / part, folder)[0] for part, folder in (("a", eight), ("b", six)))
    pd.testing.assert_frame_equal(one.table[figures], two.table[figures])
    assert one.table["looked"].iloc[1] == 6


def test_before_the_first_look_nothing_is_said(experiment: Make, tmp_path: Path) -> None:
    study = until_decided(experiment({"standard": [0.7, 0.71, 0.7], "repr": [0.8, 0.81, 0.8]}), [6, 10])
    comparison, tables = gathered(tmp_path, study)
    row = comparison.table.iloc[1]
    assert row["verdict"] == "cannot tell" and np.isnan(row["difference_low"]) and np.isnan(row["p"])
    assert "the first look is still to come" in comparison.answer
    assert details(comparison, tables)["seeds_to_differ"].notna().all()


def test_two_pairs_of_a_look_are_told_as_two(experiment: Make, tmp_path: Path) -> None:
    """One of its three seeds has failed, and the next look is not there yet."""
    study = until_decided(experiment({"standard": [0.7, 0.71, 0.72, 0.7, 0.71], "repr": [0.73, 0.7401]}), [3, 6])
    make_trial(study, scheme="repr", seed=2, done=3, error="boom")
    for seed, accuracy in ((3, 0.75), (4, 0.65)):
        make_trial(study, scheme="repr", seed=seed, accuracy=accuracy)
    comparison, _ = gathered(tmp_path, study)
    row = comparison.table.iloc[1]
    assert (row["looked"], row["pairs"], row["verdict"]) == (3, 2, "cannot tell")
    assert np.isnan([row["difference_low"], row["p"], row["p_holm"]]).all()
    assert comparison.answer.endswith("than standard: +3.0 and +3.0 points in two seeds.")
    assert [cell.text for cell in comparison_sheet(comparison).rows[1]][3:5] == ["+3.0; +3.0", NONE]


def test_joined_experiments_with_other_looks_are_judged_as_fixed(experiment: Make, tmp_path: Path) -> None:
    schemes = {"standard": 0.7 + LUCK[0], "repr": 0.7 + LUCK[1]}
    one = until_decided(experiment(schemes, "one"), [6, 10])
    two = experiment(schemes, "two", dataset="cifar100")
    comparison, tables = gathered(tmp_path, one, two)
    assert comparison.design is None
    assert any("looked at after different numbers of seeds" in note for note in tables.notes)


def test_the_report_has_the_new_tables(experiment: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = experiment({})
    for dataset in ("cifar10", "cifar100"):
        base = 0.7 + LUCK[0]
        experiment({"standard": base, "repr": base + LUCK[1], "dsd": base + LUCK[2]}, dataset=dataset)
    assert main([str(study), "--power", "--format", "md,csv,tex", "--output", str(tmp_path / "out")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Friedman's test over 2 data sets and networks" in out and "Seeds in all with which 80%" in out
    for name in ("comparison.md", "comparison.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert "Friedman" in text and "Device hours" in text and "80" in text
    assert len(pd.read_csv(tmp_path / "out" / "details.csv")) == 4
    quiet = Console(width=200, record=True, file=io.StringIO())
    report([study], formats=(), output=tmp_path / "other", console=quiet)
    assert "Seeds in all with which" not in quiet.export_text()


def test_tables_alone_keep_looks_baseline_and_the_order_of_schemes(experiment: Make, tmp_path: Path) -> None:
    base = 0.7 + LUCK[0]
    schemes = {"standard": base, "b": base + 0.03 + LUCK[1] / 4, "a": base + LUCK[2] / 40}
    study = until_decided(experiment(schemes), [6, 10], margin=0.5)
    whole = report([study], formats=())
    shutil.rmtree(study / "trials")
    (study / "experiment.yaml").unlink()
    alone = report([study], formats=(), output=tmp_path / "again")
    assert alone.design == whole.design is not None
    pd.testing.assert_frame_equal(alone.table, whole.table)
    assert list(alone.table["scheme"]) == ["standard", "b", "a"]
    again = report([tmp_path / "again"], formats=(), output=tmp_path / "third")
    assert (again.design, again.answers) == (whole.design, whole.answers)


@pytest.mark.parametrize("looks", [[6, float("inf")], ["six"], list(range(3, 1_000))])
def test_looks_that_cannot_be_read_are_said(experiment: Make, tmp_path: Path, looks: list[Any]) -> None:
    study = until_decided(experiment({"standard": 0.7 + LUCK[0], "repr": 0.7 + LUCK[1]}), looks)
    comparison, tables = gathered(tmp_path, study)
    assert comparison.design is None
    assert any("the looks of its experiment cannot be read" in note for note in tables.notes)
