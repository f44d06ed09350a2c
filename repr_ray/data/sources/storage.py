"""Folders on object storage: copied to this machine once, then read like any folder."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from repr_ray.data.cache import cache_folder, make
from repr_ray.data.source import Source, Splits
from repr_ray.data.sources.folder import folder_at
from repr_ray.storage.folder import filesystem, redact
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data


def storage(data: Data) -> Source:
    """A URI that pyarrow opens (`s3://`, `gs://`, `file://`)."""
    from pyarrow import fs

    try:
        files, base = filesystem(data.source)
        listed = files.get_file_info(fs.FileSelector(base, recursive=True))
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.source={redact(data.source)}: {' '.join(str(error).split())}") from None
    found = sorted((i.path.removeprefix(base).lstrip("/"), i.size, i.mtime_ns) for i in listed if i.is_file)
    found = [entry for entry in found if not any(part.startswith(".") for part in entry[0].split("/"))]
    if any(".." in name.split("/") for name, _, _ in found):
        raise ConfigError(f"data.source={redact(data.source)}: the name of a file has .., which is not allowed")
    key = hashlib.sha256(json.dumps([data.source, found]).encode()).hexdigest()[:12]

    def read(scratch: Path) -> Splits:
        copy = make(cache_folder() / "storage") / key
        with FileLock(copy.with_suffix(".lock")):
            if not copy.exists():
                partial = copy.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                _download(files, base, [name for name, _, _ in found], partial, data.source)
                partial.rename(copy)
        try:
            return folder_at(copy, data).read(scratch)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    return Source(read, [key])


def _download(files: Any, base: str, names: list[str], target: Path, source: str) -> None:
    def fetch(name: str) -> None:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.open_input_stream(f"{base}/{name}") as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 22)

    target.mkdir()
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(fetch, names))
    except OSError as error:
        raise ConfigError(f"data.source={redact(source)}: {' '.join(str(error).split())}") from None
