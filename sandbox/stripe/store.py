"""All objects, by kind and by the account that owns them, and the pages in which they are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.values import Json

PLATFORM = "acct_platform"
MAX_PAGE = 100
_RANGES: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


class Store:
    """Objects are live: what changes one changes what is stored."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], dict[str, Json]] = {}
        self._everything: dict[str, tuple[str, Json]] = {}

    def add(self, owner: str, value: Json) -> Json:
        self._tables.setdefault((value["object"], owner), {})[value["id"]] = value
        self._everything[value["id"]] = (owner, value)
        return value

    def remove(self, owner: str, value: Json) -> None:
        del self._tables[value["object"], owner][value["id"]]
        del self._everything[value["id"]]

    def get(self, kind: str, owner: str, identifier: str, *, param: str = "id", status: int = 404) -> Json:
        """One object of one owner.

        Raises:
            StripeError: `resource_missing`.
        """
        found = self._tables.get((kind, owner), {}).get(identifier)
        if found is None:
            raise missing(kind, identifier, param=param, status=status)
        return found

    def find(self, identifier: str) -> Json | None:
        """An object of any kind and owner."""
        found = self._everything.get(identifier)
        return found[1] if found else None

    def owner(self, identifier: str) -> str:
        return self._everything[identifier][0]

    def all(self, kind: str, owner: str) -> list[Json]:
        """Newest first, as Stripe lists."""
        return list(reversed(self._tables.get((kind, owner), {}).values()))

    def everywhere(self, kind: str) -> list[Json]:
        """Of every owner, oldest first."""
        return [
            value for (name, _), table in self._tables.items() if name == kind for value in table.values()
        ]


def page(values: list[Json], params: Json, url: str) -> Json:
    """The page of `values` (newest first) that a list call asks for.

    Raises:
        StripeError: a limit out of bounds, both cursors, or a cursor that names nothing.
    """
    limit = params.get("limit", 10)
    if not 1 <= limit <= MAX_PAGE:
        raise invalid(f"Invalid limit: {limit}; it must be from 1 to {MAX_PAGE}", param="limit")
    if "starting_after" in params and "ending_before" in params:
        raise invalid("Give starting_after or ending_before, not both", "parameters_exclusive")
    found = [value for value in values if _in_range(value, "created", params.get("created"))]
    if "ending_before" in params:
        before = found[: _position(found, params["ending_before"], "ending_before")]
        # The nearest ones before the cursor, still newest first: a reader pages towards the newest.
        return _list(before[-limit:], len(before) > limit, url)
    start = 0
    if "starting_after" in params:
        start = _position(found, params["starting_after"], "starting_after") + 1
    return _list(found[start : start + limit], len(found) > start + limit, url)


def matching(values: Iterable[Json], params: Json, *names: str) -> list[Json]:
    """Those whose fields equal the parameters of the same names that were given."""
    wanted = {name: params[name] for name in names if name in params}
    return [value for value in values if all(value.get(name) == wanted[name] for name in wanted)]


def _list(data: list[Json], has_more: bool, url: str) -> Json:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def _position(values: list[Json], identifier: str, param: str) -> int:
    for position, value in enumerate(values):
        if value["id"] == identifier:
            return position
    raise missing("object", identifier, param=param, status=400)


def _in_range(value: Json, field: str, wanted: Any) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, int):
        return bool(value[field] == wanted)
    return all(_RANGES[name](value[field], bound) for name, bound in wanted.items())
