"""The settings of stored trials and of shipped recipes, as flat, comparable values."""

from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from repr_ray.method.settings import AnyScheme
from repr_ray.models.settings import Model
from repr_ray.records import flatten
from repr_ray.study.config import Train
from repr_ray.study.data import Data
from repr_ray.study.plan import plan
from repr_ray.study.reading import load, shipped

_BLOCKS = {"data": Data, "model": Model, "train": Train, "scheme": AnyScheme}


def whole(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a stored trial with fields that its version did not have at their defaults.

    A block that this version cannot read, or that names a plug-in, stays unchanged: nothing is imported.
    """
    return {name: _whole(name, block) if name in _BLOCKS else block for name, block in settings.items()}


def _whole(name: str, block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    if any(":" in text for key in block if key != "source" for text in _texts(block[key])):
        return block
    try:
        read = _adapter(name).validate_python(block).model_dump(mode="json")
    except ValueError:
        return block
    return read | {key: block[key] for key in ("source",) if key in block}


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_BLOCKS[name])


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Flat settings without the source of the data."""
    return {name: value for name, value in flatten(whole(settings)).items() if name != "data.source"}


@cache
def trials_of(recipe: str) -> tuple[tuple[str, str, str, dict[str, Any]], ...]:
    """Data set, network, scheme and flat settings of the trials of a recipe; none without such a recipe.

    A recipe is the name of a shipped config (`recipes/paper`) or a path (`mine.yaml`).
    """
    if recipe not in shipped() and not (recipe.endswith(".yaml") and Path(recipe).exists()):
        return ()
    trials = plan(load(recipe))
    return tuple(
        (trial.data.name, trial.model.label, trial.scheme.split(" ")[0], comparable(trial.record()["settings"]))
        for trial in trials
        if trial.seed == trials[0].seed
    )
