"""AuditService: audits, run now or remembered, and the journal as text."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime

from google.protobuf.duration_pb2 import Duration

from services.kit.auth import current_principal
from services.kit.db import Database
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, scope
from services.kit.times import time_from_page_key, timestamp
from services.ledger.auditing import Auditor, Step
from services.ledger.domain.audits import Audit, AuditProgress, CheckResult
from services.ledger.rpc.export import ExportRpcs
from services.ledger.rpc.ledger_base import Context
from services.ledger.store import audit_runs
from tallystick.ledger.v1 import audit_pb2
from tallystick.ledger.v1 import audit_service_pb2 as pb
from tallystick.ledger.v1.audit_service_pb2_grpc import AuditServiceServicer


class AuditService(ExportRpcs, AuditServiceServicer):
    """Serves AuditService. Only keys of the platform may call it, which see all tenants."""

    def __init__(self, auditor: Auditor, reader: Database) -> None:
        super().__init__(reader)
        self._auditor = auditor

    async def RunAudit(
        self, request: pb.RunAuditRequest, context: Context
    ) -> AsyncIterator[pb.RunAuditResponse]:
        async with aclosing(self._auditor.run(current_principal().api_key_id)) as steps:
            async for step in steps:
                yield _response(step)

    async def StartAudit(self, request: pb.StartAuditRequest, context: Context) -> pb.StartAuditResponse:
        progress = await self._auditor.begin(current_principal().api_key_id)
        return pb.StartAuditResponse(progress=_progress(progress))

    async def GetLatestAudit(
        self, request: pb.GetLatestAuditRequest, context: Context
    ) -> pb.GetLatestAuditResponse:
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            # In this order: one that ends in between is seen as running, not as neither.
            running = await audit_runs.running_audit(connection)
            latest = await audit_runs.latest_audit(connection)
        return pb.GetLatestAuditResponse(
            audit=None if latest is None else _audit(latest),
            running=None if running is None else _progress(running),
        )

    async def ListAudits(self, request: pb.ListAuditsRequest, context: Context) -> pb.ListAuditsResponse:
        page = Page.parse(request.page_size, request.page_token, key_types=(str, str), filter={})
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            found = await audit_runs.list_audits(connection, _after(page), page.limit)
        audits, token = page.cut(found, lambda one: (one.snapshot.time.isoformat(), one.audit_id))
        return pb.ListAuditsResponse(audits=[_audit(one) for one in audits], next_page_token=token)


def _after(page: Page) -> tuple[datetime, str] | None:
    if page.after is None:
        return None
    time, audit_id = page.after
    return time_from_page_key(time), str(audit_id)


def _response(step: Step) -> pb.RunAuditResponse:
    response = pb.RunAuditResponse(progress=_progress(step.progress))
    if step.begun is not None:
        response.begun_check.name = step.begun.name
        response.begun_check.promise = step.begun.promise
    elif step.ended is not None:
        response.ended_check.CopyFrom(_check(step.ended))
    elif step.audit is not None:
        response.audit.CopyFrom(_audit(step.audit))
        for check in response.audit.checks:
            check.ClearField("differences")
    return response


def _progress(progress: AuditProgress) -> audit_pb2.AuditProgress:
    return audit_pb2.AuditProgress(
        audit_id=progress.audit_id,
        log_id=progress.snapshot.log_id,
        position=progress.snapshot.position,
        snapshot_time=timestamp(progress.snapshot.time),
        check_count=progress.check_count,
        done_check_count=progress.done_check_count,
        failed_check_count=progress.failed_check_count,
        check_name=progress.check_name,
    )


def _audit(audit: Audit) -> audit_pb2.Audit:
    return audit_pb2.Audit(
        audit_id=audit.audit_id,
        log_id=audit.snapshot.log_id,
        position=audit.snapshot.position,
        snapshot_time=timestamp(audit.snapshot.time),
        end_time=timestamp(audit.end_time),
        sound=not audit.failed,
        failed_check_count=len(audit.failed),
        checks=[_check(check) for check in audit.checks],
        actor_api_key_id=audit.actor_api_key_id,
    )


def _check(check: CheckResult) -> audit_pb2.AuditCheck:
    duration = Duration()
    duration.FromTimedelta(check.duration)
    return audit_pb2.AuditCheck(
        name=check.name,
        promise=check.promise,
        difference_count=check.difference_count,
        differences=check.differences,
        duration=duration,
    )
