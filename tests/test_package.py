"""The package as installed: wheel, sdist, commands, shipped configs, the method alone."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from support import EXAMPLES, ROOT, TINY, example_override, results_of

import repr_ray
from repr_ray.__main__ import main
from repr_ray.study.config import ConfigError
from repr_ray.study.reading import load, shipped


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside any checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "100"}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False, timeout=240, env=clean | env
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel made from it."""
    tree, out = tmp_path_factory.mktemp("tree") / "project", tmp_path_factory.mktemp("dist")
    skipped = {".venv", ".uv", ".git", "results", "build", "dist"}
    shutil.copytree(
        ROOT,
        tree,
        ignore=lambda folder, names: skipped.intersection(names) if Path(folder) == ROOT else {"__pycache__"},
    )
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, and with what it depends on from this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    [packages] = home.glob("lib/*/site-packages")
    here = Path(importlib.metadata.distribution("pydantic")._path).parent
    (packages / "dependencies.pth").write_text(f"{here}\n")
    done = run(home / "bin" / "python", "-m", "installer", built[1], cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "bin"


def test_a_wheel_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "repr-ray", "--version", cwd=tmp_path).stdout == f"repr-ray {repr_ray.__version__}\n"
    check = "import repr_ray, pathlib; print(*pathlib.Path(repr_ray.__file__).parent.rglob('*'), sep='\\n')"
    files = run(installed / "python", "-c", check, cwd=tmp_path).stdout.splitlines()
    assert all(str(installed.parent) in file for file in files)
    folder = Path(next(file for file in files if file.endswith("/configs/quickstart.yaml"))).parent
    assert (folder.parent / "py.typed").exists()
    assert {p.relative_to(folder) for p in folder.rglob("*.*")} == {
        p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.*")
    }
    done = run(installed / "repr-ray", "launch", "--config", "recipes/author_code", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trials, each 1 x" in done.stdout
    assert run(installed / "repr-ray", "explain", "train.epochs", cwd=tmp_path).stdout.startswith(
        "train.epochs: integer"
    )


@pytest.mark.slow
def test_the_examples_train_from_a_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Each with the override that its first lines name."""
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    overrides = [example_override(name) for name in EXAMPLES]
    config = TINY | {"train": TINY["train"] | {"epochs": 10}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = run(
        *(installed / "repr-ray", "launch", "--runner", "local", "--config", "tiny.yaml", *overrides), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = results_of(tmp_path / "results" / "tiny")
    used = {name.partition(":")[0] for result in results.values() for name in result["plug_ins"]}
    assert used == set(EXAMPLES)
    assert len({result["checksum"] for result in results.values()}) == len(results) == 4
    for command in ([installed / "repr-ray", "report"], [installed / "python", "-m", "repr_ray.report"]):
        done = run(*command, "results/tiny", "--format", "md", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "confidence" in done.stdout


@pytest.fixture
def unpacked(built: tuple[Path, Path], tmp_path: Path) -> Path:
    """The tree in the sdist."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    return tree


def test_the_sdist_holds_the_tree(unpacked: Path) -> None:
    git = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    tracked = {name for name in git.stdout.splitlines() if (ROOT / name).exists() and name != ".gitignore"}
    assert tracked <= {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}


@pytest.mark.slow
def test_the_tests_of_the_sdist_run(unpacked: Path) -> None:
    files = ("test_plan.py", "test_structure.py", "test_config.py", "test_components.py", "test_explain.py")
    done = run(sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in files), cwd=unpacked)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "repr-ray explain" in capsys.readouterr().out
    assert main(["lanch"]) == 2
    assert "no command 'lanch'" in capsys.readouterr().err
    assert main([]) == 2
    with pytest.raises(SystemExit) as left:
        main(["report", "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: repr-ray report")


def test_a_config_is_found_by_name_and_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "cifar10", "recipes/paper"} <= set(shipped())
    assert load("quickstart") == load(ROOT / "configs" / "quickstart.yaml")
    (tmp_path / "quickstart").write_text(yaml.safe_dump(TINY))
    assert load("quickstart").name == "tiny"
    for name, message in [
        ("recipes/papre", "no such file, and no shipped config of this name; did you mean recipes/paper?"),
        ("zzz", "; there are "),
        ("quickstart.yaml", "--config quickstart.yaml: No such file or directory"),
        ("../configs/quickstart", "no such file, and no shipped config of this name"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(name)


METHOD_ALONE = """
import sys

finders = list(sys.meta_path)
allowed = set(sys.argv[1].split(",")) | {"repr_ray"} | sys.stdlib_module_names


class Only:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top.startswith("_sysconfigdata"):
            return next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)


sys.meta_path[:] = [Only]
import torch
from torch import nn
from repr_ray import RePr

torch.manual_seed(0)
images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
for ranking in ({}, {"score": "taylor", "split": "train"}):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    repr_ = RePr(model, optimizer, epochs=6, s1=2, s2=2, prune_ratio=0.3, ranking=ranking)
    for epoch in range(6):
        repr_.start_epoch(epoch, lambda: iter([(images, labels)]))
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        repr_.after_step()
        if repr_.filters_dropped:
            repr_.sub_network().model(images)
        print(epoch, repr_.filters_dropped)
"""


def test_the_method_needs_torch_numpy_scipy_and_pydantic_alone(tmp_path: Path) -> None:
    """Every other import fails; those four may import what they depend on themselves."""
    needed, level = set(), ["torch", "numpy", "scipy", "pydantic"]
    while level:
        needed |= set(level)
        asked = [Requirement(r) for name in level for r in importlib.metadata.requires(name) or ()]
        there = {r.name for r in asked if not r.marker or r.marker.evaluate({"extra": ""})}
        level = [name for name in there - needed if _is_installed(name)]
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in needed}
    modules = [
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if normal & {re.sub(r"[-_.]+", "-", name).lower() for name in distributions}
    ]
    assert not {"yaml", "ray", "pandas", "torchvision", "pyarrow", "rich"} & set(modules)
    (tmp_path / "alone.py").write_text(METHOD_ALONE)
    done = run(sys.executable, "alone.py", ",".join(modules), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 0", "1 0", "2 4", "3 4", "4 0", "5 0"] * 2


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_configs_name_their_schema() -> None:
    for path in [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "studies").rglob("config.yaml")]:
        first = path.read_text().splitlines()[0]
        relative = first.removeprefix("# yaml-language-server: $schema=")
        assert relative != first, f"{path}: the first line names the schema"
        assert json.loads((path.parent / relative).read_text())["title"] == "Experiment"
