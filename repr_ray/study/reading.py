"""Reading an experiment from YAML and `key=value` overrides, with one line per error."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

import repr_ray.method.rivals.settings  # noqa: F401 - its kinds
from repr_ray.components import Component, Settings
from repr_ray.storage.documents import DEEPEST, read_yaml
from repr_ray.study.config import ConfigError, Experiment


def load(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a YAML file or a shipped config, apply `key=value` overrides, validate.

    Raises ConfigError with one line per error.
    """
    try:
        raw = read_yaml(_found(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML: {_in_words(' '.join(str(error).split()))}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"--config {path}: expected a mapping of settings, found {type(raw).__name__}")
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"{_in_words(override)}: expected key=value, for example train.epochs=50")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            reason = _in_words(" ".join(str(error).split()))
            raise ConfigError(f"{_in_words(override)}: the value is not YAML ({reason}); quote it") from None
        if key.count(".") > DEEPEST:
            raise ConfigError(f"{_in_words(override)}: no field lies {key.count('.'):,} levels deep")
        raw = replace(raw, key, value)
    return validate(raw, str(path))


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name: quickstart, recipes/paper, ..."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # as installed, and in a checkout
    folder = next((f for f in folders if (f / "quickstart.yaml").is_file()), folders[0])
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def _found(path: str | Path) -> Path:
    """The file of a config: `path` itself, else the shipped one of this name."""
    if Path(path).exists() or Path(path).suffix in (".yaml", ".yml"):
        return Path(path)
    known = shipped()
    if str(path) not in known:
        near = difflib.get_close_matches(str(path), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(
            f"--config {_in_words(str(path))}: no such file, and no shipped config of this name; {hint}"
        )
    return known[str(path)]


def replace(raw: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested settings with the dotted `key` set; missing blocks are created.

    An existing key with dots in it, such as a scheme's name, takes precedence.
    """
    first = owner(raw, key) or key.partition(".")[0]
    rest = key[len(first) + 1 :]
    if rest:
        block = raw.get(first)
        block = block if isinstance(block, dict) else {}
        value = {**block, rest: value} if first == "grid" else replace(block, rest, value)  # a grid's keys are dotted
    return {**raw, first: value}


def owner(names: Iterable[Any], key: str) -> str:
    """The longest of some names that the dotted `key` equals or begins with; empty if none."""
    return max((n for n in names if isinstance(n, str) and f"{key}.".startswith(f"{n}.")), key=len, default="")


def validate(raw: dict[str, Any], where: str) -> Experiment:
    """Raises ConfigError with one line per error: where, what, the value, and a near match where there is one."""
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        wrong: dict[str, dict[str, None]] = {}
        errors = error.errors(include_url=False, include_input=False)
        inside = {one["loc"][:depth] for one in errors for depth in range(len(one["loc"]))}
        for one in [one for one in errors if one["loc"] not in inside][:MOST_ERRORS]:  # of nested ones the innermost
            field, message = _what_is_wrong(one, raw)
            wrong.setdefault(field, {})[message] = None
        lines = [
            f"{field}: {', or '.join(messages)}" if field else ", ".join(messages)
            for field, messages in wrong.items()
        ]
        if (more := len(errors) - MOST_ERRORS) > 0:
            lines.append(f"and {more:,} more errors")
        raise ConfigError("\n".join(f"{where}: {_in_words(line, 1_000)}" for line in lines)) from None
    for field, value in _read_as_numbers(raw, experiment, ()):
        raise ConfigError(f"{where}: {field}={value}: expected a number")
    return experiment


def _read_as_numbers(raw: Any, read: Any, path: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """The fields where `true` or `false` was read as a number: to pydantic, as to Python, True is 1."""
    if isinstance(raw, bool) and not isinstance(read, bool):
        yield ".".join(path), raw
    elif isinstance(raw, dict):
        for key, value in raw.items():
            yield from _read_as_numbers(
                value, read[key] if isinstance(read, dict) else getattr(read, key), (*path, key)
            )
    elif isinstance(raw, list | tuple) and isinstance(read, tuple):
        for index, pair in enumerate(zip(raw, read, strict=True)):
            yield from _read_as_numbers(*pair, (*path, str(index)))


MOST_ERRORS = 20
"""Errors of a config that are listed."""


def _in_words(text: str, longest: int = 200) -> str:
    """A text on one line of a reasonable length, control characters escaped."""
    shown = text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def _what_is_wrong(error: Any, raw: Any) -> tuple[str, str]:
    """The field, with its value where that is wrong, and the message."""
    path: list[str] = []
    classes: list[type[Settings]] = [Experiment]
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
    field, message = ".".join(path), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        names = [name for c in classes for name in c.model_fields]
        known = ", ".join(dict.fromkeys(names))
        near = _nearest(path[-1], names)
        return field, "unknown field" + (f"; did you mean {near}?" if near else f"; there are {known}")
    if error["type"] == "kind_missing":
        return field, message
    if error["type"] == "missing":
        return field, "missing"
    if not field:
        return "", message
    if isinstance(raw, dict) and any(re.split(r"\W", message)[0] in c.model_fields for c in classes):
        return "", f"{field}.{message}"  # of fields that do not go together: the message names them
    return f"{field}={_in_words(repr(raw))}", f"{message[0].lower()}{message[1:]}"


_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "opt": "optimizer",
    "optim": "optimizer",
    "scheduler": "schedule",
    "lr_schedule": "schedule",
    "lr_scheduler": "schedule",
    "dtype": "precision",
    "amp": "precision",
    "pool_size": "pool",
    "padding": "crop_padding",
    "ratio": "prune_ratio",
    "sparsity": "prune_ratio",
    "gpus": "gpus_per_worker",
    "num_gpus": "gpus_per_worker",
    "cpus": "cpus_per_worker",
    "num_workers": "workers",
    "dataset": "data",
    "arch": "model",
    "net": "model",
    "network": "model",
}
"""Common other names of fields."""


def _nearest(name: str, names: list[str]) -> str | None:
    """The field that `name` stands for or is close to: one of `names`, else one anywhere in an experiment."""
    if len(name) > 50:
        return None
    meant = name.lower().replace("-", "_")
    everywhere = _fields()
    for known in (dict(zip(names, names, strict=True)), everywhere):
        if (same := _SYNONYMS.get(meant, meant)) in known:
            return known[same]
        if near := difflib.get_close_matches(meant, known, n=1, cutoff=0.6 if known is not everywhere else 0.8):
            return known[near[0]]
    return None


@cache
def _fields() -> dict[str, str]:
    """The fields of an experiment by their last names: `learning_rate` is `train.optimizer.learning_rate`."""
    found: dict[str, str] = {}
    level: list[tuple[str, type[Settings]]] = [("", Experiment)]
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
