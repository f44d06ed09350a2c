"""The design of an experiment with looks, from its stored settings."""

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from repr_ray.study.config import Looks

SEVERAL = "several looks"  # in place of the seeds, in the tables of experiments that were joined
AS_FIXED = (
    "joined experiments were looked at after different numbers of seeds: they are judged as if their seeds had been"
    " fixed, so the p values and intervals take no account of the looks; report on each by itself"
)


def design_of(seeds: Any, where: object, notes: list[str]) -> Looks | str | None:
    """The design in `seeds` of a stored experiment; None for a list of seeds, and, with a note, for invalid looks.

    It is `SEVERAL` for the tables of joined experiments that have no common one.
    """
    if not isinstance(seeds, dict):
        return SEVERAL if seeds == SEVERAL else None
    try:
        return Looks.model_validate(seeds)
    except ValidationError:
        notes.append(f"{where}: the looks of its experiment cannot be read: judged as if its seeds had been fixed")
        return None


def common(designs: Iterable[Looks | str | None], notes: list[str]) -> Looks | str | None:
    """The common design of joined experiments, if any; `SEVERAL`, with a note, if only some have it."""
    found = set(designs)
    if len(found) < 2 and SEVERAL not in found:
        return next(iter(found), None)
    notes.append(AS_FIXED)
    return SEVERAL
