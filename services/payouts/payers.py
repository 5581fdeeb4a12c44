"""Customers at the payment processor: made once each, whatever is interrupted."""

from http import HTTPStatus
from typing import Final

from services.kit import ids
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.payouts.domain.payer import MAX_METHODS, PaymentMethod, too_many_methods
from services.payouts.processor.customers import Customers
from services.payouts.processor.errors import InDoubt, Refused
from services.payouts.store import payers

_ROUNDS: Final = 2


class Payers:
    """Makes customers, saves and removes their payment methods. Every method may raise ProcessorError."""

    def __init__(self, *, writer: Database, customers: Customers, clock: Clock) -> None:
        self._writer = writer
        self._customers = customers
        self._clock = clock

    async def ensure(self, customer_id: str) -> str:
        """The processor's id of a customer, who is made there if need be."""
        for _ in range(_ROUNDS):
            now = self._clock.now()
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                payer = await payers.begin(connection, customer_id, now)
            if payer.stripe_customer_id is not None:
                return payer.stripe_customer_id
            found: str | None
            if payer.may_repeat_call(now):
                try:
                    found = await self._customers.create(customer_id, payer.key)
                except InDoubt as error:
                    if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                        raise
                    # Made or not, the key may answer so for a day: what was made is adopted, or else the next
                    # call has another key.
                    found = await self._customers.find(customer_id, payer.create_time)
                    if found is None:
                        async with self._writer.begin() as connection:
                            await scope(connection, PLATFORM)
                            await payers.begin_again(connection, payer, now)
                        raise
            else:
                # The key may be forgotten: what was made is adopted; only if nothing was, it is made anew.
                found = await self._customers.find(customer_id, payer.create_time)
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                if found is not None:
                    return await payers.made(connection, customer_id, found)
                await payers.begin_again(connection, payer, now)
        raise LookupError(f"customer {customer_id} is neither found nor made")

    async def add(self, customer_id: str, payment_method_id: str, *, make_default: bool) -> PaymentMethod:
        """Save a payment method. Raises FailedPrecondition if there are too many."""
        stripe_customer_id = await self.ensure(customer_id)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            known = await payers.list_methods(connection, customer_id)
        if len(known) >= MAX_METHODS and payment_method_id not in {one.payment_method_id for one in known}:
            raise too_many_methods(customer_id)
        # Attaching twice is as good as once, so a new key each time will do: it asks a bank that has declined
        # once more.
        attached = await self._customers.attach(stripe_customer_id, payment_method_id, ids.new_id("attach"))
        new = PaymentMethod(
            payment_method_id=attached.payment_method_id,
            customer_id=customer_id,
            type=attached.type,
            brand=attached.brand,
            last4=attached.last4,
            expire_month=attached.expire_month,
            is_default=make_default,
            create_time=self._clock.now(),
        )
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            saved = await payers.add_method(connection, new)
        if saved is None:
            # Another call was faster. What nobody can see or remove must not stay there.
            await self._detach(attached.payment_method_id)
            raise too_many_methods(customer_id)
        return saved

    async def remove(self, customer_id: str, payment_method_id: str) -> None:
        """Remove a saved payment method: there first, so that what nobody sees here cannot be charged."""
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            known = await payers.find_method(connection, customer_id, payment_method_id)
        if known is None:
            return
        await self._detach(payment_method_id)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await payers.remove_method(connection, customer_id, payment_method_id)

    async def _detach(self, payment_method_id: str) -> None:
        try:
            await self._customers.detach(payment_method_id, f"tallystick-detach-{payment_method_id}")
        except Refused:
            # It is detached, or gone: an earlier call of ours, or somebody at the processor.
            return
