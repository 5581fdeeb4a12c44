"""`python -m services.ledger audit`: recompute everything from the journal, and say what differs.

It needs no server, runs beside the audits of one, and is remembered like theirs where the database lets it
write: on a standby that only reads it says that it was not.
"""

import sys
from contextlib import aclosing

from sqlalchemy.exc import DBAPIError

from services.kit import ids
from services.kit.cli import summary
from services.kit.db import Database
from services.ledger.auditing import Step, audit_steps, open_snapshot, record
from services.ledger.domain.audits import Audit, CheckResult
from services.ledger.store.audit import SHOWN

# Who audited, as what is remembered of it says.
_ACTOR = "command"


async def audit(database_url: str) -> int:
    """Run every check on one snapshot, print one line each, and answer how many found differences."""
    found = await _run(database_url)
    failed = len(found.failed)
    await _record(database_url, found)
    sys.stdout.write(f"{failed} checks failed\n" if failed else "the ledger is sound\n")
    return failed


async def _run(database_url: str) -> Audit:
    database = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
    last: Step | None = None
    try:
        async with (
            open_snapshot(database, alone=False) as connection,
            aclosing(audit_steps(connection, ids.new_id(ids.AUDIT), _ACTOR)) as steps,
        ):
            async for step in steps:
                last = step
                if step.ended is not None:
                    _report(step.ended)
    finally:
        await database.close()
    if last is None or last.audit is None:
        raise RuntimeError("the audit ended without a result")
    return last.audit


async def _record(database_url: str, found: Audit) -> None:
    database = Database(database_url, role="ledger_writer", schema="ledger", pool_size=1)
    try:
        await record(database, found)
    except DBAPIError as error:
        # What was found is true, remembered or not.
        sys.stderr.write(f"not recorded: {summary(error)}\n")
    finally:
        await database.close()


def _report(result: CheckResult) -> None:
    verdict = "ok  " if result.difference_count == 0 else "FAIL"
    sys.stdout.write(f"{verdict} {result.name}: {result.promise}\n")
    for difference in result.differences:
        sys.stdout.write(f"     {difference}\n")
    if result.difference_count > SHOWN:
        sys.stdout.write(f"     … {result.difference_count} in all\n")
