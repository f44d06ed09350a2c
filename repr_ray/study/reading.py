"""Reading an experiment from YAML and `key=value` overrides, with one line per error."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from repr_ray.mistakes import in_words, shortened
from repr_ray.storage.documents import DEEPEST, read_yaml
from repr_ray.storage.text import hint
from repr_ray.study.config import ConfigError, Experiment


def load(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a YAML file or a shipped config, apply `key=value` overrides, validate.

    Raises ConfigError with one line per error.
    """
    try:
        raw = read_yaml(_found(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}; shipped are {', '.join(shipped())}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML: {shortened(' '.join(str(error).split()))}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"--config {path}: expected a mapping of settings, found {type(raw).__name__}")
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            is_config = override.endswith((".yaml", ".yml")) or override in shipped()
            hint = f"did you mean --config {override}?" if is_config else "for example train.epochs=50"
            raise ConfigError(f"{shortened(override)}: expected key=value; {shortened(hint)}")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            reason = shortened(" ".join(str(error).split()))
            raise ConfigError(
                f"{shortened(override)}: the value is not YAML ({reason}); quote it, and put a space after each colon"
            ) from None
        if key.count(".") > DEEPEST:
            raise ConfigError(f"{shortened(override)}: no field lies {key.count('.'):,} levels deep")
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
        name = str(path)
        raise ConfigError(
            f"--config {shortened(name)}: no such file, and no shipped config of this name"
            + (hint(name, known) or f"; there are {', '.join(known)}")
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
        raise ConfigError("\n".join(f"{where}: {line}" for line in in_words(error, raw, Experiment))) from None
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
