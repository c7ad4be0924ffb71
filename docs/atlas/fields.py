"""A config's fields as a table: defaults and bounds from pydantic, meanings from its source."""

import ast
import inspect
import json
import textwrap
from typing import Any

from pydantic import PlainValidator

from atlas.prose import markdown
from mixtura.errors import ConfigError
from mixtura.moe.routers import RouterSpec
from mixtura.moe.routers.router_field import RouterField

_BOUNDS = (("minimum", "at least"), ("exclusiveMinimum", "above"),
           ("maximum", "at most"), ("exclusiveMaximum", "below"))  # fmt: skip
# A bound of what 64 bits hold tells a reader nothing.
_LARGEST = 2**53


def field_table(config: type[RouterSpec]) -> list[str]:
    """The lines, without `kind`. Raises ConfigError for a field without a docstring."""
    schema = config.model_json_schema()
    # A config that may hold its like stands among its own definitions.
    schema = schema.get("$defs", {}).get(config.__name__, schema)
    rows = [
        f"| `{name}` | {_default(field)} | {_kinds(config, name) or _values(field)} "
        f"| {markdown(_meaning(config, name))} |"
        for name, field in schema["properties"].items()
        if name != "kind"
    ]
    return ["| field | default | values | meaning |", "|---|---|---|---|", *rows] if rows else []


def _kinds(config: type[RouterSpec], name: str) -> str:
    """Links to the kinds that a field takes; nothing for a field that is no router."""
    for one in config.model_fields[name].metadata:
        if isinstance(one, PlainValidator) and isinstance(one.func, RouterField):
            return ", ".join(f"[`{kind}`]({kind}.md)" for kind in sorted(one.func.kinds()))
    return ""


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default']).strip(chr(34))}`" if "default" in field else "none"


def _values(field: dict[str, Any]) -> str:
    match field:
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"anyOf": [value, {"type": "null"}]}:
            return f"{_values(value)}, or `null`"
        case {"type": "boolean"}:
            return "`true`, `false`"
    bounds = [f"{words} {field[key]:g}" for key, words in _BOUNDS if _tells(field.get(key))]
    number = "a whole number" if field["type"] == "integer" else "a number"
    return f"{number} {' and '.join(bounds)}".rstrip()


def _tells(bound: float | None) -> bool:
    return bound is not None and bound < _LARGEST


def _meaning(config: type[RouterSpec], name: str) -> str:
    for owner in config.__mro__:
        if issubclass(owner, RouterSpec) and (meaning := _docstrings(owner).get(name)):
            return meaning
    raise ConfigError(
        f"{config.__name__}.{name} has no docstring below it, from which its page is made; add one"
    )


def _docstrings(config: type) -> dict[str, str]:
    """The string below each field of the class, on one line."""
    (owner,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(owner, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(owner.body, owner.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found
