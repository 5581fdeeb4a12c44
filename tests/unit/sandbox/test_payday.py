"""When organizations are paid in the demo, to whom something happens, and what counts as intended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sandbox.payday import Mishaps, Paid, payday_after
from tallystick.common.v1.money_pb2 import Money
from tallystick.payouts.v1.payout_pb2 import (
    BANK_STATUS_FAILED,
    BANK_STATUS_PAID,
    BANK_STATUS_UNSPECIFIED,
    PAYOUT_STATE_COMPLETED,
    PAYOUT_STATE_FAILED,
    PAYOUT_STATE_PROCESSING,
    BankStatus,
    Payout,
    PayoutState,
)

PAYABLE = {"org_a": 10_000, "org_b": 30_000, "org_c": 50_000, "org_d": 70_000, "org_e": 0}


def payout(
    owner: str,
    micros: int,
    state: PayoutState.ValueType = PAYOUT_STATE_COMPLETED,
    bank: BankStatus.ValueType = BANK_STATUS_PAID,
    came_back: int = 0,
) -> Payout:
    return Payout(
        organization_id=owner,
        amount=Money(currency_code="USD", amount_micros=micros),
        state=state,
        bank_status=bank,
        reversed=Money(currency_code="USD", amount_micros=came_back),
    )


def paid(*payouts: Payout) -> Paid:
    return Paid(payouts=list(payouts), payable=PAYABLE, mishaps=Mishaps.among(["org_c", "org_a", "org_b"]))


AS_INTENDED = [
    payout("org_a", 10_000, PAYOUT_STATE_FAILED, BANK_STATUS_UNSPECIFIED),
    payout("org_b", 30_000, bank=BANK_STATUS_FAILED),
    payout("org_c", 50_000, came_back=30_000),
    payout("org_d", 70_000),
]


@pytest.mark.parametrize("day", range(14))
@pytest.mark.parametrize("time_of_day", [timedelta(0), timedelta(hours=23, minutes=59, seconds=59)])
def test_a_payday_is_a_wednesday_after_the_week_and_once_payments_have_settled(
    day: int, time_of_day: timedelta
) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC) + timedelta(days=day) + time_of_day

    found = datetime.fromtimestamp(payday_after(now.timestamp()), UTC)

    assert (found.weekday(), found.hour, found.minute) == (2, 0, 1)
    assert timedelta(days=2) < found - now < timedelta(days=10)
    # What was earned until the end of the Sunday before.
    assert now < found - timedelta(days=2)


def test_mishaps_happen_to_the_first_by_name_as_far_as_there_are_any() -> None:
    assert Mishaps.among(["org_d", "org_c", "org_b", "org_a"]) == Mishaps("org_a", "org_b", "org_c")
    assert Mishaps.among(["org_a"]) == Mishaps("org_a", None, None)
    assert Mishaps.among([]) == Mishaps(None, None, None)


def test_everybody_paid_once_but_for_the_mishaps_is_as_intended() -> None:
    found = paid(*AS_INTENDED)

    assert found.as_intended
    assert found.paid_out == 30_000 + 20_000 + 70_000
    assert [found.paid_out_to(owner) for owner in ("org_a", "org_c")] == [0, 20_000]
    assert found.counts() == {
        "completed": 3,
        "failed": 1,
        "unfinished": 0,
        "reversed": 1,
        "bank_paid": 2,
        "bank_failed": 1,
    }
    assert [(row.state, row.bank, row.paid_out) for row in found.rows()] == [
        ("failed", "", 0),
        ("completed", "failed", 30_000),
        ("completed", "paid", 20_000),
        ("completed", "paid", 70_000),
    ]


@pytest.mark.parametrize(
    "last",
    [
        [],
        [payout("org_d", 70_000), payout("org_d", 70_000)],
        [payout("org_d", 60_000)],
        [payout("org_d", 70_000, PAYOUT_STATE_PROCESSING, BANK_STATUS_UNSPECIFIED)],
        [payout("org_d", 70_000, bank=BANK_STATUS_FAILED)],
        [payout("org_d", 70_000, came_back=1)],
    ],
    ids=["nothing", "twice", "too little", "under way", "bank failed", "reversed"],
)
def test_whatever_else_happens_is_not_as_intended(last: list[Payout]) -> None:
    assert not paid(*AS_INTENDED[:3], *last).as_intended
