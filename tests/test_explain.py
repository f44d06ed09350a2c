"""Looking settings up: `repr-ray explain`, the schema that editors read, and the page, all from one source."""

import json
import subprocess
import sys
from typing import Any

import pytest
from support import ROOT

from repr_ray import explain


def test_schema_and_page_are_those_of_the_settings() -> None:
    stored = json.loads((ROOT / "configs" / "config.schema.json").read_text())
    assert stored == explain.schema(), "run `make docs`"
    assert (ROOT / "docs" / "settings.md").read_text() == explain.markdown(), "run `make docs`"


def test_every_field_has_a_meaning() -> None:
    def fields(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [name for inner in node for name in fields(inner, path)]
        if not isinstance(node, dict):
            return []
        here = f"{path}/{node['title']}" if isinstance(node.get("title"), str) else path
        silent = [
            f"{here}.{name}"
            for name, field in (node["properties"].items() if isinstance(node.get("properties"), dict) else ())
            if name != "kind" and not field.get("description")
        ]
        return silent + [name for inner in node.values() for name in fields(inner, here)]

    assert fields(explain.schema(), "") == [], "give these a docstring"


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("", ["  schemes: NAME: standard | repr", "  train: a block; required"]),
        ("train.epochs", ["train.epochs: integer >= 1", "passes over the training images"]),
        ("schemes.repr.reinit", ["How dropped filters are re-initialised.", "  scale: drawn | clip |"]),
        ("schemes.repr.reinit.gain", ["schemes.repr.reinit.gain: number > 0; default: 1.0"]),
        ("schemes.inverse.ranking.order", ["schemes.inverse.ranking.order: worst | inverse; default: worst"]),
        ("model.resnet", ["kind: resnet", "  depth: integer >= 8 <= 1000; default: 20"]),
        ("model", ["model: convnet | resnet", "kind: vgg", "  fields: depth, growth"]),
        ("train.optimizer.sgd.momentum", ["train.optimizer.sgd.momentum: number >= 0 < 1; default: 0.0"]),
        ("seeds.looks", ["seeds.looks: list of integer >= 3 <= 1000"]),
        ("resources.gpus_per_worker", ["resources.gpus_per_worker: integer >= 0 | auto; default: auto"]),
        ("schemes.shrink:Shrink.every", ["schemes.shrink:Shrink.every: integer >= 1; default: 10", "epochs between"]),
        ("data.augment.policy", ["data.augment.policy: rand_augment | trivial_augment | none", "kind: rand_augment"]),
        ("schemes.repr.loss.srip.weight", ["schemes.repr.loss.srip.weight: number >= 0"]),
        ("model.two:two", ["kind: two:two", "  width: integer; default: 16"]),
    ],
)
def test_explain(path: str, lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    assert explain.main([path] if path else []) == 0
    told = capsys.readouterr().out.splitlines()
    for line in lines:
        assert any(found.startswith(line) for found in told), told
    assert all(len(found) <= 100 for found in told if found.startswith("      "))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("train.epcs", "train.epcs: no such setting; did you mean epochs?"),
        ("schemes.repr.reinit.gian", "did you mean gain?"),
        ("model.resnt", "did you mean resnet?"),
        ("train.epochs.more", "train.epochs.more: no such setting; nothing is set below it"),
        ("model.nowhere:Net", "there is no module nowhere"),
        ("zzz", "there are name, seeds, data"),
    ],
)
def test_explain_says_what_there_is(path: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main([path]) == 2
    assert message in capsys.readouterr().err


def test_explain_imports_no_torch() -> None:
    check = "import sys; from repr_ray.explain import main; main(['model']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
