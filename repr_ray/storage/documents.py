"""Untrusted YAML, read within bounds of size, nesting and expanded aliases."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

LARGEST = 500_000  # characters of a document
DEEPEST = 50  # levels of nesting
LONGEST_NUMBER = 400  # characters of a number
MOST_NODES = 100_000  # values in a document; aliased values count once per use

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # constructors added to yaml's own loader would be global
    """Safe YAML in which dates are text, keys are unique, and numbers are decimal and have a bounded length."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read an integer. Raises YAMLError if it is too long, octal (010) or sexagesimal (1:30)."""
        if len(node.value) > LONGEST_NUMBER:
            raise _error(node, f"a number of {len(node.value):,} characters")
        return _as_written(node, super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A number, and not as YAML 1.1 reads 1:30.5 (90.5)."""
        return _as_written(node, super().construct_yaml_float(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_ODD = re.compile(r"[-+]?0[0-9_]+|.*:.*")  # octal numbers and numbers to the base 60


def read_yaml(text: str) -> Any:
    """The plain values of a YAML document.

    Raises yaml.YAMLError for what is not YAML, for a duplicate key in a mapping, and beyond the bounds above.
    """
    if len(text) > LARGEST:
        raise yaml.YAMLError(f"{len(text):,} characters, more than {LARGEST:,}")
    depth = nodes = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):  # does not recurse; composing does
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            nodes += isinstance(event, yaml.NodeEvent)
            if depth > DEEPEST:
                raise _error(event, f"nested more than {DEEPEST} levels deep")
            if nodes > MOST_NODES:
                raise _error(event, f"more than {MOST_NODES:,} values")
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _count(root, {}, set())
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (ValueError, RecursionError, OverflowError) as error:  # of a tag such as !!int on something else
        raise yaml.YAMLError(str(error)) from None


def _as_written(node: yaml.ScalarNode, value: Any) -> Any:
    """A number. Raises YAMLError if YAML reads it otherwise than people do."""
    if _ODD.fullmatch(node.value):
        raise _error(node, f"{node.value} would be the number {value}; write it in decimal, or quote it")
    return value


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """The number of values of a node. Raises YAMLError for duplicate keys and too many values."""
    if id(node) in above:
        raise _error(node, "a value that contains itself")
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
        total = 1 + sum(_count(child, known, above | {id(node)}) for child in _children(node))
        if total > MOST_NODES:
            raise _error(node, f"more than {MOST_NODES:,} values")
        known[id(node)] = total
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise _error(key, f"the key {key.value!r} occurs twice")
            seen.add((key.tag, key.value))


def _error(node: Any, message: str) -> yaml.YAMLError:
    mark = node.start_mark
    return yaml.YAMLError(f"{message} (line {mark.line + 1}, column {mark.column + 1})")
