"""The code, versions and hardware that a result was made with."""

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
    """The commit of the checkout that contains a package, with `-dirty` for uncommitted changes; None without one.

    A repository that only surrounds an installed package, such as one with a virtual environment in it, is ignored.
    """
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")).resolve() != package.parent.resolve():
            return None
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        # Not describe --dirty: it writes the index, and a trial killed then would leave the checkout locked.
        dirty = _git(package, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return _git(package, "describe", "--always", "--abbrev=12") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    """The output of git in a folder; GIT_ variables, as set in a hook, are removed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=own)  # noqa: S603
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that a result depends on; None for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware(device: "torch.device") -> dict[str, Any]:
    """The processor, its cores, and the GPU if one was used."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": capabilities.get("num_logical_cores"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
