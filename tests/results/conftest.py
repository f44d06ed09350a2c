"""Results folders for the tests of what is made from them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from studies import make_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Path]:
    """Make a results folder under the test's own directory: `experiment({"repr": [0.7, 0.8]})`."""

    def make(accuracies: Mapping[str, Sequence[float]], name: str = "study", **trial: Any) -> Path:
        return make_experiment(tmp_path / name, accuracies, **trial)

    return make
