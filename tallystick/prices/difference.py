"""What one price list says and another does not, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tallystick.prices.document import Amount, Document


class Difference(NamedTuple):
    """A line of a price list that is added (nothing before), removed (nothing after) or changed."""

    path: str
    before: str
    after: str


def lines(says: Document) -> dict[str, str]:
    """The price list as path → text, in its order.

    Paths are keys, with names, or numbers from 1, in brackets: "prices[ticket].components[input].price".
    """
    return dict(_lines("", says))


def differences(before: Document, after: Document) -> list[Difference]:
    """What changes from one to the other: in the order of the new one, then what goes away."""
    old, new = lines(before), lines(after)
    found = [
        Difference(path, old.get(path, ""), text)
        for path, text in new.items()
        if path not in old or not _same(old[path], text)
    ]
    found += [Difference(path, text, "") for path, text in old.items() if path not in new]
    return [*_reordered(before, after), *found]


def _lines(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            # A name stands in brackets already.
            if key != "name":
                yield from _lines(_joined(path, key), one)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, one in enumerate(value, start=1):
            here = f"{path}[{one.get('name', number)}]"
            if set(one) == {"name"}:
                yield here, one["name"]
            yield from _lines(here, one)
    elif isinstance(value, list):
        yield path, ", ".join(value)
    else:
        assert isinstance(value, str)  # noqa: S101 - a document holds nothing else
        yield path, value


def _joined(path: str, key: str) -> str:
    """What is within a mapping of meters or outcomes is named as what is in a list."""
    if path.endswith((".terms", ".includes", ".outcomes")):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _same(before: str, after: str) -> bool:
    return before == after or (isinstance(before, Amount) and before.same_as(after))


def _reordered(before: Document, after: Document, path: str = "") -> Iterator[Difference]:
    """Lists of which those that stay have changed places: the first price that matches applies."""
    for key, value in after.items():
        old = before.get(key)
        if not isinstance(old, list) or not isinstance(value, list):
            continue
        olds = {one["name"]: one for one in old if isinstance(one, dict) and "name" in one}
        news = {one["name"]: one for one in value if isinstance(one, dict) and "name" in one}
        here = _joined(path, key)
        stayed, stays = [name for name in olds if name in news], [name for name in news if name in olds]
        if stayed != stays:
            yield Difference(here, ", ".join(stayed), ", ".join(stays))
        for name in stays:
            yield from _reordered(olds[name], news[name], f"{here}[{name}]")
