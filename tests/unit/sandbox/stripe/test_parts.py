"""The parts that stand alone: form encoding, the clock, identifiers, the document and its samples."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from sandbox.stripe import forms, handlers, spec, templates
from sandbox.stripe.clock import Clock
from sandbox.stripe.ids import Ids
from sandbox.stripe.values import Json

names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
leaves = st.text(min_size=1, max_size=8)


def schema_of(value: object) -> Json:
    """A schema that fits one value."""
    if isinstance(value, dict):
        return {"type": "object", "properties": {name: schema_of(item) for name, item in value.items()}}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0])}
    return {"type": "string"}


@given(
    st.dictionaries(names, st.dictionaries(names, leaves, min_size=1) | st.lists(leaves, min_size=1) | leaves)
)
def test_what_the_library_encodes_is_decoded(value: Json) -> None:
    pairs = [(str(name), str(item)) for name, item in _api_encode(value)]
    assert forms.typed(forms.nested(pairs), schema_of(value), lambda *_: True) == value


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=4)), max_size=6))
def test_no_name_breaks_the_decoder(pairs: list[tuple[str, str]]) -> None:
    assert isinstance(forms.nested(pairs), dict)


def test_a_frozen_clock_moves_only_forward_and_only_when_told() -> None:
    clock = Clock(100, frozen=True)
    seen: list[tuple[str, int]] = []
    clock.at(130, lambda: seen.append(("b", clock.now())))
    clock.at(110, lambda: clock.at(120, lambda: seen.append(("a", clock.now()))))
    clock.run_due()
    assert seen == []
    clock.advance(50)
    assert (seen, clock.now()) == ([("a", 120), ("b", 130)], 150)
    with pytest.raises(ValueError, match="forward"):
        clock.set(149)


def test_a_clock_that_is_not_frozen_starts_where_it_is_told() -> None:
    assert 0 <= Clock(100).now() - 100 < 60
    assert Clock(100).frozen is False


def test_identifiers_depend_on_the_seed() -> None:
    assert Ids("a").next("tr") == Ids("a").next("tr") != Ids("b").next("tr")
    assert Ids("a").next("tr").startswith("tr_0001")


def test_every_sample_is_valid() -> None:
    document = spec.load()
    kinds = json.loads((spec.DATA / "fixtures.connect.json").read_text())["resources"]
    for kind in kinds:
        assert document.problems(templates.sample(kind), document.schemas[kind]) == []
    for kind in (
        "account",
        "charge",
        "customer",
        "dispute",
        "payment_intent",
        "payout",
        "transfer",
        "refund",
    ):
        assert document.object_problems(templates.new(kind)) == []


def test_every_operation_is_one_of_the_document() -> None:
    known = {operation.id for operation in spec.load()._operations}
    assert set(handlers.OPERATIONS) <= known
    assert len({operation.name for operation in handlers.OPERATIONS.values()}) == len(handlers.OPERATIONS)


def test_a_literal_path_wins_over_a_template() -> None:
    found = spec.load().find("GET", "/v1/charges/search")
    assert found is not None
    assert (found[0].id, found[1]) == ("GetChargesSearch", {})
