"""Reservations as holds in the ledger: slower than in Redis, and as safe without it."""

from collections.abc import Sequence
from datetime import UTC
from typing import Final

from services.kit.coalesce import Coalescer
from services.kit.errors import TallystickError
from services.metering.domain.reservation import DURABLE, Reservation, content_hash
from services.metering.domain.reservation_token import TokenSigner
from services.metering.rpc.convert import money_to_proto, time_to_proto
from services.metering.rpc.kept import Kept, reservation_ended
from services.metering.rpc.leases import lease_state
from services.metering.rpc.ledger import Ledger
from tallystick.ledger.v1 import charge_pb2, credit_pb2, credit_service_pb2

# Each batch waits for PostgreSQL's commit.
_BATCHES_AT_ONCE: Final = 2
Verdict = credit_service_pb2.PlacedHold | TallystickError


class DurableCredits:
    """Reserves by holds, of credits first and then of the room under the credit limit."""

    def __init__(self, *, ledger: Ledger, signer: TokenSigner) -> None:
        self._ledger = ledger
        self._signer = signer
        self._placing = Coalescer[credit_service_pb2.HoldRequest, credit_service_pb2.PlacedHold](
            self._place, concurrency=_BATCHES_AT_ONCE
        )

    async def reserve(self, reservation: Reservation, request_hash: bytes) -> Kept:
        """Hold the reservation's amount, or answer the hold that this attempt placed before.

        Raises FailedPrecondition INSUFFICIENT_CREDITS or CUSTOMER_FROZEN, for good, or RESERVATION_ENDED;
        AlreadyExists for an attempt that came before with other content.
        """
        return self._kept(reservation, await self._submit(reservation, request_hash))

    async def extend(self, reservation: Reservation) -> Kept:
        """Raise a hold to the reservation's amount, and keep it until its expiry.

        Raises FailedPrecondition INSUFFICIENT_CREDITS or CUSTOMER_FROZEN, and leaves the hold as it was, or
        RESERVATION_ENDED.
        """
        return self._kept(reservation, await self._submit(reservation, b""))

    async def convert(self, before: Reservation, wanted: Reservation) -> Kept:
        """Take a reservation over from its lease, raised to the amount that is wanted, in one transaction.

        Raises as extend() does.
        """
        request = self._request(wanted, content_hash(before.reservation_id.encode()))
        if not before.is_durable:
            request.from_lease.CopyFrom(
                charge_pb2.ReservationClaim(
                    reservation_id=before.reservation_id,
                    lease_epoch=before.lease_epoch,
                    amount=money_to_proto(before.currency_code, before.amount_micros),
                    expire_time=time_to_proto(before.expire_time),
                )
            )
        try:
            kept = self._kept(wanted, await self._placing.submit(request))
        except TallystickError as error:
            if error.reason != "IDEMPOTENCY_KEY_REUSED":
                raise
            # Its attempt had placed a hold while Redis was away, and was allocated when it came again: that
            # hold is raised, and what the lease keeps for it goes back.
            return await self.extend(wanted)
        # One that was taken over before is a hold like any other.
        return await self.extend(wanted) if kept.duplicate else kept

    async def _submit(self, reservation: Reservation, request_hash: bytes) -> credit_service_pb2.PlacedHold:
        return await self._placing.submit(self._request(reservation, request_hash))

    def _request(self, reservation: Reservation, request_hash: bytes) -> credit_service_pb2.HoldRequest:
        return credit_service_pb2.HoldRequest(
            customer_id=reservation.customer_id,
            hold_id=reservation.reservation_id,
            purpose=credit_pb2.HOLD_PURPOSE_RUN,
            amount=money_to_proto(reservation.currency_code, reservation.amount_micros),
            expire_time=time_to_proto(reservation.expire_time),
            content_hash=request_hash,
            price_version_id=reservation.price_version_id,
        )

    def _kept(self, reservation: Reservation, placed: credit_service_pb2.PlacedHold) -> Kept:
        hold = placed.hold
        if hold.state != credit_pb2.HOLD_STATE_HELD:
            state = credit_pb2.HoldState.Name(hold.state).removeprefix("HOLD_STATE_").lower()
            raise reservation_ended(reservation.reservation_id, state)
        kept = reservation._replace(
            lease_epoch=DURABLE,
            # It may have been raised, or prolonged, before.
            amount_micros=hold.from_credits.amount_micros + hold.from_receivable.amount_micros,
            expire_time=hold.expire_time.ToDatetime(tzinfo=UTC),
            # A repeated attempt is charged by what the first one was told, whatever is in force by now.
            price_version_id=hold.price_version_id or reservation.price_version_id,
        )
        return Kept(
            kept,
            self._signer.sign(kept),
            placed.duplicate,
            placed.balance.available.amount_micros,
            lease_state(placed.lease) if placed.HasField("lease") else None,
        )

    async def _place(self, requests: Sequence[credit_service_pb2.HoldRequest]) -> list[Verdict]:
        """The verdicts in order. What asks for the same hold goes in a later call than the one before it."""
        verdicts: dict[int, Verdict] = {}
        waiting = dict(enumerate(requests))
        while waiting:
            first = {request.hold_id: number for number, request in reversed(waiting.items())}
            numbers = sorted(first.values())
            answers = await self._ledger.place_holds([waiting.pop(number) for number in numbers])
            verdicts.update(zip(numbers, answers, strict=True))
        return [verdicts[number] for number in range(len(requests))]
