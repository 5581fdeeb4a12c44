"""The ledger, as metering uses it."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import grpc

from services.kit.errors import Code, TallystickError, Unavailable
from services.kit.status import from_item_error, from_rpc_error
from services.metering.domain.usage_record import ChargeKey, IntendedCharge
from services.metering.rpc.convert import fill_intent, release_to_proto
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    credit_pb2,
    credit_service_pb2,
    credit_service_pb2_grpc,
    directory_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
)

# Calls of the hot path, where a batch of callers waits for one answer.
_TIMEOUT_SECONDS: Final = 10.0

_PASSING: Final = frozenset(
    {
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
    }
)

PostVerdict = ledger_service_pb2.PostedCharge | TallystickError
LeaseVerdict = credit_service_pb2.GrantedLease | TallystickError
HoldVerdict = credit_service_pb2.PlacedHold | TallystickError
ReleaseVerdict = credit_service_pb2.ReleasedReservation | TallystickError
SettleVerdict = PostVerdict | ReleaseVerdict


def is_passing(error: TallystickError) -> bool:
    """Whether the same charge may be posted later: the ledger did not judge it, or failed at it."""
    return error.code in _PASSING


def charge_pending(key: ChargeKey) -> Unavailable:
    """What a caller is told whose charge is recorded, but not posted."""
    return Unavailable(
        "the usage is recorded and will be charged; the ledger did not answer in time",
        reason="CHARGE_PENDING",
        metadata={"charge_id": key.charge_id},
    )


class Ledger:
    """Calls of the ledger's services. A call that fails raises grpc.aio.AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        self._credit = credit_service_pb2_grpc.CreditServiceStub(channel)
        self._directory = directory_service_pb2_grpc.DirectoryServiceStub(channel)

    async def post_charges(self, charges: Sequence[IntendedCharge]) -> list[PostVerdict]:
        """Post up to 1,000 charges; a verdict for each, in their order."""
        request = ledger_service_pb2.PostChargesRequest()
        for charge in charges:
            fill_intent(request.intents.add(), charge)
        response = await self._ledger.PostCharges(request, timeout=_TIMEOUT_SECONDS)
        return [
            verdict.posted if verdict.HasField("posted") else from_item_error(verdict.error)
            for verdict in response.verdicts
        ]

    async def settle_charges(self, charges: Sequence[IntendedCharge]) -> list[SettleVerdict]:
        """Post up to 1,000 charges, and release what is held for outcomes among them that add nothing.

        A verdict for each, in their order.
        """
        due = [charge for charge in charges if not charge.is_release]
        posted = iter(await self.post_charges(due) if due else [])
        releases = [release_to_proto(charge) for charge in charges if charge.is_release]
        released = iter(await self.release_reservations(releases) if releases else [])
        return [next(released) if charge.is_release else next(posted) for charge in charges]

    async def get_charge(self, charge_id: str) -> charge_pb2.Charge:
        """A posted charge."""
        response = await self._ledger.GetCharge(ledger_service_pb2.GetChargeRequest(charge_id=charge_id))
        return response.charge

    async def get_balance(self, customer_id: str, currency_code: str) -> account_pb2.CustomerBalance:
        """What a customer has and owes."""
        response = await self._ledger.GetCustomerBalance(
            ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id, currency_code=currency_code)
        )
        return response.balance

    async def open_lease(
        self, customer_id: str, currency_code: str, *, seen_epoch: int, wanted_micros: int
    ) -> credit_service_pb2.OpenLeaseResponse:
        """Open the lease after `seen_epoch` (0 for none), unless somebody did before."""
        return await self._credit.OpenLease(
            credit_service_pb2.OpenLeaseRequest(
                customer_id=customer_id,
                currency_code=currency_code,
                seen_epoch=seen_epoch,
                wanted_micros=wanted_micros,
            ),
            timeout=_TIMEOUT_SECONDS,
        )

    async def renew_leases(
        self, renewals: Sequence[credit_service_pb2.LeaseRenewal]
    ) -> list[LeaseVerdict | None]:
        """Prolong up to 1,000 current leases, and add to those that want more; a verdict for each, or None if
        there is no news of the known version.
        """
        response = await self._credit.RenewLeases(
            credit_service_pb2.RenewLeasesRequest(renewals=renewals), timeout=_TIMEOUT_SECONDS
        )
        return [_lease_verdict(verdict) for verdict in response.verdicts]

    async def return_lease(
        self, customer_id: str, currency_code: str, *, epoch: int, return_number: int, amount_micros: int
    ) -> credit_service_pb2.GrantedLease:
        """Give back a part of a lease that nobody allocates any more, once per return number.

        Raises TallystickError, as renewals do: FailedPrecondition LEASE_SUPERSEDED if the lease is over.
        """
        try:
            response = await self._credit.ReturnLease(
                credit_service_pb2.ReturnLeaseRequest(
                    customer_id=customer_id,
                    currency_code=currency_code,
                    epoch=epoch,
                    return_number=return_number,
                    amount_micros=amount_micros,
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return response.granted

    async def place_holds(self, holds: Sequence[credit_service_pb2.HoldRequest]) -> list[HoldVerdict]:
        """Place, raise or prolong up to 1,000 holds; a verdict for each, in order."""
        response = await self._credit.PlaceHolds(
            credit_service_pb2.PlaceHoldsRequest(holds=holds), timeout=_TIMEOUT_SECONDS
        )
        return [
            verdict.placed if verdict.HasField("placed") else from_item_error(verdict.error)
            for verdict in response.verdicts
        ]

    async def release_reservations(
        self, releases: Sequence[credit_service_pb2.ReservationRelease]
    ) -> list[ReleaseVerdict]:
        """End up to 1,000 reservations or holds for which no charge comes; a verdict for each, in order."""
        response = await self._credit.ReleaseReservations(
            credit_service_pb2.ReleaseReservationsRequest(releases=releases), timeout=_TIMEOUT_SECONDS
        )
        return [
            verdict.released if verdict.HasField("released") else from_item_error(verdict.error)
            for verdict in response.verdicts
        ]

    async def lease_pages(
        self, customer_id: str, page_size: int
    ) -> AsyncIterator[Sequence[credit_pb2.CreditLease]]:
        """The leases that hold money, of one customer or of all ("")."""
        request = credit_service_pb2.ListLeasesRequest(customer_id=customer_id, page_size=page_size)
        while True:
            response = await self._credit.ListLeases(request, timeout=_TIMEOUT_SECONDS)
            yield response.leases
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def get_organization(self, organization_id: str) -> directory_pb2.Organization:
        """An organization; NOT_FOUND if there is none."""
        response = await self._directory.GetOrganization(
            directory_service_pb2.GetOrganizationRequest(organization_id=organization_id)
        )
        return response.organization

    async def look_up(
        self, customer_ids: Sequence[str], agent_ids: Sequence[str]
    ) -> directory_service_pb2.LookupPartiesResponse:
        """Which of up to 1,000 customers and 1,000 agents exist."""
        return await self._directory.LookupParties(
            directory_service_pb2.LookupPartiesRequest(customer_ids=customer_ids, agent_ids=agent_ids),
            timeout=_TIMEOUT_SECONDS,
        )


def _lease_verdict(verdict: credit_service_pb2.LeaseVerdict) -> LeaseVerdict | None:
    if verdict.HasField("granted"):
        return verdict.granted
    return from_item_error(verdict.error) if verdict.HasField("error") else None
