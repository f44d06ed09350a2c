"""configs/paper: every table and figure plans, every cell has its published number and the settings it states."""

import csv
import re
from pathlib import Path

import pytest
import yaml
from support import ROOT

from repr_ray.records import flatten
from repr_ray.study.plan import Trial, plan
from repr_ray.study.reading import load

CONFIGS = sorted([*(ROOT / "configs" / "paper").glob("*.yaml"), *(ROOT / "configs").glob("imagenet_*.yaml")])
CELL = re.compile(r"^#   (\S+) (\S+) (\S.*) (test_error|test_accuracy) ([\d.]+)$", flags=re.M)
KEYS = ("dataset", "model", "scheme", "metric", "value")
BESIDE = re.compile(r"^# Also here, without published numbers: (.*)$", flags=re.M)
OTHERS = "#   other cells: read off a figure, no number printed\n"
with (ROOT / "repr_ray" / "results" / "data" / "claims.csv").open() as file:
    CLAIMS = [row for row in csv.DictReader(file) if row["source"] == "paper"]


def cell(trial: Trial) -> tuple[str, str, str]:
    return trial.data.name, trial.model.label.removesuffix("-bn").removeprefix("torchvision-"), trial.scheme


def test_there_is_a_config_for_every_table_and_figure() -> None:
    names = {path.stem for path in CONFIGS}
    assert names == {
        "depth",
        "densenet",
        "distillation",
        "imagenet_resnet18",
        "imagenet_resnet50",
        "ranking",
        "ratio",
        "resnet",
        "schedule",
        "training_schemes",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_cell_has_its_claim(path: Path) -> None:
    text, trials = path.read_text(), plan(load(path))
    said = {(data, model, scheme): (metric, value) for data, model, scheme, metric, value in CELL.findall(text)}
    planned = {cell(trial): trial for trial in trials}
    assert said.keys() <= planned.keys()
    beside = {name for line in BESIDE.findall(text) for name in line.split(", ")}
    assert not beside & {scheme for _, _, scheme in said}
    assert (OTHERS in text) == (said.keys() != {key for key in planned if key[2] not in beside})
    assert len(said) > 1 and {trial.seed for trial in trials} == set(range(6))
    for (data, model, scheme), (metric, value) in said.items():
        expected = [data, model, scheme.split(" ")[0], metric, value]
        [claim] = [row for row in CLAIMS if [row[key] for key in KEYS] == expected]
        settings = flatten(planned[data, model, scheme].record()["settings"])
        stated = {key: yaml.safe_load(text) for key, text in (part.split("=") for part in claim["settings"].split())}
        assert stated and {key: settings[key] for key in stated} == stated


def test_the_first_experiment_is_a_cell_of_the_tables() -> None:
    """recipes/paper.yaml names the same trials, so that results can be joined."""
    first = {trial.fingerprint for trial in plan(load(ROOT / "configs" / "recipes" / "paper.yaml"))}
    found = {path.stem: {t.fingerprint for t in plan(load(path))} for path in CONFIGS}
    assert first <= found["depth"] and first <= found["ranking"]
    assert first <= found["ratio"] and first & found["schedule"]
