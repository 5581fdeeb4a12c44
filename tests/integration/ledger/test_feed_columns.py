"""ReadJournal as columns: the same transactions as one by one, of every type and for every request."""

import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import psycopg
import pytest

from services.kit.db import connection_parameters
from tallystick.journal import transactions
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1 import transaction_pb2
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_everything import CUSTOMERS, play_everything, settled
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import refusal

TYPES = set(transaction_pb2.TransactionType.values()) - {transaction_pb2.TRANSACTION_TYPE_UNSPECIFIED}
# Each request on its own, with and without charges.
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "everything": {"batch_size": 1000},
    "one by one": {"batch_size": 1},
    "a few": {"batch_size": 7},
    "an owner": {"owner_ids": [CUSTOMERS[0]]},
    "owners": {"owner_ids": ["platform", CUSTOMERS[1]], "batch_size": 5},
    "corrections": {"types": [transaction_pb2.TRANSACTION_TYPE_CORRECTION]},
    "what has no charge": {"types": [transaction_pb2.TRANSACTION_TYPE_PURCHASE], "batch_size": 3},
    "an owner's charges": {
        "types": [transaction_pb2.TRANSACTION_TYPE_CHARGE],
        "owner_ids": [CUSTOMERS[0]],
    },
    "nothing": {"types": [transaction_pb2.TRANSACTION_TYPE_PAYOUT], "owner_ids": ["cus_nobody"]},
}
# The places of what waits for a position, in another order.
SHUFFLE = """
    WITH taken AS (DELETE FROM ledger.unsequenced RETURNING partition_id, transaction_id)
    INSERT INTO ledger.unsequenced (partition_id, transaction_id)
    SELECT partition_id, transaction_id FROM taken ORDER BY md5(%s || transaction_id)
"""


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        yield running


async def read(server: LedgerServer, **request: Any) -> list[pb.ReadJournalResponse]:
    return [batch async for batch in server.service.ledger.ReadJournal(pb.ReadJournalRequest(**request))]


async def compare(server: LedgerServer, **request: Any) -> list[pb.SequencedTransaction]:
    """What both forms say, batch by batch, if that is the same."""
    batches = await read(server, **request)
    as_columns = await read(server, form=pb.JOURNAL_FORM_COLUMNS, **request)
    assert len(batches) == len(as_columns)
    for batch, columns in zip(batches, as_columns, strict=True):
        assert [*transactions(columns)] == [*batch.transactions]
        assert not columns.transactions
        assert not batch.HasField("columns")
        for field in ("log_id", "last_position", "head_position"):
            assert getattr(columns, field) == getattr(batch, field)
    return [one for batch in batches for one in batch.transactions]


async def test_columns_say_what_transactions_say_of_every_type(server: LedgerServer) -> None:
    await play_everything(server)

    seen = {
        name: await compare(server, include_charges=include_charges, **request)
        for include_charges in (False, True)
        for name, request in REQUESTS.items()
    }

    assert {one.transaction.type for one in seen["everything"]} == TYPES
    assert any(not one.transaction.entries for one in seen["everything"])
    assert any(one.HasField("correction") for one in seen["corrections"])
    assert {name for name, found in seen.items() if not found} == {"nothing"}


@pytest.mark.parametrize("seed", range(3))
async def test_columns_follow_positions_where_ids_have_another_order(server: LedgerServer, seed: int) -> None:
    books = Corrections(server)
    for organization in ("org_x", "org_y", "org_z"):
        await server.create_organization(organization)
    for customer in ("cus_a", "cus_b"):
        await server.create_customer(customer)
        await books.grant(5_000, customer, customer=customer)
    await settled(server)
    chosen = random.Random(seed)
    async with await psycopg.AsyncConnection.connect(server.database_url) as superuser:
        # Until the end of this transaction nothing gets a position.
        await superuser.execute("SELECT FROM ledger.journal_log FOR UPDATE")
        for number in range(6):
            batch = [
                intent(
                    f"run-{number}-{step}",
                    chosen.choice((0, 1, 700)),
                    customer=chosen.choice(["cus_a", "cus_b"]),
                )
                for step in range(7)
            ]
            for one in batch:
                for organization in chosen.sample(("org_y", "org_z"), chosen.randint(0, 2)):
                    one.payees.add(
                        organization_id=organization,
                        agent_id=organization.replace("org_", "agt_"),
                        weight=2,
                    )
            posted = await Credits(server).post(*batch)
            charge = max((one.charge for one in posted), key=lambda charge: charge.gross.amount_micros)
            if charge.gross.amount_micros:
                await books.correct(f"rf-{number}", 1, charge_id=charge.charge_id)
        await superuser.execute(SHUFFLE, [str(seed)])
    await settled(server)

    for size in (1000, 4):
        found = await compare(server, include_charges=True, batch_size=size)
        assert await compare(server, batch_size=size)

    ids = [one.transaction.transaction_id for one in found]
    assert ids != sorted(ids)
    assert any(one.HasField("correction") for one in found)


async def test_a_follower_gets_columns_as_they_come(server: LedgerServer) -> None:
    await server.create_organization("org_x")
    await server.create_customer("cus_a")
    feed = server.service.ledger.ReadJournal(pb.ReadJournalRequest(follow=True, form=pb.JOURNAL_FORM_COLUMNS))
    (posted,) = await Credits(server).post(intent("run-1", 80))
    batch = await anext(aiter(feed))
    feed.cancel()
    assert [*batch.columns.transaction_ids] == [posted.charge.transaction_id]


async def test_what_repeats_is_said_once_and_what_is_empty_not_at_all(server: LedgerServer) -> None:
    await server.create_organization("org_x")
    await server.create_customer("cus_a")
    await Corrections(server).grant(5_000)
    await Credits(server).post(*(intent(f"run-{number}", 100) for number in range(20)))
    await settled(server)

    (batch,) = await read(
        server,
        form=pb.JOURNAL_FORM_COLUMNS,
        include_charges=True,
        types=[transaction_pb2.TRANSACTION_TYPE_CHARGE],
    )

    columns = batch.columns
    assert len(columns.positions) == 20
    assert sum(columns.entry_counts) == len(columns.entries.account_indexes) > 20
    assert len(columns.entries.owner_ids) < 6
    assert len(columns.entries.buckets) == 1
    for empty in (columns.reasons, columns.payout_ids, columns.external_ids, columns.correction_ids):
        assert not empty
    assert not columns.charges.ordinals
    assert not columns.charges.evidence_hashes


async def test_an_unknown_form_is_refused(server: LedgerServer) -> None:
    refused = await refusal(read(server, form=77))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["form"]


@pytest.mark.parametrize("tenants", ["", "{cus_a}"])
async def test_nobody_but_the_platform_sees_columns(server: LedgerServer, tenants: str) -> None:
    await server.create_organization("org_x")
    await server.create_customer("cus_a")
    await Credits(server).post(intent("run-1", 80))
    await settled(server)
    parameters = connection_parameters(server.database_url, role="ledger_reader", schema="ledger")
    async with await psycopg.AsyncConnection.connect(**parameters) as reader:
        (log_id,) = [one.log_id for one in await read(server)]
        for platform, count in (("off", 0), ("on", 1)):
            await reader.execute(
                "SELECT set_config('tallystick.tenants', %s, true),"
                " set_config('tallystick.platform', %s, true)",
                (tenants, platform),
            )
            found = await reader.execute(
                "SELECT count(transaction_ids) FROM ledger.read_journal(%s, 0, 10, '{}', '{}', true)",
                (log_id,),
            )
            assert await found.fetchone() == (count,)
