"""The published schema, and as much of JSON Schema as it uses: whoever reads a report needs no other package."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

NAME = "report.schema.json"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
UNDERSTOOD = frozenset(
    {"$schema", "$id", "$defs", "$ref", "title", "description", "type", "enum", "const", "minimum", "maximum"}
    | {"required", "properties", "additionalProperties", "items"}
)


@cache
def schema() -> dict[str, Any]:
    """The schema of ``report.json``."""
    loaded: dict[str, Any] = json.loads(files(__package__).joinpath(NAME).read_text(encoding="utf-8"))
    return loaded


def problems(data: Any) -> Iterator[str]:
    """Where data is not as the schema says, as sentences that begin with the place."""
    return _problems(data, schema(), "the report")


def _problems(data: Any, rule: dict[str, Any], place: str) -> Iterator[str]:
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
    types = rule.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_is(data, t) for t in types):
        yield f"{place} is {_named(data)}, expected {' or '.join(types)}"
        return
    if "const" in rule and data != rule["const"]:
        yield f"{place} is {data!r}, expected {rule['const']!r}"
    if "enum" in rule and data not in rule["enum"]:
        yield f"{place} is {data!r}, expected one of {', '.join(map(str, rule['enum']))}"
    if isinstance(data, (int, float)) and not rule.get("minimum", data) <= data <= rule.get("maximum", data):
        yield f"{place} is {data}, expected {rule.get('minimum', '')} to {rule.get('maximum', '')}"
    if isinstance(data, dict):
        yield from (f"{place} has no {key!r}" for key in rule.get("required", ()) if key not in data)
        known = rule.get("properties", {})
        for key, value in data.items():
            inner = known.get(key, rule.get("additionalProperties", {}))
            yield from _problems(value, inner, f"{place}.{key}")
    if isinstance(data, list) and "items" in rule:
        for i, value in enumerate(data):
            yield from _problems(value, rule["items"], f"{place}[{i}]")


def _is(data: Any, name: str) -> bool:
    if isinstance(data, bool):
        return name == "boolean"
    if isinstance(data, float) and name == "integer":
        return data.is_integer()
    return isinstance(data, _TYPES[name])


def _named(data: Any) -> str:
    return next(name for name in (*_TYPES, "number") if _is(data, name))
