"""Settings of the whole suite."""

import os
from collections.abc import Iterator

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded data goes where it is thrown away, and starts empty."""
    os.environ["REPR_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
