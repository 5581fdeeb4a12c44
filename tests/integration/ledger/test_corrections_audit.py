"""The audit finds what somebody changed of corrections."""

import psycopg
import pytest

from services.ledger.audit import audit
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_server import running_ledger

# By the check that must find it.
TAMPERING = {
    "corrections_add_up": (
        "UPDATE ledger.corrected_charge SET amount = amount - 1",
        "UPDATE ledger.corrected_charge SET corrections = corrections + 1",
        "UPDATE ledger.corrected_charge SET gross = gross + 1",
        "UPDATE ledger.corrected_charge SET legs[1] = legs[1] + 1, legs[2] = legs[2] - 1",
        "DELETE FROM ledger.corrected_charge",
        "DELETE FROM ledger.correction WHERE correction_number = 2",
        "UPDATE ledger.correction SET correction_number = 7 WHERE correction_number = 2",
        "UPDATE ledger.correction SET legs[1] = legs[1] + 1, legs[2] = legs[2] - 1",
    ),
    "corrections_stay_within_charges": (
        "UPDATE ledger.corrected_charge SET legs[3] = -1",
        "UPDATE ledger.corrected_charge SET legs[2] = 151",
        "UPDATE ledger.corrected_charge SET legs = '{}'",
    ),
    "corrections_match_entries": (
        "UPDATE ledger.correction SET unpaid = unpaid - 1, credits = credits + 1 WHERE correction_number = 2",
        "UPDATE ledger.correction SET amount = amount + 1, unpaid = unpaid + 1 WHERE correction_number = 1",
        "UPDATE ledger.correction SET transaction_id = 'txn_other' WHERE correction_number = 2",
        "UPDATE ledger.transaction SET correction_id = 'rf_3' WHERE correction_id = 'rf_2'",
        "DELETE FROM ledger.transaction WHERE correction_id = 'rf_1'",
    ),
    "corrections_take_from_their_charges_buckets": (
        "UPDATE ledger.entry SET available_on = available_on + 1 WHERE collected AND amount < 0",
    ),
    "open_legs_match_entries": (
        "UPDATE ledger.open_charge SET unearned_legs = ARRAY[unearned_legs[1] - 1, unearned_legs[2] + 1, 0]",
        "UPDATE ledger.corrected_charge SET legs[1] = legs[1] + 1",
    ),
    "open_charges_match_entries": ("UPDATE ledger.open_charge SET unpaid = unpaid + 1",),
    "collected_charges_pay_their_legs": (
        "DELETE FROM ledger.open_charge",
        "UPDATE ledger.corrected_charge SET legs[3] = legs[3] + 1 WHERE gross = 500",
    ),
    "idempotency_matches_journal": (
        "DELETE FROM ledger.idempotency WHERE key LIKE 'correction/%'",
        "UPDATE ledger.idempotency SET outcome = 'txn_other' WHERE key LIKE 'correction/%'",
    ),
}


@pytest.mark.parametrize(
    ("check", "change"), [(check, change) for check, changes in TAMPERING.items() for change in changes]
)
async def test_the_audit_finds_what_somebody_changed(
    database_url: str, capsys: pytest.CaptureFixture[str], check: str, change: str
) -> None:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        await server.create_customer("cus_a")
        books = Corrections(server)
        await books.grant(500)
        await books.charge(500, "run-0")
        await books.correct("rf_1", 100)
        # What came back pays a part of the second charge; 900 of it are unpaid.
        await books.charge(1000)
        await books.correct("rf_1", 300)
        await books.correct("rf_2", 350)
    assert await audit(database_url) == 0
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies and triggers.
        await superuser.execute("SET session_replication_role = replica")
        changed = await superuser.execute(change.encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out
