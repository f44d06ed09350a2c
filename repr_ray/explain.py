"""repr-ray explain: every setting with its type, default and meaning.

Everything comes from the JSON schema of `Experiment`, as do the schema file that editors read and docs/settings.md.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic.errors import PydanticInvalidForJsonSchema

from repr_ray.components import Component, kind_of
from repr_ray.mistakes import nearest
from repr_ray.study.config import Experiment

Schema = dict[str, Any]

WIDTH = 100


def schema() -> Schema:
    """The JSON schema of a config. A plug-in kind may have any fields; the launcher checks them."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}


def explain(path: str) -> str:
    """The meaning of a dotted path of settings, as text.

    A path names a field (`train.epochs`), a block (`schemes.repr.reinit`) or a kind (`model.resnet`,
    `schemes.my_module:Shrink`). Raises ValueError for a path that does not exist.
    """
    root, node = find(schema(), path)
    blocks, lines = _blocks(root, node), list[str]()
    if "properties" not in node:  # of a block its own name and description are enough
        default = f"; default: {_default(node)}" if "default" in node else ""
        lines = [f"{path}: {_type(root, node)}{default}", *_paragraphs(node)]
    for block in blocks:
        lines += ["", f"kind: {_kind(block)}"] if _kind(block) else []
        lines += _paragraphs(block)
        if len(blocks) > 1:
            lines += [f"  fields: {', '.join(_fields(block)) or 'none'}"]
        else:
            lines += [_field(root, block, name) for name in _fields(block)]
    return "\n".join(lines).strip()


def find(root: Schema, path: str) -> tuple[Schema, Schema]:
    """The schema of a dotted path, and the root that its references point into; see `explain`."""
    node, walked, rest = root, "", path
    while rest:
        own = re.match(r"[\w.]+:\w+", rest) if _family(root, node) else None
        part = own.group() if own else rest.partition(".")[0]
        rest = rest[len(part) + 1 :]
        blocks, family = _blocks(root, node), _family(root, node)
        kinds = {_kind(block): block for block in blocks}
        fields = {name: field for block in reversed(blocks) for name, field in block["properties"].items()}
        if family and own:
            root = node = _plug_in(family, part)
        elif part in kinds or part in fields:
            node = kinds.get(part) or fields[part]
        elif isinstance(_resolved(root, node).get("additionalProperties"), dict):
            node = _resolved(root, node)["additionalProperties"]  # a name that the user gives: schemes.NAME
        else:
            known = [name for name in (*kinds, *fields) if name and name != "kind"]
            near = nearest(part, known, {})
            there = f"there are {', '.join(known)}" if known else "nothing is set below it"
            hint = f"did you mean {near}?" if near else there
            raise ValueError(f"{f'{walked}.{part}'.strip('.')}: no such setting; {hint}")
        walked = f"{walked}.{part}".strip(".")
    return root, _resolved(root, node)


def markdown() -> str:
    """docs/settings.md: every block and kind with a table of its fields."""
    root = schema()
    lines = [
        "# Settings",
        "",
        "<!-- `make docs` writes this file from the settings classes: change those -->",
        "",
        "Every field of an experiment. `repr-ray explain PATH` prints the same on the terminal, and editors read"
        " [config.schema.json](../configs/config.schema.json). A `kind` may also be one of your own,"
        " `my_module:Name`: [plug-ins](plugins.md).",
    ]
    titles: set[str] = set()
    for path, block in _walk(root, root, ""):
        title = f"`{path}`" if path else "The experiment"
        title += f", kind `{_kind(block)}`" if _kind(block) else ""
        if title in titles:  # what several kinds have, such as a loss
            continue
        titles.add(title)
        lines += ["", f"## {title}", "", "\n\n".join(_paragraphs(block, width=None))]
        if _fields(block):
            lines += ["", "| field | type | default | meaning |", "|:--|:--|:--|:--|"]
        for name, field in _fields(block).items():
            cells = [f"`{name}`", _type(root, field), _default(field, name in block.get("required", []))]
            meaning = " ".join(_paragraphs(field, width=None))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in [*cells, meaning])} |")
    return "\n".join(lines) + "\n"


