"""The pages of the studies are what their stored tables say."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from studies import make_experiment, make_trial
from support import ROOT, results_of, tiny

from repr_ray.report import report
from repr_ray.runners import local
from repr_ray.study.config import Looks
from repr_ray.study.plan import plan
from repr_ray.study.reading import load

spec = importlib.util.spec_from_file_location("studies_build", ROOT / "studies" / "build.py")
assert spec is not None and spec.loader is not None
build = importlib.util.module_from_spec(spec)  # tests have a module `studies` of their own
sys.modules[spec.name] = build
spec.loader.exec_module(build)

STUDIES = build.studies()


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.folder.name)
def test_a_page_is_made_from_its_tables(study: "build.Study") -> None:
    assert (study.folder / "README.md").read_text() == study.page()


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in (ROOT / "studies").glob("*/about.yaml")), ids=lambda path: path.name
)
def test_configs_are_named_after_their_study(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.yaml")} == {"about.yaml", "config.yaml"}
    experiment = load(folder / "config.yaml")
    assert experiment.name == folder.name and plan(experiment)
    assert all(isinstance(limit, str) for limit in build.Study(folder).about["limits"]), "a colon makes a mapping"


def test_the_index_has_every_study() -> None:
    assert (ROOT / "studies" / "README.md").read_text() == build.index()


def test_the_readme_has_the_table_of_its_study() -> None:
    text = build.README.read_text()
    assert build.readme(text) == text


def test_tables_are_taken_over_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From results to a page, and the same page again from what was stored."""
    local.run(tiny(seeds=[0, 1]), tmp_path / "results", lambda message: None, {"commit": "abc"})
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "about.yaml").write_text("title: Tiny\nquestion: Does it help?\nlimits: [All of it.]\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "README", tmp_path / "front.md")
    monkeypatch.setattr(build, "IN_README", "tiny")
    build.README.write_text(f"Before.\n{build.BEGIN}\nold\n{build.END}\nAfter.\n")
    assert build.main(["tiny", str(tmp_path / "results")]) == 0
    page = (folder / "README.md").read_text()
    assert len(results_of(tmp_path / "results")) == 4
    for part in ("# Tiny", "Does it help?", "4 of 4 trials done", "commit abc", "| repr |", "![curves](curves.png)"):
        assert part in page, part
    assert build.Study(folder).page() == page
    assert "Cannot tell yet" in build.index()
    text = build.README.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    assert "| repr | 2 |" in text and "commit abc" in text


def test_seeds_are_added_to_a_study_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that had not ended are replaced by those that have, wherever these were trained."""
    schemes = {"standard": 0.7, "repr": 0.6}
    for results, done in (("first", {0: None, 1: 3}), ("second", {1: None, 2: None})):
        make_experiment(tmp_path / results, {"standard": [], "repr": []})
        for scheme, accuracy in schemes.items():
            for seed, epochs in done.items():
                make_trial(tmp_path / results, scheme=scheme, seed=seed, accuracy=accuracy + seed / 100, done=epochs)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "about.yaml").write_text("title: Study\nquestion: Does it help?\nlimits: [All of it.]\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "README", tmp_path / "front.md")
    build.README.write_text("")
    assert build.main(["study", str(tmp_path / "first")]) == 0
    page = (folder / "README.md").read_text()
    assert "2 of 4 trials done" in page and "| repr | 1 |" in page
    assert "Trials that have not ended yet: 2." in page and "Trials that have not ended yet: 2." in build.index()
    assert build.main(["study", str(folder / "tables"), str(tmp_path / "second")]) == 0
    page = (folder / "README.md").read_text()
    assert "6 of 6 trials done" in page and "| repr | 3 |" in page and "not ended" not in page + build.index()


def test_a_page_knows_of_looks_and_of_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, results = np.random.default_rng(0), tmp_path / "results"
    base = 0.7 + rng.normal(0, 0.004, 6)
    make_experiment(results, {"standard": base.tolist(), "repr": (base + 0.03 + rng.normal(0, 0.001, 6)).tolist()})
    stored = yaml.safe_load((results / "experiment.yaml").read_text())
    looks = stored | {"seeds": {"looks": [6, 10], "margin": 0.5}}
    (results / "experiment.yaml").write_text(yaml.safe_dump(looks))
    for rate, accuracy in ((0.1, 0.6), (0.2, 0.8)):
        rates = {"train.optimizer": {"kind": "sgd", "learning_rate": rate}}
        folder = make_trial(results, scheme="repr", seed=10**6, accuracy=accuracy, settings=rates, cycle=(2, 1))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config |= {"stage": "tuning", "tuned": {"train.optimizer.learning_rate": rate}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "about.yaml").write_text("title: Tiny\nquestion: Does it help?\nlimits: [All of it.]\n")
    study = build.Study(tmp_path)
    monkeypatch.setattr(build, "report", lambda results, **given: report(results, **given | {"formats": ()}))
    study.take([results])  # without pictures
    page = study.page()
    assert "an interval that holds at all looks together. p: over all looks" in page
    with study.compared() as (_, comparison):
        assert comparison.design == Looks(looks=(6, 10), margin=0.5)
        assert comparison.table["looked"].tolist()[1:] == [6]
    assert "| repr | 2 | learning\\_rate=0.2 |" in page
    layers = page.partition("Filters dropped")[2]
    assert "14 of 14 trials done" in page and layers.count("| repr |") == 1
    whole = study.page()
    monkeypatch.setattr(build.tuned, "tried", lambda tables: pd.DataFrame())
    assert layers in study.page() != whole  # filters that tuning dropped are not counted


def taken(folder: Path, monkeypatch: pytest.MonkeyPatch, *results: Path) -> "build.Study":
    """A study of some results folders, without pictures of its own."""
    (folder / "about.yaml").write_text("title: Tiny\nquestion: Does it help?\nlimits: [All of it.]\n")
    monkeypatch.setattr(build, "report", lambda results, **given: report(results, **given | {"formats": ()}))
    study = build.Study(folder)
    study.take(results)
    return study


def test_filters_are_counted_by_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, layers in (("small", {"conv1": 8}), ("large", {"conv1": 16, "conv2": 16})):
        accuracies = {"standard": [0.7, 0.71], "repr": [0.72, 0.73]}
        make_experiment(tmp_path / "results", accuracies, model=model, layers=layers)
    page = taken(tmp_path, monkeypatch, tmp_path / "results").page()
    assert "| repr (small) | 2.0 of 8 | \N{EN DASH} |" in page
    assert "| repr (large) | 5.0 of 16 | 5.0 of 16 |" in page
    assert "8 of 8 trials done, 0.3 device hours" in page, "of two threads each, as in the tables of a report"


def test_pictures_of_an_earlier_take_are_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer data sets or schemes, they have other names."""
    results = make_experiment(tmp_path / "results", {"standard": [0.7], "repr": [0.72]})
    for name in ("differences.png", "01-cifar10-curves.png", "mine.png"):
        (tmp_path / name).touch()
    taken(tmp_path, monkeypatch, results)
    assert [path.name for path in tmp_path.glob("*.png")] == ["mine.png"]


def test_a_page_says_that_its_p_values_take_no_account_of_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = 0.7 + np.random.default_rng(0).normal(0, 0.004, 8)
    one = make_experiment(tmp_path / "one", {"standard": base[:6], "repr": base[:6] + 0.01})
    stored = yaml.safe_load((one / "experiment.yaml").read_text())
    (one / "experiment.yaml").write_text(yaml.safe_dump(stored | {"seeds": {"looks": [6, 10]}}))
    two = make_experiment(tmp_path / "two", {"standard": base, "repr": base + 0.01})
    assert "account of the looks" not in taken(tmp_path, monkeypatch, one).page()
    study = taken(tmp_path, monkeypatch, tmp_path / "tables", two)
    assert "the p values and intervals take no account of the looks" in study.page()
    again = study.page()
    study.take([tmp_path / "tables"])
    assert study.page() == again


def test_stored_tables_name_no_folder_of_the_machine_that_trained() -> None:
    command = "python -m repr_ray.launch --config c.yaml data.source=/a/b --results /c"
    table = pa.table({"command": [command, None], "settings": ['{"data": {"source": "/a/b", "name": "x"}}', "{}"]})
    stored = build._without_places(table).to_pydict()
    assert stored["command"] == [command.replace("/a/b", "FOLDER").replace("/c", "FOLDER"), None]
    assert stored["settings"] == ['{"data": {"source": "FOLDER", "name": "x"}}', "{}"]
