"""PeriodService."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import grpc

from services.kit import ids, log
from services.kit.auth import current_principal
from services.kit.clock import Clock
from services.kit.db import Connection, Database
from services.kit.errors import FailedPrecondition, NotFound, PreconditionViolation
from services.kit.money import check_currency
from services.kit.pages import Page
from services.kit.tenancy import PLATFORM, Tenants, scope, tenants_of
from services.kit.times import optional_time_from_proto, time_from_proto
from services.metering.domain.price_index import DEFAULT_CURRENCY
from services.metering.rpc.period_closer import Drafted, PeriodCloser, tally_of
from services.metering.store import contracts, periods
from services.metering.store.periods import ListedClosing, StoredPeriod
from tallystick.metering.v1 import period_closing_pb2, period_service_pb2_grpc
from tallystick.metering.v1 import period_service_pb2 as pb

_log = log.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
About = pb.PreviewPeriodCloseRequest | pb.ClosePeriodRequest


class PeriodService(period_service_pb2_grpc.PeriodServiceServicer):
    """Serves PeriodService."""

    def __init__(self, *, reader: Database, closer: PeriodCloser, clock: Clock) -> None:
        self._reader = reader
        self._closer = closer
        self._clock = clock

    async def PreviewPeriodClose(
        self, request: pb.PreviewPeriodCloseRequest, context: Context
    ) -> pb.PreviewPeriodCloseResponse:
        now = self._clock.now()
        at = optional_time_from_proto(request, "time") or now
        stored, drafted, credit = await self._find(tenants_of(current_principal()), request, at)
        closing = self._closer.closing(stored, drafted, credit, now, "")
        message = _from_stored(closing.content)
        tenants = tenants_of(current_principal())
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            await _hide_contracts(connection, tenants, [message])
        return pb.PreviewPeriodCloseResponse(period_closing=message)

    async def ClosePeriod(self, request: pb.ClosePeriodRequest, context: Context) -> pb.ClosePeriodResponse:
        at = time_from_proto(request, "time")
        stored, drafted, _ = await self._find(tenants_of(current_principal()), request, at)
        end = drafted.period.end
        close_time = end if request.now else end + self._closer.times.delay
        if self._clock.now() < close_time:
            raise _not_over(stored, close_time)
        closing = await self._closer.close(stored.key, early=request.now)
        try:
            await self._closer.post()
        except grpc.aio.AioRpcError as error:
            # Recorded it is: the worker posts it.
            _log.warning("period_closings.pending", code=error.code().name, detail=error.details())
        if closing is None:
            return pb.ClosePeriodResponse()
        async with self._reader.begin() as connection:
            await scope(connection, PLATFORM)
            made = await periods.find(connection, closing.period_closing_id)
        return pb.ClosePeriodResponse(period_closing=None if made is None else _to_proto(made))

    async def GetPeriodClosing(
        self, request: pb.GetPeriodClosingRequest, context: Context
    ) -> pb.GetPeriodClosingResponse:
        id_ = ids.check_id(request.period_closing_id, ids.PERIOD_CLOSING, field="period_closing_id")
        tenants = tenants_of(current_principal())
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            found = await periods.find(connection, id_)
            if found is None:
                raise NotFound(
                    f"period closing {id_} does not exist",
                    reason="PERIOD_CLOSING_NOT_FOUND",
                    metadata={"period_closing_id": id_},
                )
            message = _to_proto(found)
            await _hide_contracts(connection, tenants, [message])
        return pb.GetPeriodClosingResponse(period_closing=message)

    async def ListPeriodClosings(
        self, request: pb.ListPeriodClosingsRequest, context: Context
    ) -> pb.ListPeriodClosingsResponse:
        if request.customer_id:
            ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        if request.organization_id:
            ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
        if request.workflow_id:
            ids.check_workflow_id(request.workflow_id)
        page = Page.parse(
            request.page_size,
            request.page_token,
            key_types=(str,),
            filter={
                "list": "period_closings",
                "customer_id": request.customer_id,
                "organization_id": request.organization_id,
                "workflow_id": request.workflow_id,
            },
        )
        tenants = tenants_of(current_principal())
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            rows = await periods.list_closings(
                connection,
                tenant_ids=None if tenants.platform else tenants.ids,
                customer_id=request.customer_id,
                organization_id=request.organization_id,
                workflow_id=request.workflow_id,
                after="" if page.after is None else str(page.after[0]),
                limit=page.limit,
            )
            found, next_page_token = page.cut(rows, lambda row: (row.period_closing_id,))
            messages = [_to_proto(row) for row in found]
            await _hide_contracts(connection, tenants, messages)
        return pb.ListPeriodClosingsResponse(period_closings=messages, next_page_token=next_page_token)

    async def _find(
        self, tenants: Tenants, request: About, at: datetime
    ) -> tuple[StoredPeriod, Drafted, int]:
        """The period that is asked for, what closing it comes to, and the credit there is."""
        customer_id = ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        organization_id = ids.check_id(request.organization_id, ids.ORGANIZATION, field="organization_id")
        currency_code = check_currency(request.currency_code or DEFAULT_CURRENCY)
        async with self._reader.begin() as connection:
            await scope(connection, tenants)
            stored = await periods.find_at(connection, customer_id, organization_id, currency_code, at)
            if stored is not None:
                tally = await tally_of(connection, stored.key)
                credit = await periods.credit_of(connection, stored.key)
        if stored is not None:
            drafted = await self._closer.draft(stored.key, tally)
            if at < drafted.period.end:
                return stored, drafted, credit
        raise NotFound(
            f"nothing was counted for {customer_id} with {organization_id} in a billing period at that time",
            reason="BILLING_PERIOD_NOT_FOUND",
            metadata={"customer_id": customer_id, "organization_id": organization_id},
        )


async def _hide_contracts(
    connection: Connection, tenants: Tenants, closings: Sequence[period_closing_pb2.PeriodClosing]
) -> None:
    """Leave out contracts that the connection's tenants may not see: an organization learns nothing of what a
    customer agreed on for all.
    """
    named = {one.contract_id for one in closings if one.contract_id}
    if tenants.platform or not named:
        return
    seen = await contracts.visible(connection, named)
    for closing in closings:
        if closing.contract_id not in seen:
            closing.contract_id, closing.contract_version_number = "", 0


def _not_over(stored: StoredPeriod, close_time: datetime) -> FailedPrecondition:
    why = "the billing period is not over, or events of it may still come"
    return FailedPrecondition(
        f"the period of {stored.key.customer_id} cannot be closed before {close_time.isoformat()}: {why}",
        reason="PERIOD_NOT_OVER",
        metadata={"customer_id": stored.key.customer_id, "close_time": close_time.isoformat()},
        precondition_violations=[PreconditionViolation("PERIOD_NOT_OVER", stored.key.customer_id, why)],
    )


def _from_stored(content: bytes) -> period_closing_pb2.PeriodClosing:
    return period_closing_pb2.PeriodClosing.FromString(content)


def _to_proto(found: ListedClosing) -> period_closing_pb2.PeriodClosing:
    message = _from_stored(found.content)
    message.posted = found.posted
    message.last_error = found.last_error
    return message
