"""The design of an experiment with looks, from its stored settings."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import ValidationError

from repr_ray.study.config import Looks


class Design(NamedTuple):
    """The numbers of seeds after which a study is looked at, and its margin in percentage points, if it has one."""

    looks: tuple[int, ...]
    margin: float | None


def design_of(seeds: Any, where: object, notes: list[str]) -> Design | None:
    """The design in `seeds` of a stored experiment; None for a list of seeds, and, with a note, for invalid looks."""
    if not isinstance(seeds, dict):
        return None
    try:
        found = Looks.model_validate(seeds)
    except ValidationError:
        notes.append(f"{where}: the looks of its experiment cannot be read: judged as if its seeds had been fixed")
        return None
    return Design(found.looks, found.margin)


def common(designs: Iterable[Design | None], notes: list[str]) -> Design | None:
    """The common design of joined experiments, if any; otherwise a note if some have one."""
    found = set(designs)
    if len(found) < 2:
        return next(iter(found), None)
    notes.append(
        "joined experiments were looked at after different numbers of seeds: they are judged as if their seeds had"
        " been fixed, and the p values and intervals do not know of the looks; report on each by itself"
    )
    return None
