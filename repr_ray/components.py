"""Components that a config names: built in, from an installed package, or from a plug-in of the user.

A component is a class or function with settings of its own. Built-in settings name what they build as
`module:object`, so that a config is checked before torch is imported. A user names a component of their own in the
same way, `kind: my_module:Shrink` (see `plug_ins`). Its settings are the class's nested `Settings`, or else the
keyword arguments of the class or function.
"""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from repr_ray import plug_ins

Count = Annotated[int, Field(ge=1, le=10**9)]
Natural = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Frozen; an unknown field and an infinite number are errors. The docstring below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    earlier_defaults: ClassVar[Mapping[str, Any]] = {}
    """The first defaults, as JSON values, of fields whose default has changed since.

    For a field that was added, it is the value that gives the behaviour before. Entries of nested settings do not
    apply while these are at their default; the outer field then needs an entry.
    """

    def differing(self, **dump: Any) -> dict[str, Any]:
        """Plain values of the fields that are not at their first defaults; `dump` as in pydantic's `model_dump`."""
        result = self.model_dump(mode="json", exclude_defaults=True, **dump)
        self._compare_with_earlier(result)
        return result

    def _compare_with_earlier(self, result: dict[str, Any]) -> None:
        for name, plain in result.items():
            if isinstance(inner := getattr(self, name, None), Settings):
                inner._compare_with_earlier(plain)
        if self.earlier_defaults:
            every = self.model_dump(mode="json", include=set(self.earlier_defaults))
            result.update(every)
            for name in [name for name, first in self.earlier_defaults.items() if every[name] == first]:
                del result[name]

    def __hash__(self) -> int:
        """Mappings among the fields are hashed by their items."""
        return hash((type(self), self.model_dump_json()))


class Component(Settings):
    """Settings of a kind, and the component that they build. A direct subclass is a family: schemes, models, ...

    A subclass of a family with `kind: Literal[...]` is registered under these names.
    """

    family: ClassVar[str]
    given: ClassVar[frozenset[str]] = frozenset()
    """Arguments that the family passes to the component: they are not settings."""
    builds: ClassVar[Any] = None
    """The component: `module:object`, or the object itself."""
    kinds: ClassVar[dict[str, type["Component"]]]

    kind: str = ""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Component in cls.__bases__:
            cls.kinds = {}
        if "kind" in vars(cls).get("__annotations__", {}):  # not what a subclass of a kind inherits
            for kind in get_args(cls.model_fields["kind"].annotation):
                cls.kinds[kind] = cls

    @classmethod
    def accept(cls, target: Any) -> None:
        """Raise ValueError for a class or function that cannot be a component of this family."""

    def build(self, *arguments: Any, **given: Any) -> Any:
        """Call the component with `arguments`, its settings, and those arguments of `given` that it takes."""
        target = plug_ins.imported(self.builds) if isinstance(self.builds, str) else self.builds
        taken = inspect.signature(target).parameters
        return target(*arguments, **{name: given[name] for name in given if name in taken}, **self.own)

    @property
    def own(self) -> dict[str, Any]:
        """The values of the fields that the family does not have."""
        return {name: value for name, value in self if name not in self._family().model_fields}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle plain values: another process imports a plug-in class by its name."""
        values = self.model_dump()
        return _revived, (self._family(), values, plug_ins.digests(values))

    @classmethod
    def _family(cls) -> type["Component"]:
        return next(c for c in cls.__mro__ if issubclass(c, Component) and Component in c.__bases__)


class ByKind:
    """Annotates a field whose value is settings of the `kind` that it names: `Annotated[Family, ByKind()]`."""

    def __get_pydantic_core_schema__(self, family: type[Component], handler: Any) -> core_schema.CoreSchema:
        def validate(value: Any) -> Component:
            if isinstance(value, family):
                return value
            if not isinstance(value, dict):
                raise PydanticCustomError("mapping", "expected a mapping with a kind")
            if "kind" not in value:
                known = ", ".join(filter(plug_ins.is_short, family.kinds))
                raise _wrong("kind_missing", f"missing; there are {known}")
            try:
                found = kind_of(family, value["kind"])
            except ValueError as error:
                raise _wrong("kind", str(error), value["kind"]) from None
            return found.model_validate(value)

        return core_schema.no_info_plain_validator_function(validate, metadata={"family": family})

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Any of the built-in kinds, which editors complete and check, or one that is not built in."""
        family: type[Component] = schema["metadata"]["family"]
        built_in = []
        for kind in dict.fromkeys(family.kinds[name] for name in family.kinds if plug_ins.is_short(name)):
            built_in.append(handler(kind.__pydantic_core_schema__))
            fields = handler.resolve_ref_schema(built_in[-1])
            fields["required"] = sorted({"kind", *fields.get("required", ())})
        properties = {"kind": plug_ins.names(family.family)}
        own = {"title": family.family, "type": "object", "properties": properties, "required": ["kind"]}
        return {"anyOf": [*built_in, own]}


