"""Balances per account and currency, kept by balance transactions. Amounts are in minor units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from sandbox.stripe import templates
from sandbox.stripe.clock import Clock
from sandbox.stripe.ids import Ids
from sandbox.stripe.store import PLATFORM, Store
from sandbox.stripe.values import Json

# How a type of transaction is grouped in Stripe's reports, where that is not its own name.
_REPORTED_AS = {
    "adjustment": "other_adjustment",
    "payment": "charge",
    "payment_refund": "refund",
    "payout_cancel": "payout_reversal",
    "payout_failure": "payout_reversal",
    "transfer_refund": "transfer_reversal",
}


class Balances:
    """What every account has. A negative connected balance reserves as much of the platform's."""

    def __init__(self, clock: Clock, ids: Ids, store: Store) -> None:
        self._clock, self._ids, self._store = clock, ids, store
        # By account and currency: what a call asks of one account must not depend on how many there are.
        self._available: defaultdict[str, defaultdict[str, int]] = defaultdict(_nothing)
        self._pending: defaultdict[str, defaultdict[str, int]] = defaultdict(_nothing)
        # What connected accounts owe per currency, kept rather than summed: every transfer asks.
        self._owed: defaultdict[str, int] = defaultdict(int)
        # Told the account whenever some of its money has become available.
        self.settled: list[Callable[[str], object]] = []

    def book(
        self,
        account: str,
        kind: str,
        amount: int,
        currency: str,
        source: str | None,
        *,
        fee: int = 0,
        available_on: int | None = None,
        description: str | None = None,
        reported_as: str | None = None,
    ) -> Json:
        """Post `amount` less `fee`; it is pending until `available_on`, at once available without."""
        now = self._clock.now()
        pending = available_on is not None and available_on > now
        details = {
            "amount": fee,
            "application": None,
            "currency": currency,
            "description": "Stripe processing fees",
            "type": "stripe_fee",
        }
        transaction = templates.new(
            "balance_transaction",
            id=self._ids.next("txn"),
            amount=amount,
            available_on=available_on if available_on is not None and pending else now,
            created=now,
            currency=currency,
            description=description,
            fee=fee,
            fee_details=[details] if fee else [],
            net=amount - fee,
            reporting_category=reported_as or _REPORTED_AS.get(kind, kind),
            source=source,
            status="pending" if pending else "available",
            type=kind,
        )
        self._store.add(account, transaction)
        if available_on is not None and pending:
            self._pending[account][currency] += amount - fee
            self._clock.at(available_on, lambda: self._settle(account, transaction))
        else:
            self._move(account, currency, amount - fee)
        return transaction

    def settle(self, account: str) -> int:
        """Make all that is pending available now; how many transactions that were."""
        waiting = [
            item for item in self._store.all("balance_transaction", account) if item["status"] == "pending"
        ]
        for transaction in reversed(waiting):
            transaction["available_on"] = self._clock.now()
            self._settle(account, transaction)
        return len(waiting)

    def available(self, account: str, currency: str) -> int:
        """What the account may spend: of the platform's, what connected accounts owe is reserved."""
        own = self._available[account].get(currency, 0)
        return own - self.reserved(currency) if account == PLATFORM else own

    def pending(self, account: str, currency: str) -> int:
        return self._pending[account].get(currency, 0)

    def reserved(self, currency: str) -> int:
        """What connected accounts are below zero together. Pending money of theirs does not help."""
        return self._owed[currency]

    def currencies(self, account: str) -> list[str]:
        """Those in which the account ever had money; US dollars for one that had none."""
        return sorted(self._available[account].keys() | self._pending[account].keys()) or ["usd"]

    def view(self, account: str) -> Json:
        """The `balance` object."""
        currencies = self.currencies(account)
        balance: Json = {
            "object": "balance",
            "livemode": False,
            "available": [_funds(self.available(account, name), name) for name in currencies],
            "pending": [_funds(self.pending(account, name), name) for name in currencies],
        }
        if account == PLATFORM:
            balance["connect_reserved"] = [
                {"amount": self.reserved(name), "currency": name} for name in currencies
            ]
        return balance

    def _settle(self, account: str, transaction: Json) -> None:
        if transaction["status"] != "pending":
            return
        transaction["status"] = "available"
        self._pending[account][transaction["currency"]] -= transaction["net"]
        self._move(account, transaction["currency"], transaction["net"])
        for hear in self.settled:
            hear(account)

    def _move(self, account: str, currency: str, amount: int) -> None:
        before = self._available[account][currency]
        self._available[account][currency] = before + amount
        if account != PLATFORM:
            self._owed[currency] += max(0, -(before + amount)) - max(0, -before)


def _nothing() -> defaultdict[str, int]:
    return defaultdict(int)


def _funds(amount: int, currency: str) -> Json:
    return {"amount": amount, "currency": currency, "source_types": {"card": amount}}
