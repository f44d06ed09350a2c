"""RePr: `from repr_ray import RePr` in a loop of your own, `python -m repr_ray.launch` for a study."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repr_ray.method.events import LayerEvent as LayerEvent
    from repr_ray.method.repr import RePr as RePr
    from repr_ray.method.scheme import Scheme as Scheme
    from repr_ray.method.settings import RePrSettings as RePrSettings
    from repr_ray.method.settings import SchemeSettings as SchemeSettings

__version__ = "0.1.0"

_WHERE = {
    "LayerEvent": "method.events",
    "RePr": "method.repr",
    "RePrSettings": "method.settings",
    "Scheme": "method.scheme",
    "SchemeSettings": "method.settings",
}

__all__ = ["LayerEvent", "RePr", "RePrSettings", "Scheme", "SchemeSettings"]


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used, so that `--help` is quick."""
    if name in _WHERE:
        return getattr(import_module(f"repr_ray.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'repr_ray' has no attribute {name!r}")
