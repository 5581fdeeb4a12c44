"""What was recorded and posted never changes, whoever tries."""

from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.integration.metering.test_contracts import a_contract, create
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
)


@pytest.fixture
async def database(world: World) -> AsyncIterator[psycopg.AsyncConnection]:
    """The database of a platform that has metered and posted something, and has a contract."""
    await world.meter(run("run-1"))
    await create(world.server.operator, a_contract())
    async with await psycopg.AsyncConnection.connect(
        world.server.ledger.database_url, autocommit=True
    ) as connection:

        async def sequenced() -> bool:
            return (
                await count_rows(connection, "ledger", "journal_position") > 0
                and await count_rows(connection, "metering", "usage_position") > 0
            )

        await eventually(sequenced)
        yield connection


async def test_nobody_changes_the_past(database: psycopg.AsyncConnection) -> None:
    await nobody_changes(database, TABLES)
