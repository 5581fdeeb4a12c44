"""Events of the payment processor about purchases: each has one read again, in whatever order they come."""

from collections.abc import Awaitable, Callable
from typing import Final

from services.kit import ids
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.tenancy import PLATFORM, scope
from services.payouts.domain import purchase as rules
from services.payouts.domain.event import ProcessorEvent, Quarantine
from services.payouts.domain.payout import STRIPE, Step
from services.payouts.domain.purchase import Change, Intent, Purchase, PurchaseState
from services.payouts.processor.errors import Refused
from services.payouts.processor.payments import Payments
from services.payouts.purchaser import Purchaser
from services.payouts.store import purchases

_OF_PAYMENT: Final = frozenset(
    f"payment_intent.{what}"
    for what in ("succeeded", "payment_failed", "canceled", "requires_action", "processing")
)
# `charge.updated` says, among other things, that a charge was settled, so that its fee is known.
_OF_CHARGE: Final = frozenset({"charge.refunded", "charge.updated"})
_OF_REFUND: Final = frozenset({"refund.created", "refund.updated", "refund.failed"})
_OF_DISPUTE: Final = frozenset(
    f"charge.dispute.{what}"
    for what in ("created", "updated", "closed", "funds_withdrawn", "funds_reinstated")
)


class PurchaseEvents:
    """Handles events about payments, refunds and disputes of the platform."""

    TYPES: Final = _OF_PAYMENT | _OF_CHARGE | _OF_REFUND | _OF_DISPUTE

    def __init__(self, *, writer: Database, purchaser: Purchaser, payments: Payments, clock: Clock) -> None:
        self._writer = writer
        self._purchaser = purchaser
        self._payments = payments
        self._clock = clock

    async def handle(self, event: ProcessorEvent) -> None:
        """Read what the event is about, and take its purchase as far as that leads.

        Raises Quarantine if it is about no purchase, and ProcessorError if the processor does not say what it
        is about: then the event is to be handled again. What goes wrong after that is in the purchase's row.
        """
        try:
            intent = await self._payments.get(await self._payment_of(event))
        except Refused as error:
            raise Quarantine(f"{event.object_id}: {error.message}") from error
        purchase = await self._purchase_of(intent)
        step = Step(STRIPE, event.type)

        def take_over(found: Purchase) -> Change | None:
            now = self._clock.now()
            change = rules.observed(found, intent, step, now)
            if change is None and found.state is PurchaseState.SUCCEEDED and event.type not in _OF_PAYMENT:
                return rules.woken(found, now)
            return change

        await self._purchaser.take_further(await self._purchaser.change(purchase, take_over))

    async def _payment_of(self, event: ProcessorEvent) -> str:
        if event.type in _OF_PAYMENT:
            return event.object_id
        find: Callable[[str], Awaitable[str]]
        if event.type in _OF_CHARGE:
            find = self._payments.payment_of_charge
        elif event.type in _OF_REFUND:
            find = self._payments.payment_of_refund
        else:
            find = self._payments.payment_of_dispute
        payment_intent_id = await find(event.object_id)
        if not payment_intent_id:
            raise Quarantine(f"{event.object_id} is of no payment")
        return payment_intent_id

    async def _purchase_of(self, intent: Intent) -> Purchase:
        """The purchase that a payment is of. Raises Quarantine."""
        payment_intent_id = intent.payment_intent_id
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            found = await purchases.find_by_payment(connection, payment_intent_id)
            if found is None and _is_purchase_id(intent.purchase_id):
                found = await purchases.find(connection, intent.purchase_id)
        if found is None:
            raise Quarantine(f"{payment_intent_id} is the payment of no purchase")
        if not rules.is_payment_of(intent, found):
            raise Quarantine(f"{payment_intent_id} is not the payment of {found.purchase_id}")
        return found


def _is_purchase_id(text: str) -> bool:
    try:
        ids.check_id(text, ids.PURCHASE, field="purchase_id")
    except InvalidArgument:
        return False
    return True
