"""Requests for adjustments, all in one currency."""

from __future__ import annotations

from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_credits import usd


def move_request(
    *postings: tuple[str, account_pb2.AccountKind.ValueType, int], key: str = "k"
) -> pb.AdjustBalancesRequest:
    """Move accounts by amounts."""
    return pb.AdjustBalancesRequest(
        postings=[
            pb.Posting(
                account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner_id, kind, amount in postings
        ],
        reason="goodwill after the outage",
        idempotency_key=key,
    )


def credit_request(customer_id: str, amount: int, key: str = "k") -> pb.AdjustBalancesRequest:
    """Give a customer credits, or take them for a negative amount."""
    return move_request(
        (customer_id, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, amount),
        ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -amount),
        key=key,
    )
