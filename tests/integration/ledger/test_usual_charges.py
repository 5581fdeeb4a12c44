"""The short way of the usual batch leaves and answers what the long way does."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import charge_pb2, transaction_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.integration.ledger.test_ledger import grant, intent, post
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.waiting import eventually

# Gross and payee, in turns: some without fees, some without anything.
CHARGES = (
    (10, "org_x"),
    (0, "org_x"),
    (1_000_003, "org_y"),
    (1, "org_x"),
    (0, "org_y"),
    (777_777, "org_x"),
    (34, "org_free"),
)
TOTAL = sum(gross for gross, _ in CHARGES)


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        for organization in ("org_x", "org_y"):
            await running.create_organization(organization)
        await running.create_organization("org_free", platform_fee_bps=0, processing_fee_bps=0)
        for customer in ("cus_a", "cus_b"):
            await running.create_customer(customer)
            await grant(running, TOTAL + 50, key=customer, customer=customer)
        yield running


def charges_of(customer: str) -> list[charge_pb2.ChargeIntent]:
    return [
        intent(f"run-{number}", gross, organization, customer=customer)
        for number, (gross, organization) in enumerate(CHARGES)
    ]


def nameless(posted: pb.PostedCharge) -> pb.PostedCharge:
    """The answer without what no two charges share."""
    same = pb.PostedCharge()
    same.CopyFrom(posted)
    same.charge.charge_id = same.charge.customer_id = same.charge.transaction_id = ""
    same.balance.customer_id = ""
    same.charge.ClearField("create_time")
    return same


async def transactions(
    server: LedgerServer, customer: str, verdicts: list[pb.ChargeVerdict]
) -> list[transaction_pb2.Transaction]:
    """What was posted, without what no two charges share."""
    found = []
    for verdict in verdicts:
        request = pb.GetTransactionRequest(transaction_id=verdict.posted.charge.transaction_id)
        transaction = (await server.operator.ledger.GetTransaction(request)).transaction
        assert transaction.partition_id == customer
        assert transaction.charge_id == verdict.posted.charge.charge_id
        transaction.transaction_id = transaction.partition_id = transaction.charge_id = ""
        transaction.ClearField("create_time")
        for entry in transaction.entries:
            if entry.account.owner_id == customer:
                entry.account.owner_id = "cus_"
        found.append(transaction)
    return found


async def test_the_usual_batch_is_posted_as_any_other_one(server: LedgerServer, database_url: str) -> None:
    usual = await post(server, *charges_of("cus_a"))
    # A charge with two payees sends the whole batch the long way.
    *long, divided = await post(
        server, *charges_of("cus_b"), intent("run-divided", 20, "org_x", "org_y", customer="cus_b")
    )
    assert divided.posted.charge.payment.from_credits.amount_micros == 20
    for verdict in long:
        # The balance is that behind the whole batch, which is 20 more.
        verdict.posted.balance.available.amount_micros += 20
    assert [nameless(one.posted) for one in usual] == [nameless(one.posted) for one in long]
    posted = await transactions(server, "cus_a", usual)
    assert posted == await transactions(server, "cus_b", long)
    # Entries are numbered without gaps, and count up the version of the account that pays.
    assert [[entry.entry_number for entry in one.entries] for one in posted] == [
        list(range(1, len(one.entries) + 1)) for one in posted
    ]
    assert [one.entries[0].account_version for one in posted if one.entries] == [2, 3, 4, 5, 6]

    async def is_folded() -> bool:
        with psycopg.connect(database_url) as admin:
            waiting = admin.execute("SELECT count(*) FROM ledger.balance_delta").fetchone()
        return waiting == (0,)

    await eventually(is_folded)
    with psycopg.connect(database_url) as admin:
        earned = admin.execute(
            "SELECT owner_id, kind::text, credits FROM ledger.account"
            " WHERE kind IN ('organization_payable', 'platform_fees', 'processing_fees')"
        ).fetchall()
    assert sum(credits for _, _, credits in earned) == 2 * TOTAL + 20
    assert ("org_free", "organization_payable", 68) in earned


async def test_a_batch_that_credits_pay_to_the_last_micro_is_usual_and_one_more_is_not(
    server: LedgerServer,
) -> None:
    verdicts = await post(server, *charges_of("cus_a"), intent("run-last", 50))
    assert [one.posted.balance.available.amount_micros for one in verdicts] == [0] * len(verdicts)
    (beyond,) = await post(server, intent("run-beyond", 1))
    assert beyond.posted.charge.payment.unpaid.amount_micros == 1
    (nothing,) = await post(server, intent("run-nothing", 0))
    assert not nothing.posted.duplicate
    again = await post(server, *charges_of("cus_a"), intent("run-last", 50), intent("run-nothing", 0))
    assert all(one.posted.duplicate for one in again)
    (alone,) = await post(server, intent("run-nothing", 0))
    assert alone.posted.charge.transaction_id == nothing.posted.charge.transaction_id


async def test_the_books_are_right_behind_both_ways(server: LedgerServer, database_url: str) -> None:
    await post(server, *charges_of("cus_a"))
    await post(server, *charges_of("cus_b"), intent("run-divided", 20, "org_x", "org_y", customer="cus_b"))
    assert await audit(database_url) == 0
