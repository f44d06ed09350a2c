"""The tests of a GPU: each may measure something, and the run ends with a table of all of them.

Without a GPU the tests that can run on a CPU do, so that they are known to work; `make test-gpu` needs a GPU.
"""

import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

_measured: dict[str, list[str]] = {}


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the CPU where there is none and none is needed."""
    if not torch.cuda.is_available() and os.environ.get("REPR_RAY_NEEDS_GPU"):
        pytest.exit("make test-gpu: torch finds no CUDA device", returncode=2)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The GPU; the test is skipped where there is none."""
    if device.type != "cuda":
        pytest.skip("no CUDA device")
    return device


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Puts a text beside the test in the table."""
    return _measured.setdefault(request.node.nodeid, []).append


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> Iterator[None]:
    """float32 is float32: no TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A Markdown table to send back, with the hardware and the versions."""
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if "gpu/" in report.nodeid and getattr(report, "when", "call") in ("call", "setup"):
                why = report.longrepr[2].removeprefix("Skipped: ") if outcome == "skipped" else ""
                name = report.nodeid.partition("::")[2]
                rows.append(
                    f"| {name} | {outcome} | {'; '.join([why, *_measured.get(report.nodeid, [])]).strip('; ')} |"
                )
    if not rows or not os.environ.get("REPR_RAY_NEEDS_GPU"):
        return
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none"
    terminalreporter.write_sep("-", "to send back")
    terminalreporter.write_line(
        f"GPU: {gpus}; torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}\n"
    )
    terminalreporter.write_line("| test | outcome | measured |\n|:---|:---|:---|")
    for row in rows:
        terminalreporter.write_line(row)
