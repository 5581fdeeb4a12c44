"""Buys credits by itself for customers whose credits run low."""

from typing import NamedTuple

from services.kit import ids
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.money import Money
from services.kit.tenancy import PLATFORM, scope
from services.payouts.domain import purchase as rules
from services.payouts.domain.auto_recharge import AutoRecharge
from services.payouts.domain.payout import Step
from services.payouts.domain.purchase import OPEN, Origin, Purchase, PurchaseState
from services.payouts.purchaser import LEASE, Purchaser
from services.payouts.rpc.ledger import Ledger
from services.payouts.store import auto_recharges, payers, purchases

_REQUESTER = "auto-recharge"


class Recharged(NamedTuple):
    """What is set for the customer, None if nothing is, and the purchase that was begun or is under way."""

    setting: AutoRecharge | None
    purchase: Purchase | None


class Recharger:
    """Decides whether to buy, and begins it."""

    def __init__(
        self, *, writer: Database, ledger: Ledger, purchaser: Purchaser, clock: Clock, return_url: str
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._purchaser = purchaser
        self._clock = clock
        self._return_url = return_url

    async def recharge(self, customer_id: str, currency_code: str, lease_free_micros: int) -> Recharged:
        """Buy if the customer's credits are low, and nothing forbids it.

        Raises TallystickError if the ledger does not say what the customer has.
        """
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            # Before the balance is read: who buys meanwhile makes both void, see auto_recharges.take.
            seen = await auto_recharges.find(connection, customer_id, currency_code)
            last = None
            if seen is not None and seen.last_purchase_id is not None:
                last = await purchases.find(connection, seen.last_purchase_id)
        if last is not None and (last.state in OPEN or last.state is PurchaseState.PAID):
            return Recharged(seen, last)
        if seen is None or not seen.may_buy(self._clock.now()):
            return Recharged(seen, None)
        if not await self._is_low(seen, lease_free_micros):
            return Recharged(seen, None)
        begun = await self._begin(seen)
        return Recharged(seen, None if begun is None else await self._purchaser.begin(begun))

    async def _is_low(self, seen: AutoRecharge, lease_free_micros: int) -> bool:
        balance = await self._ledger.get_customer_balance(seen.customer_id, seen.currency_code)
        if balance.frozen:
            # Who disputes a payment does not want to be charged once more.
            return False
        leased = balance.held_credits.leased.amount_micros
        available = balance.available.amount_micros + min(max(lease_free_micros, 0), leased)
        return available < seen.threshold_micros

    async def _begin(self, seen: AutoRecharge) -> Purchase | None:
        """Write down a purchase and the right to it, in one transaction; None if it may not be made."""
        now = self._clock.now()
        number = seen.recharge_number + 1
        purchase_id = ids.derive_id(ids.PURCHASE, seen.customer_id, _REQUESTER, seen.currency_code, number)
        money = Money(seen.currency_code, seen.amount_micros)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            method = await payers.find_method(connection, seen.customer_id, seen.payment_method_id)
            stripe_customer_id = await payers.stripe_id(connection, seen.customer_id)
            if method is None or stripe_customer_id is None:
                await auto_recharges.stop(connection, seen, "there is no payment method")
                return None
            if await auto_recharges.take(connection, seen, purchase_id, now) is None:
                return None
            new = Purchase(
                purchase_id=purchase_id,
                customer_id=seen.customer_id,
                money=money,
                origin=Origin.AUTO_RECHARGE,
                request_hash=b"",
                requester=_REQUESTER,
                payment_method_id=method.payment_method_id,
                intent=rules.payment_call(
                    purchase_id,
                    seen.customer_id,
                    money,
                    stripe_customer_id=stripe_customer_id,
                    payment_method_id=method.payment_method_id,
                    off_session=True,
                    return_url=self._return_url,
                    now=now,
                ),
                next_attempt_time=now + LEASE,
                create_time=now,
                update_time=now,
            )
            await purchases.create(connection, new, Step(_REQUESTER, "RechargeCredits"))
        return new
