"""A database of the first migration is brought up to date with what is in it."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest
from alembic import command

from services.kit.runs import kind_of, period_run, subscription_run
from services.reporting import migrations

# As the first version had them: other functions, under the same names and under one that is gone.
OLD_FUNCTIONS = """
    CREATE FUNCTION reporting.hear(a integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION reporting.gone() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE AGGREGATE reporting.total(bigint) (SFUNC = int8pl, STYPE = bigint, INITCOND = '0');
    ALTER FUNCTION reporting.hear(integer) OWNER TO reporting_owner;
    ALTER FUNCTION reporting.gone() OWNER TO reporting_owner;
    ALTER AGGREGATE reporting.total(bigint) OWNER TO reporting_owner;
"""
CHARGE = """
    INSERT INTO reporting.charge (projection_id, charge_id, customer_id, workflow_id, component, ordinal,
        currency_code, gross_micros, price_version_id, transaction_id, position, occur_time, create_time)
    VALUES (7, 'ch_' || %(run)s, 'cus_a', %(run)s, 'base', 0, 'USD', 5, 'pv_1', 'txn_' || %(run)s,
        %(position)s, now(), now())
"""
REVENUE = """
    INSERT INTO reporting.revenue (projection_id, position, organization_id, type, charge_id, agent_id,
        customer_id, currency_code, billed_micros, platform_fee_micros, processing_fee_micros, net_micros,
        charge_count, transaction_id, occur_time, create_time)
    VALUES (7, %(position)s, 'org_a', 'charge', 'ch_' || %(run)s, 'agt_a', 'cus_a', 'USD', 5, 1, 1, 3, 1,
        'txn_' || %(run)s, now(), now())
"""
USAGE = """
    INSERT INTO reporting.usage (projection_id, customer_id, workflow_id, ordinal, organization_id, agent_id,
        agent_version, action_type, model, input_tokens, output_tokens, outcome, currency_code, price_micros,
        price_lines, occur_time)
    VALUES (7, 'cus_a', %(run)s, 0, 'org_a', 'agt_a', '1.0', 'run', '', 0, 0, 'success', 'USD', 5, '', now())
"""
FUNCTIONS = """
    SELECT p.oid::regprocedure::text, p.prosrc, p.proacl::text FROM pg_proc p
    WHERE p.pronamespace = 'reporting'::regnamespace ORDER BY 1
"""


def test_charges_that_have_no_usage_yet_are_named_after_the_upgrade(
    empty_database_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, revision: upgrade(config, "0001"))
        migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        admin.execute(OLD_FUNCTIONS)
        for position, run in enumerate(("with", "without"), start=1):
            admin.execute(CHARGE, {"run": run, "position": position})
            admin.execute(REVENUE, {"run": run, "position": position})
        admin.execute(USAGE, {"run": "with"})

        migrations.migrate(empty_database_url)
        unnamed = "SELECT workflow_id, ordinal, position FROM reporting.unnamed_charge"
        assert admin.execute(unnamed).fetchall() == [("without", 0, 2)]
        admin.execute(
            "SELECT reporting.name_revenue(7, '{cus_a}', '{without}', '{0}', '{agt_a}', '{2.0}', '{run}')"
        )
        assert admin.execute(unnamed).fetchall() == []
        named = admin.execute("SELECT position, agent_version FROM reporting.revenue ORDER BY 1").fetchall()
        assert named == [(1, ""), (2, "2.0")]
        functions = admin.execute(FUNCTIONS).fetchall()
    with psycopg.connect(database_url) as new:
        assert new.execute(FUNCTIONS).fetchall() == functions


@pytest.mark.parametrize(
    ("run", "states"),
    [
        ("ticket-1", ["serving"]),
        ("sub_1/2026-10-01T00:00:00Z/2026-11-01T00:00:00Z", ["serving", "building"]),
        ("period/org_a/USD/2026-10-01T00:00:00Z", ["serving", "building"]),
    ],
)
def test_what_was_not_told_from_work_is_read_again(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, run: str, states: list[str]
) -> None:
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", lambda config, revision: upgrade(config, "0003"))
        migrations.migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        admin.execute(
            "INSERT INTO reporting.projection OVERRIDING SYSTEM VALUE SELECT 7, 'serving', now(), now(), NULL"
        )
        admin.execute(CHARGE, {"run": run, "position": 1})
        migrations.migrate(empty_database_url)
        found = admin.execute("SELECT state FROM reporting.projection ORDER BY state DESC").fetchall()
        assert [state for (state,) in found] == states


def test_the_database_tells_runs_apart_as_the_services_do(database_url: str) -> None:
    begin, end = datetime(2026, 1, 31, 8, tzinfo=UTC), datetime(2026, 2, 28, 8, tzinfo=UTC)
    fee = subscription_run("sub_01m8npc3pdtgkxam1hsk9cf3cy", begin, end)
    closing = period_run("org_a", "USD", end)
    runs = [fee, closing, f"x{fee}", f"{fee}x", f"{fee}/", fee[:-1], fee[:51], fee.upper(), f"x{closing}"]
    runs += ["sub_", "period", "period/", "ticket-1", "subXabc/1", fee.replace("sub_", "sub-")]
    runs += [fee.replace("2026", "202"), fee.replace("Z/", "Z-"), fee.replace("/", "//")]
    runs += [fee.replace("cy/", "cy.-_/"), fee.replace("_", "_/")]
    with psycopg.connect(database_url) as connection:
        for run in runs:
            found = connection.execute("SELECT reporting.charge_kind(%s)", (run,)).fetchone()
            assert found == (kind_of(run).value,), run
