"""PostgreSQL's clock steps forth and back, and the books go on: their order is of positions and versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tests.support.ledger_credits import Credits, hold_request, in_future, of_hold, release_of
from tests.support.ledger_funding import Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_seal import proof_of, sealing_ledger, verified
from tests.support.ledger_server import LedgerServer
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOON = timedelta(milliseconds=20)
# How far ahead of the machine's clock it is in each round: forth, and back before what it had said.
STEPS = (timedelta(0), 3 * HOUR, -2 * HOUR, HOUR / 6, -26 * HOUR, timedelta(0))
# Whether all that was posted has been folded, allocated, settled, and given a position.
QUIET = """
SELECT NOT EXISTS (SELECT FROM ledger.balance_delta) AND NOT EXISTS (SELECT FROM ledger.unsequenced)
   AND NOT EXISTS (SELECT FROM ledger.promotion_due) AND NOT EXISTS (
       SELECT FROM ledger.account a
       LEFT JOIN ledger.lot_cursor c ON c.customer_id = a.owner_id AND c.currency_code = a.currency_code
       WHERE a.kind = 'customer_credits' AND a.version > coalesce(c.allocated_version, 0))
"""
# In the order of the log: how often the time fell, and how often a version did not follow the one before.
ORDER = """
SELECT count(*) FILTER (WHERE create_time < time_before),
       count(*) FILTER (WHERE version <> version_before + 1)
FROM (
    SELECT t.create_time, lag(t.create_time) OVER (ORDER BY p.position) AS time_before,
           e.account_version AS version,
           lag(e.account_version, 1, 0::bigint) OVER (
               PARTITION BY e.owner_id, e.currency_code ORDER BY p.position, e.account_version
           ) AS version_before
    FROM ledger.journal_position p
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    JOIN ledger.entry e USING (transaction_id, partition_id)
    WHERE e.kind = 'customer_credits'
) AS entries
"""


@dataclass
class World:
    """A ledger under a clock that steps, and what is done with it."""

    server: LedgerServer
    clock: SteppedClock

    async def row(self, statement: str) -> tuple[Any, ...]:
        async with await psycopg.AsyncConnection.connect(self.server.database_url) as superuser:
            row = await (await superuser.execute(statement.encode())).fetchone()
        assert row is not None
        return row

    async def rest(self) -> None:
        async def quiet() -> bool:
            return await self.row(QUIET) == (True,)

        await eventually(quiet)

    async def round(self, number: int) -> str:
        """Everything that moves money, once; one of the transactions."""
        lots, funding, credits = Lots(self.server), Funding(self.server), Credits(self.server)
        bought = f"bought-{number}"
        lot_id = await lots.give(1000, bought)
        await lots.give(50, f"gift-{number}", funder="org_x", expires=5 * DAY)
        await lots.charge(300, f"run-{number}", "cus_a", "org_y")
        await lots.correct("rf_1", 40)
        # Longer than the clock is ever ahead, but for the last step.
        placed = await credits.hold(
            *(
                hold_request(f"{name}-{number}", 30, expires=in_future(30 * 86_400))
                for name in ("hold", "kept")
            )
        )
        assert all(verdict.HasField("placed") for verdict in placed)
        await credits.release(release_of(of_hold(f"hold-{number}")))
        leased = (await credits.open(100, seen=number)).granted.lease
        assert leased.epoch == number + 1
        await credits.give_back(leased.epoch, 1, 60)
        await funding.reverse(f"re-{number}", 70, purchase=bought)
        await lots.debit(f"po_{number}", 10, "org_y")
        await self.server.service.earnings.CompletePayout(
            earnings.CompletePayoutRequest(organization_id="org_y", payout_id=f"po_{number}")
        )
        return lot_id


@pytest.fixture
async def world(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    clock = SteppedClock(database_url, monkeypatch)
    async with sealing_ledger(database_url, lot_interval=SOON, reap_interval=SOON) as server:
        await server.create_organization("org_x", 1500, 290)
        await server.create_organization("org_y", 0, 0)
        await server.create_customer("cus_a")
        yield World(server, clock)


async def test_the_books_go_on_while_the_clock_steps_forth_and_back(world: World) -> None:
    lots = Lots(world.server)
    proven = []
    for number, ahead in enumerate(STEPS):
        await world.clock.step(ahead)
        proven.append(await world.round(number))
        await world.rest()
        assert await audit(world.server.database_url) == 0
    fell, out_of_order = await world.row(ORDER)
    # Twice at least: it did step back.
    assert fell >= 2
    assert out_of_order == 0
    for transaction_id in proven:
        verified(await proof_of(world.server.operator, transaction_id))

    # So far ahead that the time of every lease, hold and lot is over, and back again: what ended stays so.
    await world.clock.step(40 * DAY)

    async def all_over() -> bool:
        return await world.row(
            "SELECT NOT EXISTS (SELECT FROM ledger.account WHERE held <> 0)"
            " AND NOT EXISTS (SELECT FROM ledger.credit_lot WHERE is_open AND expire_time IS NOT NULL)"
        ) == (True,)

    await eventually(all_over)
    await world.rest()
    ended = await lots.customer()
    await world.clock.step(-DAY)
    await lots.charge(7, "after")
    await world.rest()
    assert await lots.customer() == (ended[0] - 7, *ended[1:])
    assert sum(lot.remaining.amount_micros for lot in (await lots.listed_lots()).values()) == ended[0] - 7
    assert await audit(world.server.database_url) == 0


async def test_the_clock_that_steps_is_the_one_that_the_ledger_looks_at(world: World) -> None:
    """Of each table that a round writes, in the round that is three hours ahead."""
    await world.clock.step(3 * HOUR)
    await world.round(0)
    await world.rest()
    for table in (
        "transaction",
        "charge",
        "credit_lot",
        "credit_lease",
        "hold",
        "payout_debit",
        "purchase_reversal",
    ):
        (ahead,) = await world.row(
            f"SELECT min(create_time) > now() + interval '2 hours' FROM ledger.{table}"
        )
        assert ahead, table
