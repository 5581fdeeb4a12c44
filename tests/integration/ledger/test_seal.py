"""The seal: what was posted is in a signed log, and everybody can check their own part of it."""

from collections.abc import AsyncIterator

import pytest

from tests.support.ledger_credits import Credits, intent
from tests.support.ledger_seal import proof_of, sealed, sealing_ledger, verified
from tests.support.ledger_server import LedgerServer


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with sealing_ledger(database_url) as running:
        await running.create_organization("org_x")
        await running.create_organization("org_y", platform_fee_bps=1000, processing_fee_bps=0)
        for customer in ("cus_a", "cus_b"):
            await running.create_customer(customer)
        yield running


async def test_a_charge_is_proven(server: LedgerServer) -> None:
    (posted,) = await Credits(server).post(intent("run-1", 1_000))
    await sealed(server, 1)

    proof = await proof_of(server.operator, posted.charge.transaction_id)

    found = verified(proof)
    assert found.header.charge_id == posted.charge.charge_id
    assert sum(entry.amount_micros for entry in found.entries) == 0
