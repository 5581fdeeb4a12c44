"""Lots under load: replicas that allocate, expire and settle at once, steps that die, and many lots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_credits import intent
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.waiting import eventually

NEVER = timedelta(hours=1)
SOON = timedelta(milliseconds=10)
DAY = timedelta(days=1)
CUSTOMERS = ("cus_a", "cus_b", "cus_c")
STEPS = ("allocate_lots(7)", "settle_promotions(3)", "expire_lots(3)")


@pytest.fixture
async def still(database_url: str) -> AsyncIterator[Lots]:
    """A ledger whose lots nobody touches but the test."""
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        yield await begin(server)
        assert await audit(database_url) == 0


async def begin(server: LedgerServer) -> Lots:
    await server.create_organization("org_x", 1500, 290)
    await server.create_organization("org_y", 1000, 0)
    for customer in CUSTOMERS:
        await server.create_customer(customer)
    return Lots(server)


async def grant(books: Lots, lots: int = 6) -> None:
    """Every customer has lots of all kinds, half of which end."""
    for customer in CUSTOMERS:
        for number in range(lots):
            await books.give(
                50,
                f"grant-{number}",
                funder=("", "platform", "org_x", "org_y")[number % 4],
                expires=DAY if number % 2 else None,
                priority=(50, 0)[number % 3 == 0],
                customer=customer,
            )


async def charge(books: Lots, rounds: int = 20) -> None:
    for number in range(rounds):
        intents = []
        for customer in CUSTOMERS:
            one = intent(f"run-{number}", 7, customer=customer)
            one.payees.add(organization_id="org_y", agent_id="agt_y", weight=1)
            intents.append(one)
        answer = await books.server.service.ledger.PostCharges(pb.PostChargesRequest(intents=intents))
        if number % 4 == 0:
            for verdict in answer.verdicts:
                await books.correct("rf", 3, charge_id=verdict.posted.charge.charge_id)


async def sequenced(database_url: str) -> bool:
    """Whether all that was posted has its position in the log."""
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        rows = await superuser.execute("SELECT count(*) FROM ledger.unsequenced")
        return await rows.fetchone() == (0,)


async def all_done(database_url: str) -> bool:
    """Whether all that was posted is allocated and settled."""
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        rows = await superuser.execute(
            "SELECT NOT EXISTS (SELECT FROM ledger.promotion_due) AND NOT EXISTS ("
            " SELECT FROM ledger.account a LEFT JOIN ledger.lot_cursor c"
            "   ON c.customer_id = a.owner_id AND c.currency_code = a.currency_code"
            " WHERE a.kind = 'customer_credits' AND a.version > coalesce(c.allocated_version, 0))"
        )
        return await rows.fetchone() == (True,)


async def test_two_replicas_allocate_settle_and_expire_while_charges_go_on(database_url: str) -> None:
    fast = {"lot_interval": SOON, "reap_interval": SOON}
    async with running_ledger(database_url, **fast) as server, running_ledger(database_url, **fast) as second:
        books, other = await begin(server), Lots(second)
        await grant(books)

        async def time_passes() -> None:
            await asyncio.sleep(0.3)
            for customer in CUSTOMERS:
                await books.end_time(customer=customer)
                await other.listed_lots(customer)

        await asyncio.gather(charge(books), time_passes())
        await eventually(lambda: all_done(database_url))
        for customer in CUSTOMERS:
            lots = (await books.listed_lots(customer)).values()
            available, _, _ = await books.customer(customer)
            assert sum(lot.remaining.amount_micros for lot in lots) == available
    assert await audit(database_url) == 0


async def step(database_url: str, name: str, *, commit: bool) -> int:
    """One step of a worker, which may die before its commit; how much it did."""
    async with await psycopg.AsyncConnection.connect(database_url) as owner:
        rows = await (await owner.execute(f"SELECT * FROM ledger.{name}".encode())).fetchall()
        if not commit:
            await owner.rollback()
        return len(rows) if name.startswith("expire") else rows[0][0]


async def test_a_step_that_dies_before_its_commit_has_done_nothing(still: Lots) -> None:
    """Every step dies once before each time that it is done: what comes out is as if none had."""
    url = still.server.database_url
    await grant(still)
    await charge(still, 8)

    await eventually(lambda: sequenced(url))
    for name in STEPS:
        if name.startswith("expire"):
            for customer in CUSTOMERS:
                await still.end_time(customer=customer)
        assert await step(url, name, commit=False) > 0
        while await step(url, name, commit=True):
            await step(url, name, commit=False)
    assert await all_done(url)


async def test_a_killed_backend_leaves_the_lots_to_the_next_one(still: Lots) -> None:
    """The connection is cut in the middle of a step, by the server."""
    url = still.server.database_url
    await grant(still)
    await charge(still, 4)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as killer:
        victim = await psycopg.AsyncConnection.connect(url)
        await victim.execute("SELECT ledger.refresh_lots('cus_a', 1000)")
        await victim.execute("SELECT ledger.settle_promotions(2)")
        other = asyncio.create_task(still.settle("cus_a"))
        await asyncio.sleep(0.2)
        assert not other.done(), "it should wait for the lots that the victim has locked"
        await killer.execute("SELECT pg_terminate_backend(%s)", [victim.info.backend_pid])
        await other
        await victim.close()
    for customer in CUSTOMERS:
        await still.settle(customer)
    assert await all_done(url)


async def test_ten_thousand_lots_expire_at_once(still: Lots) -> None:
    """Half of them of one customer. Charges of that customer go on in between."""
    url, count = still.server.database_url, 10_000
    for number in range(1, 51):
        await still.server.create_customer(f"cus_{number}")
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        await superuser.execute(
            "SELECT ledger.grant_credits("
            " 'cus_' || CASE WHEN n %% 2 = 0 THEN 'a' ELSE (n / 2 %% 50 + 1)::text END,"
            " 'USD', 10, 'promotion', '', 'key_x', 'grant/' || n, '',"
            " 'platform', 50::smallint, now() + '1 day')"
            " FROM generate_series(1, %s) AS n",
            [count],
        )
        rows = await superuser.execute("SELECT customer_id FROM ledger.customer")
        customers = [customer for (customer,) in await rows.fetchall()]
    for customer in customers:
        await still.end_time(customer=customer)

    async def expire_all() -> int:
        steps = 0
        while await step(url, "expire_lots(200)", commit=True):
            steps += 1
        return steps

    steps, _ = await asyncio.gather(expire_all(), charge(still, 10))
    # No lot is looked at again and again.
    assert steps <= count // 200 + 10
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        rows = await superuser.execute(
            "SELECT count(*) FILTER (WHERE is_open), count(*) FROM ledger.credit_lot"
            " WHERE expire_time IS NOT NULL"
        )
        assert await rows.fetchone() == (0, count)


async def test_a_customer_that_is_behind_by_much_is_allocated_from_the_log(still: Lots) -> None:
    """As a ledger is that has run for long before there were lots: from the first version on, bit by bit."""
    url = still.server.database_url
    await grant(still)
    await charge(still, 20)
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        # Two calls may expire and settle at most this much by themselves; nothing is allocated for more.
        assert await (
            await superuser.execute("SELECT ledger.catch_up_lots('cus_a', 'USD', 3)")
        ).fetchone() == (False,)
    done = 0
    while more := await step(url, "allocate_lots(5)", commit=True):
        done += more
    assert done > 90
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        rows = await superuser.execute("SELECT position FROM ledger.lot_feed")
        assert (await rows.fetchone() or (0, 0))[0] >= done
    for customer in CUSTOMERS:
        await still.settle(customer)
    assert await all_done(url)


async def test_lots_that_contradict_the_journal_hold_up_nobody_else(still: Lots) -> None:
    """Charges of all customers are allocated by one statement, of which one customer's lots are broken."""
    url = still.server.database_url
    for customer in CUSTOMERS:
        await still.give(50, "bought", customer=customer)
    await eventually(lambda: sequenced(url))
    # The lots first, so that the next step has charges alone.
    assert await step(url, "allocate_lots(1000)", commit=True) > 0
    for customer in CUSTOMERS:
        for number in range(3):
            await still.charge(7, f"run-{number}", customer, "org_y")
    await eventually(lambda: sequenced(url))
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        await superuser.execute(
            "INSERT INTO ledger.lot_allocation"
            " (customer_id, currency_code, last_version, number, first_version, lot_id, amount)"
            " SELECT owner_id, currency_code, version, 1, version, 'txn_wrong', -1"
            " FROM ledger.account WHERE owner_id = 'cus_b' AND kind = 'customer_credits'"
        )
    assert await step(url, "allocate_lots(1000)", commit=True) > 0
    async with await psycopg.AsyncConnection.connect(url) as superuser:
        rows = await superuser.execute(
            "SELECT a.owner_id FROM ledger.account a JOIN ledger.lot_cursor c"
            "   ON c.customer_id = a.owner_id AND c.currency_code = a.currency_code"
            " WHERE a.kind = 'customer_credits' AND a.version = c.allocated_version ORDER BY 1"
        )
        assert await rows.fetchall() == [("cus_a",), ("cus_c",)]
        await superuser.execute("SET LOCAL session_replication_role = replica")
        await superuser.execute("DELETE FROM ledger.lot_allocation WHERE lot_id = 'txn_wrong'")
        # Its entries are behind the feed by now, and found from the account.
        await superuser.execute("SELECT ledger.refresh_lots('cus_b', 1000)")
    assert await all_done(url)
