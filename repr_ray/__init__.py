"""RePr: `from repr_ray import RePr` in a loop of your own, `python -m repr_ray.launch` for a study."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repr_ray.method.schemes import RePr as RePr
    from repr_ray.method.settings import RePrSettings as RePrSettings

__version__ = "0.1.0"
__all__ = ["RePr", "RePrSettings"]


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is asked for, so that `--help` stays instant."""
    if name in __all__:
        from repr_ray.method import schemes

        return getattr(schemes, name)
    raise AttributeError(f"module 'repr_ray' has no attribute {name!r}")
