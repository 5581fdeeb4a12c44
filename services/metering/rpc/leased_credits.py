"""Reservations in Redis, within credit leases that the ledger granted."""

from typing import Final

from services.kit.errors import FailedPrecondition, Unavailable
from services.metering.domain.reservation import Reservation
from services.metering.domain.reservation_token import TokenSigner
from services.metering.rpc.kept import (
    Kept,
    attempt_reused,
    customer_frozen,
    insufficient_credits,
    reservation_ended,
)
from services.metering.rpc.leases import KnownLease, Leases, lease_key
from services.metering.store.pool_types import (
    UNKNOWN_STATE,
    Answer,
    End,
    EndAnswer,
    Ended,
    Extend,
    LeaseState,
    LeaseUse,
    Missing,
    Outlives,
    Refused,
    Reserve,
    Reserved,
    Reused,
    Stale,
    Superseded,
)
from services.metering.store.pools import Pools

# How often a reservation is tried: each time something stood in its way that was then removed.
_ATTEMPTS: Final = 10
# Under this state Redis remembers an attempt that became a hold.
_DURABLE_STATE: Final = "durable"
# And under these an attempt that a hold was refused to, or whose customer was frozen.
_REFUSED_HOLD_STATE: Final = "insufficient"
_FROZEN_STATE: Final = "frozen"
# So many grants in a row must have been too little before a run is refused: one of them may have been on its
# way to Redis, or back, when it was looked for.
_ROUNDS: Final = 2
# No lease has this epoch: asked in it, Redis answers what an attempt heard before, and allocates nothing new.
_NO_EPOCH: Final = 0


class NeedsHold(Exception):
    """The lease cannot give the amount, but a hold can: it takes from the room under the credit limit too."""


class LeaseLost(Exception):
    """The lease that a reservation was made in is not current any more, or does not know it."""


