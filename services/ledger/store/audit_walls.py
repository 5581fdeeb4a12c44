"""The checks of what keeps others from changing the books: whoever pulls a wall down leaves a trace here."""

from typing import Final

from services.ledger.store.audit_check import Check

# Tables whose rows never change once they are written.
APPEND_ONLY: Final = (
    "adjustment",
    "audit_run",
    "charge",
    "correction",
    "credit_grant",
    "decided_adjustment",
    "entry",
    "erased_salt",
    "freeze_event",
    "idempotency",
    "journal_position",
    "lot_allocation",
    "promotion_settlement",
    "revenue_share_agreement",
    "seal_block",
    "seal_checkpoint",
    "seal_node",
    "transaction",
    "write_off",
)
_APPEND_ONLY: Final = ", ".join(f"'{table}'" for table in APPEND_ONLY)

CHECKS: Final = (
    Check(
        "journal_is_append_only",
        "triggers refuse to change or remove what was posted, and no service has the right to",
        # Built from the constants above alone. Of a table that is not among them one of its triggers tells.
        f"""
        WITH guarded (table_name, oid) AS (
            SELECT w.table_name, to_regclass('ledger.' || quote_ident(w.table_name))
            FROM unnest(ARRAY[{_APPEND_ONLY}]) AS w (table_name)
            UNION
            SELECT c.relname::text, c.oid FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE c.relnamespace = 'ledger'::regnamespace
              AND t.tgname IN ('append_only', 'append_only_truncate')
        )
        SELECT w.table_name, 'trigger ' || g.name || ' is missing or off' AS difference
        FROM guarded w CROSS JOIN (VALUES ('append_only'), ('append_only_truncate')) AS g (name)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger t
            WHERE t.tgrelid = w.oid AND t.tgname = g.name AND t.tgenabled IN ('O', 'A')
              AND t.tgfoid = 'ledger.refuse_rewrite'::regproc)
        UNION ALL
        SELECT w.table_name, r.role_name || ' may ' || p.privilege
        FROM guarded w
        CROSS JOIN (VALUES ('ledger_reader'), ('ledger_writer')) AS r (role_name)
        CROSS JOIN (VALUES ('UPDATE'), ('DELETE'), ('TRUNCATE')) AS p (privilege)
        WHERE has_table_privilege(r.role_name, w.oid, p.privilege)
        """,  # noqa: S608
    ),
    Check(
        "tenants_are_apart",
        "row-level security is enabled and forced on every table of the ledger",
        """
        SELECT c.relname AS table_name, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced
        FROM pg_class c
        WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p')
          -- Alembic's own.
          AND c.relname <> 'alembic_version'
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
        """,
    ),
)
