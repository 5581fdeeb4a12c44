"""What each thing that happens makes of a purchase."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kit.errors import FailedPrecondition
from services.kit.money import Money
from services.payouts.domain import purchase as rules
from services.payouts.domain.payout import WORKER, Step
from services.payouts.domain.purchase import (
    Fee,
    Hold,
    Intent,
    IntentStatus,
    Movements,
    Origin,
    Purchase,
    PurchaseState,
    Reversal,
    ReversalKind,
)
from services.payouts.domain.refund import check_refundable

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
STEP = Step(WORKER, "test")
TWENTY = Money("USD", 20_000_000)
FEE = Fee("txn_1", Money("USD", 880_000), "processing")


def purchase(**changes: Any) -> Purchase:
    call = rules.payment_call(
        "pur_1",
        "cus_ada",
        TWENTY,
        stripe_customer_id="cus_stripe",
        payment_method_id="pm_1",
        off_session=False,
        return_url="http://127.0.0.1/",
        now=NOW,
    )
    made = Purchase(
        purchase_id="pur_1",
        customer_id="cus_ada",
        money=TWENTY,
        origin=Origin.REQUEST,
        request_hash=b"",
        requester="key_1",
        payment_method_id="pm_1",
        intent=call,
        create_time=NOW,
        update_time=NOW,
        next_attempt_time=NOW,
    )
    return dataclasses.replace(made, **changes)


def intent(status: IntentStatus = IntentStatus.SUCCEEDED, **changes: Any) -> Intent:
    paid = TWENTY if status is IntentStatus.SUCCEEDED else Money("USD", 0)
    made = Intent("pi_1", "pur_1", "cus_stripe", status, TWENTY, paid)
    return dataclasses.replace(made, **changes)


def after(before: Purchase, found: Intent, now: datetime = NOW) -> Purchase:
    change = rules.observed(before, found, STEP, now)
    assert change is not None
    return change.purchase


@pytest.mark.parametrize("state", sorted(rules.OPEN | rules.UNPAID))
def test_money_that_came_is_owed_as_credits_whatever_was_thought_before(state: PurchaseState) -> None:
    before = purchase(state=state, payment_intent_id="pi_1", failure_code="expired", cancel_time=NOW)
    change = rules.observed(before, intent(fee=FEE), STEP, NOW)
    assert change is not None
    paid = change.purchase
    assert (paid.state, paid.failure_code, paid.cancel_time) == (PurchaseState.PAID, "", None)
    assert (paid.next_attempt_time, paid.fee_micros, change.fees) == (NOW, 880_000, (FEE,))


@pytest.mark.parametrize("state", [PurchaseState.PAID, PurchaseState.SUCCEEDED])
@pytest.mark.parametrize("status", list(IntentStatus))
def test_what_is_paid_stays_paid(state: PurchaseState, status: IntentStatus) -> None:
    before = purchase(state=state, payment_intent_id="pi_1")
    assert rules.observed(before, intent(status), STEP, NOW) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"purchase_id": "pur_2"},
        {"stripe_customer_id": "cus_other"},
        {"amount": Money("USD", 20_010_000)},
        {"amount": Money("EUR", 20_000_000)},
        {"received": Money("USD", 19_990_000)},
    ],
)
def test_another_payment_is_never_taken_for_its_own(changes: dict[str, Any]) -> None:
    held = after(purchase(), intent(**changes))
    assert (held.state, held.hold) == (PurchaseState.PROCESSING, Hold.UNRESOLVED)
    assert held.next_attempt_time is None


@pytest.mark.parametrize("hold", list(Hold))
def test_the_history_says_of_a_hold_only_what_its_owner_understands(hold: Hold) -> None:
    said = "sk_live_… is no key of acct_1"
    for change in (rules.held(purchase(), hold, said), rules.again_later(purchase(), said, NOW, hold)):
        assert change.purchase.last_error == said
        assert change.step is not None
        assert change.step.reason.startswith("held: ")
        assert said not in change.step.reason
    assert rules.again_later(change.purchase, said, NOW, hold).step is None


def test_a_second_payment_is_not_its_own() -> None:
    assert not rules.is_payment_of(intent(payment_intent_id="pi_2"), purchase(payment_intent_id="pi_1"))


def test_a_declined_payment_fails_only_when_it_can_never_be_made() -> None:
    found = intent(IntentStatus.STALLED, failure_code="lost_card", failure_reason="Your card was declined.")
    stopped = after(purchase(), found)
    assert (stopped.state, stopped.cancel_time) == (PurchaseState.PROCESSING, NOW)
    failed = after(stopped, intent(IntentStatus.CANCELED))
    assert (failed.state, failed.failure_code) == (PurchaseState.FAILED, "lost_card")
    assert failed.next_attempt_time is None


def test_a_payment_between_making_and_confirming_is_left_alone_for_a_while() -> None:
    found = intent(IntentStatus.STALLED)
    assert after(purchase(), found).cancel_time is None
    late = NOW + rules.CALL_LIFE
    assert after(purchase(), found, late).failure_code == "payment_not_confirmed"


def test_a_cancelled_payment_without_a_failure_is_cancelled() -> None:
    before = purchase(cancel_time=NOW, payment_intent_id="pi_1")
    assert after(before, intent(IntentStatus.CANCELED)).state is PurchaseState.CANCELLED
    # One that wants its holder is not waited for.
    assert after(before, intent(IntentStatus.REQUIRES_ACTION)).next_attempt_time == NOW


@pytest.mark.parametrize("state", sorted(rules.UNPAID))
def test_a_payment_that_is_found_after_the_end_is_cancelled(state: PurchaseState) -> None:
    before = purchase(state=state, next_attempt_time=None)
    found = after(before, intent(IntentStatus.REQUIRES_ACTION))
    assert (found.state, found.payment_intent_id, found.next_attempt_time) == (state, "pi_1", NOW)
    assert rules.observed(before, intent(IntentStatus.CANCELED), STEP, NOW) is None


def test_who_does_not_confirm_has_a_day() -> None:
    before = purchase(state=PurchaseState.REQUIRES_ACTION, payment_intent_id="pi_1")
    assert rules.out_of_time(before, NOW + rules.ACTION_LIFE - timedelta(seconds=1)) is None
    late = rules.out_of_time(before, NOW + rules.ACTION_LIFE)
    assert late is not None
    assert late.purchase.failure_code == "authentication_expired"


def test_what_else_moved_money_is_read_before_and_after_the_grant() -> None:
    change = rules.moved(purchase(), intent(fee=FEE), STEP, NOW)
    assert change is not None
    assert (change.purchase.state, change.purchase.look) == (PurchaseState.PAID, True)
    granted = rules.granted(change.purchase, "txn_9", NOW).purchase
    assert (granted.state, granted.look) == (PurchaseState.SUCCEEDED, True)
    # A failed one has no money that could have moved.
    failed = purchase(state=PurchaseState.FAILED, payment_intent_id="pi_1")
    assert rules.moved(failed, intent(IntentStatus.CANCELED), STEP, NOW) is None


def test_sums_count_what_came_again() -> None:
    before = purchase(state=PurchaseState.SUCCEEDED, payment_intent_id="pi_1", transaction_id="txn_9")
    found = Movements(
        intent(fee=FEE),
        (
            Reversal("re_1", ReversalKind.REFUND, 5_000_000, "refund", NOW),
            Reversal("re_2", ReversalKind.REFUND, 4_000_000, "refund", NOW, "txn_2", 4_000_000),
            Reversal("dp_1", ReversalKind.DISPUTE, 6_000_000, "dispute", NOW, "txn_3", 1_000_000),
        ),
        (Fee("txn_4", Money("USD", 15_000_000), "dispute"), Fee("txn_5", Money("EUR", 7), "dispute")),
    )
    change = rules.looked(before, found, NOW)
    after = change.purchase
    assert (after.refunded_micros, after.disputed_micros, after.left_micros) == (
        5_000_000,
        5_000_000,
        10_000_000,
    )
    assert after.fee_micros == 15_880_000
    assert [fee.fee_id for fee in change.fees] == ["txn_1", "txn_4", "txn_5"]
    check_refundable(after, 7_000_000, 3_000_000)
    with pytest.raises(FailedPrecondition, match="at most"):
        check_refundable(after, 7_000_001, 3_000_000)


def test_a_fee_that_is_not_known_yet_is_asked_for_later() -> None:
    before = purchase(state=PurchaseState.SUCCEEDED, payment_intent_id="pi_1", transaction_id="txn_9")
    waiting = rules.told(before, NOW).purchase
    assert (waiting.look, waiting.next_attempt_time) == (True, NOW + rules.LOOK_PAUSE)
    known = rules.told(dataclasses.replace(before, fee_micros=0), NOW).purchase
    assert known.next_attempt_time is None


def test_the_call_is_frozen_with_the_names_it_is_found_by() -> None:
    call = purchase().intent
    assert call.key == "tallystick-purchase-pur_1"
    assert call.body["metadata"] == {"purchase_id": "pur_1", "customer_id": "cus_ada"}
    assert (call.body["amount"], call.body["currency"], call.body["confirm"]) == (2000, "usd", True)
    assert "off_session" not in call.body
