"""Purchases in weather: whatever fails, and in whatever order, the books agree in the end."""

from __future__ import annotations

import random
from collections.abc import Awaitable
from datetime import timedelta

import grpc
import pytest

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from services.payouts.processor.errors import ProcessorError
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import purchase_pb2
from tests.integration.payouts.buyers import SUCCEEDED, Buyers
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, running_payouts
from tests.support.waiting import eventually

CARDS = (
    "pm_card_visa",
    "pm_card_chargeCustomerFail",
    "pm_card_authenticationRequired",
    "pm_card_createDispute",
    "pm_card_refundFail",
)
OPERATIONS = (
    "payment_intents.create",
    "payment_intents.create",
    "payment_intents.retrieve",
    "payment_intents.cancel",
    "refunds.create",
    "refunds.list",
)
KINDS = ("lost_answer", "cut", "server_error", "lock_timeout", "key_in_use")
# What a caller may be told; anything else is a defect.
EXPECTED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
ROUNDS = 25


class Storm:
    """Customers and operators who do this and that, at a Stripe that fails now and then."""

    def __init__(self, buyers: Buyers, seed: int) -> None:
        self.buyers = buyers
        self._random = random.Random(seed)
        self._cards: list[str] = []
        self._count = 0

    async def begin(self) -> None:
        await self.buyers.customer("cus_ada", card="")
        self._cards = [await self.buyers.add_card(card) for card in CARDS]

    async def blow(self) -> None:
        """One thing happens, or fails."""
        self._count += 1
        stripe, chance = self.buyers.payouts.stripe, self._random
        if chance.random() < 0.5:
            kind = chance.choice(KINDS)
            effect = {"effect": True} if kind == "server_error" and chance.random() < 0.5 else {}
            stripe.control.fault(kind, chance.choice(OPERATIONS), **effect)
        happen = chance.choice(
            (self._buy, self._buy, self._cancel, self._refund, self._at_stripe, self._hear)
        )
        await happen()
        await self.buyers.payouts.advance(timedelta(seconds=chance.choice((0, 1, 30, 1200))))

    async def _buy(self) -> None:
        units, card = self._random.randint(1, 30), self._random.choice(self._cards)
        await _attempt(self.buyers.buy(units, f"purchase-{self._count}", method=card))

    async def _cancel(self) -> None:
        if (purchase := await self._any()) is not None:
            request = pb.CancelPurchaseRequest(purchase_id=purchase.purchase_id)
            await _attempt(self.buyers.caller().payments.CancelPurchase(request))

    async def _refund(self) -> None:
        if (purchase := await self._any()) is not None:
            units = self._random.randint(1, 15)
            await _attempt(self.buyers.refund(purchase.purchase_id, units, f"refund-{self._count}"))

    async def _at_stripe(self) -> None:
        """Somebody at the dashboard, at a bank, or at a page does something, or cannot."""
        purchase = await self._any()
        if purchase is None or not purchase.payment_intent_id:
            return
        run = self.buyers.payouts.stripe.control.run
        try:
            charge = self.buyers.charge_of(purchase)
            match self._random.randrange(4):
                case 0:
                    run("payment authenticate", intent=purchase.payment_intent_id)
                case 1:
                    run("charge refund", charge=charge, amount=100)
                case 2:
                    run("charge dispute", charge=charge)
                case 3:
                    (dispute,) = self.buyers.stripe("GET", "/v1/disputes", charge=charge)["data"]
                    run("dispute decide", dispute=dispute["id"], won=self._random.random() < 0.5)
        except (SandboxError, ValueError, AssertionError):
            pass  # not in this state, or the failure that was meant for us

    async def _hear(self) -> None:
        """Some events are handled, in no order; some of them fail."""
        events = self.buyers.events()
        for event in self._random.sample(events, min(len(events), 5)):
            await _attempt(self.buyers.hear(event))

    async def _any(self) -> purchase_pb2.Purchase | None:
        listed = await self.buyers.payouts.operator.payments.ListPurchases(pb.ListPurchasesRequest())
        return self._random.choice(listed.purchases) if listed.purchases else None

    async def calm(self) -> None:
        """Nothing fails any more, every event is heard at last, and a day goes by."""
        self.buyers.payouts.stripe.control.run("faults clear")
        await self.buyers.payouts.advance(timedelta(hours=25))
        await self._rest()
        events = self.buyers.events()
        self._random.shuffle(events)
        await self.buyers.hear(*events)
        await self._rest()

    async def _rest(self) -> None:
        async def nothing_is_due() -> bool:
            self.buyers.payouts.clock.advance(timedelta(minutes=1))
            return not self.buyers.payouts.query(
                "SELECT FROM payouts.purchase WHERE next_attempt_time IS NOT NULL"
            )

        await eventually(nothing_is_due)


async def _attempt(call: Awaitable[object]) -> None:
    try:
        await call
    except ProcessorError:
        pass  # of an event: the inbox would hand it out again
    except grpc.aio.AioRpcError as error:
        if error.code() not in EXPECTED:
            raise


@pytest.mark.parametrize("seed", range(4))
async def test_the_books_agree_after_the_storm(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn, seed: int
) -> None:
    clock = MovedClock()
    async with running_payouts(database_url, ledger, stripe, webhooks=False, clock=clock) as running:
        storm = Storm(Buyers(running), seed)
        await storm.begin()
        for _ in range(ROUNDS):
            await storm.blow()
    # A process that is started anew goes on where the other one ended.
    async with running_payouts(database_url, ledger, stripe, webhooks=False, clock=clock) as running:
        storm.buyers = storm.buyers.reopened(running)
        for _ in range(ROUNDS):
            await storm.blow()
        await storm.calm()
        await storm.buyers.check()
        held = running.query("SELECT purchase_id, last_error FROM payouts.purchase WHERE hold <> ''")
        assert held == []
        listed = await running.operator.payments.ListPurchases(pb.ListPurchasesRequest(state=SUCCEEDED))
        assert len(listed.purchases) > 3
