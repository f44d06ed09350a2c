"""No name in a config writes outside the results folder or runs code, nor does content read from storage."""

import ast
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import make_experiment, make_trial
from support import ROOT, TINY, results_of, tiny, write_config

from repr_ray.experiment import hold
from repr_ray.launch import main
from repr_ray.report import main as report_main
from repr_ray.report import report
from repr_ray.storage import text
from repr_ray.storage.folder import Folder
from repr_ray.study.config import ConfigError
from repr_ray.study.plan import plan
from repr_ray.study.reading import load, validate
from repr_ray.training.folder import TrialFolder

PACKAGE = sorted((ROOT / "repr_ray").rglob("*.py"))

NASTY = {
    "up": "../../x",
    "absolute": "/etc/passwd",
    "home": "~root/x",
    "command": "$(touch pwned)",
    "backticks": "`touch pwned`",
    "statement": "; touch pwned #",
    "long": "x" * 300,
    "long and wide": "é" * 300,
    "emoji": "🦊 fox",
    "option": "-rf",
    "dots": "..",
    "reserved": "CON",
    "markup": "[/red] [bold]",
    "script": "<script>alert(1)</script>",
}
CONTROL = {"zero": "a\0b", "line": "a\nb", "escape": "\x1b[31m", "nothing": ""}
STANDARD = {"kind": "standard"}


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """Calls of functions by their last names."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [c for c in found if (c.func.attr if isinstance(c.func, ast.Attribute) else ast.unparse(c.func)) in names]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_from_storage_or_a_config_is_run(path: Path) -> None:
    """No pickle, no YAML tags, no shell; checkpoints are weights only."""
    tree = ast.parse(path.read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in modules} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    assert not calls(tree, "system", "popen", "read_pickle", "unsafe_load", "full_load")
    assert not {ast.unparse(call.func) for call in calls(tree, "eval", "exec")} & {"eval", "exec"}
    for call in calls(tree, "load"):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        called = ast.unparse(call.func)
        if called == "torch.load":
            assert keywords.get("weights_only") == "True"
        if called in ("np.load", "numpy.load"):
            assert "allow_pickle" not in keywords
        if called == "yaml.load":
            assert ast.unparse(call.args[1]) == "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)"
    for call in calls(tree, "run", "Popen", "call", "check_call", "check_output"):
        assert "shell" not in {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_scheme_of_any_name_stays_in_the_results_folder(tmp_path: Path, name: str) -> None:
    trials = tiny(
        schemes={name: STANDARD}, grid={"schemes." + name + ".kind": ["standard"]} if "." not in name else {}
    )
    for trial in trials:
        folder = TrialFolder(tmp_path / "tiny", trial)
        folder.announce()
        assert folder.path.parent.resolve() == tmp_path / "tiny" / "trials"
        assert len(folder.path.name.encode()) <= 200
        assert trial.name.startswith("convnet-2x8-digits-")
        assert trial.name.endswith(f"-s0-{trial.fingerprint}")
        assert yaml.safe_load((folder.path / "config.yaml").read_text())["scheme"] == trial.scheme


def test_grid_values_stay_in_the_results_folder(tmp_path: Path) -> None:
    layers = [[name] for name in NASTY.values()]
    for trial in tiny(grid={"schemes.repr.selection.exclude": layers}):
        assert (tmp_path / trial.name).resolve().parent == tmp_path
        assert len(trial.name.encode()) <= 200


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_an_experiment_of_a_nasty_name_is_refused(name: str) -> None:
    if name == "CON":  # a file like any other here
        assert validate(TINY | {"name": name}, "x").name == name
        return
    with pytest.raises(ConfigError) as caught:
        validate(TINY | {"name": name}, "x.yaml")
    assert str(caught.value).startswith("x.yaml: name=")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", NASTY.values(), ids=NASTY)
def test_a_source_of_any_name_is_only_looked_for(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TINY["data"] | {"name": "cifar10", "source": name}
    assert (
        main(["--config", str(write_config(tmp_path, data=data)), "--results", str(tmp_path), "--runner=local"]) == 2
    )
    error = capsys.readouterr().err
    assert "data.source" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("schemes", [["a/b", "a-b"], ["repr", "REPR"], ["x" * 300, "x" * 301]])
def test_two_schemes_of_one_folder_are_refused(schemes: list[str]) -> None:
    with pytest.raises(ConfigError, match="have the same settings and one folder") as caught:
        tiny(schemes=dict.fromkeys(schemes, STANDARD) | {"standard": STANDARD, "repr": STANDARD})
    assert len(str(caught.value).splitlines()) == 1


def test_long_names_stay_apart_by_their_settings() -> None:
    a, b = {"kind": "repr", "s1": 2, "s2": 2}, {"kind": "repr", "s1": 2, "s2": 1}
    assert len({trial.name for trial in tiny(schemes={"x" * 300: a, "x" * 301: b})}) == 4


@pytest.mark.parametrize("name", CONTROL.values(), ids=CONTROL)
def test_control_characters_are_refused(name: str) -> None:
    for changes, field in (
        ({"name": name}, "name="),
        ({"schemes": {name: STANDARD}}, "schemes: "),
        ({"data": TINY["data"] | {"source": name}}, "data.source="),
    ):
        if (name, field) == ("", "data.source="):  # the folder it is typed in
            continue
        with pytest.raises(ConfigError) as caught:
            validate(TINY | changes, "x.yaml")
        assert str(caught.value).startswith(f"x.yaml: {field}")
        assert str(caught.value).isprintable()


def test_results_that_cannot_be_a_folder_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(tmp_path / ("x" * 300))
    arguments = ["--config", str(write_config(tmp_path)), "--runner", "local", "--results", where]
    for extra in ([], ["--dry-run"]):
        assert main([*arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert "--results" in error
        assert len(error.strip().splitlines()) == 1


def test_nasty_names_train_and_report_and_leave_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "deep" / "down" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    raw: dict[str, Any] = TINY | {"schemes": dict.fromkeys(["standard", *NASTY.values()], STANDARD)}
    raw["train"] = TINY["train"] | {"epochs": 1}
    config = here / "nasty.yaml"
    config.write_text(yaml.safe_dump(raw))
    assert plan(load(config))
    assert main(["--config", "nasty.yaml", "--dry-run"]) == 0
    assert main(["--config", "nasty.yaml", "--runner", "local"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert sorted(path.name for path in here.iterdir()) == ["nasty.yaml", "results"]
    assert [path.name for path in (here / "results").iterdir()] == ["tiny"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir() and path in here.parents) == [
        "deep",
        "down",
    ]
    assert len(results_of(here / "results" / "tiny")) == len(raw["schemes"])
    page = (here / "results" / "tiny" / "report.html").read_text()
    assert "<script>alert" not in page
    assert json.dumps("<script>alert(1)</script>") not in page


EVIL = "".join(map(chr, [*range(32), 127, *range(128, 160), 0x202E, 0x2066, 0x2028, 0xFEFF, 0xD800, 0xE0041]))


def test_the_sanitiser_knows_every_control_character() -> None:
    hidden = [
        c
        for c in map(chr, range(0x110000))
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    assert text.line("".join(hidden)) == ""
    assert text.lines("".join(hidden)).split() == []
    assert set(text.lines("".join(hidden))) == {" ", "\n", "\t"}
    assert text.line("a\tb\r\n  é 🦊 👩\u200d🔬 ") == "a b   é 🦊 👩\u200d🔬"
    for formula in ("=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r\n =1", "\x00=1", "\uff1d1"):
        assert text.cell(formula).startswith("'")
    assert text.cell("a=1, -2") == "a=1, -2"


IN_YAML = EVIL.replace("\ud800", "")  # which has no halves of characters


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with a failed trial."""
    results = make_experiment(tmp_path_factory.mktemp("study") / "tiny", {"standard": [0.7, 0.71], "repr": [0.72]})
    make_trial(results, scheme="repr", seed=1, done=2, error="no memory")
    return results


