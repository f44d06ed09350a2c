"""The cluster files: valid, safe by default, and of the versions that the project pins."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support import ROOT

from repr_ray import __version__
from repr_ray.launch import _parser
from repr_ray.study.reading import load

CLUSTER = ROOT / "cluster"
RAY_UP = ("aws.yaml", "gcp.yaml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = re.search(r"^ray\[?.*?==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_accepts(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    prepared.setdefault("cluster_synced_files", [])
    validate_config(prepared)
    assert prepared["setup_commands"] == [], "the defaults would install another Ray"


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_trains_on_spot_workers_only_and_listens_on_loopback(name: str) -> None:
    config = read(name)
    kinds = config["available_node_types"]
    head, worker = kinds[config["head_node_type"]], kinds["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert "spot" not in str(head["node_config"]).lower()
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    assert "spot" in str(worker["node_config"]).lower()
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    shared = read("runtime_env.yaml")["env_vars"]["REPR_RAY_RESULTS"]
    assert any(option == "--volume /mnt/shared:/mnt/shared" for option in config["docker"]["run_options"])
    assert Path(shared).is_relative_to("/mnt/shared")


def test_rayjob_fits_its_schema() -> None:
    schema = yaml.safe_load(Path(__file__).with_name("rayjob.schema.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    job = read("rayjob.yaml")
    jsonschema.validate(job, schema)
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"]["mode"] == "token"
    for pod in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"].items() <= read("runtime_env.yaml")["env_vars"].items()
    concurrent = next(word for word in spec["entrypoint"].split() if word.startswith("resources.concurrent="))
    assert int(concurrent.partition("=")[2]) == cluster["workerGroupSpecs"][0]["maxReplicas"]


def test_scripts_pass_shellcheck() -> None:
    scripts = [CLUSTER / "local.sh", CLUSTER / "slurm.sbatch", ROOT / ".ci" / "run"]
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([shellcheck, "--severity=style", *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_cluster_of_several_nodes_asks_for_a_token() -> None:
    """Their ports are open to the network, whatever address the dashboard has."""
    for name, line in {
        "local.sh": "export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}",
        "slurm.sbatch": "export RAY_AUTH_MODE=token",
        "aws.yaml": "--env RAY_AUTH_MODE=token",
        "gcp.yaml": "--env RAY_AUTH_MODE=token",
        "rayjob.yaml": "mode: token",
    }.items():
        assert line in (CLUSTER / name).read_text(), name
    for path in CLUSTER.iterdir():
        hosts = re.findall(r"--dashboard-host[= ](\S+)", path.read_text())
        assert set(hosts) <= {"127.0.0.1"}, path.name
        assert "0.0.0.0" not in path.read_text(), path.name  # noqa: S104 - looked for, not bound


def test_shell_variables_in_the_scripts_are_quoted() -> None:
    """What a user types reaches a command as one word: "$@", or an element of an array."""
    for name in ("local.sh", "slurm.sbatch"):
        for line in (CLUSTER / name).read_text().splitlines():
            if not line.lstrip().startswith("#"):
                assert not re.search(r"(?<!\")\$[@*]|\beval\b|\bbash -c\b", line), f"{name}: {line}"


def test_versions_do_not_drift() -> None:
    """One Ray and one Python for client, image and operator; the image is tagged with our version."""
    major_minor = ".".join(RAY.split(".")[:2])
    assert any(d.startswith("ray[") and f">={major_minor}," in d for d in PROJECT["dependencies"])
    python = re.search(r"--python-version ([\d.]+)", (ROOT / "Makefile").read_text())[1].replace(".", "")
    assert f"\nFROM rayproject/ray:{RAY}-py{python}\n" in (CLUSTER / "Dockerfile").read_text()
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == RAY
    images = {
        (path.name, image)
        for path in CLUSTER.iterdir()
        for image in re.findall(r"\S+/repr_ray:[\w.]+", path.read_text())
    }
    assert {name for name, _ in images} == {"Dockerfile", "README.md", "rayjob.yaml", *RAY_UP}
    assert {image for _, image in images} == {f"ghcr.io/OWNER/repr_ray:{__version__}"}


def test_commands_in_the_files_can_be_typed() -> None:
    """Every launch command parses, and every file it names is there."""
    commands = [
        words.split()
        for path in CLUSTER.iterdir()
        for words in re.findall(r"(?:-m repr_ray\.launch|slurm\.sbatch) (--config [^`|\n]*)", path.read_text())
    ]
    assert len(commands) >= 3
    for command in commands:
        args = _parser("launch").parse_intermixed_args(command)
        load(ROOT / args.config, args.overrides)
    for path in CLUSTER.iterdir():
        for name in re.findall(r"cluster/([\w.]+)", path.read_text()):
            assert (CLUSTER / name).exists(), f"{path.name} names cluster/{name}"
