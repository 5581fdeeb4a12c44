"""What Redis is told of hard budgets, also late: a counter that is behind lets runs start that may not."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from services.kit.auth import Principal, Role
from services.kit.clock import FixedClock
from services.kit.db import Database
from services.metering.domain.budget import CounterKey
from services.metering.domain.reservation import DURABLE, Reservation
from services.metering.reconciler import DriftKind, Reconciler
from services.metering.rpc.budget_catalog import BudgetCatalog
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.ledger import Ledger
from services.metering.store import budgets
from services.metering.store.budgets import Spend
from services.metering.store.pools import Pools
from services.metering.valkey import Valkey, open_client
from tests.integration.metering.budget_world import NOW, a_budget, create
from tests.support.waiting import eventually

COUNTER = CounterKey("bud_1", None, "")
OPERATOR = Principal("key_1", Role.OPERATOR)
LEASED = 1


class NoLeases:
    """A ledger that knows every customer, and has leased nothing to anybody."""

    async def get_balance(self, customer_id: str, currency_code: str) -> None:
        pass

    async def lease_pages(self, customer_id: str, page_size: int) -> AsyncIterator[Sequence[object]]:
        yield ()


@dataclass
class Counting:
    """A gate of one budget of 1,000 micros, its Redis, which tests take away, and its PostgreSQL."""

    gate: BudgetGate
    valkey: Valkey
    writer: Database
    reconciler: Reconciler

    def take_redis_away(self) -> None:
        self.valkey.failed(ConnectionError("taken away"))

    async def bring_redis_back(self) -> None:
        await self.valkey.step()
        assert self.valkey.is_up

    async def reserve(self, reservation_id: str, micros: int, lease_epoch: int = LEASED) -> Reservation:
        """What is reserved with a lease as far as its token says."""
        reservation = Reservation(
            reservation_id=reservation_id,
            customer_id="cus_1",
            workflow_id="run-1",
            ordinal=0,
            organization_id="org_a",
            agent_id="agt_a",
            agent_version="",
            action_type="run",
            currency_code="USD",
            amount_micros=micros,
            lease_epoch=DURABLE,
            expire_time=datetime.now(UTC) + timedelta(minutes=5),
            price_version_id="pv_1",
            counters=(COUNTER,),
        )
        gates = await self.gate.find(
            customer_id="cus_1",
            agent_id="agt_a",
            api_key_id="key_1",
            currency_code="USD",
            workflow_id="run-1",
            at=NOW,
        )
        await self.gate.reserve(reservation, gates, b"content", OPERATOR)
        return reservation._replace(lease_epoch=lease_epoch)

    async def spend(self, micros: int) -> dict[CounterKey, int]:
        """Count in PostgreSQL, as the pipeline does; what Redis is to be told."""
        async with self.writer.hot() as connection:
            return dict((await budgets.count_spend(connection, [Spend(COUNTER, micros)])).spent)

    async def seen(self) -> tuple[int, int]:
        """(spent, reserved), by Redis unless it is away."""
        ((spent, reserved),) = await self.gate.rooms([COUNTER])
        return spent, reserved

    async def seen_by_postgresql(self) -> tuple[int, int]:
        async with self.writer.hot() as connection:
            state = (await budgets.load_counters(connection, [COUNTER]))[COUNTER]
        return state.spent, sum(one.amount for one in state.open)

    async def tell(self) -> None:
        """Let the teller work until Redis says what PostgreSQL says."""
        teller = self.gate.teller(timedelta(milliseconds=5))
        teller.start()

        async def is_told() -> bool:
            return await self.seen() == await self.seen_by_postgresql()

        try:
            await eventually(is_told)
        finally:
            await teller.stop(timedelta(seconds=1))


@pytest.fixture
async def counting(database_url: str, redis_url: str) -> AsyncIterator[Counting]:
    writer = Database(database_url, role="metering_writer", schema="metering", hot_pool_size=4)
    await writer.open()
    client = open_client(redis_url, cluster=False)
    valkey = Valkey(client)
    pools = Pools(client, grace=timedelta(seconds=60))
    try:
        await create(writer, a_budget())
        catalog = BudgetCatalog(writer)
        yield Counting(
            BudgetGate(catalog=catalog, writer=writer, pools=pools, valkey=valkey),
            valkey,
            writer,
            Reconciler(
                ledger=cast(Ledger, NoLeases()),
                leases=cast(Any, None),
                pools=pools,
                catalog=catalog,
                writer=writer,
                clock=FixedClock(NOW),
            ),
        )
    finally:
        await valkey.close()
        await writer.close()


async def test_an_end_that_redis_missed_is_told_when_it_is_back(counting: Counting) -> None:
    reservation = await counting.reserve("rsv_1", 600)
    counting.take_redis_away()
    await counting.gate.end(reservation, await counting.spend(400))
    await counting.bring_redis_back()
    assert await counting.seen() == (0, 600)

    await counting.tell()

    assert await counting.seen() == (400, 0)


async def test_an_end_that_was_missed_twice_tells_what_postgresql_counts(counting: Counting) -> None:
    reservation = await counting.reserve("rsv_1", 600)
    counting.take_redis_away()
    await counting.spend(400)
    await counting.gate.end(reservation, {})
    await counting.bring_redis_back()
    await counting.tell()
    assert await counting.seen() == (400, 0)


async def test_what_was_metered_meanwhile_is_told_too(counting: Counting) -> None:
    await counting.gate.end(await counting.reserve("rsv_1", 600), {})
    counting.take_redis_away()
    for _ in range(3):
        await counting.gate.spent(await counting.spend(100))
    await counting.bring_redis_back()
    assert await counting.seen() == (0, 0)
    await counting.tell()
    assert await counting.seen() == (300, 0)


async def test_settling_again_leaves_no_gap(counting: Counting) -> None:
    """The first process counted what was spent and died; who settles again learns no more of it."""
    reservation = await counting.reserve("rsv_1", 600)
    await counting.spend(400)
    await counting.gate.end(reservation, {})
    assert await counting.seen() == (400, 0)


async def test_a_run_that_the_credits_refused_spent_nothing(counting: Counting) -> None:
    reservation = await counting.reserve("rsv_1", 600)
    await counting.gate.end(reservation, {}, cancelled=True)
    assert await counting.seen() == (0, 0)


async def test_what_postgresql_counted_of_a_leased_run_ends_with_it(counting: Counting) -> None:
    """Redis was away for the budgets, and back for the credits."""
    counting.take_redis_away()
    reservation = await counting.reserve("rsv_1", 600)
    await counting.bring_redis_back()
    assert await counting.seen_by_postgresql() == (0, 600)
    await counting.gate.end(reservation, await counting.spend(400))
    assert await counting.seen_by_postgresql() == (400, 0)


async def test_the_drift_watch_tells_a_counter_that_is_behind(counting: Counting) -> None:
    await counting.reserve("rsv_1", 600)
    await counting.spend(400)
    (drift,) = (await counting.reconciler.run(customer_id="", dry_run=True)).drifts
    assert (drift.kind, drift.expected, drift.found, drift.repaired) == (
        DriftKind.BUDGET_DIFFERS,
        400,
        0,
        False,
    )
    assert "to repair it" in drift.explanation
    assert await counting.seen() == (0, 600)

    await counting.reconciler.step()

    assert await counting.seen() == (400, 600)
    assert not (await counting.reconciler.run(customer_id="", dry_run=True)).drifts


async def test_a_counter_that_is_ahead_is_left(counting: Counting) -> None:
    await counting.reserve("rsv_1", 600)
    await counting.gate.spent({COUNTER: 5})
    (drift,) = (await counting.reconciler.run(customer_id="", dry_run=False)).drifts
    assert (drift.expected, drift.found, drift.repaired) == (0, 5, False)
    assert "nothing is to be repaired" in drift.explanation
