"""`ray job submit`, `logs` and `stop` on a head and two worker nodes, typed as in cluster/README.md."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import BIN, LocalCluster
from support import results_of, tiny, write_config

from repr_ray.runners import local

pytestmark = pytest.mark.slow

LONG = {"epochs": 300, "batch_size": 64, "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}}


def submit(*arguments: str | Path) -> list[str | Path]:
    """The command of cluster/README.md, with a folder that the nodes of this test share."""
    head = (BIN / "ray", "job", "submit", "--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml")
    return [*head, *arguments]


LAUNCH = ("--", "python", "-m", "repr_ray.launch")


def test_a_job_ends_with_the_comparison_and_sends_little(cluster: LocalCluster, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    job = cluster.run(*submit("--submission-id", "good", *LAUNCH, "--config", config, "--results", tmp_path / "r"))
    assert job.returncode == 0, job.stdout
    last_screen = "\n".join(job.stdout.splitlines()[-40:])
    assert "repr" in last_screen
    assert "baseline" in last_screen
    assert "'good' succeeded" in last_screen
    assert len(results_of(tmp_path / "r" / "tiny")) == 2
    assert "cycle 1: dropped 4 of 16 filters" in job.stdout
    logs = cluster.run(BIN / "ray", "job", "logs", "good", check=True).stdout
    assert "2 of 2 trials to run" in logs
    [sent] = cluster.folder.glob("head/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (sent / "repr_ray" / "launch.py").exists()
    assert sum(path.stat().st_size for path in sent.rglob("*")) < 2_000_000
    assert not (sent / "tests").exists()


def test_a_job_fails_with_its_trials_and_says_why(cluster: LocalCluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, grid={"train.optimizer.learning_rate": [1e9]})
    job = cluster.run(*submit(*LAUNCH, "--config", config, "--results", tmp_path))
    assert job.returncode == 1
    last_screen = "\n".join(job.stdout.splitlines()[-45:])
    assert "Diverged: the training loss of epoch 1" in last_screen
    assert "failed" in last_screen


def test_results_inside_the_jobs_own_folder_are_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.run(*submit(*LAUNCH, "--config", write_config(tmp_path), "--results", "results"))
    assert job.returncode == 1
    assert "is in the job's copy of the working folder" in job.stdout


@pytest.fixture
def undisturbed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Checksums of the long trials, trained in this process."""
    local.run(tiny(train=LONG), tmp_path / "undisturbed", lambda message: None, {})
    yield {name: result["checksum"] for name, result in results_of(tmp_path / "undisturbed").items()}


def test_a_stopped_job_is_resumed_by_the_same_command(
    cluster: LocalCluster, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    arguments = (*LAUNCH, "--config", write_config(tmp_path, train=LONG), "--results", tmp_path)
    cluster.run(*submit("--no-wait", "--submission-id", "stopped", *arguments), check=True)
    await_checkpoint(tmp_path, 20)
    cluster.run(BIN / "ray", "job", "stop", "stopped", check=True)
    logs = cluster.run(BIN / "ray", "job", "logs", "stopped", check=True).stdout
    assert "terminated; the same command resumes from the last checkpoints" in logs
    assert len(results_of(tmp_path / "tiny")) < 2
    job = cluster.run(*submit(*arguments))
    assert job.returncode == 0, job.stdout
    assert "resumes at epoch" in job.stdout
    found = {name: result["checksum"] for name, result in results_of(tmp_path / "tiny").items()}
    assert found == undisturbed
    left = cluster.run(BIN / "ray", "list", "placement-groups", "--format", "json", check=True).stdout
    groups = json.loads(left[left.index("[") :])
    assert all(group["state"] == "REMOVED" for group in groups), "leaked placement groups"


def await_checkpoint(results: Path, epoch: int) -> None:
    """Wait until a trial has trained that far."""
    deadline = time.monotonic() + 300
    while not any(int(p.stem.split("-")[1]) >= epoch for p in results.glob("tiny/trials/*/checkpoint-*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_token_authentication_of_head_node_and_client(tmp_path: Path) -> None:
    """RAY_AUTH_MODE=token as in cluster/README.md; without the token, a submission is refused."""
    token = tmp_path / "token"
    cluster = LocalCluster()
    cluster.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    token.write_text("0123456789abcdef" * 4)
    try:
        cluster.start(1, "--num-cpus=1")
        with_token = cluster.run(*submit("--", "python", "-c", "print('hello')"))
        assert with_token.returncode == 0, with_token.stdout
        without = cluster.run(*submit("--", "python", "-c", "print('hello')"), RAY_AUTH_MODE="disabled")
        assert without.returncode != 0
        assert "nauthorized" in without.stdout or "uthentication" in without.stdout
    finally:
        cluster.stop()
        subprocess.run(["rm", "-rf", cluster.base], check=True)
