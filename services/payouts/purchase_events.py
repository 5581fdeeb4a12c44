"""What events about payments, refunds and disputes come to: their purchases, as they are now."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from services.kit import ids
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import InvalidArgument
from services.kit.tenancy import PLATFORM, scope
from services.payouts.domain import purchase as rules
from services.payouts.domain.event import DONE, Handler, Outcome, ProcessorEvent, ignored, quarantined
from services.payouts.domain.payout import STRIPE, Step
from services.payouts.domain.purchase import Change, Intent, Purchase
from services.payouts.processor.payments import Payments
from services.payouts.purchaser import Purchaser
from services.payouts.store import purchases

Judge = Callable[[Purchase, Intent, Step, datetime], Change | None]

_OF_PAYMENT: Final = tuple(
    f"payment_intent.{what}"
    for what in ("succeeded", "payment_failed", "canceled", "requires_action", "processing")
)
# Says, among other things, that a charge was settled, so that its fee is known.
_SETTLED: Final = "charge.updated"


class PurchaseEvents:
    """Handles events about what customers pay to the platform.

    The payment is read again, and then judged by what the purchase is when that is written. A payment that
    has succeeded or was cancelled stays so, and nothing else ends a purchase: it does no harm if another
    event, or the purchaser, has read it later and was faster. What goes wrong once the purchase has changed
    is in its own row, and tried again by the purchaser.
    """

    def __init__(self, *, writer: Database, purchaser: Purchaser, payments: Payments, clock: Clock) -> None:
        self._writer = writer
        self._purchaser = purchaser
        self._payments = payments
        self._clock = clock

    def handlers(self) -> Mapping[str, Handler]:
        """Handlers by prefix of the type of event."""
        return {
            **dict.fromkeys(_OF_PAYMENT, self.payment),
            "charge.refunded": self.charge,
            _SETTLED: self.charge,
            "refund.": self.refund,
            "charge.dispute.": self.dispute,
        }

    async def payment(self, event: ProcessorEvent) -> Outcome:
        """A payment was made, declined or cancelled, or waits."""
        return await self._take_over(event, event.object_id, rules.observed)

    async def charge(self, event: ProcessorEvent) -> Outcome:
        """A charge was refunded, or settled."""
        if event.stripe_account_id:
            return _of_others()
        payment_intent_id = await self._payments.payment_of_charge(event.object_id)
        # A charge changes for many reasons; what else moves money has events of its own.
        judge = rules.settled if event.type == _SETTLED else rules.moved
        return await self._take_over(event, payment_intent_id, judge)

    async def refund(self, event: ProcessorEvent) -> Outcome:
        """A refund was made, or has failed."""
        if event.stripe_account_id:
            return _of_others()
        payment_intent_id = await self._payments.payment_of_refund(event.object_id)
        return await self._take_over(event, payment_intent_id, rules.moved)

    async def dispute(self, event: ProcessorEvent) -> Outcome:
        """A payment is disputed, or that was decided."""
        if event.stripe_account_id:
            return _of_others()
        payment_intent_id = await self._payments.payment_of_dispute(event.object_id)
        return await self._take_over(event, payment_intent_id, rules.moved)

    async def _take_over(self, event: ProcessorEvent, payment_intent_id: str, judge: Judge) -> Outcome:
        """Read a payment, and take its purchase as far as that leads."""
        if event.stripe_account_id:
            return _of_others()
        if not payment_intent_id:
            return quarantined(f"{event.object_id} is of no payment")
        intent = await self._payments.get(payment_intent_id)
        purchase = await self._purchase_of(intent)
        if purchase is None:
            return quarantined(f"{payment_intent_id} is the payment of no purchase: somebody made it by hand")
        if not rules.is_payment_of(intent, purchase):
            return quarantined(f"{payment_intent_id} names {purchase.purchase_id}, and is not its payment")
        step = Step(STRIPE, event.event_id)
        changed = await self._purchaser.change(
            purchase, lambda found: judge(found, intent, step, self._clock.now())
        )
        await self._purchaser.take_further(changed)
        return DONE

    async def _purchase_of(self, intent: Intent) -> Purchase | None:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            found = await purchases.find_by_payment(connection, intent.payment_intent_id)
            if found is None and _is_purchase_id(intent.purchase_id):
                found = await purchases.find(connection, intent.purchase_id)
        return found


def _of_others() -> Outcome:
    return ignored("of a connected account's own customers")


def _is_purchase_id(text: str) -> bool:
    try:
        ids.check_id(text, ids.PURCHASE, field="purchase_id")
    except InvalidArgument:
        return False
    return True
