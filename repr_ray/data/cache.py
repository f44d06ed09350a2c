"""The folder of a machine where decoded data and downloads are kept."""

import os
from pathlib import Path

from repr_ray.study.config import ConfigError


def cache_folder() -> Path:
    """`$REPR_RAY_CACHE`, else a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("REPR_RAY_CACHE", f"{base}/repr_ray")).expanduser()


def make(folder: Path) -> Path:
    """Make a folder in the cache. Raises ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "it cannot be written", str(folder))
    except OSError as error:
        raise unusable(error) from None
    return folder


def unusable(error: OSError) -> ConfigError:
    """The line for a cache that cannot be used."""
    reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return ConfigError(f"REPR_RAY_CACHE={cache_folder()}: {reason}; name a folder that can be written")
