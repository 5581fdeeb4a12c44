"""`expand[]`: an id in an answer becomes the object that it names."""

from __future__ import annotations

from typing import Any

from sandbox.stripe.errors import invalid
from sandbox.stripe.store import Store
from sandbox.stripe.values import Json, snapshot

MAX_DEPTH = 4


def expanded(store: Store, value: Json, paths: list[str]) -> Json:
    """A copy of `value` with `paths` such as `data.destination` expanded; `value` itself without any.

    Raises:
        StripeError: a path is too deep, or nothing along it can be expanded.
    """
    if not paths:
        return value
    copied = snapshot(value)
    for path in paths:
        names = path.split(".")
        if len(names) > MAX_DEPTH:
            raise invalid(
                f"You cannot expand more than {MAX_DEPTH} levels of a property: {path}", param="expand"
            )
        _expand(store, copied, names, path)
    return copied


def _expand(store: Store, value: Any, names: list[str], path: str) -> None:
    if isinstance(value, list):
        for item in value:
            _expand(store, item, names, path)
        return
    name, rest = names[0], names[1:]
    if not isinstance(value, dict) or name not in value:
        raise invalid(f"This property cannot be expanded: {path}", param="expand")
    inner = value[name]
    if isinstance(inner, str):
        found = store.find(inner)
        if found is None:
            raise invalid(f"This property cannot be expanded: {path}", param="expand")
        inner = value[name] = snapshot(found)
    elif inner is not None and not isinstance(inner, (dict, list)):
        raise invalid(f"This property cannot be expanded: {path}", param="expand")
    if rest and inner is not None:
        _expand(store, inner, rest, path)
