"""The same batch, posted both ways on the same books: whatever it is of, it leaves and answers the same."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.support.ledger_server import LedgerServer, running_ledger

NEVER = timedelta(hours=1)
CUSTOMERS = ("cus_a", "cus_b", "cus_new")
ORGANIZATIONS = ("org_x", "org_y", "org_free")
# That there are arrays of outcome holds, if without one, is enough to send a batch the long way.
POST = """
SELECT * FROM ledger.post_charges(
    %(charge_ids)s::text[], %(customer_ids)s::text[], %(workflow_ids)s::text[], %(components)s::smallint[],
    %(ordinals)s::int[], %(currency_codes)s::text[], %(gross)s::bigint[], %(occur_times)s::timestamptz[],
    %(prices)s::text[], %(evidence)s::bytea[], %(hashes)s::bytea[], %(payee_charge)s::int[],
    %(organizations)s::text[], %(agents)s::text[], %(weights)s::bigint[], 'key_1',
    outcome_hold_ids => %(hold_ids)s::text[], outcome_amounts => %(hold_amounts)s::bigint[],
    outcome_expire_times => %(hold_times)s::timestamptz[])
"""
# Everything that a charge writes, without what no two postings share.
LEFT = (
    """
    SELECT t.charge_id, t.partition_id, t.type, t.occur_time, t.create_time, t.actor_api_key_id,
           e.entry_number, e.owner_id, e.kind, e.currency_code, e.amount, e.collected, e.earned_on,
           e.available_on, e.account_version
    FROM ledger.transaction t LEFT JOIN ledger.entry e USING (transaction_id, partition_id)
    WHERE t.type = 'charge' ORDER BY t.partition_id, t.charge_id, e.entry_number
    """,
    "SELECT to_jsonb(c) - 'transaction_id' FROM ledger.charge c ORDER BY customer_id, charge_id",
    "SELECT to_jsonb(a) FROM ledger.account a ORDER BY owner_id, kind, currency_code",
    """
    SELECT owner_id, kind, currency_code, collected, earned_on, available_on, sum(credits) AS credits,
           sum(debits) AS debits
    FROM ledger.balance_delta GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6
    """,
    "SELECT to_jsonb(i) FROM ledger.idempotency i ORDER BY owner_id, key",
    """
    SELECT t.charge_id FROM ledger.unsequenced u
    JOIN ledger.transaction t USING (transaction_id, partition_id)
    WHERE t.type = 'charge' ORDER BY u.unsequenced_id
    """,
    "SELECT count(*) FROM ledger.open_charge",
)


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(
        database_url,
        fold_interval=NEVER,
        sequence_interval=NEVER,
        lot_interval=NEVER,
        reap_interval=NEVER,
        collect_interval=NEVER,
    ) as running:
        await running.create_organization("org_x", 1500, 290, hold_days=3, window_days=1)
        await running.create_organization("org_y", 3333, 6667, hold_days=1, window_days=5)
        await running.create_organization("org_free", 0, 0)
        for customer in CUSTOMERS:
            await running.create_customer(customer)
        yield running


def a_batch(chance: random.Random) -> dict[str, list[Any]]:
    size = chance.choice([1, 2, 3, 8])
    now = datetime.now(UTC)
    customers = [chance.choice(CUSTOMERS[: chance.choice([1, 2, 3])]) for _ in range(size)]
    organizations = [chance.choice(ORGANIZATIONS) for _ in range(size)]
    agents = [one.replace("org_", "agt_") for one in organizations]
    grosses = [chance.choice([0, 1, chance.randint(0, 50), chance.randint(0, 200_000)]) for _ in range(size)]
    if chance.random() < 0.1:
        grosses[0] = 2**62
    if chance.random() < 0.1:
        customers[-1] = "cus_nobody"
    if chance.random() < 0.1:
        agents[-1] = "agt_nobody"
    number = chance.randrange(10**9)
    return {
        "charge_ids": [f"ch_{number}-{one}" for one in range(size)],
        "customer_ids": customers,
        "workflow_ids": [f"run-{one}" for one in range(size)],
        "components": [1] * size,
        "ordinals": [0] * size,
        "currency_codes": [chance.choice(["USD", "USD", "EUR"]) for _ in range(size)],
        "gross": grosses,
        # Before and after agreements begin, also those that begin in the future.
        "occur_times": [now + timedelta(days=chance.choice([-40, -3, 0, 20])) for _ in range(size)],
        "prices": ["pv_1"] * size,
        "evidence": [b"e"] * size,
        "hashes": [f"h{one}".encode() for one in range(size)],
        "payee_charge": list(range(1, size + 1)),
        "organizations": organizations,
        "agents": agents,
        "weights": [chance.randint(1, 9) for _ in range(size)],
    }


async def play(connection: psycopg.AsyncConnection[Any], batch: dict[str, Any], hold_ids: Any) -> list[Any]:
    """What posting it answers and leaves; undone afterwards."""
    asked = {
        **batch,
        "hold_ids": hold_ids,
        "hold_amounts": None if hold_ids is None else [0] * len(hold_ids),
        "hold_times": None if hold_ids is None else [datetime.now(UTC)] * len(hold_ids),
    }
    await connection.execute("SAVEPOINT before")
    try:
        rows = await (await connection.execute(POST, asked)).fetchall()
        posted = {row.pop("transaction_id") for row in rows}
        assert len(posted - {None}) == sum(row["status"] == "posted" for row in rows)
        left = [await (await connection.execute(query.encode())).fetchall() for query in LEFT]
        found: list[Any] = [rows, *left]
    except psycopg.Error as error:
        found = [error.sqlstate]
    await connection.execute("ROLLBACK TO SAVEPOINT before")
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_both_ways_post_the_same(server: LedgerServer, seed: int) -> None:
    chance = random.Random(seed)
    async with await psycopg.AsyncConnection.connect(server.database_url, row_factory=dict_row) as connection:
        for organization, days in (("org_x", -10), ("org_x", 10), ("org_y", 10)):
            await connection.execute(
                "INSERT INTO ledger.revenue_share_agreement"
                " SELECT organization_id, now() + %s * interval '1 day',"
                " platform_fee_bps / 2, processing_fee_bps / 3, 9, %s, now(), 2"
                " FROM ledger.revenue_share_agreement WHERE organization_id = %s LIMIT 1",
                [days, f"{organization}{days}", organization],
            )
        await connection.execute(
            "SELECT ledger.grant_credits(c, m, 500000, 'purchase', '', 'key_1', 'grant/' || m, 'h')"
            " FROM unnest(ARRAY['cus_a', 'cus_b']) AS c, unnest(ARRAY['USD', 'EUR']) AS m"
        )
        usual = 0
        for _ in range(40):
            batch = a_batch(chance)
            short = await play(connection, batch, None)
            long = await play(connection, batch, [""] * len(batch["charge_ids"]))
            assert short == long, batch
            usual += len(short) > 1 and not short[-1][0]["count"]
        assert usual > 10
