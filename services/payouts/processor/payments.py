"""Payments of customers, and what goes back of them."""

from datetime import UTC, datetime
from typing import Any, Final

import stripe

from services.kit import ids
from services.kit.clock import Clock
from services.kit.money import Money
from services.payouts.domain.payout import Call
from services.payouts.domain.purchase import Fee, Intent, IntentStatus, Movements, Reversal, ReversalKind
from services.payouts.domain.units import from_minor
from services.payouts.processor.api import StripeApi, metadata_of

_STATUS: Final = {
    "requires_payment_method": IntentStatus.STALLED,
    "requires_confirmation": IntentStatus.STALLED,
    "requires_action": IntentStatus.REQUIRES_ACTION,
    "succeeded": IntentStatus.SUCCEEDED,
    "canceled": IntentStatus.CANCELED,
}
_DEAD: Final = ("failed", "canceled")
_WITH_FEE: Final = {"expand": ["latest_charge.balance_transaction"]}
# Far more than clocks differ: what is not found counts as never made.
_SKEW_SECONDS: Final = 86_400


class Payments:
    """What payouts does with payments. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._intents = api.client.v1.payment_intents
        self._charges = api.client.v1.charges
        self._refunds = api.client.v1.refunds
        self._disputes = api.client.v1.disputes

    async def create(self, call: Call, clock: Clock) -> Intent:
        """Make a payment and confirm it. Refused names the payment if it was made and then declined."""
        created = await self._api.call(
            "payment_intents.create",
            self._intents.create_async,
            params=call.body,
            key=call.key,
            may_begin=lambda: call.may_be_repeated(clock.now()),
        )
        return _intent(created)

    async def get(self, payment_intent_id: str) -> Intent:
        """A payment as it is now."""
        found = await self._api.call(
            "payment_intents.retrieve", self._intents.retrieve_async, payment_intent_id, params=_WITH_FEE
        )
        return _intent(found)

    async def cancel(self, payment_intent_id: str) -> Intent:
        """Let a payment never be made. Refused if it was, or if it was cancelled before."""
        cancelled = await self._api.call(
            "payment_intents.cancel",
            self._intents.cancel_async,
            payment_intent_id,
            # Cancelling twice is as good as once, so a new key each time will do: one that has kept an error
            # would answer so for a day.
            key=ids.new_id("cancel"),
        )
        return _intent(cancelled)

    async def find(self, stripe_customer_id: str, purchase_id: str, since: datetime) -> Intent | None:
        """The payment of a purchase, found by the names that its body gave it; None if there is none."""
        params = {
            "customer": stripe_customer_id,
            "created": {"gte": int(since.timestamp()) - _SKEW_SECONDS},
        }
        pages = self._api.pages("payment_intents.list", self._intents.list_async, params=params)
        async for found in pages:
            if metadata_of(found).get("purchase_id") == purchase_id:
                return await self.get(found.id)
        return None

    async def movements(self, payment_intent_id: str) -> Movements:
        """All that has moved money of a payment until now."""
        intent = await self.get(payment_intent_id)
        reversals: list[Reversal] = []
        fees: list[Fee] = []
        dead: list[str] = []
        of_this = {"payment_intent": payment_intent_id}
        refunds = self._api.pages(
            "refunds.list",
            self._refunds.list_async,
            params={**of_this, "expand": ["data.balance_transaction"]},
        )
        async for refund in refunds:
            reversals += _reversal_of_refund(refund)
            if refund.balance_transaction is None and refund.status in _DEAD:
                dead.append(refund.id)
            fees += _fees(refund.balance_transaction, reason="refund")
        async for dispute in self._api.pages("disputes.list", self._disputes.list_async, params=of_this):
            reversals += _reversal_of_dispute(dispute)
            fees += _fees(*dispute.balance_transactions, reason="dispute")
        return Movements(
            intent,
            tuple(sorted(reversals, key=lambda one: (one.create_time, one.reversal_id))),
            tuple(fees),
            tuple(dead),
        )

    async def refund(self, call: Call, clock: Clock) -> str:
        """Give money of a payment back; the id of the refund, which may still fail."""
        made = await self._api.call(
            "refunds.create",
            self._refunds.create_async,
            params=call.body,
            key=call.key,
            may_begin=lambda: call.may_be_repeated(clock.now()),
        )
        return made.id

    async def find_refund(self, payment_intent_id: str, refund_request_id: str) -> str | None:
        """The refund that a request made, by the names that its body gave it; None if there is none."""
        pages = self._api.pages(
            "refunds.list", self._refunds.list_async, params={"payment_intent": payment_intent_id}
        )
        async for refund in pages:
            if metadata_of(refund).get("refund_request_id") == refund_request_id:
                return str(refund.id)
        return None

    async def payment_of_charge(self, charge_id: str) -> str:
        """The payment that made a charge; "" if none did."""
        charge = await self._api.call("charges.retrieve", self._charges.retrieve_async, charge_id)
        return _id(charge.payment_intent)

    async def payment_of_refund(self, refund_id: str) -> str:
        """The payment that a refund is of; "" if it is of none."""
        refund = await self._api.call("refunds.retrieve", self._refunds.retrieve_async, refund_id)
        return _id(refund.payment_intent)

    async def payment_of_dispute(self, dispute_id: str) -> str:
        """The payment that a dispute is about; "" if it is about none."""
        dispute = await self._api.call("disputes.retrieve", self._disputes.retrieve_async, dispute_id)
        return _id(dispute.payment_intent)


def _intent(found: stripe.PaymentIntent) -> Intent:
    error = found.last_payment_error
    return Intent(
        payment_intent_id=found.id,
        purchase_id=metadata_of(found).get("purchase_id", ""),
        stripe_customer_id=_id(found.customer),
        status=_STATUS.get(found.status, IntentStatus.PROCESSING),
        amount=from_minor(found.amount, found.currency),
        received=from_minor(found.amount_received, found.currency),
        fee=_charge_fee(found.latest_charge),
        failure_code=_part(error, "decline_code") or _part(error, "code") or "",
        failure_reason=_part(error, "message") or "",
        client_secret=found.client_secret or "",
        action_url=_part(_part(found.next_action, "redirect_to_url"), "url") or "",
    )


def _charge_fee(charge: str | stripe.Charge | None) -> Fee | None:
    """What was taken for a charge; None as long as it is not settled."""
    if charge is None or isinstance(charge, str):
        return None
    transaction = charge.balance_transaction
    if transaction is None or isinstance(transaction, str):
        return None
    return Fee(transaction.id, from_minor(transaction.fee, transaction.currency), "processing")


def _fees(*transactions: str | stripe.BalanceTransaction | None, reason: str) -> list[Fee]:
    """What was taken, or given back, by balance transactions; those without a fee are left out."""
    return [
        Fee(one.id, from_minor(one.fee, one.currency), reason)
        for one in transactions
        if isinstance(one, stripe.BalanceTransaction) and one.fee
    ]


def _reversal_of_refund(refund: stripe.Refund) -> list[Reversal]:
    """None of them until the refund has taken money from the platform; if it fails, that comes again."""
    if refund.balance_transaction is None:
        return []
    amount = from_minor(refund.amount, refund.currency).amount_micros
    failed = refund.status in _DEAD
    return [
        Reversal(
            reversal_id=refund.id,
            kind=ReversalKind.REFUND,
            amount_micros=amount,
            reason="refund",
            create_time=_time(refund.created),
            reinstatement_id=(
                (_id(_part(refund, "failure_balance_transaction")) or f"{refund.id}_failed") if failed else ""
            ),
            reinstated_micros=amount if failed else 0,
        )
    ]


def _reversal_of_dispute(dispute: stripe.Dispute) -> list[Reversal]:
    """An inquiry takes no money. Otherwise the balance transactions say what went, and what came again."""
    taken = [one for one in dispute.balance_transactions if one.amount < 0]
    returned = [one for one in dispute.balance_transactions if one.amount > 0]
    if not taken:
        return []
    amount = from_minor(dispute.amount, dispute.currency)
    return [
        Reversal(
            reversal_id=dispute.id,
            kind=ReversalKind.DISPUTE,
            amount_micros=amount.amount_micros,
            reason=f"dispute: {dispute.reason}",
            create_time=_time(dispute.created),
            reinstatement_id=returned[0].id if returned else "",
            reinstated_micros=_returned(returned[0], amount) if returned else 0,
        )
    ]


def _returned(transaction: stripe.BalanceTransaction, disputed: Money) -> int:
    """What came again; all of it where the processor converts, and so says it in another currency."""
    returned = from_minor(transaction.amount, transaction.currency)
    if returned.currency_code != disputed.currency_code:
        return disputed.amount_micros
    return min(returned.amount_micros, disputed.amount_micros)


def _part(of: Any, name: str) -> Any:
    """A part that Stripe may leave out, of what may itself be left out; the library raises for such."""
    return None if of is None else getattr(of, name, None)


def _id(value: Any) -> str:
    """The id of what may be expanded."""
    if value is None:
        return ""
    return value if isinstance(value, str) else str(value.id)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
