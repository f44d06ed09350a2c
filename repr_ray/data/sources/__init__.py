"""Sources of images. To add one: a function from settings to `Source`, a line here and its name in facts.

A plug-in needs no line: `data.source=my_module:name`. The function only finds files; the `Source` reads them.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repr_ray.data.source import Source
from repr_ray.data.sources.digits import digits
from repr_ray.data.sources.folder import folder
from repr_ray.data.sources.hub import hub
from repr_ray.data.sources.own import own
from repr_ray.data.sources.storage import storage
from repr_ray.data.sources.torchvision import torchvision
from repr_ray.plug_ins import digests
from repr_ray.study.data import SOURCE, Data

SOURCES: Mapping[str, Callable[[Data], Source]] = {
    "digits": digits,
    "torchvision": torchvision,
    "hf": hub,
    "uri": storage,
    "folder": folder,
}


OWN = "own"
"""The kind of plug-in sources."""


def source_of(data: Data) -> tuple[Source, list[Any]]:
    """The source that settings name, and the identity of its files and of the code that reads them.

    Raises ConfigError if it does not exist.
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
    return OWN if SOURCE.is_plug_in(data.source) else "folder"
