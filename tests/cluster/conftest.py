"""The cluster that the tests of a file share."""

import shutil
from collections.abc import Iterator

import pytest
from local_cluster import LocalCluster


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[LocalCluster]:
    """A head without CPUs and two workers of two."""
    cluster = LocalCluster()
    try:
        cluster.start(2, "--num-cpus=2")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.base)


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster of the file, for one test."""
    yield shared_cluster
    shared_cluster.end_launches()
