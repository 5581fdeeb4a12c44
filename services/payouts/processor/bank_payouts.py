"""Payouts from connected accounts to their banks: theirs, not the platform's."""

from datetime import UTC, datetime

import stripe

from services.kit.clock import Clock
from services.payouts.domain.payout import BankPayout, BankStatus, Call
from services.payouts.processor.api import StripeApi, metadata_of


class BankPayouts:
    """What payouts does with bank payouts. Every method may raise ProcessorError."""

    def __init__(self, api: StripeApi) -> None:
        self._api = api
        self._service = api.client.v1.payouts

    async def create(self, stripe_account_id: str, call: Call, clock: Clock) -> BankPayout:
        """Send money of a connected account to its bank. Not begun once the key is too old."""
        created = await self._api.call(
            "payouts.create",
            self._service.create_async,
            params=call.body,
            key=call.key,
            account=stripe_account_id,
            may_begin=lambda: call.may_be_repeated(clock.now()),
        )
        return _bank_payout(created)

    async def get(self, stripe_account_id: str, bank_payout_id: str) -> BankPayout:
        """A bank payout as it is now."""
        found = await self._api.call(
            "payouts.retrieve", self._service.retrieve_async, bank_payout_id, account=stripe_account_id
        )
        return _bank_payout(found)

    async def find(
        self, stripe_account_id: str, payout_id: str, attempt: int, since: datetime
    ) -> BankPayout | None:
        """The bank payout that an attempt made, by the names that its body gave it; None if there is none."""
        pages = self._api.pages(
            "payouts.list",
            self._service.list_async,
            # Clocks differ.
            params={"created": {"gte": int(since.timestamp()) - 300}},
            account=stripe_account_id,
        )
        async for found in pages:
            bank = _bank_payout(found)
            if (bank.payout_id, bank.attempt) == (payout_id, attempt):
                return bank
        return None


def _bank_payout(found: stripe.Payout) -> BankPayout:
    metadata = metadata_of(found)
    attempt = metadata.get("attempt", "")
    return BankPayout(
        bank_payout_id=found.id,
        payout_id=metadata.get("payout_id", ""),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        status=BankStatus(found.status),
        failure_code=found.failure_code or "",
        failure_reason=found.failure_message or "",
        arrival_time=datetime.fromtimestamp(found.arrival_date, UTC),
    )
