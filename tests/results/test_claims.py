"""Published numbers beside measured ones."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from studies import make_trial

from repr_ray.results import claims, store
from repr_ray.results.compare import compare
from repr_ray.study import reading
from repr_ray.study.plan import Trial, plan

Make = Callable[..., Path]
HEAD = "source,dataset,model,scheme,metric,value,recipe,note\n"
OWN = {  # what the generated trials were trained with
    "name": "own",
    "seeds": [0],
    "data": {"name": "cifar10", "crop_padding": 4, "flip": True},
    "model": {"kind": "convnet", "depth": 3, "width": 32},
    "train": {"epochs": 12, "batch_size": 128, "optimizer": {"kind": "sgd", "learning_rate": 0.01}},
    "schemes": {"standard": {"kind": "standard"}, "repr": {"kind": "repr", "s1": 3, "s2": 2}},
}


def checked(tmp_path: Path, results: Path, text: str | None = None) -> list[dict[str, Any]]:
    file = None
    if text is not None:
        file = tmp_path / "claims.csv"
        file.write_text(HEAD + text)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(OWN))
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
    [row] = checked(tmp_path, results, f"me,cifar10,convnet-3x32,standard,test_accuracy,{value},own.yaml,\n")
    assert row["verdict"] == verdict
    assert row["measured"] == pytest.approx(0.70, abs=1e-3)
    assert row["match"] == "exact"


def test_errors_gains_and_best_epochs(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "repr": [v + 0.02 + 0.0001 * k for k, v in enumerate(BASE)]})
    rows = checked(
        tmp_path,
        results,
        "me,cifar10,convnet-3x32,standard,test_error,30,own.yaml,\n"
        "me,cifar10,convnet-3x32,repr,test_error,28,own.yaml,\n"
        "me,cifar10,convnet-3x32,repr,best_test_accuracy,90,own.yaml,\n"
        "me,cifar10,convnet-3x32,standard,best_test_accuracy,88,own.yaml,\n"
        "me,cifar100,convnet-3x32,repr,test_error,28,own.yaml,\n",
    )
    assert len(rows) == 5, "ours are gains of the last epoch, not of the best on test"
    said = {(row["scheme"], row["quantity"]): (row["claimed"], row["verdict"]) for row in rows}
    assert said == {
        ("standard", "accuracy"): (0.7, "reproduced"),
        ("repr", "accuracy"): (0.72, "reproduced"),
        ("repr", "gain"): (0.02, "reproduced"),
        ("standard", "best on test"): (0.88, "not reproduced"),
        ("repr", "best on test"): (0.9, "not reproduced"),
    }


def test_a_gain_is_over_standard_training(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "repr": BASE, "inverse": BASE}, baseline="inverse")
    text = "".join(f"me,cifar10,convnet-3x32,{name},test_error,30,own.yaml,\n" for name in ("standard", "repr"))
    assert {(row["scheme"], row["quantity"]) for row in checked(tmp_path, results, text)} == {
        ("standard", "accuracy"),
        ("repr", "accuracy"),
    }


def test_an_approximate_match_says_why(experiment: Make, tmp_path: Path) -> None:
    results = experiment({"standard": BASE, "mine": BASE, "inverse": BASE}, epochs=10, cycle=(4, 2))
    rows = pd.DataFrame(checked(tmp_path, results))
    assert "inverse" not in set(rows["scheme"])  # an inverse ranking is not what was published
    paper = rows[(rows["source"] == "paper") & (rows["scheme"] == "mine")].iloc[0]
    assert paper["match"] == "approximate"
    assert "the published network is convnet-3x32-bn" in paper["remark"]
    assert "train.epochs 10 here, 100 published" in paper["remark"]
    assert "null" not in paper["remark"]
    assert "s1 4 here, 20 published" in paper["remark"]


RECIPES = {
    "recipes/siahuat0727_writeup": [("siahuat0727", "standard", 0.7784), ("siahuat0727", "repr", 0.7405)],
    "recipes/siahuat0727": [("siahuat0727", "repr", 0.7448)],
    "recipes/siahuat0727_noaug": [("siahuat0727", "standard", 0.6486), ("siahuat0727", "repr", 0.6905)],
    "paper/depth": [("paper", "standard", 0.721), ("paper", "repr", 0.764)],
}


@cache
def recipe_cell(recipe: str, arm: str) -> Trial:
    """The first trial of the cell of CIFAR-10 and the 3x32 net of a shipped recipe."""
    trials = plan(reading.load(recipe))
    found = [t for t in trials if t.data.name == "cifar10" and t.model.label.startswith("convnet-3x32")]
    return next(t for t in found if t.scheme == arm)


def recipe_trial(folder: Path, recipe: str, arm: str, changes: dict[str, Any]) -> None:
    """A trial of a cell of a shipped recipe, with some settings changed."""
    trial = recipe_cell(recipe, arm)
    blocks = trial.record()["settings"]
    path = make_trial(folder, scheme=arm, accuracy=0.7, model=trial.model.label, epochs=trial.train.epochs)
    stored = yaml.safe_load((path / "config.yaml").read_text())
    for dotted, value in changes.items():
        block, _, rest = dotted.partition(".")
        blocks[block] = reading.replace(blocks[block], rest, value)
    (path / "config.yaml").write_text(yaml.safe_dump(stored | {"settings": blocks}))


CHANGES: dict[str, Any] = {
    "data.source": "elsewhere",  # alone changes nothing
    "train.optimizer.momentum": 0.9,
    "train.batch_size": 64,
    "train.schedule": {"kind": "cosine", "warmup_epochs": 0},
    "train.precision": "bf16",
    "data.crop_padding": 2,
    "data.validation_images": 1234,
    "data.train_images": 45000,
    "scheme.reinit.direction": "old",
    "scheme.selection.max_per_layer": 0.5,
    "scheme.cycles": 2,
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_the_whole_recipe_is_an_exact_match(tmp_path: Path, recipe: str) -> None:
    if recipe not in reading.shipped():
        pytest.skip("not shipped yet")
    for source, arm, claimed in RECIPES[recipe]:
        changes = {k: v for k, v in CHANGES.items() if arm != "standard" or not k.startswith("scheme.")}
        for number, (name, value) in enumerate(changes.items()):
            here = tmp_path / f"{arm}{number}"
            recipe_trial(here / "study", recipe, arm, {name: value})
            matches = [row for row in checked(here, here / "study") if row["source"] == source]
            exact = [row["claimed"] for row in matches if row["match"] == "exact"]
            assert exact == ([claimed] if name == "data.source" else []), name
            [same] = [row for row in matches if row["claimed"] == claimed]
            assert name == "data.source" or name.removeprefix("scheme.") in same["remark"]


def test_two_arms_never_match_one_claim_exactly(tmp_path: Path) -> None:
    results = tmp_path / "study"
    recipe_trial(results, "recipes/siahuat0727_writeup", "standard", {})
    [path] = results.glob("trials/*/config.yaml")
    twin = make_trial(results, scheme="standard-again", accuracy=0.7, epochs=100)
    stored = yaml.safe_load(path.read_text())
    (twin / "config.yaml").write_text(yaml.safe_dump(stored | {"scheme": "again"}))
    rows = [row for row in checked(tmp_path, results) if row["claimed"] == 0.7784]
    assert [row["match"] for row in rows] == ["approximate"] * 2
    assert {row["remark"] for row in rows} == {"another scheme here has the same settings"}
    assert {row["verdict"] for row in rows} == {"cannot tell yet"}


def test_equal_numbers_of_other_arms_are_claims_of_their_own(tmp_path: Path) -> None:
    """The paper gives 74.3 for three rankings."""
    arms = ("repr-apoz", "repr-gradient", "repr-taylor")
    for arm in arms:
        recipe_trial(tmp_path / "study", "paper/ranking", arm, {})
    rows = [row for row in checked(tmp_path, tmp_path / "study") if row["claimed"] == 0.743]
    assert sorted((row["scheme"], row["match"], row["remark"]) for row in rows) == [(a, "exact", "") for a in arms]


def test_every_recipe_that_a_claim_names_trains_it() -> None:
    own = claims.load()
    for row in own[own["recipe"] != ""].to_dict("records"):
        if row["recipe"] in reading.shipped():
            stated = {k: yaml.safe_load(v) for k, v in (part.split("=", 1) for part in row["settings"].split())}
            assert claims._cell(row, stated), row


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
        (HEAD + "me,cifar10,m,standard,top5,1,,\n", "unknown metric top5"),
        (HEAD + "me,cifar10,m,standard,test_error,many,,\n", "value='many' in row 1 is not a number"),
        ("", "claims .*claims.csv"),
    ],
)
def test_a_bad_file_of_claims(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "claims.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        claims.load(tmp_path / "claims.csv")
    with pytest.raises(ValueError, match="No such file"):
        claims.load(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"kind": "standard"}, "standard"),
        ({"kind": "dsd"}, "dsd"),
        ({"kind": "standard", "loss.kind": "distillation"}, "ban"),
        ({"kind": "standard", "loss.kind": "distillation", "loss.temperature": 4.0}, "distillation"),
        ({"kind": "repr", "loss.kind": "distillation", "loss.temperature": 4.0}, "distillation+repr"),
        ({"kind": "repr", "loss.kind": "orthogonality", "ranking.order": "inverse"}, "orthogonality+repr-inverse"),
    ],
)
def test_a_loss_is_part_of_the_published_name(settings: dict[str, Any], name: str) -> None:
    from repr_ray.results.claims import _published_name

    assert _published_name("mine", {f"scheme.{key}": value for key, value in settings.items()}) == name