def test_nothing_of_a_trial_reaches_a_terminal_or_a_page_as_control(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / f"tiny{EVIL[1:9]}"
    shutil.copytree(study, results)
    for path in results.glob("trials/*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config |= {"scheme": f"=1+{IN_YAML}{config['scheme']}", "model": IN_YAML + "x", "experiment": f"@x{IN_YAML}"}
        config["settings"]["train"][IN_YAML] = IN_YAML
        path.write_text(yaml.safe_dump(config))
    [failed] = results.glob("trials/*/error.json")
    failed.write_text(json.dumps({"status": IN_YAML, "message": f"{IN_YAML}boom", "traceback": f"a\n{IN_YAML}"}))
    for path in results.glob("trials/*/log.txt"):
        path.write_bytes(bytes(range(256)))
    [done] = results.glob("trials/*standard*-s0-*/result.json")
    evil = {"commit": IN_YAML, "versions": {IN_YAML: IN_YAML}}
    done.write_text(json.dumps(json.loads(done.read_text()) | evil))
    (results / "trials" / f"odd{EVIL[1:20]}").mkdir()
    assert report_main([str(results), "--claims", f"none{IN_YAML}"]) == 2  # a line on the standard error
    assert report_main([str(results), "--baseline", f"=1+{IN_YAML}standard", "--pictures", "0"]) == 0
    said = capsys.readouterr()
    files = {path: path.read_text() for path in results.rglob("*") if path.suffix in (".md", ".csv", ".tex", ".html")}
    for where, content in {"out": said.out, "err": said.err, **files}.items():
        assert not {c for c in EVIL if c not in "\n\t" and c in content}, where
    for row in csv.reader((results / "comparison.csv").read_text().splitlines()):
        assert not [cell for cell in row if re.match(r"\s*[=+@]|-[^0-9]", cell)]


def _link(path: Path, elsewhere: Path) -> None:
    if path.is_dir():
        shutil.move(path, elsewhere)
    else:
        elsewhere.write_text("theirs")
        path.unlink(missing_ok=True)
    path.symlink_to(elsewhere)


def _pipe(path: Path, elsewhere: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _socket(path: Path, elsewhere: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):  # an address is short
        made.bind(path.name)


LED_ASTRAY = {"link": _link, "pipe": _pipe, "socket": _socket}
OF_A_TRIAL = (
    *("config.yaml", "epochs.jsonl", "cycles.jsonl", "result.json", "error.json", "log.txt"),
    "checkpoint-0001.pt",
)


@pytest.fixture
def planned(tmp_path: Path) -> tuple[list[str], Path, Path]:
    """Arguments of a launch that has a folder already, that folder, and that of one of its trials."""
    config = write_config(tmp_path)
    results = tmp_path / "results" / "tiny"
    arguments = ["--config", str(config), "--results", str(results.parent), "--runner", "local"]
    with hold(Folder(results), load(config)):
        pass
    folder = TrialFolder(results, plan(load(config))[0])
    folder.announce()
    return arguments, results, folder.path


@pytest.mark.parametrize("make", LED_ASTRAY.values(), ids=LED_ASTRAY)
@pytest.mark.parametrize("name", [".holder", ".lock", "experiment.yaml", "trials", "TRIAL", *OF_A_TRIAL])
def test_a_launch_is_not_led_out_of_its_folder(
    planned: tuple[list[str], Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path, Path], None],
) -> None:
    arguments, results, trial = planned
    path = trial if name == "TRIAL" else trial / name if name in OF_A_TRIAL else results / name
    make(path, tmp_path / "elsewhere")
    before = tree(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: is ")
    assert len(error.strip().splitlines()) == 1
    assert tree(tmp_path) == before


def tree(folder: Path) -> dict[str, str | bytes]:
    """What lies below a folder, and what is in it."""
    return {
        str(path): str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


OF_A_REPORT = ("plots", "report.html", "comparison.csv", "trials.parquet", "experiment.yaml", "trials", "TRIAL")
CASES = [(name, "link") for name in (*OF_A_REPORT, *OF_A_TRIAL)] + [
    (name, kind) for name in ("trials", "plots", "comparison.csv", "epochs.jsonl") for kind in ("pipe", "socket")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_report_is_not_led_out_of_its_folder(study: Path, tmp_path: Path, name: str, kind: str) -> None:
    results = tmp_path / "tiny"
    shutil.copytree(study, results)
    trial = next((results / "trials").glob("*standard*-s0-*"))
    path = trial if name == "TRIAL" else trial / name if name in OF_A_TRIAL else results / name
    LED_ASTRAY[kind](path, tmp_path / "elsewhere")
    outside = {p: content for p, content in tree(tmp_path).items() if not p.startswith(str(results))}
    pages = name in ("plots", "report.html", "log.txt")
    notes = ""
    try:
        notes = "\n".join(report([results], pictures=0, formats=["md", "csv", *["html"] * pages]).notes)
    except ValueError as error:
        assert name == "trials"
        notes = str(error)
    assert name in ("log.txt", "checkpoint-0001.pt") or f"{path} is " in notes
    assert {p: content for p, content in tree(tmp_path).items() if not p.startswith(str(results))} == outside
    if name == "log.txt":
        assert "theirs" not in (results / "report.html").read_text()


def listening(pid: int) -> set[str]:
    """The addresses on which a process and those that it started accept connections."""
    import ray  # noqa: F401 - brings psutil
    from psutil import CONN_LISTEN, Process

    family = [Process(pid), *Process(pid).children(recursive=True)]
    return {c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == CONN_LISTEN}


@pytest.mark.slow
def test_a_launch_listens_on_loopback_only(tmp_path: Path) -> None:
    config = write_config(tmp_path, train=TINY["train"] | {"epochs": 5000})
    command = [sys.executable, "-m", "repr_ray.launch", "--config", str(config), "--results", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launch:
        try:
            deadline = time.monotonic() + 180
            while not list(tmp_path.glob("tiny/trials/*/checkpoint-*")):
                assert time.monotonic() < deadline
                assert launch.poll() is None
                time.sleep(0.2)
            assert {ip.removeprefix("::ffff:") for ip in listening(launch.pid)} == {"127.0.0.1"}
        finally:
            launch.send_signal(signal.SIGINT)
