"""What moved the platform's balance at Stripe."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from services.payouts.domain.reconciliation import OTHER, PAYOUT, PURCHASE, Key, Movement, with_fee
from services.payouts.domain.units import from_minor
from services.payouts.processor.api import StripeApi, metadata_of


class Balance:
    """What payouts reads of the platform's balance. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._service = api.client.v1.balance_transactions

    async def movements(self, since: datetime | None) -> AsyncIterator[Movement]:
        """Every movement since a moment, the newest first; fees are movements of their own."""
        params: dict[str, Any] = {"expand": ["data.source"]}
        if since is not None:
            params["created"] = {"gte": int(since.timestamp())}
        pages = self._api.pages("balance_transactions.list", self._service.list_async, params=params)
        async for found in pages:
            amount = from_minor(found.amount, found.currency)
            fee = from_minor(found.fee, found.currency)
            movement = Movement(
                key=Key(*_names(found), amount.currency_code),
                amount_micros=amount.amount_micros,
                time=datetime.fromtimestamp(found.created, UTC),
                type=found.type,
                stripe_id=_id(found.source),
                balance_transaction_id=found.id,
            )
            for part in with_fee(movement, fee.amount_micros):
                yield part


def _names(found: Any) -> tuple[str, str]:
    """By what the ledger knows it: the names that our calls gave to the object, or the processor's own id."""
    source = found.source
    if source is None or isinstance(source, str):
        return OTHER, source or found.id
    names = metadata_of(source) if getattr(source, "metadata", None) is not None else {}
    match found.type:
        case "transfer" if "payout_id" in names:
            return PAYOUT, names["payout_id"]
        case "charge" | "payment" if "purchase_id" in names:
            return PURCHASE, names["purchase_id"]
        # What came again has the balance transaction's id, since the object's is that of what went.
        case "refund_failure" | "payment_failure_refund":
            return OTHER, found.id
        case "adjustment" if found.amount > 0:
            return OTHER, found.id
    return OTHER, source.id


def _id(source: Any) -> str:
    return "" if source is None else source if isinstance(source, str) else source.id
