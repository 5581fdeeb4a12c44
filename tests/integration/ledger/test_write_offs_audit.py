"""The audit finds what somebody changed of write-offs and adjustments."""

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1.write_off_pb2 import (
    WRITE_OFF_KIND_CHARGEBACKS,
    WRITE_OFF_KIND_RECEIVABLE,
    WRITE_OFF_KIND_UNPAID,
)
from tests.support.ledger_adjustments import credit_request
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_server import running_ledger

MOVE_A_LEG = """
    UPDATE ledger.corrected_charge
    SET written_off_legs[1] = written_off_legs[1] + 1, written_off_legs[2] = written_off_legs[2] - 1
"""
OF_ANOTHER = """
    UPDATE ledger.entry SET owner_id = 'cus_b'
    WHERE transaction_id IN (SELECT transaction_id FROM ledger.write_off WHERE kind = 'unpaid')
"""
BY_ITS_PROPOSER = """
    UPDATE ledger.decided_adjustment
    SET actor_api_key_id = (SELECT proposer_api_key_id FROM ledger.adjustment LIMIT 1)
"""
# By the check that must find it.
TAMPERING = {
    "write_offs_add_up": (
        "UPDATE ledger.corrected_charge SET written_off = written_off - 1",
        "UPDATE ledger.corrected_charge SET written_off = 0, written_off_legs = NULL",
        MOVE_A_LEG,
        "DELETE FROM ledger.corrected_charge",
        "DELETE FROM ledger.write_off WHERE kind = 'unpaid'",
        "UPDATE ledger.write_off SET legs[1] = legs[1] + 1, legs[2] = legs[2] - 1 WHERE kind = 'unpaid'",
    ),
    "write_offs_match_entries": (
        "UPDATE ledger.write_off SET amount = amount + 1 WHERE kind = 'chargebacks'",
        "UPDATE ledger.write_off SET kind = 'unpaid' WHERE kind = 'receivable'",
        "UPDATE ledger.write_off SET kind = 'clawback' WHERE kind = 'chargebacks'",
        "DELETE FROM ledger.write_off WHERE kind = 'chargebacks'",
        "DELETE FROM ledger.transaction WHERE type = 'write_off' AND charge_id IS NULL",
    ),
    "losses_come_from_write_offs": (
        "UPDATE ledger.entry SET kind = 'write_offs' WHERE kind = 'stripe_clearing'",
    ),
    "open_legs_match_entries": (
        "UPDATE ledger.corrected_charge SET written_off_legs[1] = written_off_legs[1] + 1",
    ),
    "corrections_stay_within_charges": ("UPDATE ledger.corrected_charge SET written_off_legs[3] = 1000",),
    "corrections_add_up": (
        "UPDATE ledger.corrected_charge SET legs[1] = 1",
        "UPDATE ledger.corrected_charge SET corrections = 1",
        "UPDATE ledger.corrected_charge SET gross = gross + 1",
    ),
    "idempotency_matches_journal": (
        "DELETE FROM ledger.idempotency WHERE key LIKE 'write-off/%'",
        "UPDATE ledger.idempotency SET outcome = 'txn_other' WHERE key = 'write-off/one'",
        "DELETE FROM ledger.idempotency WHERE key LIKE 'adjustment/%'",
    ),
    "customers_pay_their_own": (OF_ANOTHER,),
    "adjustments_are_posted_as_decided": (
        BY_ITS_PROPOSER,
        "UPDATE ledger.decided_adjustment SET approval = false",
        "UPDATE ledger.adjustment SET amounts = ARRAY[11, -11]",
        "UPDATE ledger.adjustment SET reason = 'another one'",
        "UPDATE ledger.decided_adjustment SET transaction_id = 'txn_other'",
        "UPDATE ledger.decided_adjustment SET create_time = create_time + interval '8 days'",
    ),
    "adjustments_were_proposed": (
        "DELETE FROM ledger.idempotency WHERE key LIKE 'adjustment-proposal/%'",
        "DELETE FROM ledger.adjustment",
    ),
}

# What is put back after each change.
TOUCHED = (
    "corrected_charge",
    "write_off",
    "entry",
    "transaction",
    "idempotency",
    "adjustment",
    "decided_adjustment",
)


@pytest.mark.parametrize("check", TAMPERING)
async def test_the_audit_finds_what_somebody_changed(
    database_url: str, capsys: pytest.CaptureFixture[str], check: str
) -> None:
    async with running_ledger(database_url, adjustment_approval="required") as server:
        await server.create_organization("org_x")
        for customer_id in ("cus_a", "cus_b"):
            await server.create_customer(customer_id)
        books = Corrections(server)
        await books.grant(300)
        await books.limit(300)
        await books.charge(1000)
        await books.write_off(WRITE_OFF_KIND_UNPAID, 100, "one")
        await books.write_off(WRITE_OFF_KIND_RECEIVABLE, 150, "two")
        await Funding(server).reverse("dp_1", 300, CHARGEBACK)
        await books.write_off(WRITE_OFF_KIND_CHARGEBACKS, 70, "three", owner="cus_a")
        proposed = await server.operator.ledger.AdjustBalances(credit_request("cus_b", 10))
        another = await server.create_caller(access_pb2.ROLE_OPERATOR, "another")
        await another.ledger.ApproveAdjustment(
            pb.ApproveAdjustmentRequest(adjustment_id=proposed.adjustment.adjustment_id)
        )
    assert not await audit(database_url)
    for change in TAMPERING[check]:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        async with await psycopg.AsyncConnection.connect(database_url) as superuser:
            await superuser.execute("SET session_replication_role = replica")
            for table in TOUCHED:
                await superuser.execute(f"CREATE TABLE public.{table} AS TABLE ledger.{table}".encode())
            changed = await superuser.execute(change.encode())
            assert changed.rowcount > 0, change
        capsys.readouterr()
        assert await audit(database_url) > 0, change
        assert f"FAIL {check}" in capsys.readouterr().out, change
        async with await psycopg.AsyncConnection.connect(database_url) as superuser:
            await superuser.execute("SET session_replication_role = replica")
            for table in TOUCHED:
                await superuser.execute(f"DELETE FROM ledger.{table}".encode())
                await superuser.execute(f"INSERT INTO ledger.{table} TABLE public.{table}".encode())
                await superuser.execute(f"DROP TABLE public.{table}".encode())
        assert not await audit(database_url)
