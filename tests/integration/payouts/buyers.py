"""Customers who buy credits, and what must be true of their money after whatever happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox.stripe.calling import call
from services.kit.client import connect
from services.payouts.domain.event import EventState, Handlers, ProcessorEvent, parse_event
from services.payouts.domain.reconciliation import Difference
from services.payouts.processor.api import StripeApi
from services.payouts.processor.balance import Balance
from services.payouts.processor.pace import Pace
from services.payouts.purchaser import Purchaser
from services.payouts.reconciler import Reconciler
from services.payouts.rpc.ledger import Ledger
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, ledger_service_pb2
from tallystick.payouts.v1 import payment_service_pb2 as pb
from tallystick.payouts.v1 import purchase_pb2
from tests.support.payouts_server import Caller, PayoutsServer
from tests.support.waiting import eventually

USD = 1_000_000
# What the fixture has put on the platform's balance at the stand-in, in minor units.
FUNDED = 1_000_000_00
MICROS_PER_CENT = 10_000

PROCESSING = purchase_pb2.PURCHASE_STATE_PROCESSING
REQUIRES_ACTION = purchase_pb2.PURCHASE_STATE_REQUIRES_ACTION
SUCCEEDED = purchase_pb2.PURCHASE_STATE_SUCCEEDED
FAILED = purchase_pb2.PURCHASE_STATE_FAILED
CANCELLED = purchase_pb2.PURCHASE_STATE_CANCELLED


def usd(units: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=units * USD)


class Killed(Exception):
    """The process ends here."""


def kill_at(patch: pytest.MonkeyPatch, step: int, *, after_commit: bool) -> None:
    """Let the process end when a purchase changes for the so-and-so-many-th time: the call to another system
    is made, and its answer is written or not.
    """
    save, left = Purchaser._try_save, step

    async def dying(self: Purchaser, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or (left == 0 and not after_commit):
            raise Killed
        saved = await save(self, *arguments)
        if left == 0:
            raise Killed
        return saved

    patch.setattr(Purchaser, "_try_save", dying)


@dataclass
class Buyers:
    """Payouts, and customers who call it."""

    payouts: PayoutsServer
    keys: dict[str, str] = field(default_factory=dict)

    def reopened(self, payouts: PayoutsServer) -> Buyers:
        """The same customers, at a payouts that was started anew."""
        return Buyers(payouts, self.keys)

    def caller(self, customer_id: str = "cus_ada") -> Caller:
        return self.payouts.caller(self.keys[customer_id])

    async def customer(self, customer_id: str = "cus_ada", card: str = "pm_card_visa") -> str:
        """A customer with a saved card; the card's id, "" without one."""
        ledger = self.payouts.ledger
        await ledger.create_customer(customer_id)
        created = await ledger.create_caller(
            access_pb2.ROLE_CUSTOMER, f"key-{customer_id}", customer_id=customer_id
        )
        self.keys[customer_id] = created.key
        return await self.add_card(card, customer_id) if card else ""

    async def add_card(self, card: str, customer_id: str = "cus_ada", *, make_default: bool = False) -> str:
        added = await self.caller(customer_id).payments.AddPaymentMethod(
            pb.AddPaymentMethodRequest(
                customer_id=customer_id, payment_method_id=card, make_default=make_default
            )
        )
        return added.payment_method.payment_method_id

    async def buy(
        self, units: int = 20, key: str = "first", customer_id: str = "cus_ada", method: str = ""
    ) -> pb.PurchaseCreditsResponse:
        return await self.caller(customer_id).payments.PurchaseCredits(
            pb.PurchaseCreditsRequest(
                customer_id=customer_id, amount=usd(units), payment_method_id=method, idempotency_key=key
            )
        )

    async def get(self, purchase_id: str) -> purchase_pb2.Purchase:
        answer = await self.payouts.operator.payments.GetPurchase(
            pb.GetPurchaseRequest(purchase_id=purchase_id)
        )
        return answer.purchase

    async def until(
        self, purchase_id: str, holds: Callable[[purchase_pb2.Purchase], bool]
    ) -> purchase_pb2.Purchase:
        """Wait until a purchase is as it should be."""

        async def reached() -> bool:
            return holds(await self.get(purchase_id))

        await eventually(reached)
        return await self.get(purchase_id)

    async def refund(self, purchase_id: str, units: int, key: str = "refund") -> pb.RefundPurchaseResponse:
        return await self.payouts.operator.payments.RefundPurchase(
            pb.RefundPurchaseRequest(
                purchase_id=purchase_id, amount=usd(units), reason="asked for", idempotency_key=key
            )
        )

    async def adjust(self, units: int, customer_id: str = "cus_ada") -> None:
        """Give credits, or take them as if they were spent."""

        def posting(
            owner_id: str, kind: account_pb2.AccountKind.ValueType, by: int
        ) -> ledger_service_pb2.Posting:
            account = account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD")
            return ledger_service_pb2.Posting(account=account, amount=usd(by))

        await self.payouts.ledger.operator.ledger.AdjustBalances(
            ledger_service_pb2.AdjustBalancesRequest(
                postings=[
                    posting(customer_id, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, units),
                    posting("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -units),
                ],
                reason="a test wants it so",
                idempotency_key=f"{customer_id} {units}",
            )
        )

    async def balance(self, customer_id: str = "cus_ada") -> account_pb2.CustomerBalance:
        answer = await self.payouts.ledger.operator.ledger.GetCustomerBalance(
            ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id)
        )
        return answer.balance

    async def available(self, customer_id: str = "cus_ada") -> int:
        """Available credits in whole units."""
        return (await self.balance(customer_id)).available.amount_micros // USD

    def stripe(self, method: str, path: str, **params: object) -> dict[str, Any]:
        """One call of Stripe's API, as from the dashboard."""
        stripe = self.payouts.stripe
        pairs = [(name, str(value)) for name, value in params.items()]
        status, answer = call(stripe.url.removeprefix("http://"), method, path, pairs, key=stripe.api_key)
        assert status == 200, answer
        return answer

    def payments(self) -> list[dict[str, Any]]:
        """The payments at Stripe, the newest first."""
        return list(self.stripe("GET", "/v1/payment_intents", limit=100)["data"])

    def charge_of(self, purchase: purchase_pb2.Purchase) -> str:
        return str(self.stripe("GET", f"/v1/payment_intents/{purchase.payment_intent_id}")["latest_charge"])

    def events(self, *types: str) -> list[ProcessorEvent]:
        """What Stripe has told about purchases until now, the oldest first."""
        found = self.stripe("GET", "/v1/events", limit=100)["data"]
        now = datetime.now(UTC)
        told = [parse_event(one, now=now, caught_up=True) for one in reversed(found)]
        handlers = Handlers(self.payouts.app.purchase_events.handlers())
        return [one for one in told if handlers.find(one.type) and (not types or one.type in types)]

    async def hear(self, *events: ProcessorEvent) -> list[EventState]:
        """Handle events in this order; without any, all that Stripe has told. What came of each."""
        handlers = Handlers(self.payouts.app.purchase_events.handlers())
        outcomes = []
        for event in events or self.events():
            handler = handlers.find(event.type)
            assert handler is not None
            outcomes.append((await handler(event)).state)
        return outcomes

    async def check(self) -> None:
        """Every payment became credits once, and the ledger knows what is at Stripe."""

        def granted() -> object:
            # A purchase grants what it says, and nothing else grants.
            return self.payouts.query(
                "SELECT count(*), coalesce(sum(-e.amount), 0) FROM ledger.entry e"
                " JOIN ledger.transaction t USING (transaction_id)"
                " WHERE t.type = 'purchase' AND e.kind = 'stripe_clearing'"
            )

        async def settled() -> bool:
            return (
                not self.payouts.query("SELECT FROM payouts.purchase WHERE state = 'paid'")
                and -await self.clearing() == self.at_stripe() * MICROS_PER_CENT
            )

        try:
            await eventually(settled)
        except TimeoutError:
            raise AssertionError(
                f"the ledger has {-await self.clearing()} micros at Stripe, which has"
                f" {self.at_stripe() * MICROS_PER_CENT}"
            ) from None
        succeeded = self.payouts.query(
            "SELECT count(*), coalesce(sum(amount_micros), 0) FROM payouts.purchase WHERE state = 'succeeded'"
        )
        assert granted() == succeeded
        paid = [one for one in self.payments() if one["status"] == "succeeded"]
        assert succeeded == [(len(paid), sum(one["amount"] for one in paid) * MICROS_PER_CENT)]
        assert await self._differences() == []

    async def _differences(self) -> list[Difference]:
        """Movements about which Stripe and the ledger differ, but for what the fixture has put there."""
        ledger, stripe = self.payouts.ledger, self.payouts.stripe
        api = StripeApi(stripe.api_key, base_url=stripe.url, pace=Pace(1000))
        async with connect(ledger.address, ledger.service.key) as channel:
            reconciler = Reconciler(ledger=Ledger(channel), balance=Balance(api), clock=self.payouts.clock)
            found = await reconciler.compare(None, datetime.now(UTC) + timedelta(days=365))
        await api.close()
        return [one for one in found.differences if one.processor is None or one.processor.type != "topup"]

    def at_stripe(self) -> int:
        """What the platform has at Stripe beside what the fixture put there, in minor units."""
        balance = self.payouts.stripe.control.state()["balances"]["acct_platform"]
        funds = [*balance["available"], *balance["pending"]]
        return sum(int(one["amount"]) for one in funds if one["currency"] == "usd") - FUNDED

    async def clearing(self) -> int:
        """The ledger's account of the same, in micros: negative, since what is there is owed to others."""
        answer = await self.payouts.ledger.operator.ledger.ListAccounts(
            ledger_service_pb2.ListAccountsRequest(owner_id="platform")
        )
        return sum(
            one.balance.amount_micros
            for one in answer.accounts
            if one.account.kind == account_pb2.ACCOUNT_KIND_STRIPE_CLEARING
        )
