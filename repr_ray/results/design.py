"""The design of an experiment with looks, from its stored settings."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from repr_ray.results.sequential import check


class Design(NamedTuple):
    """The numbers of seeds after which a study is looked at, and its margin in percentage points, if it has one."""

    looks: tuple[int, ...]
    margin: float | None


def design_of(seeds: Any) -> Design | None:
    """The design in `seeds` of a stored experiment; None for a list of seeds or invalid values."""
    if not isinstance(seeds, dict):
        return None
    try:
        design = Design(tuple(int(look) for look in seeds["looks"]), seeds.get("margin") and float(seeds["margin"]))
        check(design.looks)
    except (KeyError, TypeError, ValueError):
        return None
    return design


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
