"""`expand[]`: an id in an answer becomes the object that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.stripe.errors import invalid
from sandbox.stripe.spec import Spec
from sandbox.stripe.store import Store
from sandbox.stripe.values import Json, snapshot

MAX_DEPTH = 4


def check(spec: Spec, response: Json, paths: list[str]) -> None:
    """Whether `paths` lead to what can be expanded in an answer of the schema `response`.

    This comes before the call is executed: an error must not be the answer to money that has moved.

    Raises:
        StripeError: a path is too deep, or nothing along it can be expanded.
    """
    for path in paths:
        names = path.split(".")
        if len(names) > MAX_DEPTH:
            raise invalid(
                f"You cannot expand more than {MAX_DEPTH} levels of a property: {path}", param="expand"
            )
        places = [response]
        for name in names:
            objects = [found for place in places for found in _objects(spec, place)]
            places = [found["properties"][name] for found in objects if name in found["properties"]]
        if not any("x-expansionTargets" in place or any(_objects(spec, place)) for place in places):
            raise invalid(f"This property cannot be expanded: {path}", param="expand")


def expanded(store: Store, value: Json, paths: list[str]) -> Json:
    """A copy of `value` with `paths` such as `data.destination` expanded; `value` itself without any.

    What is not there, or no longer, stays the id that it was.
    """
    if not paths:
        return value
    copied = snapshot(value)
    for path in paths:
        _expand(store, copied, path.split("."))
    return copied


def _expand(store: Store, value: Any, names: list[str]) -> None:
    if isinstance(value, list):
        for item in value:
            _expand(store, item, names)
        return
    name, rest = names[0], names[1:]
    if not isinstance(value, dict) or value.get(name) is None:
        return
    if isinstance(value[name], str) and (found := store.find(value[name])) is not None:
        value[name] = snapshot(found)
    if rest:
        _expand(store, value[name], rest)


def _objects(spec: Spec, schema: Json) -> Iterator[Json]:
    """The schemas of the objects that a schema allows, itself or by reference, or each item of an array."""
    if "$ref" in schema:
        yield from _objects(spec, spec.schemas[schema["$ref"].rpartition("/")[2]])
    if "properties" in schema:
        yield schema
    for inner in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else [])]:
        yield from _objects(spec, inner)
    for name in schema.get("x-expansionTargets", ()):
        if name in spec.schemas:
            yield spec.schemas[name]
