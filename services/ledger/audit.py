"""`python -m services.ledger audit`: recompute everything from the journal, and say what differs."""

import json
import sys

from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.ledger.store.audit import SHOWN, Finding, run_checks


async def audit(database_url: str) -> int:
    """Run every check on one snapshot, print one line each, and answer how many found differences."""
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    failed = 0
    try:
        async with database.engine.connect() as opened:
            connection: AsyncConnection = await opened.execution_options(isolation_level="REPEATABLE READ")
            async with connection.begin():
                await scope(connection, PLATFORM)
                async for finding in run_checks(connection):
                    _report(finding)
                    failed += finding.count > 0
    finally:
        await database.close()
    sys.stdout.write(f"{failed} checks failed\n" if failed else "the ledger is sound\n")
    return failed


def _report(finding: Finding) -> None:
    verdict = "ok  " if finding.count == 0 else "FAIL"
    sys.stdout.write(f"{verdict} {finding.check.name}: {finding.check.promise}\n")
    for difference in finding.differences:
        sys.stdout.write(f"     {json.dumps(difference, default=str)}\n")
    if finding.count > SHOWN:
        sys.stdout.write(f"     … {finding.count} in all\n")
