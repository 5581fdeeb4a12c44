"""An organization with earnings and an account that can be paid."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, ledger_service_pb2
from tallystick.payouts.v1 import (
    connect_service_pb2,
    connected_account_pb2,
    payout_pb2,
    payout_service_pb2,
)
from tests.support.payouts_server import Caller, PayoutsServer
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

USD = 1_000_000


@dataclass
class World:
    """Payouts, and people who call it."""

    payouts: PayoutsServer
    owners: dict[str, Caller] = field(default_factory=dict)
    _keys: dict[str, str] = field(default_factory=dict)

    def reopened(self, payouts: PayoutsServer) -> World:
        """The same people, at a payouts that was started anew."""
        owners = {organization_id: payouts.caller(key) for organization_id, key in self._keys.items()}
        return World(payouts, owners, self._keys)

    async def organization(self, organization_id: str, earned: int = 0, *, connected: bool = True) -> Caller:
        """An organization that earned so many units; its owner."""
        ledger = self.payouts.ledger
        await ledger.create_organization(organization_id)
        created = await ledger.create_caller(
            access_pb2.ROLE_OWNER, f"owner-{organization_id}", organization_id=organization_id
        )
        if earned:
            await self.earn(organization_id, earned)
        self._keys[organization_id] = created.key
        owner = self.owners[organization_id] = self.payouts.caller(created.key)
        if connected:
            await self.connect(organization_id)
        return owner

    async def earn(self, organization_id: str, units: int) -> None:
        """Dollars that the organization may be paid."""
        await self.earn_micros(organization_id, units * USD)

    async def earn_micros(self, organization_id: str, micros: int, currency: str = "USD") -> None:
        """Money that the organization may be paid."""
        before = await self.available(organization_id, currency)
        ledger = self.payouts.ledger.operator.ledger
        posting = ledger_service_pb2.Posting
        await ledger.AdjustBalances(
            ledger_service_pb2.AdjustBalancesRequest(
                postings=[
                    posting(
                        account=account_pb2.AccountRef(
                            owner_id=organization_id,
                            kind=account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE,
                            currency_code=currency,
                        ),
                        amount=money_pb2.Money(currency_code=currency, amount_micros=micros),
                    ),
                    posting(
                        account=account_pb2.AccountRef(
                            owner_id="platform",
                            kind=account_pb2.ACCOUNT_KIND_ADJUSTMENTS,
                            currency_code=currency,
                        ),
                        amount=money_pb2.Money(currency_code=currency, amount_micros=-micros),
                    ),
                ],
                reason="earnings of a test",
                idempotency_key=f"earn-{organization_id}-{datetime.now(UTC).isoformat()}",
            )
        )

        await self.until_available(organization_id, before + micros, currency)

    async def connect(self, organization_id: str) -> str:
        """Go through onboarding, as its owner and Stripe do; the account's id there."""
        connect = self.owners[organization_id].connect
        link = await connect.CreateOnboardingLink(
            connect_service_pb2.CreateOnboardingLinkRequest(organization_id=organization_id)
        )
        self.payouts.stripe.control.onboard(link.account.stripe_account_id)
        await self.refresh(organization_id)
        return link.account.stripe_account_id

    async def refresh(self, organization_id: str) -> connected_account_pb2.ConnectedAccount:
        """An organization's account, read at Stripe."""
        refreshed = await self.owners[organization_id].connect.RefreshConnectedAccount(
            connect_service_pb2.RefreshConnectedAccountRequest(organization_id=organization_id)
        )
        return refreshed.account

    async def request(
        self, organization_id: str, units: int, key: str = "first"
    ) -> payout_service_pb2.RequestPayoutResponse:
        return await self.request_micros(organization_id, units * USD, key=key)

    async def request_micros(
        self, organization_id: str, micros: int, currency: str = "USD", *, key: str = "first"
    ) -> payout_service_pb2.RequestPayoutResponse:
        return await self.owners[organization_id].payouts.RequestPayout(
            payout_service_pb2.RequestPayoutRequest(
                organization_id=organization_id,
                amount=money_pb2.Money(currency_code=currency, amount_micros=micros),
                idempotency_key=key,
            )
        )

    async def get(self, payout_id: str) -> payout_service_pb2.GetPayoutResponse:
        return await self.payouts.operator.payouts.GetPayout(
            payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
        )

    async def until(
        self, payout_id: str, holds: Callable[[payout_pb2.Payout], bool]
    ) -> payout_service_pb2.GetPayoutResponse:
        """Wait until a payout is as it should be; its whole history then."""

        async def reached() -> bool:
            return holds((await self.get(payout_id)).payout)

        await eventually(reached)
        return await self.get(payout_id)

    async def until_state(
        self, payout_id: str, *states: payout_pb2.PayoutState.ValueType
    ) -> payout_service_pb2.GetPayoutResponse:
        """Wait until a payout is in one of these states; its whole history then."""
        return await self.until(payout_id, lambda payout: payout.state in states)

    async def available(self, organization_id: str, currency: str = "USD") -> int:
        """Available earnings, in micros."""
        response = await self.payouts.ledger.operator.ledger.GetEarningsBalance(
            ledger_service_pb2.GetEarningsBalanceRequest(
                organization_id=organization_id, currency_code=currency
            )
        )
        return response.balance.available.amount_micros

    async def until_available(self, organization_id: str, micros: int, currency: str = "USD") -> None:
        """Wait until so much is available: what was posted an instant ago is not yet."""

        async def there() -> bool:
            return await self.available(organization_id, currency) == micros

        await eventually(there)
