"""What takes purchases further: for the call that begins one, for events, and in a worker.

As the executor of payouts does, it makes one call to the ledger or to Stripe between two transactions, and
any step may be repeated: so it does not matter where a process is killed, nor how many of them run.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from prometheus_client import Counter

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import TallystickError
from services.kit.money import Money
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain import purchase as rules
from services.payouts.domain.backoff import backoff
from services.payouts.domain.payout import WORKER, Step
from services.payouts.domain.purchase import (
    UNPAID,
    Change,
    Hold,
    Intent,
    IntentStatus,
    Origin,
    Purchase,
    PurchaseState,
    Reversal,
    ReversalKind,
)
from services.payouts.domain.refund import RefundRequest, RefundState
from services.payouts.processor.errors import InDoubt, KeyConflict, KeyRefused, Refused, Throttled
from services.payouts.processor.payments import Payments
from services.payouts.rpc.ledger import Ledger, is_final
from services.payouts.store import auto_recharges, purchases

# Longer than any one step takes: a call to Stripe ends after 30 seconds, one to the ledger after ten.
LEASE: Final = timedelta(seconds=90)
# Who has made something due goes on with it at once; the worker takes over what is left behind.
_HEAD_START: Final = timedelta(seconds=2)
_HELD_PAUSE: Final = timedelta(minutes=5)
_BATCH: Final = 8
# After so many calls without a certain answer the payment may be there: a key that has kept a 500 never says
# so.
_DOUBTS: Final = 2

_ENDED: Final = Counter("tallystick_purchases_ended", "Purchases that came to an end.", ["state", "origin"])
_HELD: Final = Counter("tallystick_purchases_held", "Purchases that came to stand still.", ["hold"])
_log = log.get_logger()


class Purchaser:
    """Takes purchases further."""

    def __init__(self, *, writer: Database, ledger: Ledger, payments: Payments, clock: Clock) -> None:
        self._writer = writer
        self._ledger = ledger
        self._payments = payments
        self._clock = clock

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """Works on what is due, every `interval`."""
        return PeriodicWorker("payouts.purchaser", interval, self.step)

    async def step(self) -> bool:
        """Work on purchases that are due, some at once. Answers whether there may be more."""
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            due = await purchases.claim_due(connection, now - _HEAD_START, now + LEASE, _BATCH)
        # One that Stripe does not answer must not keep the others from their credits.
        ended = await asyncio.gather(*map(self.take_further, due), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one
        return len(due) == _BATCH

    async def begin(self, purchase: Purchase) -> Purchase:
        """Take a new purchase as far as it comes now, ahead of the worker."""
        return await self.take_further(await self._act(purchase))

    async def take_further(self, purchase: Purchase) -> Purchase:
        """Do what is due for one purchase, until nothing is; the purchase as it is then."""
        while purchase.next_attempt_time is not None and purchase.next_attempt_time <= self._clock.now():
            purchase = await self._act(purchase)
        return purchase

    async def change(self, purchase: Purchase, wanted: Callable[[Purchase], Change | None]) -> Purchase:
        """Change a purchase, judged by what it is then; None leaves it as it is."""
        while True:
            change = wanted(purchase)
            if change is None:
                return purchase
            saved = await self._try_save(purchase, change)
            if saved is not None:
                return saved
            # Somebody else was first: judge again.
            purchase = await self._read(purchase)

    # Steps.

    async def _act(self, purchase: Purchase) -> Purchase:
        """One step. Every way out of it changes the purchase, or reads it anew."""
        try:
            return await self._step_of(purchase)(purchase)
        except TallystickError as error:
            # The ledger. What it will not do is a contradiction, which no repetition mends.
            if is_final(error):
                return await self._save(
                    purchase, rules.held(purchase, Hold.UNRESOLVED, f"ledger: {error.reason}")
                )
            return await self._later(purchase, f"ledger: {error.reason}")
        except Throttled as error:
            return await self._later(purchase, error.code or "throttled")
        except KeyRefused as error:
            return await self._later(purchase, error.message, Hold.KEY_REFUSED)
        except KeyConflict as error:
            return await self._save(purchase, rules.held(purchase, Hold.KEY_CONFLICT, error.message))
        except InDoubt as error:
            return await self._later(purchase, error.code or error.message)
        except Refused as error:
            # Of a question, not of something that was to be done: what was there is gone.
            return await self._save(purchase, rules.held(purchase, Hold.UNRESOLVED, error.message))

    def _step_of(self, purchase: Purchase) -> Callable[[Purchase], Awaitable[Purchase]]:
        if purchase.state is PurchaseState.PAID:
            return self._grant
        if purchase.state is PurchaseState.SUCCEEDED:
            return self._look if purchase.look else self._post
        if purchase.payment_intent_id is None:
            return self._find if self._is_doubtful(purchase) else self._pay
        unwanted = purchase.cancel_time is not None or purchase.state in UNPAID
        return self._cancel if unwanted else self._watch

    def _is_doubtful(self, purchase: Purchase) -> bool:
        """Whether to look for the payment before it is asked for again, or instead."""
        return (
            purchase.cancel_time is not None
            or purchase.state in UNPAID
            or purchase.attempt_count >= _DOUBTS
            or not purchase.intent.may_be_repeated(self._clock.now())
        )

    async def _pay(self, purchase: Purchase) -> Purchase:
        """Ask for the payment, with the frozen body and key."""
        step = Step(WORKER, "payment_intents.create")
        try:
            intent = await self._payments.create(purchase.intent, self._clock)
        except Refused as error:
            code, now = error.decline_code or error.code or "refused", self._clock.now()
            if not error.payment_intent_id:
                return await self._save(purchase, rules.refused(purchase, code, error.message, step))
            change = rules.declined(purchase, error.payment_intent_id, code, error.message, step, now)
            return await self._save(purchase, change)
        return await self._observe(purchase, intent, step)

    async def _find(self, purchase: Purchase) -> Purchase:
        """Look for a payment that may have been made; ask for it only while that is wanted, and harmless."""
        found = await self._payments.find(
            purchase.stripe_customer_id, purchase.purchase_id, purchase.intent.time
        )
        step, now = Step(WORKER, "payment_intents.list"), self._clock.now()
        if found is not None:
            return await self._observe(purchase, found, step)
        if purchase.state in UNPAID:
            return await self._save(purchase, rules.told(purchase, now))
        if purchase.cancel_time is not None:
            # A call that was under way when this was cancelled may still be carried out.
            if now - purchase.cancel_time < rules.CALL_LIFE:
                return await self._later(purchase, "cancelled, and its payment may still appear")
            return await self._save(purchase, rules.absent(purchase, step))
        if purchase.intent.may_be_repeated(now):
            return await self._pay(purchase)
        # Nobody has asked for an hour, nobody ever will: what is not there now was never made.
        return await self._save(purchase, rules.absent(purchase, step))

    async def _watch(self, purchase: Purchase) -> Purchase:
        """Read a payment that waits for others."""
        if purchase.state is PurchaseState.REQUIRES_ACTION:
            late = rules.out_of_time(purchase, self._clock.now())
            if late is not None:
                return await self._save(purchase, late)
        intent = await self._payments.get(_payment_of(purchase))
        return await self._observe(purchase, intent, Step(WORKER, "payment_intents.retrieve"))

    async def _cancel(self, purchase: Purchase) -> Purchase:
        """Let a payment never be made, unless it was."""
        step = Step(WORKER, "payment_intents.cancel")
        try:
            intent = await self._payments.cancel(_payment_of(purchase))
        except Refused:
            # It was paid meanwhile, or cancelled before, or is on its way and cannot be stopped.
            intent = await self._payments.get(_payment_of(purchase))
        if intent.status not in (IntentStatus.SUCCEEDED, IntentStatus.CANCELED):
            return await self._later(purchase, "its payment cannot be cancelled now")
        return await self._observe(purchase, intent, step)

    async def _grant(self, purchase: Purchase) -> Purchase:
        """Have the ledger grant the credits: once, since the purchase is the key."""
        transaction_id = await self._ledger.grant_purchase(
            purchase.customer_id, purchase.purchase_id, purchase.money
        )
        return await self._save(purchase, rules.granted(purchase, transaction_id, self._clock.now()))

    async def _look(self, purchase: Purchase) -> Purchase:
        """Read all that has moved money of the purchase."""
        found = await self._payments.movements(_payment_of(purchase))
        if found.dead_refunds:
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await purchases.end_dead_refunds(connection, purchase.purchase_id, found.dead_refunds)
        return await self._save(purchase, rules.looked(purchase, found, self._clock.now()))

    async def _refund(self, purchase: Purchase, request: RefundRequest) -> RefundRequest:
        """Ask for a refund, with the key while it is good; then only look for it."""
        if request.refund.may_be_repeated(self._clock.now()):
            try:
                made = await self._payments.refund(request.refund, self._clock)
            except Refused as error:
                return _refused(request, error.code or "refused", error.message)
        else:
            found = await self._payments.find_refund(_payment_of(purchase), request.refund_request_id)
            if found is None:
                return _refused(request, "refund_not_made", "the payment processor never made the refund")
            made = found
        return dataclasses.replace(request, state=RefundState.MADE, refund_id=made)

    async def _post(self, purchase: Purchase) -> Purchase:
        """Tell the ledger what it has not heard of, and then ask for refunds that are wanted.

        In this order: the answer to a refund may be a day in coming, since its key may have kept a 500.
        """
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            fees = await purchases.list_unposted_fees(connection, purchase.purchase_id)
            reversals = await purchases.list_unposted_reversals(connection, purchase.purchase_id)
        for fee in fees:
            await self._ledger.record_processor_fee(
                fee.fee_id, fee.money, f"{fee.reason} of {purchase.purchase_id}"
            )
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await purchases.mark_fee_posted(connection, fee.fee_id)
        # Each with its end before the next begins: what came again may go back again.
        for reversal in reversals:
            await self._post_reversal(purchase, reversal)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            wanted = await purchases.list_pending_refunds(connection, purchase.purchase_id)
        for request in wanted:
            ended, now = await self._refund(purchase, request), self._clock.now()
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await purchases.end_refund(connection, ended, now)
        if wanted:
            return await self._read(purchase)
        return await self._save(purchase, rules.told(purchase, self._clock.now()))

    async def _post_reversal(self, purchase: Purchase, reversal: Reversal) -> None:
        currency = purchase.money.currency_code
        if not reversal.posted:
            await self._ledger.reverse_purchase(
                purchase.customer_id,
                purchase.purchase_id,
                reversal.reversal_id,
                Money(currency, reversal.amount_micros),
                is_dispute=reversal.kind is ReversalKind.DISPUTE,
                reason=reversal.reason,
            )
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await purchases.mark_reversal_posted(connection, reversal.reversal_id)
        if reversal.reinstatement_id:
            await self._ledger.reinstate_purchase(
                purchase.customer_id,
                reversal.reversal_id,
                reversal.reinstatement_id,
                Money(currency, reversal.reinstated_micros),
                reason="the dispute was won"
                if reversal.kind is ReversalKind.DISPUTE
                else "the refund failed",
            )
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await purchases.mark_reinstatement_posted(connection, reversal.reversal_id)

    # What a step ends in.

    async def _observe(self, purchase: Purchase, intent: Intent, step: Step) -> Purchase:
        now = self._clock.now()
        change = rules.observed(purchase, intent, step, now)
        return await self._save(purchase, change or rules.told(purchase, now))

    async def _later(self, purchase: Purchase, error: str, hold: Hold | None = None) -> Purchase:
        pause = backoff(purchase.attempt_count) if hold is None else _HELD_PAUSE
        return await self._save(purchase, rules.again_later(purchase, error, self._clock.now() + pause, hold))

    async def _save(self, purchase: Purchase, change: Change) -> Purchase:
        """The purchase with the change; or, if somebody else was first, as it is now."""
        return await self._try_save(purchase, change) or await self._read(purchase)

    async def _try_save(self, purchase: Purchase, change: Change) -> Purchase | None:
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            saved = await purchases.save(connection, purchase, change, now)
            if saved is not None and saved.origin is Origin.AUTO_RECHARGE:
                await auto_recharges.count_again(connection, purchase, saved)
        if saved is not None:
            _tell_operators(purchase, saved)
        return saved

    async def _read(self, purchase: Purchase) -> Purchase:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            found = await purchases.find(connection, purchase.purchase_id)
        if found is None:
            raise LookupError(f"purchase {purchase.purchase_id} is gone")
        return found


def _tell_operators(before: Purchase, after: Purchase) -> None:
    """Log and count what is news."""
    about = {
        "purchase_id": after.purchase_id,
        "customer_id": after.customer_id,
        "amount_micros": after.money.amount_micros,
        "currency_code": after.money.currency_code,
    }
    if after.state is not before.state:
        _log.info(f"purchase.{after.state}", **about, failure_code=after.failure_code)
        if after.state is PurchaseState.SUCCEEDED or after.state in UNPAID:
            _ENDED.labels(after.state, after.origin).inc()
    if after.hold is not None and after.hold is not before.hold:
        _HELD.labels(after.hold).inc()
        say = _log.warning if after.hold is Hold.KEY_REFUSED else _log.error
        say("purchase.held", **about, hold=after.hold, error=after.last_error)
    elif after.attempt_count > before.attempt_count:
        _log.warning("purchase.in_doubt", **about, attempts=after.attempt_count, error=after.last_error)


def _payment_of(purchase: Purchase) -> str:
    if purchase.payment_intent_id is None:
        raise LookupError(f"purchase {purchase.purchase_id} is {purchase.state} without a payment")
    return purchase.payment_intent_id


def _refused(request: RefundRequest, code: str, reason: str) -> RefundRequest:
    return dataclasses.replace(request, state=RefundState.REFUSED, failure_code=code, failure_reason=reason)
