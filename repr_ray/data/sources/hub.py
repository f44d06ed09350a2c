"""Data sets of the Hugging Face hub."""

import os
from dataclasses import replace
from pathlib import Path

from repr_ray.data.cache import cache_folder
from repr_ray.data.source import Source
from repr_ray.data.sources.folder import IMAGES, folder_at
from repr_ray.study.config import ConfigError
from repr_ray.study.data import Data


def hub(data: Data) -> Source:
    """`hf:OWNER/NAME[@REVISION]`: the local copy, downloaded if there is none."""
    name, _, revision = data.source.removeprefix("hf:").partition("@")
    path = _snapshot(data.source, name, revision or None)
    found = folder_at(path, data)
    return replace(found, stamps=[path.name, *found.stamps])  # the folder has the name of the commit


def _snapshot(source: str, name: str, revision: str | None) -> Path:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["*.parquet", "README.md", *(f"*{suffix}" for suffix in IMAGES)]
    try:
        for offline in (True, False):
            try:
                path = snapshot_download(
                    name,
                    repo_type="dataset",
                    revision=revision,
                    cache_dir=cache_folder() / "hub",
                    local_files_only=offline,
                    allow_patterns=wanted,
                )
            except LocalEntryNotFoundError:
                if not offline:
                    raise
            else:
                return Path(path)
    except Exception as error:  # the network, the hub's answers, the disk: its client raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"data.source={source}: cannot be downloaded ({type(error).__name__}: {reason}); check the name, set"
            " HF_TOKEN where the data set asks for it, or name a folder that holds it"
        ) from None
    raise AssertionError("unreachable")
