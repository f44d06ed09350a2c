"""The pages of the studies are what their stored tables say."""

import importlib.util
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from support import ROOT, results_of, tiny

from repr_ray.runners import local
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
    paths = build.Study(folder).configs()
    assert paths[0].name == "config.yaml"
    for path, name in zip(paths, [folder.name, *(f"{folder.name}-{path.stem}" for path in paths[1:])], strict=True):
        experiment = load(path)
        assert experiment.name == name and plan(experiment)


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


def test_stored_tables_name_no_folder_of_the_machine_that_trained() -> None:
    command = "python -m repr_ray.launch --config c.yaml data.source=/a/b --results /c"
    table = pa.table({"command": [command, None], "settings": ['{"data": {"source": "/a/b", "name": "x"}}', "{}"]})
    stored = build._without_places(table).to_pydict()
    assert stored["command"] == [command.replace("/a/b", "FOLDER").replace("/c", "FOLDER"), None]
    assert stored["settings"] == ['{"data": {"source": "FOLDER", "name": "x"}}', "{}"]
