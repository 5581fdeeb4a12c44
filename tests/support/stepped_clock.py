"""A clock of PostgreSQL that steps: every look at the time, of a function or of the service, is moved.

PostgreSQL has no such switch. But names are looked up along a path, on which its own functions come first
unless the path says otherwise: so a schema with functions of the same names is put in front of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from services.kit import db

_MAKE = """
CREATE SCHEMA stepped;
CREATE TABLE stepped.clock (ahead interval NOT NULL);
INSERT INTO stepped.clock VALUES ('0');
CREATE FUNCTION stepped.now() RETURNS timestamptz LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog AS 'SELECT pg_catalog.now() + ahead FROM stepped.clock';
CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM stepped.clock';
GRANT USAGE ON SCHEMA stepped TO PUBLIC;
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        -- Those that a service calls say their path, and what these call takes it from them.
        SELECT format('ALTER FUNCTION %s SET search_path = stepped, pg_catalog, ledger, pg_temp',
                      p.oid::regprocedure)
        FROM pg_proc p
        WHERE p.pronamespace = 'ledger'::regnamespace
          AND array_to_string(p.proconfig, ' ') LIKE '%search_path%'
        UNION ALL
        SELECT format('ALTER TABLE %s ALTER %I SET DEFAULT stepped.now()', d.adrelid::regclass, a.attname)
        FROM pg_attrdef d
        JOIN pg_class c ON c.oid = d.adrelid AND c.relnamespace = 'ledger'::regnamespace
        JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
        WHERE pg_get_expr(d.adbin, d.adrelid) = 'now()'
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
"""


class SteppedClock:
    """The clock of one migrated database; of its services too, as long as the test runs."""

    def __init__(self, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._database_url = database_url
        with psycopg.connect(database_url, autocommit=True) as superuser:
            superuser.execute(_MAKE.encode())
        usual = db.connection_parameters

        def with_stepped_clock(url: str, *, role: str, schema: str) -> dict[str, Any]:
            parameters = usual(url, role=role, schema=schema)
            path = f"search_path={schema}"
            assert path in parameters["options"]
            parameters["options"] = parameters["options"].replace(
                path, f"search_path=stepped,pg_catalog,{schema}"
            )
            return parameters

        monkeypatch.setattr(db, "connection_parameters", with_stepped_clock)

    async def step(self, ahead: timedelta) -> None:
        """From now on it is so much ahead of the machine's; negative is behind."""
        async with await psycopg.AsyncConnection.connect(self._database_url) as superuser:
            await superuser.execute("UPDATE stepped.clock SET ahead = %s", [ahead])
