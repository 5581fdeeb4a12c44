"""The snapshot of an audit, the lock that lets one run at a time, and what is remembered of audits.

The connection is scoped to the platform by the caller.
"""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.domain.audits import Audit, AuditProgress, CheckResult, Snapshot
from services.ledger.store.audit_check import Finding

# Longer ones are cut: an answer with all differences must fit into a message.
_LONGEST_DIFFERENCE: Final = 4_000

# The lock is the session's own: it goes with the connection, however an audit ends. Nobody waits for it, and
# nothing else of the ledger takes one of its kind, so it is in no order with other locks.
_LOCK: Final = {"space": 0x61756469, "number": 1}
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:space, :number)")
_UNLOCK = text("SELECT pg_advisory_unlock(:space, :number)")
_IS_LOCKED = text("""
    SELECT EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND objsubid = 2
          AND classid = CAST(:space AS bigint)::oid AND objid = CAST(:number AS bigint)::oid
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
""")
_SNAPSHOT = text("""
    SELECT log_id, last_position, now() AS time
    FROM ledger.journal_log ORDER BY create_time DESC LIMIT 1
""")
_RECORD = text("""
    INSERT INTO ledger.audit_run (
        audit_id, log_id, position, snapshot_time, end_time, failed_checks, checks, actor_api_key_id)
    VALUES (
        :audit_id, :log_id, :position, :snapshot_time, :end_time, :failed_checks, CAST(:checks AS jsonb),
        :actor_api_key_id)
    ON CONFLICT DO NOTHING
""")
_LATEST = text("SELECT * FROM ledger.audit_run ORDER BY snapshot_time DESC, audit_id DESC LIMIT 1")
# Without what was found: pages of a thousand shall stay small.
_PAGE = text("""
    SELECT audit_id, log_id, position, snapshot_time, end_time, actor_api_key_id, (
        SELECT coalesce(jsonb_agg(c.found - 'differences'), '[]')
        FROM jsonb_array_elements(checks) AS c (found) WHERE (c.found->>'difference_count')::bigint > 0
    ) AS checks
    FROM ledger.audit_run
    WHERE CAST(:after_time AS timestamptz) IS NULL
       OR (snapshot_time, audit_id) < (CAST(:after_time AS timestamptz), CAST(:after_id AS text))
    ORDER BY snapshot_time DESC, audit_id DESC LIMIT :limit
""")
# Not of one that was recorded: whoever has the lock now has not said yet how far it is.
_PROGRESS = text("""
    SELECT * FROM ledger.audit_progress p
    WHERE NOT EXISTS (SELECT FROM ledger.audit_run r WHERE r.audit_id = p.audit_id)
""")
_SET_PROGRESS = text("""
    INSERT INTO ledger.audit_progress (
        audit_id, log_id, position, snapshot_time, check_count, done_check_count, failed_check_count,
        check_name)
    VALUES (
        :audit_id, :log_id, :position, :snapshot_time, :check_count, :done_check_count, :failed_check_count,
        :check_name)
    ON CONFLICT (only_row) DO UPDATE
    SET audit_id = excluded.audit_id, log_id = excluded.log_id, position = excluded.position,
        snapshot_time = excluded.snapshot_time, check_count = excluded.check_count,
        done_check_count = excluded.done_check_count, failed_check_count = excluded.failed_check_count,
        check_name = excluded.check_name
""")


async def try_lock(connection: AsyncConnection) -> bool:
    """Take the lock of audits for as long as the connection is open, unless another one has it."""
    return bool(await connection.scalar(_TRY_LOCK, _LOCK))


async def unlock(connection: AsyncConnection) -> None:
    """Let go of the lock at once: a session that is closed does so a moment later."""
    await connection.execute(_UNLOCK, _LOCK)


async def take_snapshot(connection: AsyncConnection) -> Snapshot:
    """What the transaction sees, which must be REPEATABLE READ: its first query decided."""
    row = (await connection.execute(_SNAPSHOT)).one()
    return Snapshot(row.log_id, row.last_position, row.time)