def _walk(root: Schema, node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every block below a node, with the path of its fields."""
    for block in _blocks(root, node):
        yield path, block
        for name, field in _fields(block).items():
            is_map = isinstance(_resolved(root, field).get("additionalProperties"), dict)
            yield from _walk(root, field, f"{path}.{name}{'.NAME' if is_map else ''}".strip("."))


def _resolved(root: Schema, node: Schema) -> Schema:
    """A node, or what it refers to, with its own default."""
    if "$ref" not in node:
        return node
    target: Schema = root["$defs"][node["$ref"].rpartition("/")[2]]
    return target | {key: value for key, value in node.items() if key not in ("$ref", "description")}


def _branches(root: Schema, node: Schema) -> list[Schema]:
    """The alternatives that a node allows, however they are nested."""
    node = _resolved(root, node)
    branches: list[Schema] = node.get("anyOf") or node.get("oneOf") or []
    return [leaf for branch in branches for leaf in _branches(root, branch)] or [node]


def _blocks(root: Schema, node: Schema) -> list[Schema]:
    """The blocks of fields that a node may hold, also in a list or by name; without plug-in kinds."""
    found = []
    for branch in _branches(root, node):
        inside = branch.get("items", branch.get("additionalProperties"))
        if "properties" in branch and "pattern" not in branch["properties"].get("kind", {}):
            found.append(branch)
        elif isinstance(inside, dict):
            found += _blocks(root, inside)
    return found


def _family(root: Schema, node: Schema) -> type[Component] | None:
    """The family of components that a node takes, if it takes any."""
    families = {family.family: family for family in Component.__subclasses__()}
    for branch in _branches(root, node):
        if "pattern" in branch.get("properties", {}).get("kind", {}):
            return families[branch["title"]]
        if isinstance(branch.get("additionalProperties"), dict):
            return _family(root, branch["additionalProperties"])
    return None


def _plug_in(family: type[Component], kind: str) -> Schema:
    try:
        return kind_of(family, kind).model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise ValueError(f"{kind}: {error}") from None


def _kind(block: Schema) -> str:
    return str(block["properties"].get("kind", {}).get("const", ""))


def _fields(block: Schema) -> dict[str, Schema]:
    """The fields of a block but its kind."""
    return {name: field for name, field in block["properties"].items() if name != "kind"}


def _field(root: Schema, block: Schema, name: str) -> str:
    """A field in two lines or more: its type and default, and what it means."""
    field = block["properties"][name]
    default = _default(field, name in block.get("required", []))
    told = default if default == "required" else f"default: {default}"
    return "\n".join([f"  {name}: {_type(root, field)}; {told}", *_paragraphs(field, indent="      ")])


def _paragraphs(node: Schema, width: int | None = WIDTH, indent: str = "") -> list[str]:
    """A description, each paragraph filled to a width, or on one line."""
    texts = [" ".join(text.split()) for text in node.get("description", "").split("\n\n") if text]
    if width is None:
        return texts
    return [textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent) for text in texts]


def _default(field: Schema, required: bool = False) -> str:
    if required:
        return "required"
    value = field.get("default")
    if isinstance(value, dict):
        return f"kind {value['kind']}" if "kind" in value else "its defaults" if value else "none"
    if value in (None, [], ""):
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _type(root: Schema, node: Schema) -> str:
    """A type in words: `integer >= 1`, `row | frobenius`, ..."""
    return " | ".join(dict.fromkeys(text for branch in _branches(root, node) if (text := _one_type(root, branch))))


def _one_type(root: Schema, node: Schema) -> str:
    if "const" in node or "enum" in node:
        return " | ".join(map(str, node.get("enum") or [node["const"]]))
    match node.get("type"):
        case "object" if "properties" in node:
            is_own = "pattern" in node["properties"].get("kind", {})
            return _kind(node) or ("my_module:Name" if is_own else "a block")
        case "object" if isinstance(node.get("additionalProperties"), dict):
            return f"NAME: {_type(root, node['additionalProperties'])}"
        case "array" if "prefixItems" in node:
            return f"[{', '.join(_type(root, item) for item in node['prefixItems'])}]"
        case "array":
            return f"list of {_type(root, node.get('items', {}))}"
        case "integer" | "number":
            signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
            limits = [f"{sign} {node[key]:.12g}" for key, sign in signs.items() if key in node and node[key] < 10**9]
            return " ".join([node["type"], *limits])
        case "string":
            return "my_module:name" if ":" in node.get("pattern", "") else "text"
        case "boolean":
            return "true or false"
        case "null":
            return "none"
    return "anything"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m repr_ray.explain") -> int:
    """The command, called `prog` in its help; returns its exit status: 0, or 2 for a setting that does not exist."""
    options = _parser(prog).parse_args(arguments)
    try:
        if options.schema:
            print(json.dumps(schema(), indent=1, ensure_ascii=False))
        else:
            print(markdown() if options.markdown else explain(options.path), end="" if options.markdown else "\n")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Say what a setting means, its type and its default.")
    parser.add_argument("path", nargs="?", default="", help="schemes.repr.reinit, model.resnet, train.epochs, ...")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a config, for editors")
    parser.add_argument("--markdown", action="store_true", help="print the reference of all settings")
    return parser


if __name__ == "__main__":
    sys.exit(main())
