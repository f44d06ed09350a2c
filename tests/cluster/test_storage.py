"""Results on object storage, and a cluster whose nodes have no key for it."""

import re
import sys
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from s3 import keys_needed, serve, uri
from support import write_config

pytestmark = pytest.mark.slow


def test_a_node_that_may_not_read_the_results(cluster: LocalCluster, tmp_path: Path) -> None:
    """One line names the node and what to set; nothing is trained."""
    with serve() as address, keys_needed(address) as keys:
        arguments = ("--config", write_config(tmp_path), "--results", uri(address, "results"))
        done = cluster.run(sys.executable, "-m", "repr_ray.launch", *arguments, **keys)
    assert done.returncode == 2, done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.match(r"--results: node [\d.]+ cannot read what the launcher wrote", last)
    assert "s3://bucket/results/tiny cannot be opened" in last
    assert "AWS_ACCESS_KEY_ID" in last
    assert "epoch 1/8" not in done.stdout
