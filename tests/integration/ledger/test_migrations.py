"""A ledger of an earlier version is brought up to date with all that is in it."""

import shutil
from pathlib import Path

import psycopg
import pytest

from services.kit import migrations as kit
from services.ledger import migrations
from services.ledger.audit import audit

SCRIPTS = Path(migrations.__file__).parent
# One charge as version 0002 wrote it, and a function whose signature has changed since.
OLD = """
INSERT INTO ledger.customer VALUES ('cus_a', sha256('a'), now());
INSERT INTO ledger.organization VALUES ('org_x', 'org_x', sha256('x'), now());
INSERT INTO ledger.account (owner_id, kind, currency_code, credits, debits, lower_bound, version) VALUES
    ('cus_a', 'customer_credits', 'USD', 100, 60, 0, 2), ('cus_a', 'customer_receivable', 'USD', 0, 0, 0, 0),
    ('platform', 'stripe_clearing', 'USD', 0, 100, NULL, 0),
    ('org_x', 'organization_payable', 'USD', 60, 0, NULL, 0);
INSERT INTO ledger.transaction (
    transaction_id, partition_id, type, charge_id, occur_time, create_time, actor_api_key_id)
VALUES ('txn_1', 'cus_a', 'purchase', NULL, now(), now(), ''),
       ('txn_2', 'cus_a', 'charge', 'ch_1', now(), now(), '');
INSERT INTO ledger.entry VALUES
    ('txn_1', 1, 'cus_a', 'cus_a', 'customer_credits', 'USD', 100, NULL, NULL, NULL, 1),
    ('txn_1', 2, 'cus_a', 'platform', 'stripe_clearing', 'USD', -100, NULL, NULL, NULL, NULL),
    ('txn_2', 1, 'cus_a', 'cus_a', 'customer_credits', 'USD', -60, NULL, NULL, NULL, 2),
    ('txn_2', 2, 'cus_a', 'org_x', 'organization_payable', 'USD', 60, true, current_date, current_date, NULL);
INSERT INTO ledger.earnings_bucket VALUES ('org_x', 'USD', true, current_date, current_date, 60, 0);
INSERT INTO ledger.charge VALUES (
    'ch_1', 'cus_a', 'run-1', 1, 0, 'USD', 60, '{org_x}', '{agt_x}', '{60}', '{0}', '{0}', '{0}', '{0}',
    '{0}', 60, 0, 0, now(), now(), 'pv_1', '', 'txn_2');
INSERT INTO ledger.idempotency VALUES
    ('cus_a', 'grant/1', '', 'txn_1', now()), ('cus_a', 'ch_1', '', 'ch_1', now());
INSERT INTO ledger.unsequenced (partition_id, transaction_id) VALUES ('cus_a', 'txn_1'), ('cus_a', 'txn_2');
SET ROLE ledger_owner;
CREATE FUNCTION ledger.post_charges(text[]) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION ledger.fold(integer, text[]) RETURNS integer LANGUAGE sql AS 'SELECT -1';
"""


async def test_a_ledger_with_data_gets_leases_holds_and_new_functions(
    empty_database_url: str, tmp_path: Path
) -> None:
    shutil.copytree(SCRIPTS / "sql", tmp_path / "sql")
    (tmp_path / "versions").mkdir()
    for version in ("0001_directory.py", "0002_journal.py"):
        shutil.copy(SCRIPTS / "versions" / version, tmp_path / "versions")
    kit.migrate(empty_database_url, schema="ledger", script_dir=tmp_path)
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        admin.execute(OLD.encode())

    migrations.migrate(empty_database_url)
    migrations.migrate(empty_database_url)

    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        names = admin.execute(
            "SELECT proname::text, count(*) FROM pg_proc"
            " WHERE pronamespace = 'ledger'::regnamespace GROUP BY 1"
        ).fetchall()
        assert {name for name, count in names if count > 1} == set()
        assert {"post_charges", "open_lease", "visible", "refuse_rewrite"} <= {name for name, _ in names}
        charge = admin.execute(
            "SELECT reservation_id, captured_credits, captured_receivable FROM ledger.charge"
        ).fetchone()
        assert charge == ("", 0, 0)
        purchase = admin.execute(
            "SELECT external_id FROM ledger.transaction WHERE transaction_id = 'txn_1'"
        ).fetchone()
        assert purchase == ("1",)
        with pytest.raises(psycopg.errors.RestrictViolation):
            admin.execute("UPDATE ledger.transaction SET external_id = ''")
        # The new functions find what the old ones left.
        admin.execute("SET ROLE ledger_writer")
        lease = admin.execute(
            "SELECT opened, remaining FROM ledger.open_lease('cus_a', 'USD', 0, 1, '1 hour', '1 hour')"
        ).fetchone()
        assert lease == (True, 40)
    assert await audit(empty_database_url) == 0
