"""What a result needs beside it: the code, the versions and the hardware that it was made with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import repr_ray

if TYPE_CHECKING:
    import torch

PACKAGES = ("repr_ray", "torch", "torchvision", "ray", "numpy")


def commit(package: Path = Path(repr_ray.__file__).parent) -> str | None:
    """The commit of the checkout that a package lies in, marked when it has uncommitted changes; None outside one.

    A repository that only surrounds the package, as the one that a virtual environment lies in, is none of its own.
    """
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")).resolve() != package.parent.resolve():
            return None
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        return _git(package, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    """What git prints about a folder, whatever repository the environment names (in a hook, for example)."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=own)  # noqa: S603
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages a result depends on; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware(device: "torch.device") -> dict[str, Any]:
    """What a timing needs beside it: processor, its cores, and the GPU if one was used."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": capabilities.get("num_logical_cores"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
