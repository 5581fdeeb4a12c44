"""What was recorded and posted never changes, whoever tries."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.integration.metering.test_contracts import a_contract, create
from tests.integration.metering.test_subscriptions import PLANS, offer, subscribe
from tests.integration.metering.world import World, run
from tests.support.append_only import count_rows, nobody_changes
from tests.support.waiting import eventually

TABLES = (
    ("ledger", "transaction"),
    ("ledger", "entry"),
    ("ledger", "charge"),
    ("ledger", "journal_position"),
    ("ledger", "idempotency"),
    ("ledger", "revenue_share_agreement"),
    ("metering", "usage_event"),
    ("metering", "usage_position"),
    ("metering", "contract_version"),
    ("metering", "subscription_segment"),
)


@pytest.fixture
async def database(world: World) -> AsyncIterator[psycopg.AsyncConnection]:
    """The database of a platform that has metered, charged, agreed and been subscribed to something."""
    await world.meter(run("run-1"))
    await create(world.server.operator, a_contract())
    await offer(world, *PLANS)
    await subscribe(world.server.operator)
    async with await psycopg.AsyncConnection.connect(
        world.server.ledger.database_url, autocommit=True
    ) as connection:

        async def sequenced() -> bool:
            # All of it: what is sequenced while the test counts rows would look like a change.
            waiting = [
                await count_rows(connection, *queue)
                for queue in (("ledger", "unsequenced"), ("metering", "unsequenced_usage"))
            ]
            return waiting == [0, 0]

        await eventually(sequenced)
        yield connection


async def test_nobody_changes_the_past(database: psycopg.AsyncConnection) -> None:
    await nobody_changes(database, TABLES)
