"""What a lease, a hold or a claim may be asked for, without any database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InvalidArgument
from services.ledger.domain import credits as rules
from services.ledger.domain.charges import ChargeComponent, ChargeIntent, Payee, check
from services.ledger.domain.credits import (
    HoldPurpose,
    HoldRequest,
    LeaseRenewal,
    OutcomeHold,
    ReservationClaim,
    ReservationRelease,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RENEWAL = LeaseRenewal("cus_a", "USD", 1, 0)
HOLD = HoldRequest("cus_a", "hold_1", HoldPurpose.RUN, "USD", 1, NOW, b"")
RELEASE = ReservationRelease("cus_a", "USD", "rsv_1", 1, NOW)
CLAIM = ReservationClaim("rsv_1", 1, 5, "USD", NOW)
OUTCOME = OutcomeHold("out_1", "USD", 5, NOW)
INTENT = ChargeIntent(
    customer_id="cus_a",
    workflow_id="run-1",
    component=ChargeComponent.BASE,
    ordinal=0,
    currency_code="USD",
    gross=10,
    payees=(Payee("org_x", "agt_x", 1),),
    occur_time=NOW,
    price_version_id="pv_1",
    evidence_hash=b"",
)


@pytest.mark.parametrize(("number", "amount"), [(0, 1), (-1, 1), (-1, 0), (1, -1), (1, 10**14 + 1)])
def test_a_malformed_return_is_refused(number: int, amount: int) -> None:
    rules.check_return(1, 10**14)
    rules.check_return(0, 0)
    with pytest.raises(InvalidArgument):
        rules.check_return(number, amount)


def fields_of(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.field_violations]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_id": "org_a"}, "customer_id"),
        ({"currency_code": "usd"}, "currency_code"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": rules.MAX_EPOCH + 1}, "epoch"),
        ({"wanted": -1}, "wanted_micros"),
        ({"wanted": 10**14 + 1}, "wanted_micros"),
    ],
)
def test_a_malformed_renewal_is_refused(change: dict[str, object], field: str) -> None:
    rules.check_renewal(RENEWAL)
    with pytest.raises(InvalidArgument) as refused:
        rules.check_renewal(replace(RENEWAL, **change))  # type: ignore[arg-type]
    assert fields_of(refused.value) == [field]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_id": ""}, "customer_id"),
        ({"hold_id": "h" * 65}, "hold_id"),
        ({"hold_id": "hold\x001"}, "hold_id"),
        ({"currency_code": ""}, "amount.currency_code"),
        ({"amount": 0}, "amount.amount_micros"),
        ({"expire_time": NOW + timedelta(days=367)}, "expire_time"),
        ({"content_hash": b"x"}, "content_hash"),
    ],
)
def test_a_malformed_hold_is_refused(change: dict[str, object], field: str) -> None:
    rules.check_hold(HOLD, NOW)
    rules.check_hold(replace(HOLD, content_hash=bytes(32), hold_id="h" * 64), NOW)
    with pytest.raises(InvalidArgument) as refused:
        rules.check_hold(replace(HOLD, **change), NOW)  # type: ignore[arg-type]
    assert fields_of(refused.value) == [field]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_id": "cus_"}, "customer_id"),
        ({"currency_code": "XXX"}, "currency_code"),
        ({"reservation_id": ""}, "reservation_id"),
        ({"lease_epoch": -1}, "lease_epoch"),
        ({"expire_time": None}, "expire_time"),
    ],
)
def test_a_malformed_release_is_refused(change: dict[str, object], field: str) -> None:
    rules.check_release(RELEASE)
    # A hold knows when it ends.
    rules.check_release(replace(RELEASE, lease_epoch=rules.NO_LEASE, expire_time=None))
    with pytest.raises(InvalidArgument) as refused:
        rules.check_release(replace(RELEASE, **change))  # type: ignore[arg-type]
    assert fields_of(refused.value) == [field]


@pytest.mark.parametrize(
    ("intent", "fields"),
    [
        (replace(INTENT, reservation=CLAIM, outcome_hold=OUTCOME), []),
        (replace(INTENT, reservation=ReservationClaim("hold_1", rules.NO_LEASE)), []),
        (
            replace(INTENT, reservation=ReservationClaim("", 1)),
            [
                "reservation.reservation_id",
                "reservation.amount.currency_code",
                "reservation.amount.amount_micros",
                "reservation.expire_time",
            ],
        ),
        (
            replace(INTENT, outcome_hold=OutcomeHold(" ", "EUR", 0, NOW + timedelta(days=400))),
            [
                "outcome_hold.hold_id",
                "outcome_hold.amount.currency_code",
                "outcome_hold.amount.amount_micros",
                "outcome_hold.expire_time",
            ],
        ),
    ],
)
def test_all_that_is_malformed_of_a_claim_is_told(intent: ChargeIntent, fields: list[str]) -> None:
    if not fields:
        check(intent, NOW)
        return
    with pytest.raises(InvalidArgument) as refused:
        check(intent, NOW)
    assert fields_of(refused.value) == fields


def test_what_is_reserved_is_no_part_of_what_a_charge_is() -> None:
    reserved = replace(INTENT, reservation=CLAIM, outcome_hold=OUTCOME)
    assert (reserved.charge_id, reserved.content_hash) == (INTENT.charge_id, INTENT.content_hash)
    # For ever: charges of the first version are compared with it.
    assert INTENT.content_hash.hex() == ("810e59855163cd41256bf1f35c3c7b041f65fcd4ac9dc88e4313e255c14510bb")


def test_nothing_comes_twice_in_a_batch() -> None:
    rules.check_distinct([("cus_a", "USD"), ("cus_a", "EUR")], "renewals")
    with pytest.raises(InvalidArgument) as refused:
        rules.check_distinct([("cus_a", "USD"), ("cus_a", "USD")], "renewals")
    assert fields_of(refused.value) == ["renewals"]
