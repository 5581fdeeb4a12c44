"""The audit finds what somebody changed of payouts."""

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import earnings_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_credits import Credits, intent, usd
from tests.support.ledger_server import LedgerServer, running_ledger

# By the check that must find it.
TAMPERING = {
    "payouts_end_once": (
        "UPDATE ledger.payout_debit SET amount = amount - 1 WHERE payout_id = 'po_sent'",
        "UPDATE ledger.payout_debit SET state = 'returned', reversed = 0 WHERE payout_id = 'po_back'",
        "UPDATE ledger.payout_debit SET payout_id = 'po_other' WHERE payout_id = 'po_open'",
        "DELETE FROM ledger.payout_debit WHERE payout_id = 'po_sent'",
        "UPDATE ledger.transaction SET payout_id = 'po_sent' WHERE payout_id = 'po_open'",
        "UPDATE ledger.transaction SET type = 'payout_return' WHERE type = 'payout_completion'",
    ),
    "reversals_add_up": (
        "UPDATE ledger.payout_debit SET reversed = reversed - 1 WHERE reversed > 0",
        "UPDATE ledger.payout_debit SET reversed = 1 WHERE payout_id = 'po_sent'",
    ),
    "in_transit_is_what_payouts_took": (
        "UPDATE ledger.account SET credits = credits + 1 WHERE kind = 'payouts_in_transit'",
        "UPDATE ledger.payout_debit SET currency_code = 'EUR' WHERE payout_id = 'po_open'",
    ),
    "idempotency_matches_journal": ("DELETE FROM ledger.idempotency WHERE key LIKE 'reversal/%'",),
}


async def pay_out(server: LedgerServer) -> None:
    """One payout that is under way, one that was sent, and one of which a part came back."""
    earnings = server.service.earnings
    for payout_id in ("po_open", "po_sent", "po_back"):
        await earnings.DebitPayout(
            pb.DebitPayoutRequest(organization_id="org_x", payout_id=payout_id, amount=usd(100))
        )
    for payout_id in ("po_sent", "po_back"):
        await earnings.CompletePayout(pb.CompletePayoutRequest(organization_id="org_x", payout_id=payout_id))
    await earnings.ReversePayout(
        pb.ReversePayoutRequest(
            organization_id="org_x", payout_id="po_back", reversal_id="trr_1", amount=usd(40)
        )
    )


@pytest.mark.parametrize(
    ("check", "change"), [(check, change) for check, changes in TAMPERING.items() for change in changes]
)
async def test_the_audit_finds_what_somebody_changed(
    database_url: str, capsys: pytest.CaptureFixture[str], check: str, change: str
) -> None:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        await Credits(server).grant(1000)
        await server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=intent("run-1", 1000)))
        await pay_out(server)
    assert await audit(database_url) == 0
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(change.encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out