async def record_audit(connection: AsyncConnection, audit: Audit) -> None:
    """Remember an audit. As the writer."""
    await connection.execute(
        _RECORD,
        {
            "audit_id": audit.audit_id,
            **_moment(audit.snapshot),
            "end_time": audit.end_time,
            "failed_checks": len(audit.failed),
            "checks": json.dumps([_stored(check) for check in audit.checks]),
            "actor_api_key_id": audit.actor_api_key_id,
        },
    )


async def set_progress(connection: AsyncConnection, progress: AuditProgress) -> None:
    """Tell others how far the audit is. As the writer, by who has the lock."""
    await connection.execute(
        _SET_PROGRESS,
        {
            "audit_id": progress.audit_id,
            **_moment(progress.snapshot),
            "check_count": progress.check_count,
            "done_check_count": progress.done_check_count,
            "failed_check_count": progress.failed_check_count,
            "check_name": progress.check_name,
        },
    )


async def running_audit(connection: AsyncConnection) -> AuditProgress | None:
    """How far the audit is that runs now, in whatever process."""
    if not await connection.scalar(_IS_LOCKED, _LOCK):
        return None
    row = (await connection.execute(_PROGRESS)).one_or_none()
    if row is None:
        return None
    return AuditProgress(
        audit_id=row.audit_id,
        snapshot=Snapshot(row.log_id, row.position, row.snapshot_time),
        check_count=row.check_count,
        done_check_count=row.done_check_count,
        failed_check_count=row.failed_check_count,
        check_name=row.check_name,
    )


async def latest_audit(connection: AsyncConnection) -> Audit | None:
    """The one with the newest snapshot."""
    row = (await connection.execute(_LATEST)).mappings().one_or_none()
    return None if row is None else _audit(row)


async def list_audits(
    connection: AsyncConnection, after: tuple[datetime, str] | None, limit: int
) -> Sequence[Audit]:
    """The newest first, each with the checks that failed and without their differences."""
    after_time, after_id = after or (None, None)
    rows = await connection.execute(_PAGE, {"after_time": after_time, "after_id": after_id, "limit": limit})
    return [_audit(row) for row in rows.mappings()]


def result_of(finding: Finding) -> CheckResult:
    """A finding as it is told and kept: the differences as texts."""
    return CheckResult(
        name=finding.check.name,
        promise=finding.check.promise,
        difference_count=finding.count,
        differences=tuple(_text(difference) for difference in finding.differences),
        duration=finding.duration,
    )


def _text(difference: dict[str, Any]) -> str:
    # Sums come as decimals and times as datetimes: their texts are exact.
    found = json.dumps(difference, default=str, ensure_ascii=False)
    return found if len(found) <= _LONGEST_DIFFERENCE else f"{found[: _LONGEST_DIFFERENCE - 1]}…"


def _moment(snapshot: Snapshot) -> dict[str, Any]:
    return {"log_id": snapshot.log_id, "position": snapshot.position, "snapshot_time": snapshot.time}


def _stored(check: CheckResult) -> dict[str, Any]:
    return {
        "name": check.name,
        "promise": check.promise,
        "difference_count": check.difference_count,
        "differences": list(check.differences),
        "duration_us": check.duration // timedelta(microseconds=1),
    }


def _audit(row: RowMapping) -> Audit:
    return Audit(
        audit_id=row["audit_id"],
        snapshot=Snapshot(row["log_id"], row["position"], row["snapshot_time"]),
        end_time=row["end_time"],
        checks=tuple(
            CheckResult(
                name=check["name"],
                promise=check["promise"],
                difference_count=check["difference_count"],
                differences=tuple(check.get("differences", ())),
                duration=timedelta(microseconds=check["duration_us"]),
            )
            for check in row["checks"]
        ),
        actor_api_key_id=row["actor_api_key_id"],
    )
