"""Tokens: whatever is signed is read back, and nothing else."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.metering.domain.budget import CounterKey
from services.metering.domain.reservation import Reservation, reservation_id
from services.metering.domain.reservation_token import TokenSigner, from_microseconds

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TEXT = st.text(max_size=40)
TIMES = st.integers(10**15, 4 * 10**15).map(from_microseconds)
RESERVATIONS = st.builds(
    Reservation,
    reservation_id=TEXT,
    customer_id=TEXT,
    workflow_id=TEXT,
    ordinal=st.integers(0, 2**31 - 1),
    organization_id=TEXT,
    agent_id=TEXT,
    agent_version=TEXT,
    action_type=TEXT,
    currency_code=TEXT,
    amount_micros=st.integers(0, 10**14),
    lease_epoch=st.integers(0, 2**40),
    expire_time=TIMES,
    price_version_id=TEXT,
    counters=st.just(()),
)
COUNTERS = st.lists(st.tuples(TEXT, st.none() | TIMES, st.booleans()), max_size=20)
EXAMPLE = Reservation(
    reservation_id=reservation_id("cus_1", "run-1", 0, ""),
    customer_id="cus_1",
    workflow_id="run-1",
    ordinal=0,
    organization_id="org_1",
    agent_id="agt_1",
    agent_version="",
    action_type="run",
    currency_code="USD",
    amount_micros=500_000,
    lease_epoch=1,
    expire_time=datetime(2026, 11, 21, tzinfo=UTC) + timedelta(microseconds=1),
    price_version_id="pv_1",
    counters=(),
)


@given(RESERVATIONS, COUNTERS)
def test_a_token_says_the_reservation_and_the_same_one_always(
    reservation: Reservation, counters: list[tuple[str, datetime | None, bool]]
) -> None:
    signer = TokenSigner([KEY])
    reservation = reservation._replace(
        workflow_id=reservation.workflow_id or "run",
        counters=tuple(
            CounterKey(budget_id, start, (reservation.workflow_id or "run") if is_per_workflow else "")
            for budget_id, start, is_per_workflow in counters
        ),
    )
    token = signer.sign(reservation)
    assert signer.read(token) == reservation
    assert signer.sign(reservation) == token
    assert len(token) <= 16_000


def test_every_changed_character_is_noticed() -> None:
    signer = TokenSigner([KEY])
    token = signer.sign(EXAMPLE)
    for index, character in enumerate(token):
        changed = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        with pytest.raises(InvalidArgument) as raised:
            signer.read(changed)
        assert raised.value.reason == "RESERVATION_TOKEN_INVALID"


@pytest.mark.parametrize("text", ["", "rst_", "rst_.", "rst_a.b", "x" * 9_000, "rst_é.é", "rst_\x00.", "…"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        TokenSigner([KEY]).read(text)
    assert [violation.field for violation in raised.value.field_violations] == ["token"]


def test_a_payload_that_somebody_else_signed_is_refused() -> None:
    forged = TokenSigner([OTHER_KEY]).sign(EXAMPLE._replace(amount_micros=10**14))
    with pytest.raises(InvalidArgument):
        TokenSigner([KEY]).read(forged)


def test_keys_are_changed_without_losing_what_the_old_one_signed() -> None:
    old, both, new = TokenSigner([KEY]), TokenSigner([OTHER_KEY, KEY]), TokenSigner([OTHER_KEY])
    assert both.read(old.sign(EXAMPLE)) == EXAMPLE
    assert new.read(both.sign(EXAMPLE)) == EXAMPLE
    with pytest.raises(InvalidArgument):
        new.read(old.sign(EXAMPLE))


@pytest.mark.parametrize("keys", [[], [b"short"], [KEY, b"short"]])
def test_a_key_must_be_long_enough(keys: list[bytes]) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        TokenSigner(keys)


def test_a_token_holds_no_secret_of_the_signer() -> None:
    content = TokenSigner([KEY]).sign(EXAMPLE).removeprefix("rst_").partition(".")[0]
    decoded = base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))
    assert KEY not in decoded
    assert b"cus_1" in decoded
