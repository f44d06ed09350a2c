"""A source in the user's own file: `data.source=my_module:name`."""

from pathlib import Path
from typing import Any

from repr_ray.data.source import Source, Splits
from repr_ray.plug_ins import first_line
from repr_ray.study.config import ConfigError
from repr_ray.study.data import SOURCE, Data


def own(data: Data) -> Source:
    """The source that a user's function returns. Raises ConfigError for its exceptions."""

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
