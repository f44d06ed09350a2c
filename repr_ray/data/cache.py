"""The folder of a machine where decoded data and downloads are kept."""

import os
import tempfile
from pathlib import Path

from repr_ray.study.config import ConfigError


def cache_folder() -> Path:
    """`$REPR_RAY_CACHE`, else `repr_ray` in the user's cache, else a folder of this user in the temporary folder.

    The last is used if the home folder cannot be written and has no cache yet.
    """
    if named := os.environ.get("REPR_RAY_CACHE"):
        return Path(named).expanduser()
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "repr_ray"
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return folder if nearest == folder or os.access(nearest, os.W_OK | os.X_OK) else _temporary()


def make(folder: Path) -> Path:
    """Make a folder in the cache. Raises ConfigError if that fails, or if another user owns the temporary one."""
    try:
        if folder.is_relative_to(temporary := _temporary()):
            temporary.mkdir(mode=0o700, exist_ok=True)
            if temporary.is_symlink() or temporary.stat().st_uid != os.getuid():
                raise PermissionError(13, "it belongs to another user", str(temporary))
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


def _temporary() -> Path:
    return Path(tempfile.gettempdir(), f"repr_ray-{os.getuid()}")
