"""Requests about leases, holds and reservations, all in one currency."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1 import error_reason_pb2, item_error_pb2, money_pb2
from tallystick.ledger.v1 import charge_pb2, credit_pb2
from tallystick.ledger.v1 import credit_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_server import LedgerServer

OCCURRED = Timestamp(seconds=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
RUN, OUTCOME = credit_pb2.HOLD_PURPOSE_RUN, credit_pb2.HOLD_PURPOSE_OUTCOME


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def in_future(seconds: float = 600) -> Timestamp:
    """A time from now; negative is the past."""
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return moment


def intent(
    workflow: str,
    gross: int,
    claim: charge_pb2.ReservationClaim | None = None,
    outcome: charge_pb2.OutcomeHold | None = None,
    *,
    customer: str = "cus_a",
    organization: str = "org_x",
) -> charge_pb2.ChargeIntent:
    return charge_pb2.ChargeIntent(
        customer_id=customer,
        workflow_id=workflow,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        payees=[
            charge_pb2.Payee(
                organization_id=organization, agent_id=organization.replace("org_", "agt_"), weight=1
            )
        ],
        occur_time=OCCURRED,
        price_version_id="pv_1",
        reservation=claim,
        outcome_hold=outcome,
    )


def allocation(
    reservation_id: str, epoch: int, amount: int, expires: Timestamp | None = None
) -> charge_pb2.ReservationClaim:
    """The claim on an allocation within a lease."""
    return charge_pb2.ReservationClaim(
        reservation_id=reservation_id,
        lease_epoch=epoch,
        amount=usd(amount),
        expire_time=expires or in_future(),
    )


def of_hold(hold_id: str) -> charge_pb2.ReservationClaim:
    """The claim on a hold."""
    return charge_pb2.ReservationClaim(reservation_id=hold_id)


def outcome_hold(hold_id: str, amount: int, expires: Timestamp | None = None) -> charge_pb2.OutcomeHold:
    return charge_pb2.OutcomeHold(
        hold_id=hold_id, amount=usd(amount), expire_time=expires or in_future(86_400)
    )


def hold_request(
    hold_id: str,
    amount: int,
    purpose: credit_pb2.HoldPurpose.ValueType = RUN,
    *,
    customer: str = "cus_a",
    expires: Timestamp | None = None,
    content: str | None = "content",
    of: charge_pb2.ReservationClaim | None = None,
) -> pb.HoldRequest:
    """Asks for a hold; with `content` None, to raise one; with `of`, to take an allocation over."""
    return pb.HoldRequest(
        customer_id=customer,
        hold_id=hold_id,
        purpose=purpose,
        amount=usd(amount),
        expire_time=expires or in_future(),
        content_hash=b"" if content is None else sha256(content.encode()).digest(),
        price_version_id="pv_1",
        from_lease=of,
    )


def release_of(claim: charge_pb2.ReservationClaim, *, customer: str = "cus_a") -> pb.ReservationRelease:
    """Asks to end what a charge would claim."""
    return pb.ReservationRelease(
        customer_id=customer,
        currency_code="USD",
        reservation_id=claim.reservation_id,
        lease_epoch=claim.lease_epoch,
        expire_time=claim.expire_time if claim.HasField("expire_time") else None,
    )


def reason_of(error: item_error_pb2.ItemError) -> str:
    return error_reason_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")


def state_of(ended: credit_pb2.EndedReservation) -> str:
    return credit_pb2.ReservationState.Name(ended.state).removeprefix("RESERVATION_STATE_").lower()


@dataclass(frozen=True)
class Held:
    """A customer's money at one moment, in micros."""

    available: int
    leased: int = 0
    draining: int = 0
    runs: int = 0
    outcomes: int = 0
    receivable: int = 0
    held_receivable: int = 0
    unpaid: int = 0


class Credits:
    """The calls, in short, of the service that sets credits aside."""

    def __init__(self, server: LedgerServer) -> None:
        self.server = server
        self.service = server.service

    async def grant(self, amount: int, key: str = "first", customer: str = "cus_a") -> None:
        await self.server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id=customer,
                amount=usd(amount),
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key=key,
            )
        )

    async def open(self, wanted: int, seen: int = 0, customer: str = "cus_a") -> pb.OpenLeaseResponse:
        return await self.service.credits.OpenLease(
            pb.OpenLeaseRequest(
                customer_id=customer, currency_code="USD", seen_epoch=seen, wanted_micros=wanted
            )
        )

    async def renew(
        self,
        epoch: int,
        wanted: int,
        customer: str = "cus_a",
        *,
        known_version: int = 0,
        known_available: int = 0,
    ) -> pb.LeaseVerdict:
        renewal = pb.LeaseRenewal(
            customer_id=customer,
            currency_code="USD",
            epoch=epoch,
            wanted_micros=wanted,
            known_version=known_version,
            known_available_micros=known_available,
        )
        answer = await self.service.credits.RenewLeases(pb.RenewLeasesRequest(renewals=[renewal]))
        return answer.verdicts[0]

    async def give_back(
        self, epoch: int, return_number: int, amount: int, customer: str = "cus_a"
    ) -> pb.GrantedLease:
        answer = await self.service.credits.ReturnLease(
            pb.ReturnLeaseRequest(
                customer_id=customer,
                currency_code="USD",
                epoch=epoch,
                return_number=return_number,
                amount_micros=amount,
            )
        )
        return answer.granted

    async def hold(self, *requests: pb.HoldRequest) -> list[pb.HoldVerdict]:
        answer = await self.service.credits.PlaceHolds(pb.PlaceHoldsRequest(holds=requests))
        return list(answer.verdicts)

    async def release(self, *releases: pb.ReservationRelease) -> list[pb.ReleaseVerdict]:
        answer = await self.service.credits.ReleaseReservations(
            pb.ReleaseReservationsRequest(releases=releases)
        )
        return list(answer.verdicts)

    async def post(self, *intents: charge_pb2.ChargeIntent) -> list[ledger.PostedCharge]:
        answer = await self.service.ledger.PostCharges(ledger.PostChargesRequest(intents=intents))
        for verdict in answer.verdicts:
            assert verdict.HasField("posted"), verdict
        return [verdict.posted for verdict in answer.verdicts]

    async def held(self, customer: str = "cus_a") -> Held:
        answer = await self.server.operator.ledger.GetCustomerBalance(
            ledger.GetCustomerBalanceRequest(customer_id=customer)
        )
        balance, held = answer.balance, answer.balance.held_credits
        found = Held(
            available=balance.available.amount_micros,
            leased=held.leased.amount_micros,
            draining=held.draining.amount_micros,
            runs=held.runs.amount_micros,
            outcomes=held.outcomes.amount_micros,
            receivable=balance.receivable.amount_micros,
            held_receivable=balance.held_receivable.amount_micros,
            unpaid=balance.unpaid.amount_micros,
        )
        in_all = found.leased + found.draining + found.runs + found.outcomes
        assert balance.held.amount_micros == in_all
        return found
