"""Published numbers beside measured ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from repr_ray.results import claims, store
from repr_ray.results.compare import compare

Make = Callable[..., Path]
HEAD = "source,dataset,model,scheme,metric,value,note\n"


def checked(tmp_path: Path, results: Path, text: str | None = None) -> list[dict[str, Any]]:
    file = None
    if text is not None:
        file = tmp_path / "claims.csv"
        file.write_text(HEAD + text)
    work = tmp_path / "work"
    work.mkdir()
    table = claims.check(compare(store.gather([results], work)), claims.load(file))
    return table.to_dict("records")


BASE = [0.70, 0.701, 0.699, 0.70, 0.702, 0.698]


@pytest.mark.parametrize(
    ("value", "seeds", "verdict"),
    [
        (70.2, 6, "reproduced"),
        (75.0, 6, "not reproduced"),
        (71.0, 6, "cannot tell yet"),  # the interval straddles one point below it
        (70.2, 2, "cannot tell yet"),
    ],
)
def test_the_verdict_is_by_interval(experiment: Make, tmp_path: Path, value: float, seeds: int, verdict: str) -> None:
    results = experiment({"standard": BASE[:seeds]})
    [row] = checked(tmp_path, results, f"me,cifar10,convnet-3x32,standard,test_accuracy,{value},\n")
    assert row["verdict"] == verdict
    assert row["measured"] == pytest.approx(0.70, abs=1e-3)
    assert row["match"] == "exact"


def test_errors_gains_and_best_epochs(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "repr": [v + 0.02 + 0.0001 * k for k, v in enumerate(BASE)]})
    rows = checked(
        tmp_path,
        results,
        "me,cifar10,convnet-3x32,standard,test_error,30,\n"
        "me,cifar10,convnet-3x32,repr,test_error,28,\n"
        "me,cifar10,convnet-3x32,repr,best_test_accuracy,90,\n"
        "me,cifar100,convnet-3x32,repr,test_error,28,\n",
    )
    said = {(row["scheme"], row["quantity"]): (row["claimed"], row["verdict"]) for row in rows}
    assert said == {
        ("standard", "accuracy"): (0.7, "reproduced"),
        ("repr", "accuracy"): (0.72, "reproduced"),
        ("repr", "gain"): (0.02, "reproduced"),
        ("repr", "best on test"): (0.9, "not reproduced"),
    }


def test_an_approximate_match_says_why(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "mine": BASE, "inverse": BASE}, epochs=10, cycle=(4, 2))
    rows = pd.DataFrame(checked(tmp_path, results))
    assert "inverse" not in set(rows["scheme"])  # an inverse ranking is not what was published
    paper = rows[(rows["source"] == "paper") & (rows["scheme"] == "mine")].iloc[0]
    assert paper["match"] == "approximate"
    assert "the published network is convnet-3x32-bn" in paper["remark"]
    assert "train.epochs 10 here, 100 published" in paper["remark"]
    assert "s1 4 here, 20 published" in paper["remark"]


def test_an_exact_match_of_a_published_recipe(experiment: Make, tmp_path: Path) -> None:
    settings = {"train.epochs": 100, "data.train_images": None}
    results = experiment({"standard": BASE}, model="convnet-3x32", settings=settings)
    rows = pd.DataFrame(checked(tmp_path, results)).set_index(["source", "claimed"])
    assert rows.loc[("siahuat0727", 0.7784), "match"] == "exact"
    assert rows.loc[("siahuat0727", 0.6486), "match"] == "approximate"
    assert rows.loc[("SweetWind1996", 0.67), "match"] == "approximate"


def test_the_packages_own_claims_have_sources() -> None:
    own = claims.load()
    assert len(own) > 60
    assert set(own["source"]) == set(claims.sources()["source"])
    gain = own[(own["source"] == "paper") & (own["dataset"] == "cifar10") & (own["model"] == "resnet20")]
    assert gain.set_index("scheme")["accuracy"]["repr"] == pytest.approx(0.931)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b\n1,2\n", "lacks the columns source, dataset"),
        (HEAD + "me,cifar10,m,standard,top5,1,\n", "unknown metric top5"),
        (HEAD + "me,cifar10,m,standard,test_error,many,\n", "value='many' in row 1 is not a number"),
        ("", "claims .*claims.csv"),
    ],
)
def test_a_bad_file_of_claims(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "claims.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        claims.load(tmp_path / "claims.csv")
    with pytest.raises(ValueError, match="No such file"):
        claims.load(tmp_path / "none.csv")
