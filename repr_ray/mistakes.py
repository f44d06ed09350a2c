"""Errors of settings in words: the field, the problem, and the nearest field."""

import difflib
import re
from functools import cache
from typing import Any, get_args

from pydantic import ValidationError

from repr_ray.components import Component, Settings

MOST_ERRORS = 20  # errors of a config that are listed


def shortened(text: str, longest: int = 200) -> str:
    """A text on one line of a reasonable length, control characters escaped."""
    shown = text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def in_words(error: ValidationError, raw: Any, root: type[Settings]) -> list[str]:
    """A line for each error that pydantic found in `raw`, settings of class `root`; of nested ones the innermost."""
    wrong: dict[str, dict[str, None]] = {}
    errors = error.errors(include_url=False, include_input=False)
    inside = {one["loc"][:depth] for one in errors for depth in range(len(one["loc"]))}
    for one in [one for one in errors if one["loc"] not in inside][:MOST_ERRORS]:
        field, message = _what_is_wrong(one, raw, root)
        wrong.setdefault(field, {})[message] = None
    lines = [
        f"{field}: {', or '.join(messages)}" if field else ", ".join(messages) for field, messages in wrong.items()
    ]
    if (more := len(errors) - MOST_ERRORS) > 0:
        lines.append(f"and {more:,} more errors")
    return [shortened(line, 1_000) for line in lines]


def _what_is_wrong(error: Any, raw: Any, root: type[Settings]) -> tuple[str, str]:
    """The field, with its value where that is wrong, and the message."""
    path: list[str] = []
    classes: list[type[Settings]] = [root]
    for part in error["loc"]:
        inside = [c.model_fields[part].annotation for c in classes if part in c.model_fields]
        is_tag = not inside and not (isinstance(raw, dict | list) and _has(raw, part))
        if not classes and not _has(raw, part):
            break  # a branch of `int | "auto"`
        if is_tag:  # the branch of a union, which the user did not write
            continue
        path.append(str(part))
        raw = raw[part] if _has(raw, part) else None
        if inside:
            classes = [c for annotation in inside for c in _settings_in(annotation)]
        classes = [_of_kind(c, raw) for c in classes]
    field, message = ".".join(path), _MESSAGES.get(error["type"], error["msg"].removeprefix("Value error, "))
    if error["type"] == "extra_forbidden":
        names = [name for c in classes for name in c.model_fields]
        known = ", ".join(dict.fromkeys(names))
        everywhere = _fields(root)
        near = nearest(path[-1], names, everywhere)
        keys = [key for key in raw if isinstance(key, str)] if isinstance(raw, dict) else []
        meant = [nearest(key, [], everywhere) or "" for key in keys]  # optimizer.lr: the name inside says more
        near = next((one for one in meant if near and one.startswith(f"{near}.")), near)
        return field, "unknown field" + (f"; did you mean {near}?" if near else f"; there are {known}")
    if error["type"] == "kind_missing":
        return field, message
    if error["type"] == "missing":
        return field, "missing"
    if not field:
        return "", message
    if isinstance(raw, dict) and any(re.split(r"\W", message)[0] in c.model_fields for c in classes):
        return "", f"{field}.{message}"  # of fields that do not go together: the message names them
    return f"{field}={shortened(repr(raw))}", f"{message[0].lower()}{message[1:]}"


_TYPES = {
    "tuple_type list_type": "expected a list, such as [0, 1, 2]",
    "dict_type model_type": "expected a mapping, such as {name: value}",
    "int_parsing int_type int_from_float": "expected an integer",
    "float_parsing float_type": "expected a number",
    "bool_parsing bool_type": "expected true or false",
    "string_type": "expected a text",
}
_MESSAGES = {kind: message for kinds, message in _TYPES.items() for kind in kinds.split()}
"""Messages for types of pydantic's errors."""

_OTHER_NAMES = {
    "learning_rate": "lr",
    "weight_decay": "wd",
    "batch_size": "bs batch",
    "epochs": "num_epochs max_epochs",
    "optimizer": "opt optim",
    "schedule": "scheduler lr_schedule lr_scheduler",
    "precision": "dtype amp",
    "pool": "pool_size",
    "crop_padding": "padding",
    "prune_ratio": "ratio sparsity",
    "gpus_per_worker": "gpus num_gpus",
    "cpus_per_worker": "cpus",
    "workers": "num_workers",
    "data": "dataset",
    "model": "arch net network",
}
_SYNONYMS = {other: field for field, others in _OTHER_NAMES.items() for other in others.split()}
"""Common other names of fields."""


def nearest(name: str, names: list[str], everywhere: dict[str, str]) -> str | None:
    """The field that `name` stands for or is close to: one of `names`, else one of all fields."""
    if len(name) > 50:
        return None
    meant = name.lower().replace("-", "_")
    for known in (dict(zip(names, names, strict=True)), everywhere):
        if (same := _SYNONYMS.get(meant, meant)) in known:
            return known[same]
        if near := difflib.get_close_matches(meant, known, n=1, cutoff=0.6 if known is not everywhere else 0.8):
            return known[near[0]]
    return None


@cache
def _fields(root: type[Settings]) -> dict[str, str]:
    """All fields by their last names: in an experiment `learning_rate` is `train.optimizer.learning_rate`."""
    found: dict[str, str] = {}
    level: list[tuple[str, type[Settings]]] = [("", root)]
    while level:
        for prefix, settings in level:
            for name in settings.model_fields:
                found.setdefault(name, f"{prefix}{name}")
        level = [
            (f"{prefix}{name}.{'NAME.' if name == 'schemes' else ''}", inner)
            for prefix, settings in level
            for name, field in settings.model_fields.items()
            for family in _settings_in(field.annotation)
            for inner in ([*family.kinds.values()] if issubclass(family, Component) else [family])
        ]
    return found


def _has(raw: Any, part: Any) -> bool:
    return (isinstance(raw, dict) and part in raw) or (
        isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw)
    )


def _of_kind(settings: type[Settings], raw: Any) -> type[Settings]:
    """The settings class of the kind that `raw` names, where `settings` is a family."""
    if issubclass(settings, Component) and isinstance(raw, dict) and isinstance(raw.get("kind"), str):
        return settings.kinds.get(raw["kind"], settings)
    return settings


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """All settings classes an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _settings_in(argument)]
