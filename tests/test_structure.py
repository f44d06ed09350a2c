"""The tree stays what CONTRIBUTING says: imports point one way and in no circle, and only one module imports Ray."""

import ast
import graphlib
import re
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "repr_ray"

DIAGRAM = re.search(r"```layers\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
assert DIAGRAM
# A file may import from the layers after its own, and from its own.
LAYERS = [line.split() for line in DIAGRAM[1].splitlines()]
RESULTS = LAYERS.index(["study"])
REPORT = [["launch"], ["stages"], ["looks"], ["report"], ["results"], *LAYERS[RESULTS:]]


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("layers", [LAYERS, REPORT], ids=["training", "report"])
def test_imports_point_down(layers: list[list[str]]) -> None:
    depth = {name: level for level, names in enumerate(layers) for name in names}
    for path in FILES:
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer not in depth:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "repr_ray" and len(parts) > 1 and parts[1] in depth:
                assert depth[parts[1]] >= depth[layer], f"{path.relative_to(ROOT)} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for types count too; the package itself only gives its version."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
    del modules["repr_ray"]
    graph = {}
    for name, path in modules.items():
        found = {part for full in imports(path) for part in (full, full.rpartition(".")[0])}
        graph[name] = (found & modules.keys()) - {name}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_every_module_has_its_layer() -> None:
    known = {name for names in (*LAYERS, *REPORT) for name in names}
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert found - {"__init__"} == known


def test_results_are_read_without_training_code() -> None:
    for path in [*(PACKAGE / "results").rglob("*.py"), PACKAGE / "report.py"]:
        used = {".".join(name.split(".")[:2]) for name in imports(path)}
        assert not {n for n in used if n.split(".")[0] in ("torch", "ray")}, path
        trains = {"distributed", "optim"}.union(*LAYERS[:RESULTS])
        assert used & {f"repr_ray.{layer}" for layer in trains} == set(), path


def test_only_the_ray_runner_imports_ray() -> None:
    using = {str(p.relative_to(PACKAGE)) for p in FILES if any(n.split(".")[0] == "ray" for n in imports(p))}
    assert using == {f"runners/ray{part}.py" for part in ("", "_cluster", "_trial", "_ranks", "_private")}


def test_only_one_module_knows_private_names_of_ray() -> None:
    private = re.compile(r"\bray(\.\w+)*\._\w|_internal\b")
    assert {path.name for path in FILES if private.search(path.read_text())} == {"ray_private.py"}


def test_the_method_knows_no_files_and_no_command_line() -> None:
    for path in (PACKAGE / "method").rglob("*.py"):
        assert not {n.split(".")[0] for n in imports(path)} & {"argparse", "pathlib", "yaml", "ray", "json"}, path
