"""What reporting says of the job, and whether that is what the ledger and metering say."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import grpc

from sandbox.books import CATCH_UP_SECONDS, Standing
from sandbox.calls import in_flight
from sandbox.register import CURRENCY
from sandbox.report import OrganizationRow
from tallystick.ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER_CREDITS,
    ACCOUNT_KIND_ORGANIZATION_PAYABLE,
    AccountKind,
)
from tallystick.reporting.v1.period_pb2 import Period
from tallystick.reporting.v1.projection_pb2 import PROJECTION_STATE_SERVING
from tallystick.reporting.v1.projection_service_pb2 import ListProjectionsRequest
from tallystick.reporting.v1.projection_service_pb2_grpc import ProjectionServiceStub
from tallystick.reporting.v1.reporting_service_pb2 import (
    EXPORT_FORMAT_CSV,
    ExportTransactionsRequest,
    GetRevenueSummaryRequest,
    GetStatementRequest,
    GetUsageRequest,
)
from tallystick.reporting.v1.reporting_service_pb2_grpc import ReportingServiceStub

if TYPE_CHECKING:
    from tallystick.reporting.v1.reporting_service_pb2 import GetRevenueSummaryResponse

_POLL_SECONDS = 0.1
_IN_FLIGHT = 8
# Longer than metering accepts work to be old.
_EVERYTHING = Period(name="24m")


class Reports:
    """Reporting, as the operator reaches it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._reporting = ReportingServiceStub(channel)
        self._projections = ProjectionServiceStub(channel)
        self._summaries: dict[str, GetRevenueSummaryResponse] = {}

    async def catch_up(self, journal_position: int, usage_count: int) -> bool:
        """Wait until both feeds were read so far; whether that came to be."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CATCH_UP_SECONDS
        while True:
            at = await self._positions()
            if at.get("journal", 0) >= journal_position and at.get("usage", 0) >= usage_count:
                return True
            if loop.time() > deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)

    async def read(self, organization_ids: Sequence[str]) -> None:
        """Ask what each organization earned."""

        async def ask(organization_id: str) -> None:
            request = GetRevenueSummaryRequest(organization_id=organization_id, currency_code=CURRENCY)
            self._summaries[organization_id] = await self._reporting.GetRevenueSummary(request)

        await in_flight(_IN_FLIGHT, organization_ids, ask)

    def rows(self) -> list[OrganizationRow]:
        """What each organization earned, as it was answered."""
        return [
            OrganizationRow(
                organization_id=organization_id,
                charges=summary.lifetime.charge_count,
                platform_fee=summary.lifetime.platform_fees.amount_micros,
                processing=summary.lifetime.processing_fees.amount_micros,
                net=summary.lifetime.net.amount_micros,
                available=summary.standing.available.amount_micros,
            )
            for organization_id, summary in sorted(self._summaries.items())
        ]

    async def agree(
        self,
        told: Standing,
        earned: Mapping[str, int],
        charged: Mapping[str, int],
        charges: Mapping[str, int],
    ) -> bool:
        """Whether summaries, statements, usage and an export say what the books say, to the micro.

        `told` are the ledger's balances; `earned` is what each organization earned and `charged` what each
        customer was charged, by the journal's entries; `charges` is how many charges each organization had.
        """
        standing = told.organizations
        agreed = all(
            (row.net, row.platform_fee, row.processing, row.charges)
            == (
                earned[row.organization_id],
                standing[row.organization_id].platform_fees,
                standing[row.organization_id].processing_fees,
                charges[row.organization_id],
            )
            and self._payable(row.organization_id) == standing[row.organization_id].payable
            for row in self.rows()
        )

        async def ask_organization(organization_id: str) -> None:
            nonlocal agreed
            of_statement = await self._closing(
                GetStatementRequest(organization_id=organization_id, currency_code=CURRENCY),
                ACCOUNT_KIND_ORGANIZATION_PAYABLE,
            )
            exported = await self._exported(organization_id)
            agreed &= of_statement == standing[organization_id].payable
            agreed &= exported == earned[organization_id]

        async def ask_customer(customer_id: str) -> None:
            nonlocal agreed
            of_statement = await self._closing(
                GetStatementRequest(customer_id=customer_id, currency_code=CURRENCY),
                ACCOUNT_KIND_CUSTOMER_CREDITS,
            )
            usage = await self._reporting.GetUsage(
                GetUsageRequest(customer_id=customer_id, currency_code=CURRENCY, period=_EVERYTHING)
            )
            agreed &= of_statement == told.customers[customer_id].credits
            agreed &= usage.total.cost.amount_micros == charged[customer_id]

        await in_flight(_IN_FLIGHT, sorted(standing), ask_organization)
        await in_flight(_IN_FLIGHT, sorted(told.customers), ask_customer)
        return agreed

    def _payable(self, organization_id: str) -> int:
        standing = self._summaries[organization_id].standing
        return standing.available.amount_micros + standing.pending.amount_micros

    async def _closing(self, request: GetStatementRequest, kind: AccountKind.ValueType) -> int:
        """The balance at the end of the statement for this month. Its movements must lead there."""
        closing, last = 0, None
        async for part in self._reporting.GetStatement(request):
            for account in part.accounts:
                if account.account.kind == kind:
                    closing = account.closing.amount_micros
            for movement in part.movements:
                if movement.account.kind == kind:
                    last = movement.balance.amount_micros
        if last is not None and last != closing:
            raise ArithmeticError(f"a statement closes with {closing}, and its movements with {last}")
        return closing

    async def _exported(self, organization_id: str) -> int:
        """The sum of the net amounts in the file of everything that an organization earned."""
        request = ExportTransactionsRequest(
            organization_id=organization_id, period=_EVERYTHING, format=EXPORT_FORMAT_CSV
        )
        content = b"".join([piece.content async for piece in self._reporting.ExportTransactions(request)])
        rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
        return int(sum((Decimal(row["net"]) for row in rows), Decimal(0)).scaleb(6))

    async def _positions(self) -> dict[str, int]:
        """How far the projection that answers has read each feed."""
        response = await self._projections.ListProjections(ListProjectionsRequest())
        return {
            feed.feed: feed.position
            for projection in response.projections
            if projection.state == PROJECTION_STATE_SERVING
            for feed in projection.feeds
        }
