"""Every movement of an owner's accounts in a period: GetStatement."""

from collections.abc import AsyncIterator
from typing import Final

from services.reporting.domain.period import MONTH_TO_DATE
from services.reporting.domain.statement import accounts
from services.reporting.rpc.access import owner_of, tenants_of_owner
from services.reporting.rpc.convert import as_of_to_proto, currency_of, period_from_proto
from services.reporting.rpc.reporting_base import Context, ReportingBase
from services.reporting.rpc.statement_convert import account_to_proto, movement_to_proto
from services.reporting.store import movements
from services.reporting.store.movements import Books, Place
from tallystick.reporting.v1 import reporting_service_pb2 as pb

_BATCH: Final = 500


class StatementRpcs(ReportingBase):
    """Statements."""

    async def GetStatement(
        self, request: pb.GetStatementRequest, context: Context
    ) -> AsyncIterator[pb.GetStatementResponse]:
        owner, currency = owner_of(request), currency_of(request.currency_code)
        period = period_from_proto(request.period, self._clock, default=MONTH_TO_DATE)
        span, tenants = (period.start, period.end), tenants_of_owner(owner)
        async with self._snapshot(tenants) as snapshot:
            known = snapshot.known
            books = Books(known.projection_id, known.journal_position, owner, currency)
            openings = await movements.openings(snapshot.connection, books, period.start)
            totals = await movements.totals(snapshot.connection, books, span)
        found = accounts(owner.kind, openings, totals)
        yield pb.GetStatementResponse(
            accounts=[account_to_proto(account, owner, currency) for account in found],
            as_of=as_of_to_proto(known),
        )
        balances = {account.kind: account.opening for account in found}
        after: Place | None = None
        # One short transaction per message: a slow reader holds no snapshot open, and needs none, since
        # movements up to a position never change.
        while True:
            async with self._same_projection(tenants, known) as snapshot:
                page = await movements.list_after(snapshot.connection, books, span, after, _BATCH)
            batch = []
            for movement in page:
                balances[movement.kind] += movement.amount
                batch.append(movement_to_proto(movement, balances[movement.kind], owner, currency))
            if batch:
                yield pb.GetStatementResponse(movements=batch)
            if len(page) < _BATCH:
                return
            last = page[-1]
            after = (last.create_time, last.position, last.entry_number)
