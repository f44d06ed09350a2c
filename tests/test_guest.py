"""A user who is not root, with a read-only home, in a folder with spaces and umlauts."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import Guest, possible

pytestmark = pytest.mark.skipif(not possible(), reason="root may not make mounts here, so it cannot become a guest")

CYCLES = [f"schemes.{name}.{phase}=1" for name in ("repr", "inverse") for phase in ("s1", "s2")]
SHORT = ["seeds=[0]", "train.epochs=3", *CYCLES]
TABLE = "standard  1"


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest below the temporary folder, which is accessible to all users."""
    base = Path(tempfile.mkdtemp(prefix="rr", dir="/tmp"))
    base.chmod(0o755)
    yield Guest(base)
    shutil.rmtree(base)


@pytest.mark.slow
def test_the_quickstart_and_the_report_work_for_a_guest(guest: Guest) -> None:
    done = guest.run(sys.executable, "-m", "repr_ray.launch", "--runner", "local", *SHORT)
    assert done.returncode == 0, done.stdout
    assert TABLE in done.stdout
    assert "atplotlib" not in done.stdout  # no complaint of a library about the home
    results = guest.folder / "results" / "quickstart"
    assert (results / "report.html").exists()
    done = guest.run(sys.executable, "-m", "repr_ray.report", results, "--output", "Übersicht der Läufe")
    assert done.returncode == 0, done.stdout
    assert TABLE in done.stdout
    assert (guest.folder / "Übersicht der Läufe" / "plots").is_dir()
    assert not any(guest.home.iterdir())


@pytest.mark.slow
def test_a_job_on_the_local_cluster_works_for_a_guest(guest: Guest) -> None:
    """Its token lies in the cluster's folder, since the home cannot hold it."""
    script = Path(__file__).parent.parent / "cluster" / "local.sh"
    base = guest.folder.parent
    place = {"LOCAL_CLUSTER": str(base / "c"), "LOCAL_CLUSTER_PORT": "29870", "RAY_AUTH_MODE": "token"}
    base.chmod(0o777)
    started = guest.run("bash", script, "start", "1", "--num-cpus=2", timeout=300, **place)
    try:
        assert started.returncode == 0, started.stdout
        exports = "\n".join(line for line in started.stdout.splitlines() if line.startswith("export "))
        assert "RAY_AUTH_TOKEN_PATH=" in exports
        submit = f'{exports}; ray job submit --working-dir . --runtime-env "$LOCAL_CLUSTER/runtime_env.yaml"'
        command = f"{submit} -- python -m repr_ray.launch {' '.join(SHORT)}"
        done = guest.run("bash", "-c", command, timeout=400, **place)
        assert done.returncode == 0, done.stdout
        assert TABLE in done.stdout
        assert (guest.folder / "results" / "quickstart" / "report.html").exists()
    finally:
        stopped = guest.run("bash", script, "stop", **place)
    assert stopped.returncode == 0, stopped.stdout
    assert not Path(place["LOCAL_CLUSTER"]).exists()
