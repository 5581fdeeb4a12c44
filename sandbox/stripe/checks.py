"""Schemas compiled to functions that say yes fast; what they do not say yes to is left to a validator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox.stripe.values import Json

Check = Callable[[Any], bool]
_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
# Said about a schema, not about its values; formats are not checked by the validator either.
_SILENT = frozenset({"description", "format", "nullable", "properties", "title"})


class Checks:
    """Knows the keywords that the document uses. Of any other, the answer is no: somebody else must look."""

    def __init__(self, schemas: Json) -> None:
        """`schemas` are those that references name."""
        self._schemas = schemas
        self._named: dict[str, Check] = {}

    def compiled(self, schema: Json) -> Check:
        """Whether a value is certainly what `schema` promises."""
        parts = [self._keyword(name, schema) for name in schema if not _is_silent(name)]
        if "properties" in schema or "additionalProperties" in schema:
            parts.append(self._members(schema))
        if len(parts) == 1:
            return parts[0]

        def check(value: Any) -> bool:
            for part in parts:  # noqa: SIM110 - a generator for all() would cost more than what it asks
                if not part(value):
                    return False
            return True

        return check

    def _keyword(self, name: str, schema: Json) -> Check:
        asked = schema[name]
        match name:
            case "type":
                return _typed(_TYPES[asked], nullable=schema.get("nullable") is True)
            case "$ref":
                return self._referred(asked.rpartition("/")[2])
            case "anyOf":
                branches = [self.compiled(branch) for branch in asked]
                return lambda value: any(branch(value) for branch in branches)
            case "allOf":
                all_of = [self.compiled(branch) for branch in asked]
                return lambda value: all(branch(value) for branch in all_of)
            case "items":
                item = self.compiled(asked)
                return lambda value: not isinstance(value, list) or all(map(item, value))
            case "required":
                return lambda value: not isinstance(value, dict) or all(key in value for key in asked)
            case "maxLength":
                return lambda value: not isinstance(value, str) or len(value) <= asked
            case "enum" if all(item is None or isinstance(item, str) for item in asked):
                allowed = frozenset(asked)
                return lambda value: (value is None or isinstance(value, str)) and value in allowed
            case "additionalProperties":
                return lambda _: True  # with the members
        return lambda _: False

    def _members(self, schema: Json) -> Check:
        known = {name: self.compiled(inner) for name, inner in schema.get("properties", {}).items()}
        others = schema.get("additionalProperties", True)
        other: Check = self.compiled(others) if isinstance(others, dict) else lambda _: bool(others)

        def check(value: Any) -> bool:
            if isinstance(value, dict):
                for name, inner in value.items():
                    if not known.get(name, other)(inner):
                        return False
            return True

        return check

    def _referred(self, name: str) -> Check:
        # Compiled at first use: schemas refer to each other in circles.
        def check(value: Any) -> bool:
            if (found := self._named.get(name)) is None:
                found = self._named[name] = self.compiled(self._schemas[name])
            return found(value)

        return check


def _typed(kinds: tuple[type, ...], *, nullable: bool) -> Check:
    def check(value: Any) -> bool:
        if value is None:
            return nullable
        # A truth value is a number to Python, not to JSON.
        return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))

    return check


def _is_silent(name: str) -> bool:
    return name in _SILENT or name.startswith("x-")
