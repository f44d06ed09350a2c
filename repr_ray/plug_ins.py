"""Components that are not built in: a user's own, `my_module:Shrink`, and those of installed packages.

A user's module is found from the working folder. An installed package gives its components short names through the
entry-point group `repr_ray.FAMILY`.
"""

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import cache, reduce
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from repr_ray.storage.text import hint

_PATH = r"[^\W\d][\w.]*:[^\W\d][\w.]*"

used: dict[str, str] = {}
"""The module of every plug-in that was used in this process, by the name that the config gives it."""


def imported(path: str) -> Any:
    """The object that `module:object` names. Raises ValueError saying what is missing, or what the module raised."""
    name, _, attributes = path.partition(":")
    here = os.getcwd()  # noqa: PTH109 - what Python itself puts there for `python -m`
    if here not in sys.path and "" not in sys.path:  # started by the installed command, or in a process of Ray
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"plug-in {name}: {error}") from error
        raise ValueError(f"there is no module {name} in {here}, and none is installed") from None
    except Exception as error:
        raise ValueError(f"plug-in {name}: {_where(error)}{type(error).__name__}: {error}") from error
    try:
        return reduce(getattr, attributes.split("."), module)
    except AttributeError:
        public = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == name]
        raise ValueError(f"module {name} has no {attributes}{hint(attributes, public)}") from None


def digests(settings: Any) -> dict[str, str]:
    """The digest of the source of every plug-in that plain settings name, by its name."""
    if isinstance(settings, dict | list | tuple):
        inner = settings.values() if isinstance(settings, dict) else settings
        return {name: digest for value in inner for name, digest in digests(value).items()}
    if isinstance(settings, str) and (module := used.get(settings)):
        return {settings: _digest(module)}
    return {}


def require_versions(settings: Any, expected: Mapping[str, str]) -> None:
    """Raise ValueError unless the plug-ins that plain settings name have the digests of the launcher."""
    for name, digest in digests(settings).items():
        if digest != expected.get(name):
            raise ValueError(f"plug-in {name}: this node has another version of {used[name]} than the launcher")


def plug_in_behind(error: BaseException | None) -> str | None:
    """The plug-in in whose source an exception was raised, innermost call first; None outside plug-ins."""
    files = {inspect.getfile(sys.modules[module]): name for name, module in used.items()}
    while error is not None:
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            if (file := frame.f_code.co_filename) in files:
                return files[file]
        error = error.__cause__ or error.__context__
    return None


def first_line(error: BaseException) -> str:
    """The type and the first line of an error's text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def in_one_line(error: BaseException) -> str:
    """The first line of an error, after the name of the plug-in in whose source it was raised."""
    plug_in = plug_in_behind(error)
    return f"plug-in {plug_in}: {first_line(error)}" if plug_in else first_line(error)


def is_short(name: str) -> bool:
    """Whether a name is not `module:object`: that of a built-in component."""
    return ":" not in name


def is_plug_in(family: str, name: str) -> bool:
    """Whether a name is `module:object`, or that of a component in an installed package."""
    return re.fullmatch(_PATH, name) is not None or name in _installed(family)


def resolved(family: str, name: str, builtin: Mapping[str, Any]) -> str:
    """`module:object` of a component that is not built in. Raises ValueError when there is none."""
    path = name if ":" in name else _installed(family).get(name)
    if path is None or not re.fullmatch(_PATH, path):
        known = [*filter(is_short, builtin), *_installed(family)]
        there = ", ".join(map(repr, known))
        raise ValueError(f"expected {there}, or my_module:name for one of your own{hint(name, known)}")
    found = imported(path)
    if not callable(found):
        raise ValueError(f"{path} is not a class or function")
    used[name] = path.partition(":")[0]
    return path


def names(family: str) -> dict[str, Any]:
    """The JSON schema of the names that are not built in: `module:name`, and those of installed packages."""
    pattern = "|".join([_PATH, *map(re.escape, _installed(family))])
    return {"type": "string", "pattern": f"^({pattern})$", "title": "one of your own, my_module:name"}


@cache
def _installed(family: str) -> dict[str, str]:
    """`module:object` of every component that installed packages register."""
    return {point.name: point.value.replace(" ", "") for point in entry_points(group=f"repr_ray.{family}")}


def _digest(module: str) -> str:
    """Sixteen hex digits of a module's source and of all modules beside it that it imports."""
    seen: dict[str, bytes] = {}
    _read_source(sys.modules[module], seen)
    text = b"\0".join(name.encode() + b"\0" + seen[name] for name in sorted(seen))
    return hashlib.sha256(text).hexdigest()[:16]


def _read_source(module: ModuleType, seen: dict[str, bytes]) -> None:
    if module.__name__ in seen:
        return
    file = getattr(module, "__file__", None)
    seen[module.__name__] = source = Path(file).read_bytes() if file and file.endswith(".py") else b""
    home = _home(module)
    if home is None:
        return
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            within = (module.__package__ or "").split(".")[: -node.level + 1 or None] if node.level else []
            start = ".".join([*within, node.module or ""]).strip(".")
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        for name in names:
            found = sys.modules.get(name)
            if found is not None and _home(found) == home:
                _read_source(found, seen)


def _home(module: ModuleType) -> Path | None:
    """The folder of a user's own module; None for an installed one."""
    file = getattr(module, "__file__", None)
    if not file or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    depth = module.__name__.count(".") + Path(file).name.startswith("__init__.")
    return Path(file).resolve().parents[depth]


def _where(error: Exception) -> str:
    """`file:line: ` of the line that raised."""
    last = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename or '?').name}:{last.lineno}: "
