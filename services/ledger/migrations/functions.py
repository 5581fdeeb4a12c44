"""The functions of the schema, which are code and not data: the newest migration makes all of them anew."""

from pathlib import Path
from typing import Final

from services.kit.migrations import BindSource, execute_sql_file

_FOLDER: Final = Path(__file__).parent / "sql" / "functions"
# One file per subject; the rights come last, since they name all that may be called.
_FILES: Final = (
    "common",
    "charges",
    "claims",
    "funding",
    "leases",
    "holds",
    "movements",
    "payouts",
    "corrections",
    "write_offs",
    "adjustments",
    "background",
    "seal",
    "expiry",
    "lots",
    "lots_expiry",
    "promotions",
    "journal",
    "rights",
)
# Policies and triggers stand on these two: they belong to migration 0001.
_DROP: Final = """
DO $$
DECLARE
    signature text;
BEGIN
    -- They stand on functions, and are made anew with them.
    DROP VIEW IF EXISTS ledger.sealed_transaction, ledger.sealed_entry;
    FOR signature IN
        SELECT p.oid::regprocedure::text FROM pg_proc p
        WHERE p.pronamespace = 'ledger'::regnamespace AND p.proname NOT IN ('visible', 'refuse_rewrite')
    LOOP
        EXECUTE 'DROP FUNCTION ' || signature;
    END LOOP;
END
$$
"""


def replace_functions(op: BindSource) -> None:
    """Drop the functions that move money, whatever their signatures, and create those of this version.

    Called by the newest migration alone: what it creates may need tables that came after any other.
    """
    op.get_bind().exec_driver_sql(_DROP, execution_options={"no_parameters": True})
    for name in _FILES:
        execute_sql_file(op, _FOLDER / f"{name}.sql")
