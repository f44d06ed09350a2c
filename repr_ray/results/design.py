"""The design of an experiment with looks, from its stored settings."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from repr_ray.study.config import Looks


def design_of(seeds: Any, where: object, notes: list[str]) -> Looks | None:
    """The design in `seeds` of a stored experiment; None for a list of seeds, and, with a note, for invalid looks."""
    if not isinstance(seeds, dict):
        return None
    try:
        return Looks.model_validate(seeds)
    except ValidationError:
        notes.append(f"{where}: the looks of its experiment cannot be read: judged as if its seeds had been fixed")
        return None


def common(designs: Iterable[Looks | None], notes: list[str]) -> Looks | None:
    """The common design of joined experiments, if any; otherwise a note if some have one."""
    found = set(designs)
    if len(found) < 2:
        return next(iter(found), None)
    notes.append(
        "joined experiments were looked at after different numbers of seeds: they are judged as if their seeds had"
        " been fixed, so the p values and intervals take no account of the looks; report on each by itself"
    )
    return None
