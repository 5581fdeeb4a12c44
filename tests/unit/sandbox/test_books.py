"""The journal is added up from its entries alone, and whatever is wrong with it is noticed."""

from __future__ import annotations

from sandbox.books import CustomerStanding, EarningsStanding, Funds, Journal
from tallystick.common.v1.money_pb2 import Money
from tallystick.ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CLAWBACK_LOSSES,
    ACCOUNT_KIND_CUSTOMER_CREDITS,
    ACCOUNT_KIND_CUSTOMER_RECEIVABLE,
    ACCOUNT_KIND_CUSTOMER_UNPAID,
    ACCOUNT_KIND_ORGANIZATION_PAYABLE,
    ACCOUNT_KIND_PAYOUTS_IN_TRANSIT,
    ACCOUNT_KIND_PLATFORM_FEES,
    ACCOUNT_KIND_PROCESSING_FEES,
    ACCOUNT_KIND_STRIPE_CLEARING,
    ACCOUNT_KIND_UNPAID_OFFSET,
    AccountKind,
    AccountRef,
)
from tallystick.ledger.v1.ledger_service_pb2 import SequencedTransaction
from tallystick.ledger.v1.transaction_pb2 import (
    TRANSACTION_TYPE_CHARGE,
    TRANSACTION_TYPE_COLLECTION,
    TRANSACTION_TYPE_PAYOUT,
    TRANSACTION_TYPE_PAYOUT_COMPLETION,
    TRANSACTION_TYPE_PAYOUT_RETURN,
    TRANSACTION_TYPE_PAYOUT_REVERSAL,
    TRANSACTION_TYPE_PURCHASE,
    TRANSACTION_TYPE_WRITE_OFF,
    EarningsBucket,
    Entry,
    Transaction,
    TransactionType,
)

CUSTOMER, ORGANIZATION = "cus_1", "org_1"


def entry(
    owner: str, kind: AccountKind.ValueType, micros: int, *, collected: bool = True, currency: str = "USD"
) -> Entry:
    made = Entry(
        account=AccountRef(owner_id=owner, kind=kind, currency_code=currency),
        amount=Money(currency_code=currency, amount_micros=micros),
    )
    if kind == ACCOUNT_KIND_ORGANIZATION_PAYABLE:
        made.bucket.CopyFrom(EarningsBucket(collected=collected))
    return made


def earned(net: int, platform: int, processing: int) -> list[Entry]:
    return [
        entry(ORGANIZATION, ACCOUNT_KIND_ORGANIZATION_PAYABLE, net),
        entry(ORGANIZATION, ACCOUNT_KIND_PLATFORM_FEES, platform),
        entry(ORGANIZATION, ACCOUNT_KIND_PROCESSING_FEES, processing),
    ]


class Writer:
    """Writes the transactions of one customer into a journal, in order."""

    def __init__(self) -> None:
        self.journal = Journal()

    def write(self, type_: TransactionType.ValueType, charge_id: str, *entries: Entry, skip: int = 0) -> None:
        transaction = Transaction(
            type=type_, charge_id=charge_id, partition_id=CUSTOMER, entries=list(entries)
        )
        position = self.journal.last_position + 1 + skip
        self.journal.add(SequencedTransaction(position=position, transaction=transaction))

    def purchase(self, micros: int) -> None:
        self.write(
            TRANSACTION_TYPE_PURCHASE,
            "",
            entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_CREDITS, micros),
            entry("platform", ACCOUNT_KIND_STRIPE_CLEARING, -micros),
        )

    def move(
        self,
        type_: TransactionType.ValueType,
        micros: int,
        from_: AccountKind.ValueType,
        to: AccountKind.ValueType,
    ) -> None:
        self.write(type_, "", entry(ORGANIZATION, from_, -micros), entry(ORGANIZATION, to, micros))

    def unpaid(self, charge_id: str, micros: int) -> None:
        self.write(
            TRANSACTION_TYPE_CHARGE,
            charge_id,
            entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_UNPAID, -micros),
            entry(CUSTOMER, ACCOUNT_KIND_UNPAID_OFFSET, micros),
        )

    def collection(self, charge_id: str, micros: int) -> None:
        self.write(
            TRANSACTION_TYPE_COLLECTION,
            charge_id,
            entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_CREDITS, -micros),
            entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_UNPAID, micros),
            entry(CUSTOMER, ACCOUNT_KIND_UNPAID_OFFSET, -micros),
            *earned(micros, 0, 0),
        )


