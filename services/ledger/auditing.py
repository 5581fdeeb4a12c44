"""Running audits: by a call, by themselves when one is due, and by the command."""

import asyncio
import contextvars
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit import ids, log
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import ResourceExhausted
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.ledger.domain.audits import Audit, AuditProgress, CheckResult
from services.ledger.store import audit_runs
from services.ledger.store.audit import CHECKS, prepare, run_check
from services.ledger.store.audit_check import Check

# Who audits when nobody asked: the ledger itself.
ACTOR: Final = "ledger"
# How often each replica looks whether an audit is due, and what the last one found.
_LOOK: Final = timedelta(minutes=1)
_RETRY_AFTER: Final = timedelta(seconds=5)

_DIFFERENCES = Gauge(
    "tallystick_audit_differences", "Differences that each check of the last audit found.", ["check"]
)
_AGE = Gauge(
    "tallystick_audit_age_seconds", "Time since the snapshot of the last audit; NaN before the first."
)
_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an audit: how far it is, and what began or ended. The first has taken the snapshot."""

    progress: AuditProgress
    begun: Check | None = None
    ended: CheckResult | None = None
    audit: Audit | None = None


@asynccontextmanager
async def open_snapshot(database: Database, *, alone: bool) -> AsyncIterator[AsyncConnection]:
    """A transaction that sees one moment of all tenants, and cannot write.

    With `alone` no other audit that asked for the same runs meanwhile; raises ResourceExhausted if one does.
    """
    async with database.engine.connect() as opened:
        try:
            if alone:
                # In a transaction of its own, before the snapshot: what the audit before recorded is seen.
                if not await audit_runs.try_lock(opened):
                    raise audit_in_progress()
                await opened.commit()
            connection: AsyncConnection = await opened.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            async with connection.begin():
                await scope(connection, PLATFORM)
                yield connection
            if alone:
                await audit_runs.unlock(opened)
        finally:
            # The session ends, and the lock with it; so does a query that was cancelled in between.
            await opened.invalidate()


async def audit_steps(connection: AsyncConnection, audit_id: str, actor: str) -> AsyncGenerator[Step, None]:
    """Run all checks on the snapshot of this connection."""
    await prepare(connection)
    snapshot = await audit_runs.take_snapshot(connection)
    progress = AuditProgress(audit_id, snapshot, check_count=len(CHECKS))
    yield Step(progress)
    results: list[CheckResult] = []
    for check in CHECKS:
        progress = replace(progress, check_name=check.name)
        yield Step(progress, begun=check)
        result = audit_runs.result_of(await run_check(connection, check))
        results.append(result)
        progress = replace(
            progress,
            check_name="",
            done_check_count=len(results),
            failed_check_count=progress.failed_check_count + (result.difference_count > 0),
        )
        yield Step(progress, ended=result)
    duration = sum((one.duration for one in results), timedelta())
    # By the clock of the database, which took the time of the snapshot too.
    audit = Audit(audit_id, snapshot, snapshot.time + duration, tuple(results), actor)
    yield Step(progress, audit=audit)


async def record(writer: Database, audit: Audit) -> None:
    """Remember an audit, once, however often this is tried."""

    async def attempt() -> None:
        async with writer.begin() as connection:
            await scope(connection, PLATFORM)
            await audit_runs.record_audit(connection, audit)

    await retry_transaction(attempt, idempotent=True)


class Auditor:
    """Audits of a server, one at a time over all replicas, on a connection of their own.

    A worker of the server: it begins an audit when the last one is older than `interval`, unless that is 0.
    """

    def __init__(
        self, database_url: str, writer: Database, reader: Database, clock: Clock, *, interval: timedelta
    ) -> None:
        # Made when it is needed. Of the pool nothing but this one: an audit takes no call's connection.
        self._snapshots = Database(database_url, role="ledger_reader", schema="ledger", pool_size=1)
        self._writer = writer
        self._reader = reader
        self._clock = clock
        self._interval = interval
        self._busy = False
        self._background: asyncio.Task[None] | None = None
        self._worker = PeriodicWorker("ledger.audit", _LOOK, self._look)
        self._latest: datetime | None = None

    def start(self) -> None:
        _AGE.set_function(self._age)
        self._worker.start()

    async def stop(self, grace: timedelta) -> None:
        await self._worker.stop(grace)
        await self.close()

    async def close(self) -> None:
        """End the audit that runs in the background: it may take hours, and nothing is lost with it."""
        task, self._background = self._background, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._snapshots.close()

    async def run(self, actor: str) -> AsyncGenerator[Step, None]:
        """Audit, step by step. Closing this ends it. Raises ResourceExhausted if one runs already."""
        if self._busy:
            raise audit_in_progress()
        self._busy = True
        try:
            async with open_snapshot(self._snapshots, alone=True) as connection:
                audit_id = ids.new_id(ids.AUDIT, clock=self._clock)
                async with aclosing(audit_steps(connection, audit_id, actor)) as steps:
                    async for step in steps:
                        if step.audit is not None:
                            await self._finish(step.audit)
                        elif step.ended is None:
                            await self._tell(step.progress)
                        yield step
        finally:
            self._busy = False

    async def begin(self, actor: str) -> AuditProgress:
        """Audit in the background, or say how far the audit is that runs already."""
        steps = self.run(actor)
        try:
            first = await anext(steps)
        except ResourceExhausted:
            async with self._reader.begin() as connection:
                await scope(connection, PLATFORM)
                running = await audit_runs.running_audit(connection)
            if running is None:
                # It has just ended, or not quite begun.
                raise
            return running
        except BaseException:
            await steps.aclose()
            raise
        # An empty context: it is nobody's request.
        self._background = asyncio.create_task(
            _exhaust(steps), name="ledger.audit", context=contextvars.Context()
        )
        return first.progress

    async def _look(self) -> bool:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            latest = await audit_runs.latest_audit(connection)
        if latest is not None:
            self._measure(latest)
        due = latest is None or self._clock.now() - latest.snapshot.time >= self._interval
        if due and self._interval > timedelta():
            try:
                await self.begin(ACTOR)
            except ResourceExhausted:
                # Another replica was first, or an operator, and has just ended.
                return False
        return False

    async def _finish(self, audit: Audit) -> None:
        await record(self._writer, audit)
        self._measure(audit)
        failed = [check.name for check in audit.failed]
        write = _log.error if failed else _log.info
        write(
            "audit.finished",
            audit_id=audit.audit_id,
            position=audit.snapshot.position,
            duration_ms=(audit.end_time - audit.snapshot.time) // timedelta(milliseconds=1),
            failed_checks=failed,
        )

    async def _tell(self, progress: AuditProgress) -> None:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await audit_runs.set_progress(connection, progress)

    def _measure(self, audit: Audit) -> None:
        self._latest = audit.snapshot.time
        for check in audit.checks:
            _DIFFERENCES.labels(check.name).set(check.difference_count)

    def _age(self) -> float:
        if self._latest is None:
            return math.nan
        return (self._clock.now() - self._latest).total_seconds()


def audit_in_progress() -> ResourceExhausted:
    return ResourceExhausted(
        "an audit runs already, and one runs at a time",
        reason="AUDIT_IN_PROGRESS",
        retry_after=_RETRY_AFTER,
    )


async def _exhaust(steps: AsyncGenerator[Step, None]) -> None:
    try:
        async with aclosing(steps):
            async for _ in steps:
                pass
    except Exception:  # noqa: BLE001 - nobody waits for it; it is begun again when the next look finds it due
        _log.exception("audit.failed")
