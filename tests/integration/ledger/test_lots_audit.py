"""The audit finds what somebody changed of credit lots."""

from __future__ import annotations

from datetime import timedelta

import psycopg

from services.ledger.store.audit_lots import LOT_CHECKS
from tests.support.ledger_funding import Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import running_ledger
from tests.support.waiting import eventually

NEVER = timedelta(hours=1)
DAY = timedelta(days=1)
OF_X = "funder_id = 'org_x' AND of_earnings"
# By the check that must find it.
TAMPERING = {
    "lots_are_the_balance": (
        "UPDATE ledger.credit_lot SET remaining = remaining - 1 WHERE remaining > 1",
        "UPDATE ledger.lot_cursor SET allocated_version = allocated_version - 1",
        "UPDATE ledger.lot_cursor SET allocated_version = allocated_version + 1",
        "DELETE FROM ledger.credit_lot WHERE is_open",
    ),
    "lots_match_allocations": (
        "UPDATE ledger.credit_lot SET amount = amount + 1 WHERE is_open",
        "UPDATE ledger.credit_lot SET expired = expired - 1 WHERE expired > 0",
        "UPDATE ledger.purchase_reversal SET from_expired = from_expired - 1 WHERE from_expired > 0",
        "UPDATE ledger.credit_lot SET expire_time = NULL WHERE expired > 0",
        "UPDATE ledger.lot_allocation SET lot_id = 'txn_other' WHERE amount < 0",
        "DELETE FROM ledger.credit_lot WHERE NOT is_open",
    ),
    "allocations_match_entries": (
        "UPDATE ledger.lot_allocation SET amount = amount - 1 WHERE amount < -1",
        "DELETE FROM ledger.lot_allocation WHERE amount < 0",
        (
            "UPDATE ledger.lot_allocation SET first_version = first_version - 1, number = 1"
            " WHERE amount < 0 AND number = 1 AND first_version > 1"
        ),
    ),
    "lots_keep_up_with_the_log": (
        "UPDATE ledger.lot_cursor SET allocated_version = allocated_version - 1",
        "DELETE FROM ledger.lot_cursor",
    ),
    "lots_are_as_granted": (
        "UPDATE ledger.credit_lot SET priority = priority + 1 WHERE is_open",
        "UPDATE ledger.credit_lot SET funder_id = 'org_y' WHERE funder_id = 'org_x'",
        "UPDATE ledger.credit_lot SET opened_version = opened_version + 1 WHERE is_open",
        "UPDATE ledger.credit_lot SET source = 'adjustment' WHERE source = 'purchase'",
        "UPDATE ledger.credit_grant SET expire_time = NULL",
    ),
    "expiry_takes_from_lots_whose_time_is_over": (
        "UPDATE ledger.credit_lot SET expire_time = NULL, check_time = NULL WHERE expired > 0",
        (
            "UPDATE ledger.entry SET owner_id = 'org_y' WHERE kind = 'promotions' AND amount > 0"
            " AND transaction_id IN (SELECT t.transaction_id FROM ledger.transaction t"
            " WHERE t.type = 'credit_expiry')"
        ),
    ),
    "promotions_are_settled": (
        f"UPDATE ledger.promotion_settlement SET amount = amount - 1 WHERE {OF_X}",
        f"DELETE FROM ledger.promotion_settlement WHERE {OF_X}",
    ),
    "settlements_match_entries": (
        f"UPDATE ledger.promotion_settlement SET amount = amount - 1 WHERE {OF_X}",
        f"UPDATE ledger.promotion_settlement SET transaction_id = 'txn_other' WHERE {OF_X}",
        "UPDATE ledger.entry SET owner_id = 'org_y' WHERE kind = 'platform_fees' AND amount < 0",
    ),
    "settlements_stay_within_charges": (
        "UPDATE ledger.entry SET amount = amount - 1000 WHERE kind = 'platform_fees' AND amount < 0",
        (
            "UPDATE ledger.entry SET available_on = available_on + 1"
            " WHERE kind = 'organization_payable' AND amount < 0 AND owner_id = 'org_x'"
        ),
    ),
    "promotions_are_what_is_unspent": (
        "UPDATE ledger.entry SET amount = amount + 1 WHERE kind = 'promotions' AND owner_id = 'org_x'",
        (
            "UPDATE ledger.credit_lot SET remaining = remaining - 1, expired = expired + 1"
            " WHERE funder_id = 'org_x' AND remaining > 1"
        ),
    ),
}


async def found(database: psycopg.AsyncConnection) -> set[str]:
    """The checks that find something."""
    failed = set()
    for check in LOT_CHECKS:
        rows = await database.execute(f"SELECT count(*) FROM ({check.query}) AS d".encode())
        if await rows.fetchone() != (0,):
            failed.add(check.name)
    return failed


async def all_read(database_url: str) -> bool:
    """Whether the lots have come to the end of the log, and everything is there."""
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        rows = await superuser.execute(
            "SELECT NOT EXISTS (SELECT FROM ledger.unsequenced) AND f.position = l.last_position"
            " FROM ledger.lot_feed f JOIN ledger.journal_log l USING (log_id)"
        )
        return await rows.fetchone() == (True,)


async def test_the_audit_finds_what_somebody_changed(database_url: str) -> None:
    assert TAMPERING.keys() == {check.name for check in LOT_CHECKS}
    async with running_ledger(
        database_url, lot_interval=timedelta(milliseconds=20), reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        books = Lots(server)
        for organization in ("org_x", "org_y"):
            await server.create_organization(organization)
        await server.create_customer("cus_a")
        await books.give(100, "bought")
        await books.give(50, "ends", funder="org_x", expires=DAY)
        await books.give(1000, "given", funder="org_x")
        await books.charge(300, "run-1", "cus_a", "org_y")
        await books.charge(100, "run-2")
        await books.charge(20, "run-3")
        await books.give(40, "ends too", funder="org_x", expires=DAY)
        await books.give(30, "bought too", expires=DAY)
        await books.end_time()
        assert await books.expire() == 70
        await Funding(server).reverse("re_1", 20, purchase="bought too")
        await books.settle()
        await eventually(lambda: all_read(database_url))
    async with await psycopg.AsyncConnection.connect(database_url) as superuser:
        assert await found(superuser) == set()
        for check, changes in TAMPERING.items():
            for change in changes:
                await superuser.execute("SET LOCAL session_replication_role = replica")
                changed = await superuser.execute(change.encode())
                assert changed.rowcount > 0, change
                assert check in await found(superuser), change
                await superuser.rollback()