def test_what_is_paid_earned_and_owed_is_the_sum_of_the_entries() -> None:
    writer = Writer()
    journal = writer.journal

    writer.purchase(1000)
    writer.write(
        TRANSACTION_TYPE_CHARGE,
        "ch_1",
        entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_CREDITS, -1000),
        entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_RECEIVABLE, -200),
        entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_UNPAID, -50),
        entry(CUSTOMER, ACCOUNT_KIND_UNPAID_OFFSET, 50),
        *earned(800, 150, 50),
        entry(ORGANIZATION, ACCOUNT_KIND_ORGANIZATION_PAYABLE, 200, collected=False),
    )
    writer.write(TRANSACTION_TYPE_CHARGE, "ch_free")

    assert journal.charges == {"ch_1": 1250, "ch_free": 0}
    assert (journal.gross, journal.net, journal.platform_fee, journal.processing) == (1250, 1000, 150, 50)
    assert (journal.paid_from_credits, journal.charge_count, journal.entry_count) == (1000, 2, 10)
    assert (journal.granted[CUSTOMER], journal.charged[CUSTOMER], journal.spent[CUSTOMER]) == (
        1000,
        1250,
        1000,
    )
    assert journal.balanced
    assert journal.gap_free
    standing = journal.standing([CUSTOMER, "cus_2"], [ORGANIZATION])
    assert standing.customers == {
        CUSTOMER: CustomerStanding(credits=0, receivable=200, unpaid=50),
        "cus_2": CustomerStanding(credits=0, receivable=0, unpaid=0),
    }
    assert standing.organizations == {
        ORGANIZATION: EarningsStanding(payable=1000, uncollected=200, platform_fees=150, processing_fees=50)
    }
    assert standing.unpaid == 50


def test_a_transaction_that_does_not_balance_is_noticed() -> None:
    writer = Writer()

    writer.write(TRANSACTION_TYPE_CHARGE, "ch_1", entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_CREDITS, -7))
    # Another one out of balance the other way does not make it good.
    writer.write(TRANSACTION_TYPE_CHARGE, "ch_2", *earned(7, 0, 0))

    assert sum(writer.journal.sums.values()) == 0
    assert not writer.journal.balanced


def test_currencies_do_not_balance_each_other() -> None:
    writer = Writer()

    writer.write(
        TRANSACTION_TYPE_CHARGE,
        "ch_1",
        entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_CREDITS, -7),
        entry(ORGANIZATION, ACCOUNT_KIND_ORGANIZATION_PAYABLE, 7, currency="EUR"),
    )

    assert not writer.journal.balanced


def test_a_gap_in_the_positions_is_noticed() -> None:
    writer = Writer()

    writer.purchase(1)
    assert writer.journal.gap_free

    writer.write(TRANSACTION_TYPE_PURCHASE, "", skip=1)
    assert not writer.journal.gap_free


def test_a_charge_posted_twice_is_counted_twice() -> None:
    writer = Writer()

    writer.unpaid("ch_1", 5)
    writer.unpaid("ch_1", 5)

    assert (writer.journal.charge_count, len(writer.journal.charges)) == (2, 1)


def test_collecting_oldest_first_may_stop_within_a_charge() -> None:
    writer = Writer()
    writer.unpaid("ch_1", 10)
    writer.unpaid("ch_2", 10)

    for charge_id, micros in (("ch_1", 4), ("ch_1", 6), ("ch_2", 10)):
        writer.collection(charge_id, micros)

    assert writer.journal.collected_oldest_first
    assert writer.journal.standing([CUSTOMER], []).unpaid == 0
    assert writer.journal.gross == writer.journal.net == writer.journal.paid_from_credits == 20
    assert writer.journal.charged[CUSTOMER] == writer.journal.spent[CUSTOMER] == 20


