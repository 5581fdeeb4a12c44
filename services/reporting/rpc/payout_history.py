"""Payouts with their place in the books: ListPayoutHistory."""

from typing import Final

from services.kit.errors import InvalidArgument
from services.reporting.rpc.access import organization_of, tenants_of_owner
from services.reporting.rpc.convert import as_of_to_proto
from services.reporting.rpc.payouts import Payouts
from services.reporting.rpc.reporting_base import Context, ReportingBase
from services.reporting.store import movements
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tallystick.reporting.v1 import statement_pb2

_DEFAULT_SIZE: Final = 50
_MAX_SIZE: Final = 100


class PayoutHistoryRpcs(ReportingBase):
    """Payouts as payouts answers them, with the transactions that reporting knows."""

    _payouts: Payouts

    async def ListPayoutHistory(
        self, request: pb.ListPayoutHistoryRequest, context: Context
    ) -> pb.ListPayoutHistoryResponse:
        owner = organization_of(request)
        if request.page_size < 0:
            raise InvalidArgument.of("page_size", "must not be negative")
        size = min(request.page_size or _DEFAULT_SIZE, _MAX_SIZE)
        # The token is that of payouts, which knows by it whose list it is.
        page = await self._payouts.list_newest(owner.id, size, request.page_token)
        ids = [payout.payout_id for payout in page.payouts]
        found = await self._payouts.get_all(ids)
        # After the payouts, so that what they show had the most time to arrive here.
        async with self._snapshot(tenants_of_owner(owner)) as snapshot:
            transactions = await movements.payout_transactions(
                snapshot.connection, snapshot.projection_id, owner.id, ids
            )
        records = []
        for one in found:
            own = transactions.get(one.payout.payout_id, {})
            records.append(
                statement_pb2.PayoutRecord(
                    payout=one.payout,
                    transitions=one.transitions,
                    debit_transaction_id=own.get("payout", ""),
                    end_transaction_id=own.get("payout_completion") or own.get("payout_return", ""),
                )
            )
        return pb.ListPayoutHistoryResponse(
            payouts=records, next_page_token=page.next_page_token, as_of=as_of_to_proto(snapshot.known)
        )
