"""What the database refuses whoever holds the services' own connections: the roles that they run as."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

SCHEMAS = ["ledger", "metering"]


@pytest.fixture
def admin(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO ledger.customer VALUES ('cus_a', decode(repeat('00', 32), 'hex'), now())"
        )
        yield connection


def test_definer_functions_are_the_writers_alone_and_find_only_their_own(admin: psycopg.Connection) -> None:
    functions = admin.execute(
        "SELECT p.oid::regprocedure::text, n.nspname, p.proowner::regrole::text, p.proconfig,"
        " has_function_privilege('public', p.oid, 'EXECUTE'),"
        " has_function_privilege(n.nspname || '_reader', p.oid, 'EXECUTE')"
        " FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = ANY (%s) AND p.prosecdef",
        (SCHEMAS,),
    ).fetchall()
    assert len(functions) > 10
    for name, schema, owner, settings, everybody, reader in functions:
        assert owner == f"{schema}_owner", name
        assert f"search_path={schema}, pg_temp" in (settings or []), name
        assert (everybody, reader) == (False, False), name


def test_no_service_role_is_more_than_it_seems(admin: psycopg.Connection) -> None:
    roles = admin.execute(
        "SELECT rolname FROM pg_roles WHERE rolname ~ '^(ledger|metering)_(owner|writer|reader)$'"
        " AND (rolsuper OR rolbypassrls OR rolcanlogin OR rolcreaterole OR rolcreatedb OR rolreplication)"
    ).fetchall()
    assert roles == []
    for schema, other in (SCHEMAS, SCHEMAS[::-1]):
        for kind in ("writer", "reader"):
            role = f"{schema}_{kind}"
            for privilege, where in (("CREATE", schema), ("CREATE", "public"), ("USAGE", other)):
                may = admin.execute(
                    "SELECT has_schema_privilege(%s, %s, %s)", (role, where, privilege)
                ).fetchone()
                assert may == (False,), f"{role}: {privilege} on {where}"
            member_of = admin.execute(
                "SELECT count(*) FROM pg_auth_members WHERE member = %s::regrole", (role,)
            ).fetchone()
            assert member_of == (0,), role


def _refused(admin: psycopg.Connection, statement: str) -> bool:
    """Whether ledger_writer, who sees everybody's rows, is refused."""
    with admin.transaction(force_rollback=True):
        admin.execute(sql.SQL("SET LOCAL ROLE ledger_writer"))
        admin.execute("SELECT set_config('tallystick.platform', 'on', true)")
        try:
            with admin.transaction():
                admin.execute(statement.encode())
        except psycopg.Error:
            return True
    return False


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger.account SET credits = credits + 1",
        "DELETE FROM ledger.idempotency",
        "INSERT INTO ledger.entry SELECT * FROM ledger.entry",
        "INSERT INTO ledger.transaction SELECT * FROM ledger.transaction",
        "INSERT INTO ledger.balance_delta SELECT * FROM ledger.balance_delta",
        "TRUNCATE ledger.charge",
        "INSERT INTO ledger.correction SELECT * FROM ledger.correction",
        "UPDATE ledger.corrected_charge SET amount = 0",
        "INSERT INTO ledger.write_off SELECT * FROM ledger.write_off",
        "INSERT INTO ledger.decided_adjustment SELECT * FROM ledger.decided_adjustment",
        # Past whoever has to approve it.
        "SELECT ledger.adjust('{platform}', '{promotions}', '{USD}', '{0}', 'r', 'k', 'a/1', '')",
        "SELECT ledger.post_adjustment('adj_a', 'k', false)",
        "SELECT ledger.claim_key('cus_a', 'k', '', 'x')",
        "SELECT ledger.insert_collection('cus_a', 1, 'ch_a', true, '{}', 1, 1, 1, 'k')",
    ],
)
def test_the_writer_writes_no_journal(admin: psycopg.Connection, statement: str) -> None:
    assert _refused(admin, statement)


UNBALANCED = {
    "one-sided adjustment": (
        "SELECT ledger.propose_adjustment('{cus_a}', '{customer_credits}', '{USD}', '{1000}', 'r', 'k', '1',"
        " '', '7 days', false)"
    ),
    "adjustment of a receivable": (
        "SELECT ledger.propose_adjustment('{cus_a,platform}', '{customer_receivable,adjustments}',"
        " '{USD,USD}', '{-5,5}', 'r', 'k', '2', '', '7 days', false)"
    ),
    "account twice": (
        "SELECT ledger.propose_adjustment('{cus_a,cus_a,platform}',"
        " '{customer_credits,customer_credits,adjustments}', '{USD,USD,USD}', '{5,5,-10}', 'r', 'k', '3', '',"
        " '7 days', false)"
    ),
    "charge without payee": (
        "SELECT ledger.post_charges('{ch_a}', '{cus_a}', '{w}', '{1}', '{0}', '{USD}', '{500}',"
        " ARRAY[now()], '{pv_a}', ARRAY[''::bytea], ARRAY[''::bytea], '{}', '{}', '{}', '{}', 'k')"
    ),
    "grant of less than nothing": (
        "SELECT ledger.grant_credits('cus_a', 'USD', 9, 'purchase', '', 'k', 'g/1', '');"
        " SELECT ledger.grant_credits('cus_a', 'USD', -5, 'purchase', '', 'k', 'g/2', '')"
    ),
    "limit of nobody": "SELECT ledger.set_credit_limit('cus_nobody', 'USD', 5)",
}


@pytest.mark.parametrize("name", UNBALANCED)
def test_the_functions_keep_the_books_balanced_by_themselves(admin: psycopg.Connection, name: str) -> None:
    assert _refused(admin, UNBALANCED[name])
