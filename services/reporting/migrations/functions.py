"""The functions of the schema, which are code and not data: the newest migration makes all of them anew."""

from pathlib import Path
from typing import Final

from services.kit.migrations import BindSource, execute_sql_file

_SQL: Final = Path(__file__).parent / "sql"
# Policies stand on the first two, and with the third they belong to migration 0001.
_DROP: Final = """
DO $$
DECLARE
    one record;
BEGIN
    -- Aggregates stand on functions.
    FOR one IN
        SELECT p.oid::regprocedure::text AS signature,
               CASE p.prokind WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END AS kind
        FROM pg_proc p
        WHERE p.pronamespace = 'reporting'::regnamespace
          AND p.proname NOT IN ('visible', 'visible_owners', 'serving')
        ORDER BY p.prokind
    LOOP
        EXECUTE format('DROP %s %s', one.kind, one.signature);
    END LOOP;
END
$$
"""


def replace_functions(op: BindSource) -> None:
    """Drop the functions that make projections, whatever their signatures, and create those of this version.

    Called by the newest migration alone: what it creates may need tables that came after any other.
    """
    op.get_bind().exec_driver_sql(_DROP, execution_options={"no_parameters": True})
    execute_sql_file(op, _SQL / "functions.sql")
