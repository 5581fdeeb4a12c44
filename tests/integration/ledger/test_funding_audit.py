"""The audit finds what somebody changed of purchases that came back, and of freezes."""

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tests.support.ledger_credits import intent
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_server import running_ledger

# By the check that must find it.
TAMPERING = {
    "purchases_come_back_as_recorded": (
        "UPDATE ledger.purchase_reversal SET amount = amount - 1 WHERE reversal_id = 're_1'",
        "UPDATE ledger.purchase_reversal SET from_credits = from_credits - 1 WHERE reversal_id = 're_1'",
        (
            "UPDATE ledger.purchase_reversal SET from_credits = from_credits - 1, from_expired = 1"
            " WHERE reversal_id = 're_1'"
        ),
        "UPDATE ledger.purchase_reversal SET reinstated = reinstated - 1 WHERE reinstated > 0",
        "UPDATE ledger.purchase_reversal SET type = 'purchase_refund' WHERE reversal_id = 'dp_1'",
        "DELETE FROM ledger.purchase_reversal WHERE reversal_id = 're_1'",
        "UPDATE ledger.transaction SET external_id = 're_9' WHERE external_id = 're_1'",
        "UPDATE ledger.transaction SET partition_id = 'cus_b' WHERE type = 'purchase_reinstatement'",
        "UPDATE ledger.entry SET amount = amount - 1 WHERE kind = 'customer_chargebacks' AND amount < 0",
    ),
    "reversals_stay_within_purchases": (
        "UPDATE ledger.reversed_purchase SET reversed = reversed - 1",
        "UPDATE ledger.reversed_purchase SET amount = amount + 1",
        "UPDATE ledger.purchase_reversal SET purchase_key = 'other' WHERE reversal_id = 're_1'",
    ),
    "debts_come_from_reversals": (
        "UPDATE ledger.entry SET kind = 'customer_chargebacks' WHERE kind = 'customer_unpaid'",
    ),
    "purchases_know_their_keys": (
        "UPDATE ledger.transaction SET external_id = NULL WHERE type = 'purchase'",
        "UPDATE ledger.transaction SET external_id = 'other' WHERE type = 'purchase'",
    ),
    "freezes_match_events": (
        "UPDATE ledger.customer SET freeze_reason = '', freeze_time = NULL",
        "UPDATE ledger.customer SET freeze_reason = 'another'",
        "UPDATE ledger.organization SET payouts_freeze_reason = 'r', payouts_freeze_time = now()",
        "DELETE FROM ledger.freeze_event",
        "UPDATE ledger.freeze_event SET owner_id = 'cus_b' WHERE owner_id = 'cus_a'",
    ),
    "nothing_overdrawn": (
        "UPDATE ledger.account SET upper_bound = NULL WHERE kind = 'customer_chargebacks'",
    ),
    "accounts_match_entries": (
        "UPDATE ledger.account SET debits = debits + 1 WHERE kind = 'customer_chargebacks'",
        "UPDATE ledger.entry SET amount = amount - 1 WHERE kind = 'stripe_fees'",
    ),
    "idempotency_matches_journal": (
        "DELETE FROM ledger.idempotency WHERE key LIKE 'purchase-reversal/%'",
        "DELETE FROM ledger.idempotency WHERE key LIKE 'reinstatement/%'",
        "DELETE FROM ledger.idempotency WHERE key LIKE 'processor-fee/%'",
    ),
}


async def play(funding: Funding) -> None:
    """A refund, a chargeback that came again in part, a debt that was partly paid, a fee; and freezes."""
    await funding.grant(1000)
    await funding.post(intent("run-1", 900))
    await funding.reverse("re_1", 300)
    await funding.post(intent("run-2", 50))
    await funding.reverse("dp_1", 500, CHARGEBACK)
    await funding.reinstate("dp_1", "adj_1", 100)
    await funding.grant(40, key="second")
    await funding.fee("fee_1", 30)
    for frozen in ("FreezePayouts", "UnfreezePayouts"):
        request = getattr(directory, f"{frozen}Request")(organization_id="org_x", reason="a look")
        await getattr(funding.server.operator.directory, frozen)(request)


@pytest.mark.parametrize(
    ("check", "change"), [(check, change) for check, changes in TAMPERING.items() for change in changes]
)
async def test_the_audit_finds_what_somebody_changed(
    database_url: str, capsys: pytest.CaptureFixture[str], check: str, change: str
) -> None:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        await play(Funding(server))
    assert await audit(database_url) == 0
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(change.encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger.reversed_purchase SET reversed = amount + 1",
        "UPDATE ledger.account SET credits = debits + 1 WHERE kind = 'customer_chargebacks'",
    ],
)
async def test_the_tables_refuse_what_cannot_be(database_url: str, statement: str) -> None:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        await play(Funding(server))
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        with pytest.raises(psycopg.errors.CheckViolation):
            await superuser.execute(statement.encode())
