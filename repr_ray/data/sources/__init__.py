"""Where images come from. To add a source: one function from settings to `Source`, a line here and its name in facts.
One of your own needs no line: `data.source=my_module:name`.

A function only looks for files; what it returns reads them.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repr_ray.components import digests, is_path
from repr_ray.data.source import Source
from repr_ray.data.sources.digits import digits
from repr_ray.data.sources.folder import folder
from repr_ray.data.sources.hub import hub
from repr_ray.data.sources.own import own
from repr_ray.data.sources.storage import storage
from repr_ray.data.sources.torchvision import torchvision
from repr_ray.study.data import Data

SOURCES: Mapping[str, Callable[[Data], Source]] = {
    "digits": digits,
    "torchvision": torchvision,
    "hf": hub,
    "uri": storage,
    "folder": folder,
}


OWN = "own"
"""The kind of sources of one's own."""


def source_of(data: Data) -> tuple[Source, list[Any]]:
    """The source that settings name, and what identifies the files behind it and the code that reads them.

    Raises ConfigError for what is not there.
    """
    if kind_of(data) == OWN:
        found = own(data)
        return found, [data.source, digests(data.source), version("pillow"), found.stamps]
    read = SOURCES[kind_of(data)]
    found = read(data)
    code = hashlib.sha256(Path(inspect.getfile(read)).read_bytes()).hexdigest()
    return found, [data.source, code, version("pillow"), found.stamps]


def kind_of(data: Data) -> str:
    """The name of a source in `SOURCES`."""
    if data.name == "digits" and data.source == "torchvision":  # the default
        return "digits"
    if "://" in data.source:
        return "uri"
    kind = data.source.partition(":")[0]
    if kind in SOURCES:
        return kind
    return OWN if is_path(data.source) else "folder"
