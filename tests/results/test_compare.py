"""The statistics, against worked examples, and what the comparison makes of incomplete experiments."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from studies import make_experiment, make_trial
from support import TINY

from repr_ray.results import store
from repr_ray.results.compare import Comparison, compare, holm, interval, sign_flip
from repr_ray.results.plots.grid import ablations
from repr_ray.results.settings import whole
from repr_ray.study.plan import plan
from repr_ray.study.reading import validate

Make = Callable[..., Path]


def comparison(tmp_path: Path, *folders: Path, baseline: str | None = None) -> Comparison:
    work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return compare(store.gather(folders, work), baseline)


def test_interval_of_students_sleep_data() -> None:
    # Student 1908; R: t.test(group1, group2, paired = TRUE)
    differences = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert interval(differences) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_sign_flip_of_darwins_maize() -> None:
    # Fisher, The Design of Experiments, section 21: 863 of 32,768 sign patterns reach a sum of 314 or more
    differences = np.array([[49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]], dtype=float)
    assert sign_flip(differences) == pytest.approx([2 * 863 / 2**15])


@pytest.mark.parametrize(("n", "smallest"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2 / 2**10)])
def test_sign_flip_cannot_go_below_its_smallest(n: int, smallest: float) -> None:
    assert sign_flip(np.arange(1.0, n + 1)[None]) == pytest.approx([smallest])


def test_sign_flip_of_several_tests_at_once() -> None:
    rng = np.random.default_rng(0)
    stacked = rng.normal(0.5, 1, (3, 8))
    assert sign_flip(stacked) == pytest.approx([sign_flip(row[None])[0] for row in stacked])


@pytest.mark.parametrize("counts", [[30, 30, 30, 1, 2, -3], [3, -1, 1, -5, 4, -1, -4], [2, -170, 2, -2, 0, 170, 1]])
def test_sign_flips_with_equal_sums_count_as_equal(counts: list[int]) -> None:
    """Also for a test set of 360 images, whose accuracies are no short decimals."""
    sums = [abs(np.dot(signs, counts)) for signs in itertools.product((1, -1), repeat=len(counts))]
    differences = np.array([[(180 + count) / 360 - 180 / 360 for count in counts]]).round(12)
    assert sign_flip(differences) == pytest.approx([np.mean(np.array(sums) >= abs(sum(counts)))])


def test_sign_flip_of_many_pairs_is_close_to_the_t_test() -> None:
    from scipy import stats

    differences = np.random.default_rng(1).normal(0.3, 1, 30)
    assert sign_flip(differences[None])[0] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.05)


def test_holm_of_a_worked_example() -> None:
    # Four p values; sorted they are multiplied by 4, 3, 2, 1 and made monotone
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_test_still_to_come_counts_for_holm() -> None:
    corrected = holm([0.01, float("nan")])
    assert corrected[0] == pytest.approx(0.02)
    assert np.isnan(corrected[1])


def test_better_and_worse(experiment: Make, tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72, 0.70, 0.71, 0.72, 0.73, 0.70]
    up = [value + 0.01 + 0.001 * k for k, value in enumerate(base)]
    down = [value - 0.02 - 0.001 * k for k, value in enumerate(base)]
    result = comparison(tmp_path, experiment({"standard": base, "up": up, "down": down}))
    rows = result.table.set_index("scheme")
    assert rows["verdict"].to_dict() == {"standard": "", "up": "better", "down": "worse"}
    assert rows.loc["up", "difference_mean"] == pytest.approx(0.0135)
    assert rows.loc["up", "p"] == pytest.approx(2 / 2**8)
    assert rows.loc["up", "p_holm"] == pytest.approx(4 / 2**8)
    assert rows.loc["standard", "test_accuracy_mean"] == pytest.approx(np.mean(base))
    assert rows.loc["standard", "test_accuracy_sd"] == pytest.approx(np.std(base, ddof=1))
    assert result.answer.startswith("Of 2 comparisons with standard, 1 came out better and 1 worse; for 0")


def test_the_answer_says_what_the_interval_allows(experiment: Make, tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72, 0.70, 0.71, 0.72]
    worse = [value - 0.01 - 0.001 * k for k, value in enumerate(base)]
    result = comparison(tmp_path, experiment({"standard": base, "repr": worse}))
    assert result.answer == (
        "repr is 1.2 points worse than standard (95% interval −1.4 to −1.1, n=6, p=0.031)."  # noqa: RUF001
    )
    mixed = [value + (0.01 if k % 2 else -0.012) for k, value in enumerate(base)]
    result = comparison(tmp_path, experiment({"standard": base, "repr": mixed}, name="mixed"))
    assert result.answer.startswith("Cannot tell yet whether repr is better or worse than standard")
    few = comparison(tmp_path, experiment({"standard": base[:3], "repr": worse[:3]}, name="few"))
    assert "n is too small to reach 0.05" in few.answer
    assert few.answer.startswith("Cannot tell yet")
    one = comparison(tmp_path, experiment({"standard": base[:1], "repr": worse[:1]}, name="one"))
    assert one.answer.endswith("a single paired seed.")


def test_too_few_seeds_for_the_number_of_schemes(experiment: Make, tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72, 0.70, 0.71, 0.72]
    schemes = {name: [v - 0.02 - 0.001 * k for k, v in enumerate(base)] for name in ("a", "b", "c")}
    row = comparison(tmp_path, experiment({"standard": base, **schemes})).table.iloc[1]
    assert (row["p"], row["p_holm"]) == pytest.approx((0.03125, 0.09375))
    assert row["p_holm_smallest"] == pytest.approx(0.09375)
    assert row["verdict"] == "worse"  # by the t-test of the interval, corrected in the same way


def test_an_open_question_is_not_put_down_to_few_seeds_that_could_have_decided_it(
    experiment: Make, tmp_path: Path
) -> None:
    """Six pairs are too few for the exact test of three comparisons, but not for the t-test that decides then."""
    base = [0.70, 0.71, 0.72, 0.70, 0.71, 0.72]
    schemes = {name: [v + (0.01 if k % 2 else -0.012) for k, v in enumerate(base)] for name in ("a", "b", "c")}
    for answer in comparison(tmp_path, experiment({"standard": base, **schemes})).answers:
        assert "n is too small to reach 0.05 in the exact test, judged by the interval's t-test)" in answer
    schemes = {name: values[:5] for name, values in schemes.items()}
    for answer in comparison(tmp_path, experiment({"standard": base, **schemes}, name="five")).answers:
        assert "n is too small to reach 0.05)" in answer


def test_holm_counts_every_comparison_of_a_study(tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72, 0.70, 0.71, 0.72, 0.73, 0.70]
    up = [value + 0.01 + 0.001 * k for k, value in enumerate(base)]
    folders = [
        make_experiment(tmp_path / f"lr{rate}", {"standard": base, "repr": up}, settings={"train.lr": rate})
        for rate in (1, 2, 3)
    ]
    result = comparison(tmp_path, *folders)
    compared = result.table[~result.table["is_baseline"]]
    assert compared["p"].tolist() == pytest.approx([2 / 2**8] * 3)
    assert compared["p_holm"].tolist() == pytest.approx([6 / 2**8] * 3)
    assert result.answer.startswith("Of 3 comparisons with standard, 3 came out better")
    alone = comparison(tmp_path, folders[0]).table
    assert alone["p_holm"].iloc[1] == pytest.approx(2 / 2**8)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_pairs_have_no_interval(experiment: Make, tmp_path: Path, seeds: int) -> None:
    results = experiment({"standard": [0.70, 0.71][:seeds], "repr": [0.686, 0.696][:seeds]})
    result = comparison(tmp_path, results)
    row = result.table.iloc[1]
    assert np.isnan([row["difference_low"], row["difference_high"], row["test_accuracy_low"]]).all()
    assert row["verdict"] == "cannot tell"
    assert result.differences(row.to_dict()) == pytest.approx([-0.014] * seeds)
    if seeds == 2:
        assert result.answer.endswith("than standard: −1.4 and −1.4 points in two seeds.")  # noqa: RUF001


def test_trials_trained_on_different_data_are_kept_apart(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.70, 0.71, 0.72, 0.73], "repr": [0.72, 0.73, 0.74, 0.75]})

    def told(digests: dict[str, str]) -> Comparison:
        for path in (results / "trials").iterdir():
            found = [digest for part, digest in digests.items() if part in path.name]
            result = json.loads((path / "result.json").read_text())
            (path / "result.json").write_text(json.dumps(result | {"data_digest": found[0] if found else None}))
        return comparison(tmp_path, results)

    for same in ({}, {"-s": "a" * 16}, {"standard-s1": "a" * 16}):  # known of none, all, or some
        result = told(same)
        assert (len(result.table), result.table["pairs"].iloc[1], result.notes) == (2, 4, [])
    result = told({"standard-s0": "b" * 16, "standard": "a" * 16, "repr": "a" * 16})
    table = result.table.set_index(["variant", "scheme"])
    assert table["n"].to_dict() == {
        ("data=aaaaaaaa", "standard"): 3,
        ("data=aaaaaaaa", "repr"): 4,
        ("data=bbbbbbbb", "standard"): 1,
    }
    assert table.loc[("data=aaaaaaaa", "repr"), "pairs"] == 3
    assert (
        "trials were trained on different data (7 on aaaaaaaa, 1 on bbbbbbbb), and are kept apart" in result.notes[0]
    )
    unknown = told({"standard-s0": "b" * 16, "standard": "a" * 16})
    assert unknown.table["pairs"].dropna().tolist() == []


def test_the_same_trial_of_different_data_is_not_left_out_silently(experiment: Make, tmp_path: Path) -> None:
    folders = [experiment({"standard": [0.7, 0.71]}, name=name) for name in ("one", "two")]
    for folder, digest in zip(folders, ("a", "b"), strict=True):
        for path in folder.glob("trials/*/result.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"data_digest": 16 * digest}))
    notes = store.gather(folders, tmp_path).notes
    assert notes[0] == "2 of the trials are in more than one folder: counted once"
    assert notes[1].startswith("2 trials in more than one folder were trained on different data there")
    assert len(store.gather([folders[0], folders[0]], tmp_path).notes) == 1


def test_a_field_of_a_later_version_does_not_part_trials(experiment: Make, tmp_path: Path) -> None:
    """Old trials lack fields that new ones have at their defaults."""
    results = experiment({"standard": [0.7, 0.71], "repr": [0.72, 0.73]})
    for path in (results / "trials").glob("*-s1-*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["settings"] = whole(config["settings"])
        assert "evaluate_every" in config["settings"]["train"]
        path.write_text(yaml.safe_dump(config))
    table = comparison(tmp_path, results).table
    assert table["variant"].tolist() == ["", ""]
    assert table["pairs"].iloc[1] == 2


def test_settings_of_somebodys_own_code_import_nothing() -> None:
    settings = {"scheme": {"kind": "evil_module:Evil"}, "train": {"epochs": 3, "optimizer": {"kind": "x:y"}}}
    assert whole(settings) == settings


def test_a_scheme_with_a_dot_is_compared_like_any_other(tmp_path: Path) -> None:
    schemes = {"a.b": {"kind": "standard"}, "v1.5": {"kind": "repr", "s1": 2, "s2": 2}}
    raw = TINY | {"schemes": schemes, "baseline": "a.b", "grid": {"schemes.v1.5.prune_ratio": [0.3, 0.5]}}
    trials = plan(validate(raw, "x"))
    assert [trial.scheme for trial in trials] == ["a.b", "v1.5 prune_ratio=0.3", "v1.5 prune_ratio=0.5"]
    accuracies = {"a.b": [0.7, 0.71, 0.72]} | {trial.scheme: [0.71, 0.72, 0.74] for trial in trials[1:]}
    result = comparison(tmp_path, make_experiment(tmp_path / "study", accuracies, baseline="a.b"))
    assert result.table["scheme"].tolist() == [trial.scheme for trial in trials]
    assert result.table["pairs"].dropna().tolist() == [3, 3]
    [(_, title, _)] = ablations(result)
    assert title.startswith("v1.5 over prune_ratio")


def test_pairs_are_the_seeds_both_have(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.70, 0.71, 0.72, 0.73], "repr": [0.72, 0.73]})
    make_trial(results, scheme="repr", seed=2, done=5)
    make_trial(results, scheme="repr", seed=3, done=1, error="boom")
    make_trial(results, scheme="repr", seed=9, accuracy=0.8)
    row = comparison(tmp_path, results).table.iloc[1]
    assert (row["pairs"], row["n"]) == (2, 3)
    assert row["difference_mean"] == pytest.approx(0.02)
    assert row["missing_seeds"] == "2 (running); 3 (failed); 9 (standard not planned)"
    assert row["status"] == "3 done, 1 running (42%), 1 failed"
    assert (row["done"], row["running"], row["waiting"], row["failed"]) == (3, 1, 0, 1)


def test_a_collapsed_trial_stays_in_the_mean(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.7], "repr": [0.7]})
    make_trial(results, scheme="repr", seed=1, accuracy=0.1, collapsed=5)
    result = comparison(tmp_path, results)
    row = result.table.iloc[1]
    assert row["test_accuracy_mean"] == pytest.approx(0.4)
    assert "seed 1 collapsed in epoch 6" in row["status"]
    assert "1 of 2 repr trials collapsed" in result.answer


def test_the_mean_of_equal_accuracies_is_their_value(experiment: Make, tmp_path: Path) -> None:
    """That of three times 0.1 in floating point is larger: error bars of a picture would be negative."""
    found = compare(store.gather([experiment({"standard": [0.1] * 3})], tmp_path)).table.iloc[0]
    assert [found[f"test_accuracy_{part}"] for part in ("mean", "low", "high")] == [0.1] * 3


def test_equal_differences_need_enough_seeds_too(experiment: Make, tmp_path: Path) -> None:
    base = [0.70, 0.71, 0.72]
    row = comparison(tmp_path, experiment({"standard": base, "repr": [v + 0.01 for v in base]})).table.iloc[1]
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((0.01, 0.01))
    assert row["verdict"] == "cannot tell"


def test_diverged_trials_and_unequal_epochs_are_noted(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.7]})
    same = {"train.epochs": 12}
    make_trial(results, scheme="repr", seed=0, epochs=15, settings=same)
    make_trial(results, scheme="repr", seed=1, epochs=15, settings=same, done=2, error="nan", status="diverged")
    notes = "\n".join(comparison(tmp_path, results).notes)
    assert "repr and standard do not train the same number of epochs" in notes
    assert "1 diverged" in notes


def test_the_baseline_can_be_another_scheme(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": [0.7, 0.7], "inverse": [0.6, 0.6]})
    result = comparison(tmp_path, results, baseline="inverse")
    assert result.table["scheme"].tolist() == ["inverse", "standard"]
    assert result.table["difference_mean"].iloc[1] == pytest.approx(0.1)
    absent = comparison(tmp_path, results, baseline="reper")
    assert "no trial of the baseline 'reper', the schemes are standard, inverse" in absent.notes[0]
    assert len(absent.table) == 2


def test_one_name_for_different_settings_is_told_apart(experiment: Make, tmp_path: Path) -> None:
    one = experiment({"standard": [0.7, 0.71], "repr": [0.72, 0.73]}, name="one")
    longer = {"train.epochs": 24}
    two = experiment({"standard": [0.8, 0.81], "repr": [0.82, 0.83]}, name="two", epochs=24, settings=longer)
    other = experiment({"repr": [0.6, 0.61]}, name="three", settings={"scheme.prune_ratio": 0.5})
    table = comparison(tmp_path, one, two, other).table
    assert set(table["variant"]) == {"train.epochs=12", "train.epochs=24"}
    assert set(table["scheme"]) == {"standard", "repr prune_ratio=0.3", "repr prune_ratio=0.5"}
    assert (table["n"] == 2).all()


def test_settings_of_a_scheme_that_differ_between_variants_are_said(experiment: Make, tmp_path: Path) -> None:
    """But the baseline keeps its name, or there would be nothing to compare with."""
    folders = []
    for epochs, ratio in ((12, 0.1), (24, 0.3)):
        settings = {"train.epochs": epochs, "scheme.prune_ratio": ratio}
        accuracies = {"standard": [0.7, 0.71], "repr": [0.72, 0.73]}
        folders.append(experiment(accuracies, name=f"of{epochs}", epochs=epochs, settings=settings))
    table = comparison(tmp_path, *folders).table
    assert table["scheme"].tolist() == ["standard", "repr prune_ratio=0.1", "standard", "repr prune_ratio=0.3"]


def test_where_the_data_came_from_makes_no_difference(experiment: Make, tmp_path: Path) -> None:
    one = experiment({"standard": [0.7, 0.71]}, name="one", settings={"data.source": "torchvision"})
    two = experiment({"repr": [0.72, 0.73]}, name="two", settings={"data.source": "elsewhere"})
    table = comparison(tmp_path, one, two).table
    assert table["variant"].tolist() == ["", ""]
    assert table["pairs"].iloc[1] == 2