class LeasedCredits:
    """Reserves in Redis; what the ledger and Redis must do for it first is done here."""

    def __init__(self, *, pools: Pools, leases: Leases, signer: TokenSigner) -> None:
        self._pools = pools
        self._leases = leases
        self._signer = signer

    async def reserve(self, reservation: Reservation, content_hash: bytes) -> Kept:
        """Allocate the reservation, or answer what this attempt allocated before.

        Raises NeedsHold if only a hold can cover it; FailedPrecondition INSUFFICIENT_CREDITS or
        CUSTOMER_FROZEN, for good, or RESERVATION_ENDED; AlreadyExists for an attempt that came before with
        other content.
        """
        key = lease_key(reservation.customer_id, reservation.currency_code)
        amount = reservation.amount_micros
        known = self._leases.use(key) or await self._leases.open(key, 0, amount)
        known = await self._leases.refresh(known)
        if known.frozen:
            # It may run again since the keeper's last look.
            known = await self._leases.adopt(key, known.epoch)
        rounds, final = 0, False
        for _ in range(_ATTEMPTS):
            attempt = reservation._replace(lease_epoch=known.epoch)
            answer = await self._pools.submit(
                Reserve(
                    reservation_id=reservation.reservation_id,
                    amount=amount,
                    expire_time=reservation.expire_time,
                    content_hash=content_hash.hex(),
                    token=self._signer.sign(attempt),
                    uses=(LeaseUse(key, _NO_EPOCH if known.frozen else known.epoch),),
                    freeze=final,
                )
            )
            match answer:
                case Reserved(token=token):
                    # Of a duplicate the token says what was allocated then; else it is the one just signed.
                    kept = self._signer.read(token) if answer.duplicate else attempt
                    return Kept(kept, token, answer.duplicate, left(known, answer))
                case Ended(token=token) if answer.state == _DURABLE_STATE:
                    return Kept(self._signer.read(token), token, True, left(known, answer))
                case Missing() | Stale() | Superseded() if known.frozen:
                    await self.customer_was_frozen(reservation)
                    raise customer_frozen(reservation.customer_id)
                case Ended() if answer.state == _FROZEN_STATE:
                    raise customer_frozen(reservation.customer_id)
                case Refused() if answer.frozen or final:
                    raise _insufficient(reservation, left(known, answer))
                case Ended() if answer.state == _REFUSED_HOLD_STATE:
                    raise _insufficient(reservation, left(known, answer))
                case Refused() if rounds and await self._leases.finish_return(known):
                    # A part was on its way back to the ledger, and is there now.
                    rounds = 0
                case Refused(room=room) if rounds >= _ROUNDS and room + known.available_micros < amount:
                    # That was all there is. Only now is a refusal remembered.
                    if room + known.available_micros + known.room_micros >= amount:
                        raise NeedsHold
                    final = True
                case Refused(room=room):
                    known, rounds = await self._grow(known, amount - max(room, 0)), rounds + 1
                case Ended(state=state):
                    raise reservation_ended(reservation.reservation_id, state)
                case Reused():
                    raise attempt_reused(reservation)
                case _:
                    known = await self._mend(known, answer, amount)
        raise _busy()

    async def extend(self, reservation: Reservation) -> Kept:
        """Raise what is allocated to the reservation's amount, and keep it until its expiry.

        Raises LeaseLost if it is not in the current lease any more, NeedsHold if only a hold can cover it,
        and FailedPrecondition INSUFFICIENT_CREDITS or CUSTOMER_FROZEN, which leave it as it was, or
        RESERVATION_ENDED.
        """
        key = lease_key(reservation.customer_id, reservation.currency_code)
        known = self._leases.use(key) or await self._leases.open(key, 0, 0)
        known = await self._leases.refresh(known)
        grown = False
        for _ in range(_ATTEMPTS):
            if known.epoch < reservation.lease_epoch:
                # Another process has opened it since.
                known = await self._leases.open(key, known.epoch, 0)
            if known.epoch != reservation.lease_epoch:
                raise LeaseLost
            answer = await self._pools.submit(
                Extend(
                    reservation_id=reservation.reservation_id,
                    amount=reservation.amount_micros,
                    expire_time=reservation.expire_time,
                    token=self._signer.sign(reservation),
                    uses=(LeaseUse(key, known.epoch),),
                )
            )
            match answer:
                case Reserved(token=token):
                    return Kept(self._signer.read(token), token, answer.duplicate, left(known, answer))
                case Refused() if grown and known.frozen:
                    # What it has it keeps.
                    raise customer_frozen(reservation.customer_id)
                case Refused() if grown and known.available_micros == 0:
                    if known.room_micros > 0:
                        raise NeedsHold
                    raise _insufficient(reservation, left(known, answer))
                case Refused(room=room):
                    # How much it has is not said here, so it may ask for more than it needs.
                    known, grown = await self._grow(known, reservation.amount_micros - max(room, 0)), True
                case Ended(state=state) if state == UNKNOWN_STATE:
                    # It is not over, and Redis has not heard of it: then it has lost others too.
                    await self._leases.open(key, known.epoch, 0)
                    raise LeaseLost
                case Ended(state=state) if state == _DURABLE_STATE:
                    # It became a hold, and the answer that said so, with the hold's token, was lost.
                    raise LeaseLost
                case Ended(state=state):
                    raise reservation_ended(reservation.reservation_id, state)
                case _:
                    known = await self._mend(known, answer, 0)
        raise _busy()

    async def end(
        self, reservation: Reservation, token: str, state: str, lease: LeaseState | None
    ) -> int | None:
        """Tell Redis how a reservation ended, and what the ledger said of the lease then.

        Answers what is free in the lease.
        """
        key = lease_key(reservation.customer_id, reservation.currency_code)
        answer = await self._pools.submit(
            End(
                reservation_id=reservation.reservation_id,
                state=state,
                token=token,
                expire_time=reservation.expire_time,
                pools=((key, lease),),
            )
        )
        return answer.free

    async def became_durable(self, kept: Kept) -> None:
        """Let Redis remember that this attempt became a hold, so that a retry hears the same."""
        await self.end(kept.reservation, kept.token, _DURABLE_STATE, kept.lease)

    async def hold_was_refused(self, reservation: Reservation) -> None:
        """Let Redis remember that there was not even money for a hold, so that a retry hears the same."""
        await self.end(reservation, "", _REFUSED_HOLD_STATE, None)

    async def customer_was_frozen(self, reservation: Reservation) -> None:
        """Let Redis remember that this attempt was refused to a frozen customer, so that a retry hears the
        same.
        """
        await self.end(reservation, "", _FROZEN_STATE, None)

    def learn_available(self, customer_id: str, currency_code: str, available_micros: int) -> None:
        """Keep what the ledger has just said that a customer has beside its lease."""
        self._leases.learn_available(lease_key(customer_id, currency_code), available_micros)

    async def make_room(self, customer_id: str, currency_code: str, amount: int) -> None:
        """Before a hold of `amount` is placed: give back what is not allocated, if it may be needed."""
        known = await self._leases.find(lease_key(customer_id, currency_code))
        if known is not None:
            await self._leases.make_available(known, amount)

    async def _grow(self, known: KnownLease, wanted: int) -> KnownLease:
        try:
            return await self._leases.grow(known, wanted)
        except FailedPrecondition as error:
            if error.reason != "LEASE_SUPERSEDED":
                raise
        return await self._leases.open(known.key, known.epoch, wanted)

    async def _mend(self, known: KnownLease, answer: Answer, wanted: int) -> KnownLease:
        """Remove what kept Redis from judging, as far as the ledger can."""
        match answer:
            case Missing() | Stale() | Superseded():
                # Lost or an old copy in Redis, or there is a later one: the ledger knows which is current.
                return await self._leases.open(known.key, known.epoch, wanted)
            case Outlives():
                return await self._grow(known, 0)
            case _:
                raise RuntimeError(f"an answer that says nothing: {answer}")


def left(known: KnownLease, answer: Answer | EndAnswer) -> int:
    """What the customer has left to spend, in micros: in the lease, and beside it."""
    return max(answer.free or 0, 0) + known.available_micros


def _insufficient(reservation: Reservation, available_micros: int) -> FailedPrecondition:
    return insufficient_credits(
        reservation.customer_id, reservation.currency_code, reservation.amount_micros, available_micros
    )


def _busy() -> Unavailable:
    return Unavailable("the customer's credits are asked for by too many at once")
