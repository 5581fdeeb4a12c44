"""ReportingService: each RPC reads one moment of the projection that answers."""

from services.kit.clock import Clock
from services.kit.db import Database
from services.reporting.rpc.charges import ChargeRpcs
from services.reporting.rpc.exports import ExportRpcs
from services.reporting.rpc.payout_history import PayoutHistoryRpcs
from services.reporting.rpc.payouts import Payouts
from services.reporting.rpc.reporting_base import ReportingBase
from services.reporting.rpc.revenue import RevenueRpcs
from services.reporting.rpc.statements import StatementRpcs
from services.reporting.rpc.usage import UsageRpcs
from tallystick.reporting.v1 import reporting_service_pb2_grpc


class ReportingService(
    RevenueRpcs,
    UsageRpcs,
    ChargeRpcs,
    StatementRpcs,
    ExportRpcs,
    PayoutHistoryRpcs,
    reporting_service_pb2_grpc.ReportingServiceServicer,
):
    """Serves ReportingService."""

    def __init__(self, *, reader: Database, payouts: Payouts, catalogue: str, clock: Clock) -> None:
        ReportingBase.__init__(self, reader, clock)
        self._payouts = payouts
        # Which price catalogue the costs of models are from, with its date.
        self._catalogue = catalogue
