"""The parts that stand alone: form encoding, the clock, identifiers, the document and its samples."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from sandbox.stripe import forms, handlers, spec, templates
from sandbox.stripe.clock import Clock
from sandbox.stripe.ids import Ids
from sandbox.stripe.store import PLATFORM, Store
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


KINDS = sorted(
    spec.load().schemas.keys() & json.loads((spec.DATA / "fixtures.connect.json").read_text())["resources"]
)


@given(st.data())
def test_the_quick_check_says_yes_only_where_the_validator_does(data: st.DataObject) -> None:
    document = spec.load()
    kind = data.draw(st.sampled_from(KINDS))
    value = templates.sample(kind)
    # Spoil up to three places, anywhere in it.
    for _ in range(data.draw(st.integers(0, 3))):
        place: Any = value
        while isinstance(place, (dict, list)) and place:
            names = sorted(place) if isinstance(place, dict) else range(len(place))
            name = data.draw(st.sampled_from(names))
            if not isinstance(place[name], (dict, list)) or data.draw(st.booleans()):
                odd: st.SearchStrategy[Any] = (
                    st.none()
                    | st.booleans()
                    | st.integers()
                    | st.floats()
                    | st.text()
                    | st.just({})
                    | st.just([])
                )
                place[data.draw(st.sampled_from([name, "odd"])) if isinstance(place, dict) else name] = (
                    data.draw(odd)
                )
                break
            place = place[name]
    said, valid = (
        document._check(document.schemas[kind])(value),
        document._is_valid(value, document.schemas[kind]),
    )
    assert said == bool(document._validator(document.schemas[kind]).is_valid(value)) or not said
    assert valid == bool(document._validator(document.schemas[kind]).is_valid(value))


def test_what_the_stand_in_answers_needs_only_the_quick_check() -> None:
    document = spec.load()
    slow = [kind for kind in KINDS if not document._check(document.schemas[kind])(templates.sample(kind))]
    assert [kind for kind in slow if not kind.startswith("deleted_")] == ["file"]


def test_time_may_pass_faster() -> None:
    clock = Clock(100)
    clock.run_at(1_000_000)
    deadline = time.monotonic() + 10
    while clock.now() < 1_000:
        assert time.monotonic() < deadline
    # Who receives webhooks lives in real time.
    assert abs(clock.outside() - time.time()) < 60
    clock.run_at(1)
    told = clock.now()
    assert 0 <= clock.now() - told <= 60
    for speed, frozen in ((0, False), (2, True)):
        with pytest.raises(ValueError, match="stands still" if frozen else "or faster"):
            Clock(100, frozen=frozen).run_at(speed)
    assert Clock(100, frozen=True).outside() == 100


def test_every_operation_is_one_of_the_document() -> None:
    known = {operation.id for operation in spec.load().operations}
    assert set(handlers.OPERATIONS) <= known
    assert len({operation.name for operation in handlers.OPERATIONS.values()}) == len(handlers.OPERATIONS)


def test_a_literal_path_wins_over_a_template() -> None:
    found = spec.load().find("GET", "/v1/charges/search")
    assert found is not None
    assert (found[0].id, found[1]) == ("GetChargesSearch", {})


def test_a_page_of_a_long_list_looks_at_no_more_than_it_shows() -> None:
    store = Store()
    for number in range(10_000):
        store.add(
            PLATFORM,
            {
                "object": "transfer",
                "id": f"tr_{number}",
                "created": number,
                "transfer_group": f"g{number % 5_000}",
            },
        )
    looked: list[str] = []

    def where(value: Json) -> bool:
        looked.append(value["id"])
        return True

    def page(*filters: str, **params: object) -> list[str]:
        looked.clear()
        found = store.page("transfer", PLATFORM, params, "/v1/transfers", *filters, where=where)
        assert len(looked) <= 11
        return [value["id"] for value in found["data"]]

    assert page(limit=2) == ["tr_9999", "tr_9998"]
    assert page(limit=2, starting_after="tr_5000") == ["tr_4999", "tr_4998"]
    assert page(limit=2, ending_before="tr_5000") == ["tr_5002", "tr_5001"]
    assert page("transfer_group", transfer_group="g7") == ["tr_5007", "tr_7"]
    assert page("transfer_group", transfer_group="none") == []
    store.remove(PLATFORM, {"object": "transfer", "id": "tr_7", "transfer_group": "g7"})
    assert page("transfer_group", transfer_group="g7") == ["tr_5007"]
