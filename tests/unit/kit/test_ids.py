import hashlib
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit import ids
from services.kit.clock import FixedClock, SystemClock
from services.kit.errors import InvalidArgument

START = datetime(2026, 11, 20, tzinfo=UTC)


def test_a_fresh_id_is_prefixed_and_unique() -> None:
    made = {ids.new_id(ids.ORGANIZATION) for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"org_[0-9a-hjkmnp-tv-z]{26}", one) for one in made)
    assert all(ids.check_id(one, ids.ORGANIZATION, field="id") == one for one in made)


def test_fresh_ids_sort_by_time() -> None:
    clock = FixedClock(START)
    made = []
    for _ in range(50):
        made.append(ids.new_id(ids.CUSTOMER, clock=clock))
        clock.advance(timedelta(milliseconds=1))
    assert made == sorted(made)


def test_fresh_ids_have_the_layout_of_a_ulid() -> None:
    assert re.fullmatch(r"agt_[0-9a-z]{26}", ids.new_id(ids.AGENT))


@pytest.mark.parametrize("suffix", ["", "_a", "-a", ".a", "a b", "a/b", "é", "a\n", "a" * 60])
def test_a_malformed_suffix_is_refused_by_name(suffix: str) -> None:
    assert ids.check_id("agt_GPT-4.1_mini", ids.AGENT, field="agent_id") == "agt_GPT-4.1_mini"
    with pytest.raises(InvalidArgument) as raised:
        ids.check_id(f"agt_{suffix}", ids.AGENT, field="agent_id")
    assert [one.field for one in raised.value.field_violations] == ["agent_id"]


@pytest.mark.parametrize("value", ["", "org_", "org", "cus_a", "ORG_a", "org_a\n", " org_a"])
def test_an_id_has_the_right_prefix(value: str) -> None:
    with pytest.raises(InvalidArgument):
        ids.check_id(value, ids.ORGANIZATION, field="organization_id")


def test_workflow_ids_are_the_hosts_own() -> None:
    for good in ("a", "run:2026/11.20-x_1", "A" * 128):
        assert ids.check_workflow_id(good) == good
    for bad in ("", "/a", "a b", "A" * 129, "a\n"):
        with pytest.raises(InvalidArgument):
            ids.check_workflow_id(bad)


def test_a_charge_id_is_a_pure_function_of_its_business_key() -> None:
    # Spelled out: a change of it would charge every recorded event a second time.
    assert ids.charge_id("cus_1", "run-1", "base", 0) == "ch_dd71c5a8043490cc71b3ce6d444320c1"
    keys = [
        ("cus_1", "run-1", "base", 1),
        ("cus_1", "run-1", "outcome", 0),
        ("cus_1", "run-10", "base", 0),
        ("cus_1run", "-1", "base", 0),
        ("cus_2", "run-1", "base", 0),
    ]
    assert len({ids.charge_id(*key) for key in keys}) == len(keys)


def test_parts_of_a_key_do_not_run_together() -> None:
    assert ids.derive_id("x", "a", "b,c") != ids.derive_id("x", "a,b", "c")
    assert ids.derive_id("x", "1") != ids.derive_id("x", 1)
    assert ids.derive_id("x", 'a","b') != ids.derive_id("x", "a", "b")


def test_clocks_are_utc_and_do_as_told() -> None:
    assert SystemClock().now().utcoffset() == timedelta(0)
    clock = FixedClock(START)
    assert clock.now() == clock.now() == START
    clock.advance(timedelta(hours=1))
    assert clock.now() == START + timedelta(hours=1)
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="timezone-aware"):
        FixedClock(datetime(2026, 1, 1))  # noqa: DTZ001 - the point


@given(st.lists(st.text() | st.integers()))
def test_a_derived_id_is_that_of_the_json_array_of_its_key(key: list[str | int]) -> None:
    canonical = json.dumps(key, separators=(",", ":"))
    assert ids.derive_id("x", *key) == f"x_{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"
