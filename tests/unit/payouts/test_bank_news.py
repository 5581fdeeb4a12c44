"""What news of the bank, of transfers, and of what holds it up make of a payout."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.money import Money
from services.payouts.domain import payout as rules
from services.payouts.domain.payout import (
    BankPayout,
    BankStatus,
    Hold,
    Origin,
    Owed,
    Payout,
    PayoutState,
    Step,
)

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
STEP = Step("stripe", "evt_1")
MONEY = Money("USD", 40_000_000)


def _sent() -> Payout:
    """A payout whose money is on its way to the bank."""
    requested = Payout(
        payout_id="po_1",
        organization_id="org_1",
        money=MONEY,
        state=PayoutState.REQUESTED,
        origin=Origin.REQUEST,
        request_hash=b"",
        requester="key_1",
        create_time=NOW,
        update_time=NOW,
    )
    sending = rules.sending(requested, "acct_1", NOW).payout
    completed = rules.told(rules.transferred(sending, "tr_1", STEP, NOW).payout, NOW).payout
    frozen = rules.sending_to_bank(completed, NOW).payout
    change = rules.at_bank(frozen, _bank(BankStatus.PENDING), STEP)
    assert change is not None
    return change.payout


def _bank(status: BankStatus, attempt: int = 1) -> BankPayout:
    return BankPayout(f"po_bank_{attempt}", "po_1", attempt, status, "", "", None)


def test_the_bank_is_taken_at_its_word_and_the_same_word_twice_is_no_news() -> None:
    change = rules.at_bank(_sent(), _bank(BankStatus.PAID), STEP)
    assert change is not None
    assert change.payout.bank_status is BankStatus.PAID
    assert rules.at_bank(change.payout, _bank(BankStatus.PAID), STEP) is None
    # Even what was paid may come back.
    assert rules.at_bank(change.payout, _bank(BankStatus.FAILED), STEP) is not None


@pytest.mark.parametrize("hold", list(Hold))
def test_the_history_says_of_a_hold_only_what_its_owner_understands(hold: Hold) -> None:
    said = "sk_live_… is no key of acct_1"
    for change in (
        rules.held_for_decision(_sent(), hold, said),
        rules.again_later(_sent(), said, LATER, hold),
    ):
        assert (change.payout.hold, change.payout.last_error) == (hold, said)
        assert change.step is not None
        assert change.step.reason.startswith("held: ")
        assert said not in change.step.reason
    # The same hold again is no news.
    assert rules.again_later(change.payout, said, LATER, hold).step is None


def test_news_of_an_attempt_that_is_over_changes_nothing() -> None:
    failed = rules.at_bank(_sent(), _bank(BankStatus.FAILED), STEP)
    assert failed is not None
    again = rules.bank_again(failed.payout, "key_1", NOW).payout
    assert rules.at_bank(again, _bank(BankStatus.FAILED), STEP) is None
    second = rules.sending_to_bank(again, NOW).payout
    assert rules.at_bank(second, _bank(BankStatus.FAILED), STEP) is None
    assert rules.at_bank(second, _bank(BankStatus.PENDING, 2), STEP) is not None


def test_news_of_the_bank_does_not_make_the_ledger_wait_for_ever() -> None:
    came_back = rules.reversed_by(_sent(), 10_000_000, STEP, LATER).payout
    change = rules.at_bank(came_back, _bank(BankStatus.PAID), STEP)
    assert change is not None
    assert change.payout.next_attempt_time == LATER
    owed = dataclasses.replace(_sent(), owed=Owed.COMPLETE, next_attempt_time=LATER)
    change = rules.at_bank(owed, _bank(BankStatus.PAID), STEP)
    assert change is not None
    assert change.payout.next_attempt_time == LATER


def test_the_transfer_of_a_payout_is_told_from_any_other() -> None:
    sent = _sent()
    assert rules.transfer_contradiction(sent, "tr_1", "acct_1", MONEY) is None
    sending = dataclasses.replace(sent, state=PayoutState.PROCESSING, transfer_id=None)
    assert rules.transfer_contradiction(sending, "tr_1", "acct_1", MONEY) is None


@pytest.mark.parametrize("state", [PayoutState.REQUESTED, PayoutState.FAILED, PayoutState.CANCELLED])
def test_a_transfer_of_a_payout_that_was_not_sent_is_a_contradiction(state: PayoutState) -> None:
    payout = dataclasses.replace(_sent(), state=state, transfer_id=None)
    assert str(state) in (rules.transfer_contradiction(payout, "tr_1", "acct_1", MONEY) or "")


def test_another_transfer_amount_currency_or_destination_is_a_contradiction() -> None:
    for transfer_id, account, money in (
        ("tr_2", "acct_1", MONEY),
        ("tr_1", "acct_2", MONEY),
        ("tr_1", "acct_1", Money("USD", 40_010_000)),
        ("tr_1", "acct_1", Money("EUR", 40_000_000)),
    ):
        assert rules.transfer_contradiction(_sent(), transfer_id, account, money)
