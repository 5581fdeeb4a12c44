"""What happens between the parts: adjusted promotions, and credits that come free at a write-off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest

from services.ledger.audit import audit
from services.ledger.domain.write_offs import WriteOffKind
from services.ledger.store.write_offs import age_key
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_credits import Credits
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_lots import ORGANIZATION, Lots
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import refusal

NEVER = timedelta(hours=1)
CURRENCIES = ("USD", "EUR")


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Lots]:
    """A ledger whose lots nobody touches but the test."""
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        await server.create_organization("org_x", 1500, 290)
        await server.create_organization("org_y", 1000, 0)
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
        yield Lots(server)
        assert await audit(database_url) == 0


async def test_an_adjustment_in_two_currencies_is_settled_in_each(books: Lots) -> None:
    """One transaction takes an organization's credits of two currencies: it pays for each."""
    for currency, amount in (("USD", 100), ("EUR", 70)):
        await books.server.operator.ledger.GrantCredits(
            pb.GrantCreditsRequest(
                customer_id="cus_a",
                amount=money_pb2.Money(currency_code=currency, amount_micros=amount),
                source=ORGANIZATION,
                idempotency_key=currency,
                funder_organization_id="org_x",
            )
        )
    postings = [
        pb.Posting(
            account=account_pb2.AccountRef(owner_id=owner, kind=kind, currency_code=currency),
            amount=money_pb2.Money(currency_code=currency, amount_micros=sign * amount),
        )
        for currency, amount in (("USD", 60), ("EUR", 40))
        for owner, kind, sign in (
            ("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, -1),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 1),
        )
    ]
    await books.server.operator.ledger.AdjustBalances(
        pb.AdjustBalancesRequest(postings=postings, reason="goodwill undone again", idempotency_key="k")
    )
    await books.settle()
    async with await psycopg.AsyncConnection.connect(books.server.database_url) as superuser:
        rows = await superuser.execute(
            "SELECT currency_code, kind::text, sum(amount)::bigint FROM ledger.entry"
            " WHERE owner_id = 'org_x' GROUP BY currency_code, kind ORDER BY currency_code, kind"
        )
        assert await rows.fetchall() == [
            ("EUR", "organization_payable", -40),
            ("EUR", "promotions", -30),
            ("USD", "organization_payable", -60),
            ("USD", "promotions", -40),
        ]


@pytest.mark.parametrize(("free", "written"), [(40, 20), (59, 1), (0, 60)])
@pytest.mark.parametrize(("kind", "limit"), [("unpaid", 0), ("receivable", 60)])
async def test_credits_that_came_free_an_instant_ago_pay_before_a_write_off(
    books: Lots, kind: str, limit: int, free: int, written: int
) -> None:
    """As when a lease ends between the look of who writes off, and its writing."""
    await books.limit(limit)
    if free:
        await books.give(free, "first")
        await Funding(books.server).open(free)
    charge_id = await books.charge(60)
    async with await psycopg.AsyncConnection.connect(books.server.database_url) as owner:
        await owner.execute("UPDATE ledger.credit_lease SET expire_time = now()")
        await owner.commit()
        await owner.execute("SELECT ledger.reap_leases(10)")
        await owner.commit()
        answer = await owner.execute(
            "SELECT (written).amount FROM ledger.write_off_charge(%s, %s, NULL, 'old', 'ledger', %s, 'h')",
            [charge_id, kind, age_key(charge_id, WriteOffKind(kind))],
        )
        assert await answer.fetchone() == (written,)
    assert await books.customer() == (0, 0, 0)
    charge = await books.get()
    assert charge.payment.from_credits.amount_micros == free
    assert charge.written_off.amount_micros == written


async def test_credits_that_came_free_an_instant_ago_pay_a_chargeback_before_a_write_off(books: Lots) -> None:
    funding = Funding(books.server)
    await books.grant(100)
    await funding.open(30)
    held = await funding.balance()
    await funding.reverse("dp_1", 100, CHARGEBACK)
    async with await psycopg.AsyncConnection.connect(books.server.database_url) as owner:
        await owner.execute("UPDATE ledger.credit_lease SET expire_time = now()")
        await owner.commit()
        await owner.execute("SELECT ledger.reap_leases(10)")
        await owner.commit()
        refused = owner.execute(
            "SELECT ledger.write_off_chargebacks('cus_a', 'USD', NULL, 'gone', 'ledger', 'write-off/k', 'h')"
        )
        with pytest.raises(psycopg.DatabaseError, match="more than is owed"):
            await refused
    assert held.held.amount_micros > 0


async def test_a_lease_is_returned_whatever_the_lots_say(database_url: str) -> None:
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        await server.create_organization("org_x", 1500, 290)
        await server.create_customer("cus_a")
        books, credits = Lots(server), Credits(server)
        spent = await books.give(100, "spent")
        await books.give(50, "soon", expires=timedelta(hours=1), priority=99)
        await books.end_time()
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
            # As only somebody with the whole machine can: this lot has nothing any more. Then it is spent.
            await superuser.execute(
                "UPDATE ledger.credit_lot SET remaining = 0, is_open = false WHERE lot_id = %s", [spent]
            )
        await books.charge(60, "run-1")
        leased = (await credits.open(90)).granted.lease.remaining.amount_micros
        assert (leased, await books.customer()) == (90, (0, 0, 0))
        returned = await credits.give_back(1, 1, 90)
        assert returned.available.amount_micros == 90
        assert await books.customer() == (90, 0, 0)


async def test_lots_that_contradict_the_journal_keep_no_other_customer_waiting(database_url: str) -> None:
    """Neither what expires nor what is settled, however often it is tried; nor the organization's payout."""
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        await server.create_organization("org_x", 1500, 290)
        books, lots = Lots(server), []
        for customer in ("cus_a", "cus_b"):
            await server.create_customer(customer)
            lots.append(await books.give(100, "gift", funder="org_x", customer=customer))
            await books.give(30, "soon", expires=timedelta(hours=1), priority=99, customer=customer)
            await books.charge(40, "run-1", customer)
            await books.end_time(customer=customer)
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as superuser:
            # As only somebody with the whole machine can: this lot has nothing any more. Then it is spent.
            await superuser.execute(
                "UPDATE ledger.credit_lot SET remaining = 0, is_open = false WHERE lot_id = %s", [lots[0]]
            )
            await books.charge(50, "run-2", "cus_a")
            for _ in range(2):
                await superuser.execute("SELECT ledger.settle_promotions(1), ledger.expire_lots(1)")
            # Of what cus_b has spent by now it was not looked which lot paid.
            await books.charge(10, "run-3", "cus_b")
        assert (await refusal(books.debit("po_1", 76))).metadata["available_micros"] == "75"
        await books.debit("po_2", 75)
        assert (await books.lot(lots[1], "cus_b")).remaining == 50
        assert await books.customer("cus_b") == (50, 0, 0)
        # What it had earned by its own credits is taken back, of cus_b's charge.
        assert sum(await books.legs("org_x")) == 40 + 50 - 75