class ByName:
    """Annotates a field that names a function: `builtin` gives `module:function` of each built-in name."""

    def __init__(self, family: str, builtin: Mapping[str, str]) -> None:
        self.family, self.builtin = family, builtin

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        def validate(name: str) -> str:
            if name not in self.builtin:
                plug_ins.resolved(self.family, name, self.builtin)
            return name

        return core_schema.no_info_after_validator_function(validate, core_schema.str_schema(strict=True))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """One of the built-in names, or one that is not built in."""
        return {"anyOf": [{"type": "string", "enum": list(self.builtin)}, plug_ins.names(self.family)]}

    def is_plug_in(self, name: str) -> bool:
        """Whether a name is `module:function`, or that of a function in an installed package."""
        return plug_ins.is_plug_in(self.family, name)

    def get(self, name: str) -> Callable[..., Any]:
        """The function of a name that was validated."""
        path = self.builtin.get(name) or plug_ins.resolved(self.family, name, self.builtin)
        found: Callable[..., Any] = plug_ins.imported(path)
        return found


def kind_of(family: type[Component], kind: Any) -> type[Component]:
    """The settings class of a kind. Raises ValueError if there is none."""
    if not isinstance(kind, str):
        raise ValueError("a kind is a name")
    if kind not in family.kinds:
        target = plug_ins.imported(plug_ins.resolved(family.family, kind, family.kinds))
        family.accept(target)
        _settings_of(target, family, kind)
    return family.kinds[kind]


def _settings_of(target: Any, family: type[Component], kind: str) -> type[Component]:
    """Settings of a plug-in: its nested class, or one made from its keyword arguments."""
    own = getattr(target, "__dict__", {})  # a function written in C has none
    nested = own.get("Settings") if "__init__" in own else getattr(target, "Settings", None)
    fields: dict[str, Any] = {"kind": (Literal[kind], ...)}
    options: dict[str, Any] = {"arbitrary_types_allowed": True}
    base: type[Component] = nested if isinstance(nested, type) and issubclass(nested, family) else family
    if base is family:
        fields |= dict(_fields(target, family))
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values()):
            options["extra"] = "allow"
    made: type[Component] = create_model(
        target.__name__, __base__=base, __doc__=inspect.getdoc(target), __cls_kwargs__=options, **fields
    )
    made.builds = staticmethod(target)
    return made


def _fields(target: Any, family: type[Component]) -> Iterator[tuple[str, Any]]:
    """The settings that a class or function takes as keyword arguments, with types and defaults."""
    signed: Any = vars(target).get("__init__", target) if isinstance(target, type) else target
    hints = typing.get_type_hints(signed, include_extras=True)
    for place, (name, p) in enumerate(inspect.signature(target).parameters.items()):
        if name in family.given or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY):
            continue
        if name.startswith("_") or (name in family.model_fields and place == 0):
            continue
        yield name, (hints.get(name, Any), ... if p.default is p.empty else p.default)


def _revived(family: type[Component], values: dict[str, Any], expected: dict[str, str]) -> Component:
    """Settings from their plain values. Raises ValueError if this process has another version of a plug-in."""
    settings = kind_of(family, values["kind"]).model_validate(values)
    plug_ins.require_versions(values, expected)
    return settings


def _wrong(error: str, message: str, kind: Any = None) -> ValidationError:
    """A pydantic error of the field `kind`."""
    details = InitErrorDetails(type=PydanticCustomError(error, message), loc=("kind",), input=kind)
    return ValidationError.from_exception_data("kind", [details])
