"""Every check of the audit finds what it is for: somebody with the whole machine changes it, and is seen."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import CHECKS, run_checks
from services.ledger.store.audit_walls import APPEND_ONLY
from tests.conftest import FreshDatabase
from tests.support.ledger_everything import play_everything
from tests.support.ledger_server import running_ledger

# By the check that must find it. Where others have their own, in test_*_audit.py, these are what those lack.
TAMPERING = {
    "transactions_balance": (
        "UPDATE ledger.entry SET amount = amount + 1 WHERE kind = 'platform_fees'",
        "UPDATE ledger.entry SET currency_code = 'EUR' WHERE kind = 'stripe_fees'",
    ),
    "entries_have_transactions": (
        "DELETE FROM ledger.transaction WHERE type = 'promotion'",
        "DELETE FROM ledger.entry WHERE entry_number = 1 AND kind = 'customer_credits'",
        "UPDATE ledger.entry SET partition_id = 'cus_a_b' WHERE kind = 'stripe_fees'",
    ),
    "accounts_match_entries": (
        "DELETE FROM ledger.account WHERE kind = 'stripe_clearing'",
        """
        INSERT INTO ledger.balance_delta (owner_id, kind, currency_code, credits, debits)
        VALUES ('org_x', 'platform_fees', 'USD', 1, 0)
        """,
    ),
    "buckets_match_entries": (
        "UPDATE ledger.earnings_bucket SET available_on = available_on - 1 WHERE owner_id = 'org_x'",
        "DELETE FROM ledger.earnings_bucket WHERE NOT collected",
    ),
    "nothing_overdrawn": (
        """
        ALTER TABLE ledger.account DROP CONSTRAINT account_not_overdrawn;
        UPDATE ledger.account SET debits = credits + 1 WHERE kind = 'customer_credits'
        """,
        "UPDATE ledger.account SET lower_bound = NULL WHERE kind = 'customer_receivable'",
    ),
    "held_by_leases_and_holds": (
        "UPDATE ledger.account SET held = held - 1 WHERE held > 0",
        "UPDATE ledger.hold SET state = 'released', end_time = now() WHERE state = 'held'",
    ),
    "charges_add_up": (
        "UPDATE ledger.charge SET payee_gross[1] = payee_gross[1] - 1",
        "UPDATE ledger.charge SET platform_fees[1] = platform_fees[1] - 1 WHERE platform_fees[1] > 0",
    ),
    "charges_match_entries": (
        "DELETE FROM ledger.charge WHERE workflow_id = 'paid'",
        "UPDATE ledger.charge SET from_credits = from_credits - 1, unpaid = unpaid + 1 WHERE gross = 30000",
        "UPDATE ledger.charge SET transaction_id = 'txn_nobody' WHERE workflow_id = 'paid'",
    ),
    # Collected a second time: out of a bucket that has nothing left, and paid by nobody.
    "corrections_take_from_their_charges_buckets": (
        """
        INSERT INTO ledger.entry
        SELECT n.transaction_id, n.entry_number + 20, n.partition_id, n.owner_id, n.kind, n.currency_code,
               n.amount, n.collected, n.earned_on, n.available_on, n.account_version
        FROM ledger.entry n JOIN ledger.transaction t USING (transaction_id, partition_id)
        WHERE t.type = 'collection' AND n.kind = 'organization_payable'
        """,
    ),
    "open_legs_match_entries": (
        """
        INSERT INTO ledger.entry
        SELECT n.transaction_id, n.entry_number + 20, n.partition_id, n.owner_id, n.kind, n.currency_code,
               n.amount, n.collected, n.earned_on, n.available_on, n.account_version
        FROM ledger.entry n JOIN ledger.transaction t USING (transaction_id, partition_id)
        WHERE t.type = 'collection' AND n.kind = 'organization_payable'
        """,
    ),
    "customers_pay_their_own": (
        "UPDATE ledger.entry SET owner_id = 'cus_a_b' WHERE owner_id = 'cus_a' AND kind = 'customer_credits'",
    ),
    "earnings_are_held_as_agreed": (
        """
        UPDATE ledger.entry SET available_on = available_on - 7 WHERE owner_id = 'org_lark-Labs_2.eu'
        AND kind = 'organization_payable'
        """,
    ),
    "every_transaction_is_sequenced_once": (
        "DELETE FROM ledger.journal_position WHERE position = 3",
        """
        INSERT INTO ledger.unsequenced (partition_id, transaction_id)
        SELECT partition_id, transaction_id FROM ledger.journal_position WHERE position = 3
        """,
    ),
    "positions_are_gap_free": (
        "UPDATE ledger.journal_position SET position = position + 1000 WHERE position = 3",
        "UPDATE ledger.journal_log SET last_position = last_position - 1",
    ),
    "idempotency_matches_journal": (
        "UPDATE ledger.idempotency SET outcome = 'txn_nobody' WHERE key = 'grant/first'",
        """
        INSERT INTO ledger.idempotency (owner_id, key, request_hash, outcome)
        SELECT owner_id, key || 'again', request_hash, outcome
        FROM ledger.idempotency WHERE key = 'grant/first'
        """,
    ),
    "payable_is_earnings_less_payouts": (
        # The books agree with each other; only the payouts do not.
        "UPDATE ledger.payout_debit SET amount = amount - 1 WHERE payout_id = 'po_sent'",
        "UPDATE ledger.payout_debit SET state = 'returned', reversed = 0 WHERE payout_id = 'po_back'",
        "UPDATE ledger.charge SET payee_gross[1] = payee_gross[1] + 1 WHERE workflow_id = 'paid'",
        "DELETE FROM ledger.charge WHERE workflow_id = 'shared'",
        "UPDATE ledger.account SET credits = credits + 1 WHERE kind = 'organization_payable'",
    ),
    "charges_are_posted_once": (
        "UPDATE ledger.charge SET workflow_id = 'paid' WHERE workflow_id = 'shared'",
    ),
    "unpaid_has_its_offset": (
        "UPDATE ledger.account SET credits = credits + 1 WHERE kind = 'unpaid_offset'",
    ),
    "owners_are_known": (
        "DELETE FROM ledger.organization WHERE organization_id = 'org_u'",
        "DELETE FROM ledger.customer WHERE customer_id = 'cus_a'",
    ),
    "keys_of_the_directory_have_outcomes": (
        "DELETE FROM ledger.api_key WHERE role = 'owner'",
        """
        INSERT INTO ledger.idempotency (owner_id, key, request_hash, outcome)
        SELECT owner_id, key || 'again', request_hash, outcome
        FROM ledger.idempotency WHERE key LIKE 'api-key/%'
        """,
    ),
    "journal_is_append_only": (
        *(f"ALTER TABLE ledger.{table} DISABLE TRIGGER append_only" for table in APPEND_ONLY),
        "DROP TRIGGER append_only_truncate ON ledger.entry",
        """
        CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.entry FOR EACH ROW
        EXECUTE FUNCTION suppress_redundant_updates_trigger()
        """,
        """
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.open_charge
        FOR EACH ROW EXECUTE FUNCTION ledger.refuse_rewrite()
        """,
        "GRANT UPDATE ON ledger.entry TO ledger_writer",
        "GRANT DELETE ON ledger.idempotency TO PUBLIC",
    ),
    "tenants_are_apart": (
        "ALTER TABLE ledger.entry NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE ledger.charge DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE ledger.stowaway ()",
    ),
}
CASES = [(check, change) for check, changes in TAMPERING.items() for change in changes]


@dataclass
class Books:
    """A ledger in which everything has happened, and a superuser's connection to it."""

    runner: asyncio.Runner
    engine: AsyncEngine

    def failing(self, change: str = "") -> set[str]:
        """The checks that fail after a change, which is then undone."""
        return self.runner.run(self._failing(change))

    async def _failing(self, change: str) -> set[str]:
        async with self.engine.connect() as connection:
            # Past roles, policies, triggers and foreign keys.
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            await self._change(connection, change)
            await connection.execute(text("SET LOCAL ROLE ledger_reader"))
            await scope(connection, PLATFORM)
            return {finding.check.name async for finding in run_checks(connection) if finding.count}

    async def _change(self, connection: AsyncConnection, change: str) -> None:
        for statement in change.split(";") if change else ():
            done = await connection.execute(text(statement))
            assert done.rowcount != 0, f"changes nothing: {statement}"


@pytest.fixture(scope="module")
def books(fresh_database: FreshDatabase) -> Iterator[Books]:
    with fresh_database() as database_url, asyncio.Runner() as runner:

        async def play() -> None:
            async with running_ledger(database_url) as server:
                await play_everything(server)

        runner.run(play())
        engine = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
        yield Books(runner, engine)
        runner.run(engine.dispose())


def test_everything_that_may_happen_leaves_the_books_sound(books: Books) -> None:
    assert books.failing() == set()


@pytest.mark.parametrize(
    ("check", "change"), CASES, ids=[f"{check}-{at}" for at, (check, _) in enumerate(CASES)]
)
def test_what_somebody_changed_is_found(books: Books, check: str, change: str) -> None:
    assert check in books.failing(change)


def test_every_check_is_proven() -> None:
    """No check without a test that breaks what it is for, here or beside this module."""
    proven: set[str] = set()
    for module in Path(__file__).parent.glob("test_*.py"):
        found = importlib.import_module(f"tests.integration.ledger.{module.stem}")
        proven |= set(getattr(found, "TAMPERING", ()))
    assert {check.name for check in CHECKS} - proven == set()


def test_names_are_told_apart() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
