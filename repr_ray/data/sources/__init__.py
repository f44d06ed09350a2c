"""Sources of images. To add one: a function from settings to `Source`, and an entry in `repr_ray.study.data.SOURCES`.

A plug-in needs no entry: `data.source=my_module:name`. The function only finds files; the `Source` reads them.
"""

import hashlib
import inspect
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from repr_ray.data.source import Source, Splits
from repr_ray.plug_ins import digests, first_line
from repr_ray.study.config import ConfigError
from repr_ray.study.data import OWN, SOURCE, SOURCES, Data


def source_of(data: Data) -> tuple[Source, list[Any]]:
    """The source that settings name, and the identity of its files and of the code that reads them.

    Raises ConfigError if it does not exist.
    """
    found = _own(data) if data.kind == OWN else SOURCE.get(data.kind)(data)
    code = digests(data.source) if data.kind == OWN else _code(data.kind)
    return found, [data.source, code, version("pillow"), found.stamps]


@cache
def _code(kind: str) -> str:
    """The digest of the modules that read a source of this kind."""
    own = Path(inspect.getfile(SOURCE.get(kind))).name
    modules = {own} if SOURCES[kind].named else {own, "folder.py", "parquet.py", "torchvision.py"}
    texts = ((Path(__file__).parent / name).read_bytes() for name in sorted(modules))
    return hashlib.sha256(b"".join(texts)).hexdigest()


def _own(data: Data) -> Source:
    """The source that a plug-in returns. Raises ConfigError for its exceptions."""

    def asked(what: Any, argument: Any, expected: type) -> Any:
        try:
            found = what(argument)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"data.source={data.source}: {first_line(error)}") from error
        if not isinstance(found, expected):
            raise ConfigError(
                f"data.source={data.source}: made {type(found).__name__}, expected repr_ray.data.source."
                f"{expected.__name__}"
            )
        return found

    source: Source = asked(SOURCE.get(data.source), data, Source)

    def read(scratch: Path) -> Splits:
        splits: Splits = asked(source.read, scratch, Splits)
        return splits

    return Source(read, source.stamps)