def test_collecting_a_younger_charge_first_is_noticed() -> None:
    writer = Writer()
    writer.unpaid("ch_1", 10)
    writer.unpaid("ch_2", 10)

    writer.collection("ch_1", 4)
    writer.collection("ch_2", 10)

    assert not writer.journal.collected_oldest_first


def test_what_was_written_off_waits_for_no_collection() -> None:
    writer = Writer()
    writer.unpaid("ch_1", 10)
    writer.unpaid("ch_2", 10)

    for charge_id, micros in (("ch_2", 4), ("ch_1", 10)):
        writer.write(
            TRANSACTION_TYPE_WRITE_OFF,
            charge_id,
            entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_UNPAID, micros),
            entry(CUSTOMER, ACCOUNT_KIND_UNPAID_OFFSET, -micros),
        )
    writer.collection("ch_2", 6)
    assert writer.journal.collected_oldest_first

    writer.collection("ch_2", 1)
    assert not writer.journal.collected_oldest_first


def test_what_nobody_paid_is_not_earned_and_what_is_given_up_of_a_clawback_is_no_earning() -> None:
    writer = Writer()
    writer.write(TRANSACTION_TYPE_CHARGE, "ch_1", *earned(100, 15, 3))
    writer.write(
        TRANSACTION_TYPE_WRITE_OFF,
        "ch_1",
        entry(CUSTOMER, ACCOUNT_KIND_CUSTOMER_RECEIVABLE, 118),
        *earned(-100, -15, -3),
    )
    writer.move(
        TRANSACTION_TYPE_WRITE_OFF, 40, ACCOUNT_KIND_CLAWBACK_LOSSES, ACCOUNT_KIND_ORGANIZATION_PAYABLE
    )

    assert writer.journal.earned == {ORGANIZATION: 0}
    assert writer.journal.standing([], [ORGANIZATION]).organizations[ORGANIZATION].payable == 40


def test_collecting_more_than_is_unpaid_is_noticed() -> None:
    writer = Writer()
    writer.unpaid("ch_1", 10)

    writer.collection("ch_1", 11)

    assert not writer.journal.collected_oldest_first


def test_what_is_paid_out_stays_earned_and_what_comes_back_is_payable_again() -> None:
    writer = Writer()
    writer.write(TRANSACTION_TYPE_CHARGE, "ch_1", *earned(100, 15, 3))
    payable, transit = ACCOUNT_KIND_ORGANIZATION_PAYABLE, ACCOUNT_KIND_PAYOUTS_IN_TRANSIT
    for micros in (60, 30):
        writer.move(TRANSACTION_TYPE_PAYOUT, micros, payable, transit)
    assert writer.journal.in_transit == 90
    writer.move(TRANSACTION_TYPE_PAYOUT_COMPLETION, 60, transit, ACCOUNT_KIND_STRIPE_CLEARING)
    writer.move(TRANSACTION_TYPE_PAYOUT_RETURN, 30, transit, payable)
    writer.move(TRANSACTION_TYPE_PAYOUT_REVERSAL, 20, ACCOUNT_KIND_STRIPE_CLEARING, payable)
    # What a purchase brings in is no payout.
    writer.purchase(7)

    journal = writer.journal

    assert (journal.in_transit, journal.paid_out, journal.net) == (0, 40, 100)
    assert journal.earned == {ORGANIZATION: 100}
    assert journal.standing([], [ORGANIZATION]).organizations[ORGANIZATION].payable == 60


def test_credits_are_at_rest_when_nobody_waits_for_them() -> None:
    assert Funds(available=5, reserved=0, held=0, unpaid=0).at_rest
    assert Funds(available=0, reserved=0, held=0, unpaid=7).at_rest

    assert not Funds(available=5, reserved=1, held=0, unpaid=0).at_rest
    assert not Funds(available=5, reserved=0, held=1, unpaid=0).at_rest
    # A lease has them, and is about to give them back.
    assert not Funds(available=5, reserved=0, held=0, unpaid=7).at_rest
