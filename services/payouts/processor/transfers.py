"""Transfers from the platform to connected accounts, and what comes back of them."""

from dataclasses import dataclass
from datetime import UTC, datetime

import stripe

from services.kit.clock import Clock
from services.kit.money import Money
from services.payouts.domain.payout import Call
from services.payouts.domain.units import from_minor
from services.payouts.processor.api import StripeApi, metadata_of


@dataclass(frozen=True, slots=True)
class TransferReversal:
    """A part of a transfer that came back."""

    reversal_id: str
    amount: Money
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer as it was read. `payout_id` is "" if it is not of ours."""

    transfer_id: str
    payout_id: str
    stripe_account_id: str
    amount: Money
    reversed: Money


class Transfers:
    """What payouts does with transfers. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._service = api.client.v1.transfers

    async def create(self, call: Call, clock: Clock) -> Transfer:
        """Make a transfer: synchronous, there is no state in between. Not begun once the key is too old."""
        created = await self._api.call(
            "transfers.create",
            self._service.create_async,
            params=call.body,
            key=call.key,
            may_begin=lambda: call.may_be_repeated(clock.now()),
        )
        return _transfer(created)

    async def get(self, transfer_id: str) -> Transfer:
        """A transfer as it is now."""
        found = await self._api.call("transfers.retrieve", self._service.retrieve_async, transfer_id)
        return _transfer(found)

    async def find(self, payout_id: str) -> Transfer | None:
        """The transfer of a payout, found by the names that its body gave it; None if there is none."""
        pages = self._api.pages(
            "transfers.list", self._service.list_async, params={"transfer_group": payout_id}
        )
        async for found in pages:
            transfer = _transfer(found)
            # The group is only a label, which anybody may have used.
            if transfer.payout_id == payout_id:
                return transfer
        return None

    async def reversals(self, transfer_id: str) -> list[TransferReversal]:
        """All that came back of a transfer, the oldest first."""
        pages = self._api.pages("transfers.reversals.list", self._service.reversals.list_async, transfer_id)
        reversals = [
            TransferReversal(
                found.id,
                from_minor(found.amount, found.currency),
                datetime.fromtimestamp(found.created, UTC),
            )
            async for found in pages
        ]
        return sorted(reversals, key=lambda one: (one.create_time, one.reversal_id))


def _transfer(found: stripe.Transfer) -> Transfer:
    destination = found.destination
    return Transfer(
        transfer_id=found.id,
        payout_id=metadata_of(found).get("payout_id", ""),
        stripe_account_id=destination if isinstance(destination, str) else getattr(destination, "id", ""),
        amount=from_minor(found.amount, found.currency),
        reversed=from_minor(found.amount_reversed, found.currency),
    )
