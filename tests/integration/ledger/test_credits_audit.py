"""The audit finds what somebody changed of leases, holds and what charges captured of them."""

import psycopg
import pytest

from services.ledger.audit import audit
from tests.support.ledger_credits import Credits, allocation, hold_request, intent, of_hold, release_of
from tests.support.ledger_server import running_ledger

# By the check that must find it.
TAMPERING = {
    "held_by_leases_and_holds": (
        "UPDATE ledger.credit_lease SET remaining = remaining + 1 WHERE NOT draining",
        "UPDATE ledger.hold SET receivable = receivable + 1 WHERE state = 'held'",
        "UPDATE ledger.account SET held = held - 1 WHERE kind = 'customer_credits' AND held > 0",
        # Both sides, but of another currency.
        "UPDATE ledger.hold SET currency_code = 'EUR' WHERE state = 'held'",
    ),
    "one_lease_is_current": (
        "UPDATE ledger.credit_lease SET draining = NOT draining",
        "UPDATE ledger.credit_lease SET draining = true",
    ),
    "captures_are_paid": (
        "UPDATE ledger.hold SET captured_credits = captured_credits - 1 WHERE state = 'settled'",
        "UPDATE ledger.hold SET charge_id = 'ch_nobody' WHERE state = 'settled'",
        "UPDATE ledger.charge SET reservation_id = 'hold_2' WHERE reservation_id = 'hold_1'",
    ),
    "reservations_end_once": (
        "INSERT INTO ledger.released_reservation VALUES ('cus_a', 'rsv_1', now())",
        "UPDATE ledger.charge SET reservation_id = 'rsv_1' WHERE reservation_id = 'hold_1'",
        "UPDATE ledger.charge SET reservation_id = 'hold_2' WHERE reservation_id = 'rsv_1'",
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
        credits = Credits(server)
        await credits.grant(10_000_000)
        await credits.open(100)
        await credits.open(100, seen=1)
        await credits.hold(hold_request("hold_1", 100), hold_request("hold_2", 100))
        await credits.release(release_of(allocation("rsv_2", 2, 10)))
        await credits.post(
            intent("run-1", 60, of_hold("hold_1")), intent("run-2", 60, allocation("rsv_1", 2, 40))
        )
    assert await audit(database_url) == 0
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        # As only somebody with the whole machine can: past roles, policies, triggers and unique indexes.
        await superuser.execute("SET session_replication_role = replica")
        await superuser.execute("DROP INDEX ledger.credit_lease_current, ledger.charge_reservation")
        changed = await superuser.execute(change.encode())
        assert changed.rowcount > 0
    capsys.readouterr()
    assert await audit(database_url) > 0
    assert f"FAIL {check}" in capsys.readouterr().out
