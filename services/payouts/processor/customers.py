"""Customers at the payment processor, and what they pay with."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import stripe

from services.payouts.processor.api import StripeApi, metadata_of

# Clocks differ.
_SKEW_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class SavedMethod:
    """A payment method as it was read."""

    payment_method_id: str
    type: str
    brand: str
    last4: str
    # YYYY-MM of a card, "" otherwise.
    expire_month: str


class Customers:
    """What payouts does with customers. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._customers = api.client.v1.customers
        self._methods = api.client.v1.payment_methods

    async def create(self, customer_id: str, key: str) -> str:
        """Make a customer, of whom nothing is told but our own id; the processor's id."""
        created = await self._api.call(
            "customers.create",
            self._customers.create_async,
            params={"metadata": {"customer_id": customer_id}},
            key=key,
        )
        return created.id

    async def find(self, customer_id: str, since: datetime) -> str | None:
        """The customer with our id that was made since then; None if there is none."""
        params = {"created": {"gte": int(since.timestamp()) - _SKEW_SECONDS}}
        async for found in self._api.pages("customers.list", self._customers.list_async, params=params):
            if metadata_of(found).get("customer_id") == customer_id:
                return str(found.id)
        return None

    async def attach(self, stripe_customer_id: str, payment_method_id: str, key: str) -> SavedMethod:
        """Save a payment method for a customer. Refused if it is another's, or if its bank declines it."""
        attached = await self._api.call(
            "payment_methods.attach",
            self._methods.attach_async,
            payment_method_id,
            params={"customer": stripe_customer_id},
            key=key,
        )
        return _saved(attached)

    async def detach(self, payment_method_id: str, key: str) -> None:
        """Let a payment method never be used again. Refused if it is not saved any more."""
        await self._api.call("payment_methods.detach", self._methods.detach_async, payment_method_id, key=key)


def _saved(found: stripe.PaymentMethod) -> SavedMethod:
    card = found.card if found.type == "card" else None
    details = getattr(found, found.type, None)
    return SavedMethod(
        payment_method_id=found.id,
        type=found.type,
        brand="" if card is None else card.brand,
        last4=getattr(details, "last4", None) or "",
        expire_month="" if card is None else f"{card.exp_year:04d}-{card.exp_month:02d}",
    )
