"""What a comparison found, as it travels."""

from typing import Final

from services.kit.times import timestamp
from services.payouts.domain.reconciliation import Comparison, Difference, DifferenceKind, Total, money
from services.payouts.rpc.ledger import to_proto
from tallystick.payouts.v1 import reconciliation_pb2
from tallystick.payouts.v1 import reconciliation_service_pb2 as pb

# How many differences are shown.
SHOWN: Final = 1000

_KIND_TO_PROTO: Final = {
    kind: reconciliation_pb2.DifferenceKind.Value(f"DIFFERENCE_KIND_{kind.name}") for kind in DifferenceKind
}


def comparison_to_proto(found: Comparison) -> pb.ReconcileResponse:
    """Totals by currency, and the oldest differences."""
    differences = sorted(found.differences, key=lambda one: one.time)
    return pb.ReconcileResponse(
        totals=[_total(currency, total) for currency, total in sorted(found.totals.items())],
        differences=map(_difference, differences[:SHOWN]),
        difference_count=len(differences),
    )


def _total(currency_code: str, total: Total) -> reconciliation_pb2.ReconciledTotal:
    return reconciliation_pb2.ReconciledTotal(
        processor=to_proto(total.processor(currency_code)),
        ledger=to_proto(total.ledger(currency_code)),
        matched_count=total.matched,
    )


def _difference(one: Difference) -> reconciliation_pb2.Difference:
    currency = one.currency_code
    return reconciliation_pb2.Difference(
        kind=_KIND_TO_PROTO[one.kind],
        stripe_id=one.processor.stripe_id if one.processor else "",
        balance_transaction_id=one.processor.balance_transaction_id if one.processor else "",
        transaction_id=one.ledger.transaction_id if one.ledger else "",
        processor_amount=to_proto(money(one.processor, currency)),
        ledger_amount=to_proto(money(one.ledger, currency)),
        explanation=one.explanation,
        create_time=timestamp(one.time),
    )
