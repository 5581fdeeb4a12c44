"""Where reservations are kept: in Redis within leases, or as holds in the ledger."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import grpc

from services.kit.coalesce import Coalescer
from services.kit.errors import FailedPrecondition
from services.kit.worker import PeriodicWorker
from services.metering.domain.reservation import MAX_LEASED_TTL, Reservation
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import charge_id
from services.metering.rpc.convert import time_to_proto
from services.metering.rpc.durable_credits import DurableCredits
from services.metering.rpc.kept import Kept, customer_frozen
from services.metering.rpc.leased_credits import LeasedCredits, LeaseLost, NeedsHold
from services.metering.rpc.leases import lease_key, lease_state
from services.metering.rpc.ledger import Ledger, ReleaseVerdict
from services.metering.store.pools import LeaseState, PoolKey, Pools, PoolsUnavailable, PoolView
from services.metering.valkey import Valkey
from tallystick.ledger.v1 import account_pb2, credit_pb2, credit_service_pb2

_BATCHES_AT_ONCE: Final = 2
_MAX_UNTOLD: Final = 10_000
_STATES: Final = {
    credit_pb2.RESERVATION_STATE_SETTLED: "settled",
    credit_pb2.RESERVATION_STATE_RELEASED: "released",
    credit_pb2.RESERVATION_STATE_EXPIRED: "expired",
}


class Released(NamedTuple):
    """How a reservation ended that was to be released, and what the customer has left."""

    ended: credit_pb2.EndedReservation
    available_micros: int


class _Ended(NamedTuple):
    """News for Redis: how a reservation ended, and what the ledger said of its lease then."""

    reservation: Reservation
    token: str
    state: str
    lease: LeaseState | None


class Credits:
    """Reserves the money of customers, extends and ends reservations.

    `leased` is None where there is no Redis; while it is away, everything is durable.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        durable: DurableCredits,
        leased: LeasedCredits | None,
        pools: Pools | None,
        valkey: Valkey | None,
    ) -> None:
        self._ledger = ledger
        self._durable = durable
        self._leased = leased
        self._pools = pools
        self._valkey = valkey
        # What is lost with this process, or beyond so many, is swept when its time is over.
        self._untold: deque[_Ended] = deque(maxlen=_MAX_UNTOLD)
        self._releasing = Coalescer[
            credit_service_pb2.ReservationRelease, credit_service_pb2.ReleasedReservation
        ](self._release, concurrency=_BATCHES_AT_ONCE)

    async def reserve(self, reservation: Reservation, request_hash: bytes, now: datetime) -> Kept:
        """Keep the reservation's amount, or answer what this attempt kept before.

        Raises FailedPrecondition INSUFFICIENT_CREDITS or CUSTOMER_FROZEN, for good, or RESERVATION_ENDED;
        AlreadyExists for an attempt that came before with other content.
        """
        leased = self._redis()
        if leased is not None and reservation.expire_time <= now + MAX_LEASED_TTL:
            try:
                return await leased.reserve(reservation, request_hash)
            except PoolsUnavailable as error:
                self._lost(error)
            except NeedsHold:
                pass
        await self._make_room(reservation, reservation.amount_micros)
        try:
            kept = await self._durable.reserve(reservation, request_hash)
        except FailedPrecondition as error:
            await self._remember_refusal(reservation, error.reason)
            raise
        await self._remember(kept)
        return await self._with_lease(kept)

    async def reserve_nothing(self, reservation: Reservation) -> int:
        """What a customer has left, in micros, who starts a run that costs nothing.

        Raises FailedPrecondition CUSTOMER_FROZEN.
        """
        balance = await self._ledger.get_balance(reservation.customer_id, reservation.currency_code)
        if balance.frozen:
            raise customer_frozen(reservation.customer_id)
        (available,) = await self.spendable([balance])
        return available

    async def extend(self, before: Reservation, wanted: Reservation, now: datetime) -> Kept:
        """Raise a reservation to the amount that is wanted, and keep it until then. It becomes a hold if its
        lease cannot keep it so.

        Raises FailedPrecondition INSUFFICIENT_CREDITS or CUSTOMER_FROZEN, which leave it as it was, or
        RESERVATION_ENDED.
        """
        leased = None if before.is_durable else self._redis()
        if leased is not None and wanted.expire_time <= now + MAX_LEASED_TTL:
            try:
                return await leased.extend(wanted)
            except PoolsUnavailable as error:
                self._lost(error)
            except (LeaseLost, NeedsHold):
                pass
        await self._make_room(wanted, wanted.amount_micros - before.amount_micros)
        if before.is_durable and before.amount_micros:
            return await self._with_lease(await self._durable.extend(wanted))
        kept = await self._durable.convert(before, wanted)
        await self._remember(kept)
        return await self._with_lease(kept)

    async def release(self, reservation: Reservation, token: str) -> Released:
        """End a reservation for which no charge comes; the ledger says how it ended."""
        if not reservation.amount_micros:
            return await self._release_nothing(reservation)
        released = await self._releasing.submit(
            credit_service_pb2.ReservationRelease(
                customer_id=reservation.customer_id,
                currency_code=reservation.currency_code,
                reservation_id=reservation.reservation_id,
                lease_epoch=reservation.lease_epoch,
                expire_time=time_to_proto(reservation.expire_time),
            )
        )
        available = await self.ended(reservation, token, released.ended, released.balance)
        return Released(released.ended, available)

    async def ended(
        self,
        reservation: Reservation,
        token: str,
        ended: credit_pb2.EndedReservation,
        balance: account_pb2.CustomerBalance,
    ) -> int:
        """The ledger has ended a reservation: tell Redis. Answers what the customer has left, in micros."""
        available = balance.available.amount_micros
        if self._leased is None:
            return available
        if ended.state not in _STATES:
            (available,) = await self.spendable([balance])
            return available
        self._leased.learn_available(balance.customer_id, balance.available.currency_code, available)
        news = _Ended(
            reservation,
            token,
            _STATES[ended.state],
            lease_state(ended.lease) if ended.HasField("lease") else None,
        )
        leased = self._redis()
        if leased is None:
            self._untold.append(news)
            return available
        try:
            free = await leased.end(*news)
        except PoolsUnavailable as error:
            self._lost(error)
            self._untold.append(news)
            return available
        return available + max(free or 0, 0)

    def teller(self, interval: timedelta) -> PeriodicWorker:
        """The worker that tells Redis, once it is back, of the ends that it missed."""
        return PeriodicWorker("untold_ends", interval, self._tell)

    async def available(self, customer_id: str, currency_code: str) -> int:
        """What a customer has left to spend, in micros."""
        (available,) = await self.spendable([await self._ledger.get_balance(customer_id, currency_code)])
        return available

    async def spendable(self, balances: Sequence[account_pb2.CustomerBalance]) -> list[int]:
        """What customers have left to spend, in micros: by the ledger, and what their leases have free."""
        if self._leased is not None:
            for balance in balances:
                currency_code = balance.available.currency_code
                self._leased.learn_available(
                    balance.customer_id, currency_code, balance.available.amount_micros
                )
        # Who has nothing held has no lease: the usual case of those who only meter finished work.
        leased = [balance for balance in balances if balance.held.amount_micros]
        free = {
            key: max(view.free or 0, 0)
            for key, view in (await self._views({_key(balance) for balance in leased})).items()
        }
        return [balance.available.amount_micros + free.get(_key(balance), 0) for balance in balances]

    async def allocated(self, balance: account_pb2.CustomerBalance) -> int:
        """How much of a customer's current lease is allocated, in micros; all of it if Redis cannot tell."""
        held = balance.held_credits
        leased = held.leased.amount_micros
        key = _key(balance)
        view = (await self._views({key})).get(key) if leased else None
        if view is None or view.epoch != held.lease_epoch:
            return leased
        return min(view.reserved + view.returning, leased)

    async def _release_nothing(self, reservation: Reservation) -> Released:
        """Of a run that costs nothing the ledger knows no reservation, but its charge if there is one."""
        state = credit_pb2.RESERVATION_STATE_SETTLED
        try:
            await self._ledger.get_charge(charge_id(_event_key(reservation)))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            state = credit_pb2.RESERVATION_STATE_RELEASED
        available = await self.available(reservation.customer_id, reservation.currency_code)
        return Released(credit_pb2.EndedReservation(state=state), available)

    async def _release(
        self, releases: Sequence[credit_service_pb2.ReservationRelease]
    ) -> list[ReleaseVerdict]:
        """The verdicts in order. Who asks for the same hears the same; who asks for the same reservation by
        another token comes in a later call, because the ledger takes each reservation once per call.
        """
        contents = [release.SerializeToString(deterministic=True) for release in releases]
        waiting = dict(zip(contents, releases, strict=True))
        verdicts: dict[bytes, ReleaseVerdict] = {}
        while waiting:
            first: dict[tuple[str, str], bytes] = {}
            for content, release in waiting.items():
                first.setdefault((release.customer_id, release.reservation_id), content)
            turn = list(first.values())
            answers = await self._ledger.release_reservations([waiting.pop(content) for content in turn])
            verdicts.update(zip(turn, answers, strict=True))
        return [verdicts[content] for content in contents]

    async def _views(self, keys: Collection[PoolKey]) -> Mapping[PoolKey, PoolView]:
        """Those of the customers' leases that are in Redis."""
        if not keys or self._pools is None or self._redis() is None:
            return {}
        try:
            if len(keys) == 1:
                # As after each of the events that were charged together.
                views = [await self._pools.look(key) for key in keys]
            else:
                views = await self._pools.peek(list(keys))
        except PoolsUnavailable as error:
            self._lost(error)
            return {}
        return {
            key: view
            for key, view in zip(keys, views, strict=True)
            if view is not None and view.server_matches
        }

    async def _tell(self) -> bool:
        while self._untold and (leased := self._redis()) is not None:
            news = self._untold[0]
            try:
                await leased.end(*news)
            except PoolsUnavailable as error:
                self._lost(error)
                return False
            # Only now: told twice is as good as once.
            self._untold.popleft()
        return False

    def _redis(self) -> LeasedCredits | None:
        return self._leased if self._valkey is not None and self._valkey.is_up else None

    def _lost(self, error: PoolsUnavailable) -> None:
        if self._valkey is not None:
            self._valkey.failed(error)

    async def _make_room(self, reservation: Reservation, amount_micros: int) -> None:
        """A refused hold stays refused: so what is merely not allocated goes back before."""
        leased = self._redis()
        if leased is None or amount_micros <= 0:
            return
        try:
            await leased.make_room(reservation.customer_id, reservation.currency_code, amount_micros)
        except PoolsUnavailable as error:
            self._lost(error)
        except FailedPrecondition as error:
            # The lease is not current any more, so there is nothing in it to give back.
            if error.reason != "LEASE_SUPERSEDED":
                raise

    async def _with_lease(self, kept: Kept) -> Kept:
        """The same, and what the customer's lease has free is left too."""
        key = lease_key(kept.reservation.customer_id, kept.reservation.currency_code)
        view = (await self._views({key})).get(key)
        free = 0 if view is None else max(view.free or 0, 0)
        return kept._replace(available_micros=kept.available_micros + free)

    async def _remember_refusal(self, reservation: Reservation, reason: str) -> None:
        leased = self._redis()
        if leased is None:
            return
        try:
            if reason == "INSUFFICIENT_CREDITS":
                await leased.hold_was_refused(reservation)
            elif reason == "CUSTOMER_FROZEN":
                await leased.customer_was_frozen(reservation)
        except PoolsUnavailable as error:
            self._lost(error)

    async def _remember(self, kept: Kept) -> None:
        leased = self._redis()
        if leased is None or kept.duplicate:
            return
        try:
            await leased.became_durable(kept)
        except PoolsUnavailable as error:
            self._lost(error)


def _key(balance: account_pb2.CustomerBalance) -> PoolKey:
    return lease_key(balance.customer_id, balance.available.currency_code)


def _event_key(reservation: Reservation) -> EventKey:
    return EventKey(reservation.customer_id, reservation.workflow_id, reservation.ordinal)
