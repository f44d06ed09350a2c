"""RePr: `from repr_ray import RePr` for your own training loop, `python -m repr_ray.launch` for a study."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repr_ray.method.events import LayerEvent as LayerEvent
    from repr_ray.method.losses import LossTerm as LossTerm
    from repr_ray.method.repr import RePr as RePr
    from repr_ray.method.rivals.continual_backprop import ContinualBackprop as ContinualBackprop
    from repr_ray.method.rivals.dsd import DSD as DSD
    from repr_ray.method.rivals.redo import ReDo as ReDo
    from repr_ray.method.rivals.renewal import LaterLayerForgetting as LaterLayerForgetting
    from repr_ray.method.rivals.renewal import Rifle as Rifle
    from repr_ray.method.rivals.renewal import ShrinkPerturb as ShrinkPerturb
    from repr_ray.method.rivals.soft_filter_pruning import SoftFilterPruning as SoftFilterPruning
    from repr_ray.method.scheme import Scheme as Scheme
    from repr_ray.method.settings import RePrSettings as RePrSettings
    from repr_ray.method.settings import SchemeSettings as SchemeSettings

__version__ = "0.1.0"

_WHERE = {
    "DSD": "method.rivals.dsd",
    "ContinualBackprop": "method.rivals.continual_backprop",
    "LaterLayerForgetting": "method.rivals.renewal",
    "LayerEvent": "method.events",
    "LossTerm": "method.losses",
    "ReDo": "method.rivals.redo",
    "RePr": "method.repr",
    "RePrSettings": "method.settings",
    "Rifle": "method.rivals.renewal",
    "Scheme": "method.scheme",
    "SchemeSettings": "method.settings",
    "ShrinkPerturb": "method.rivals.renewal",
    "SoftFilterPruning": "method.rivals.soft_filter_pruning",
}

__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used: `--help` does without it."""
    if name in _WHERE:
        return getattr(import_module(f"repr_ray.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'repr_ray' has no attribute {name!r}")
