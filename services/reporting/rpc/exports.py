"""Charges of a period as a file: ExportTransactions."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.money import check_currency
from services.kit.tenancy import Tenants
from services.reporting.domain.export import ColumnSet, Format, pieces
from services.reporting.domain.export_columns import ExportRow
from services.reporting.domain.period import MONTH_TO_DATE
from services.reporting.rpc.access import owner_of, tenants_of_owner
from services.reporting.rpc.convert import period_from_proto
from services.reporting.rpc.reporting_base import Context, ReportingBase
from services.reporting.store import exports
from services.reporting.store.exports import ExportFilter, Place
from services.reporting.store.snapshots import Known
from tallystick.reporting.v1 import reporting_service_pb2 as pb

_ROWS: Final = 2000

_FORMATS: Final[Mapping[int, Format]] = {
    pb.EXPORT_FORMAT_UNSPECIFIED: Format.CSV,
    pb.EXPORT_FORMAT_CSV: Format.CSV,
    pb.EXPORT_FORMAT_PARQUET: Format.PARQUET,
}
_COLUMNS: Final[Mapping[int, ColumnSet]] = {
    pb.EXPORT_COLUMNS_UNSPECIFIED: ColumnSet.TALLYSTICK,
    pb.EXPORT_COLUMNS_TALLYSTICK: ColumnSet.TALLYSTICK,
    pb.EXPORT_COLUMNS_FOCUS: ColumnSet.FOCUS,
}


class ExportRpcs(ReportingBase):
    """Exports."""

    async def ExportTransactions(
        self, request: pb.ExportTransactionsRequest, context: Context
    ) -> AsyncIterator[pb.ExportTransactionsResponse]:
        owner = owner_of(request)
        period = period_from_proto(request.period, self._clock, default=MONTH_TO_DATE)
        currency = check_currency(request.currency_code) if request.currency_code else ""
        if request.format not in _FORMATS:
            raise InvalidArgument.of("format", "must be a known format")
        if request.columns not in _COLUMNS:
            raise InvalidArgument.of("columns", "must be known columns")
        tenants = tenants_of_owner(owner)
        async with self._snapshot(tenants) as snapshot:
            known = snapshot.known
        wanted = ExportFilter(
            projection_id=known.projection_id,
            journal_position=known.journal_position,
            owner=owner,
            span=(period.start, period.end),
            currency_code=currency,
        )
        batches = self._batches(wanted, tenants, known)
        file = pieces(batches, _FORMATS[request.format], _COLUMNS[request.columns])
        async with aclosing(file):
            async for content in file:
                yield pb.ExportTransactionsResponse(content=content)

    async def _batches(
        self, wanted: ExportFilter, tenants: Tenants, known: Known
    ) -> AsyncIterator[Sequence[ExportRow]]:
        """All rows, in batches, each read in a transaction of its own: none stays open for a slow reader."""
        after: Place | None = None
        while True:
            async with self._same_projection(tenants, known) as snapshot:
                rows, after = await exports.list_after(snapshot.connection, wanted, after, _ROWS)
            if rows:
                yield rows
            if after is None:
                return
