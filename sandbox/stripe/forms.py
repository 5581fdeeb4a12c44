"""Stripe's form encoding, undone: brackets to objects and arrays, texts to the types of the schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from sandbox.stripe.values import Json

_NAME = re.compile(r"^([^\[\]]+)((?:\[[^\[\]]*\])*)$")
_INTEGER = re.compile(r"^-?\d{1,18}$")

IsValid = Callable[[Any, Json], bool]


def nested(pairs: Iterable[tuple[str, str]]) -> Json:
    """`metadata[run]=1` to objects; `expand[0]=x` and `expand[]=x` to objects with digits for keys."""
    result: Json = {}
    for name, value in pairs:
        match = _NAME.match(name)
        # A name that is no path is kept as it came, so that the schema refuses it by name.
        path = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])] if match else [name]
        place = result
        for part in path[:-1]:
            inner = place.setdefault(part or str(len(place)), {})
            if not isinstance(inner, dict):
                inner = place[part] = {}
            place = inner
        place[path[-1] or str(len(place))] = value
    return result


def typed(value: Any, schema: Json, is_valid: IsValid) -> Any:
    """`value`, its texts turned into what `schema` asks for; what does not fit is left as it is."""
    if "anyOf" in schema:
        for branch in schema["anyOf"]:
            candidate = typed(value, branch, is_valid)
            if is_valid(candidate, branch):
                return candidate
        return value
    match schema.get("type"):
        case "integer" if isinstance(value, str) and _INTEGER.match(value):
            return int(value)
        case "boolean" if value in ("true", "false"):
            return value == "true"
        case "array" if isinstance(value, dict) and all(key.isdigit() for key in value):
            items = [value[key] for key in sorted(value, key=int)]
            return [typed(item, schema.get("items", {}), is_valid) for item in items]
        case "object" if isinstance(value, dict):
            return {key: typed(item, _member(schema, key), is_valid) for key, item in value.items()}
    return value


def _member(schema: Json, key: str) -> Json:
    known = schema.get("properties", {}).get(key)
    if known is not None:
        member: Json = known
        return member
    others = schema.get("additionalProperties")
    return others if isinstance(others, dict) else {}
