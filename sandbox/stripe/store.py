"""All objects, by kind and by the account that owns them, and the pages in which they are listed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from sandbox.stripe.errors import invalid, missing
from sandbox.stripe.values import Json

PLATFORM = "acct_platform"
MAX_PAGE = 100
# What lists are asked for by, of objects that pile up. None of these fields changes once an object is stored.
_INDEXED = {
    "balance_transaction": ("source",),
    "charge": ("payment_intent", "customer"),
    "dispute": ("charge", "payment_intent"),
    "refund": ("charge", "payment_intent"),
    "transfer": ("transfer_group", "destination"),
    "transfer_reversal": ("transfer",),
}
_RANGES: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


class Series:
    """Objects in the order in which they were stored, each with its number in that order."""

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._values: list[Json] = []

    def add(self, number: int, value: Json) -> None:
        self._numbers.append(number)
        self._values.append(value)

    def remove(self, number: int) -> None:
        place = bisect_left(self._numbers, number)
        del self._numbers[place], self._values[place]

    def older(self, number: int | None) -> Iterable[Json]:
        """Those before a number, or all; the newest first."""
        end = len(self._values) if number is None else bisect_left(self._numbers, number)
        return (self._values[place] for place in range(end - 1, -1, -1))

    def newer(self, number: int) -> Iterable[Json]:
        """Those after a number, the oldest first."""
        start = bisect_right(self._numbers, number)
        return (self._values[place] for place in range(start, len(self._values)))

    def __len__(self) -> int:
        return len(self._values)


class Store:
    """Objects are live: what changes one changes what is stored."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], Series] = {}
        self._indexes: dict[tuple[str, str, str, str], Series] = {}
        self._everything: dict[str, tuple[str, int, Json]] = {}
        self._stored = 0

    def add(self, owner: str, value: Json) -> Json:
        self._stored += 1
        for series in self._series(owner, value):
            series.add(self._stored, value)
        self._everything[value["id"]] = (owner, self._stored, value)
        return value

    def remove(self, owner: str, value: Json) -> None:
        _, number, _ = self._everything.pop(value["id"])
        for series in self._series(owner, value):
            series.remove(number)

    def get(self, kind: str, owner: str, identifier: str, *, param: str = "id", status: int = 404) -> Json:
        """One object of one owner.

        Raises:
            StripeError: `resource_missing`.
        """
        whose, _, found = self._everything.get(identifier, ("", 0, {}))
        if whose != owner or found["object"] != kind:
            raise missing(kind, identifier, param=param, status=status)
        return found

    def find(self, identifier: str) -> Json | None:
        """An object of any kind and owner."""
        return self._everything[identifier][2] if identifier in self._everything else None

    def owner(self, identifier: str) -> str:
        return self._everything[identifier][0]

    def all(self, kind: str, owner: str) -> list[Json]:
        """Newest first, as Stripe lists."""
        return list(self._tables.get((kind, owner), Series()).older(None))

    def everywhere(self, kind: str) -> list[Json]:
        """Of every owner."""
        owners = [owner for name, owner in self._tables if name == kind]
        return [value for owner in owners for value in self.all(kind, owner)]

    def count(self, kind: str) -> int:
        return sum(len(series) for (name, _), series in self._tables.items() if name == kind)

    def page(
        self,
        kind: str,
        owner: str,
        params: Json,
        url: str,
        *filters: str,
        where: Callable[[Json], bool] = lambda _: True,
        among: Iterable[str] | None = None,
    ) -> Json:
        """The page that a list call asks for, newest first, and no more work than finding it.

        `filters` are the parameters beside `created` that name a field, equal or in a range; `among` are the
        only ids that count. A cursor need not match the filters: what it names may have changed since.

        Raises:
            StripeError: a limit out of bounds, both cursors, or a cursor that names nothing.
        """
        limit = params.get("limit", 10)
        if not 1 <= limit <= MAX_PAGE:
            raise invalid(f"Invalid limit: {limit}; it must be from 1 to {MAX_PAGE}", param="limit")
        if "starting_after" in params and "ending_before" in params:
            raise invalid("Give starting_after or ending_before, not both", "parameters_exclusive")
        wanted = {name: params[name] for name in ("created", *filters) if name in params}
        series = self._narrowest(kind, owner, wanted) if among is None else self._only(kind, owner, among)
        backwards = "ending_before" in params
        if backwards:
            found = series.newer(self._number(kind, owner, params["ending_before"], "ending_before"))
        else:
            after = params.get("starting_after")
            number = None if after is None else self._number(kind, owner, after, "starting_after")
            found = series.older(number)
        matching = (value for value in found if where(value) and matches(value, wanted))
        # One more than asked for tells whether there are more.
        data = list(islice(matching, limit + 1))
        return listed(data[:limit][::-1] if backwards else data[:limit], url, has_more=len(data) > limit)

    def _series(self, owner: str, value: Json) -> list[Series]:
        kind = value["object"]
        names = [name for name in _INDEXED.get(kind, ()) if value.get(name) is not None]
        indexes = [self._indexes.setdefault((kind, owner, name, value[name]), Series()) for name in names]
        return [self._tables.setdefault((kind, owner), Series()), *indexes]

    def _narrowest(self, kind: str, owner: str, wanted: Json) -> Series:
        indexed = [name for name in _INDEXED.get(kind, ()) if name in wanted]
        found = [self._indexes.get((kind, owner, name, wanted[name]), Series()) for name in indexed]
        return min(found, key=len, default=self._tables.get((kind, owner), Series()))

    def _only(self, kind: str, owner: str, identifiers: Iterable[str]) -> Series:
        known = [self._everything[name] for name in identifiers if name in self._everything]
        series = Series()
        for whose, number, value in sorted(known, key=lambda entry: entry[1]):
            if whose == owner and value["object"] == kind:
                series.add(number, value)
        return series

    def _number(self, kind: str, owner: str, identifier: str, param: str) -> int:
        self.get(kind, owner, identifier, param=param, status=400)
        return self._everything[identifier][1]


def matches(value: Json, wanted: Json) -> bool:
    """Whether fields are what the parameters of the same names ask for: equal, or in a range."""
    return all(_fits(value.get(name), asked) for name, asked in wanted.items())


def listed(data: list[Json], url: str, *, has_more: bool = False) -> Json:
    """The `list` object."""
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def _fits(found: Any, asked: Any) -> bool:
    if isinstance(asked, dict):
        return all(_RANGES[name](found, bound) for name, bound in asked.items())
    return bool(found == asked)
