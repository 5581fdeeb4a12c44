"""Credit leases: how the ledger's grants get into Redis, and back.

The ledger says what a lease holds; Redis allocates within it. Each answer of the ledger carries a version,
and Redis keeps the newest: telling it twice, or late, adds nothing.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from services.kit import log
from services.kit.coalesce import Coalescer
from services.kit.errors import FailedPrecondition, TallystickError, Unavailable
from services.kit.money import MAX_AMOUNT_MICROS
from services.metering.rpc.ledger import LeaseVerdict, Ledger
from services.metering.store.pool_types import LeaseState, PoolKey
from services.metering.store.pools import Pools
from tallystick.ledger.v1 import credit_pb2, credit_service_pb2

_MAX_KNOWN: Final = 100_000
# How often whoever finds a lease that another process has just opened looks for it in Redis.
_LOOKS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.02
_OPEN_ATTEMPTS: Final = 4
# The ledger takes no more in one return; nobody needs more at once.
_EVERYTHING: Final = MAX_AMOUNT_MICROS
_log = log.get_logger()


@dataclass(frozen=True, slots=True)
class KnownLease:
    """What this process knows of a customer's current lease, from its last talk with the ledger, and has told
    Redis since.

    `frozen`: the customer was frozen then, so nothing new is to be allocated. `available_micros` and
    `room_micros` are what the customer could spend beside the lease: free credits, and what the credit limit
    leaves. On the monotonic clock `used_at` is when somebody last asked for it, `said_at` when the ledger was
    asked what is available, and `asked_at` when it was asked about the lease.
    """

    key: PoolKey
    epoch: int
    version: int
    expire_time: datetime
    recall: bool
    frozen: bool
    available_micros: int
    room_micros: int
    used_at: float
    said_at: float
    asked_at: float


@dataclass(frozen=True, slots=True)
class _Renewal:
    key: PoolKey
    epoch: int
    wanted_micros: int


class Leases:
    """The leases that this process allocates in.

    `grace` is how long after its time Redis takes a reservation out of its lease.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        pools: Pools,
        grace: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._pools = pools
        self._longest_silence = grace.total_seconds() / 2
        self._monotonic = monotonic
        # In the order of last use.
        self._known: dict[PoolKey, KnownLease] = {}
        # Renewals of many customers go in one call.
        self._renewals = Coalescer[_Renewal, KnownLease](self._renew, max_batch=1000)
        self._opening: dict[PoolKey, asyncio.Task[KnownLease]] = {}

    def use(self, key: PoolKey) -> KnownLease | None:
        """The current lease as far as known here, and remember that it is in use."""
        known = self._known.pop(key, None)
        if known is not None:
            known = self._known[key] = replace(known, used_at=self._monotonic())
        return known

    async def find(self, key: PoolKey) -> KnownLease | None:
        """The lease as far as known here, or else as Redis holds it; None if it does not."""
        known = self.use(key)
        if known is None:
            (view,) = await self._pools.peek([key])
            if view is not None and view.server_matches:
                known = await self.adopt(key, view.epoch)
        return known

    async def adopt(self, key: PoolKey, epoch: int) -> KnownLease:
        """Look after a lease that Redis holds and this process has not used.

        The ledger is asked first: whoever used it last may have died before it told Redis what was captured.
        """
        try:
            return await self._renewals.submit(_Renewal(key, epoch, 0))
        except FailedPrecondition as error:
            if error.reason != "LEASE_SUPERSEDED":
                raise
        return await self.open(key, epoch, 0)

    async def refresh(self, known: KnownLease) -> KnownLease:
        """The current lease, before something is allocated in it: the ledger is asked if that was long ago.

        What was reserved there and is over comes free after `grace`, also if the ledger had captured it and
        the answer was lost. Until its time it may be captured; so whoever has asked since then has told Redis
        of that, and whoever has not would give it again. Half of the grace is left for the way to Redis. The
        keeper asks every few seconds, so this does only where the ledger does not answer.
        """
        if self._monotonic() - known.asked_at < self._longest_silence:
            return known
        return await self.adopt(known.key, known.epoch)

    def knows(self, key: PoolKey) -> bool:
        """Whether this process looks after a lease."""
        return key in self._known

    def in_use(self) -> list[KnownLease]:
        """Every lease that is known here, the one that was used last at the end."""
        return list(self._known.values())

    def forget(self, key: PoolKey) -> None:
        """Know nothing of this lease any more; its next use asks the ledger."""
        self._known.pop(key, None)

    def learn_available(self, key: PoolKey, available_micros: int) -> None:
        """Keep what a call of this process left the customer beside the lease."""
        known = self._known.get(key)
        if known is not None:
            self._known[key] = replace(known, available_micros=available_micros, said_at=self._monotonic())

    async def grow(self, known: KnownLease, wanted_micros: int) -> KnownLease:
        """Prolong a lease, and get at least `wanted_micros` more for it, as far as there is.

        Raises FailedPrecondition LEASE_SUPERSEDED if it is not the current one.
        """
        renewal = _Renewal(known.key, known.epoch, wanted_micros)
        known = await self._renewals.submit(renewal)
        if known.recall:
            # The ledger adds nothing to a lease as long as somebody else waits for what is free in it.
            await self.give_back(known)
            known = await self._renewals.submit(renewal)
        return known

    async def make_available(self, known: KnownLease, amount_micros: int) -> None:
        """Give back what is not allocated, unless the customer has so much beside the lease."""
        known = await self._renewals.submit(_Renewal(known.key, known.epoch, 0))
        if known.available_micros < amount_micros:
            await self.give_back(known)

    async def prolong(self, leases: Sequence[KnownLease]) -> list[KnownLease | TallystickError]:
        """Prolong up to 1,000 leases in one call, as far as that is due.

        Those of which the ledger has no news come back as they are.
        """
        newest = set(_newest([(known.key, known.epoch) for known in leases]))
        news = await self._ask(
            [
                _lease_renewal(
                    known.key, known.epoch, version=known.version, available=known.available_micros
                )
                for known in leases
                if (known.key, known.epoch) in newest
            ]
        )
        return [
            news.get((known.key, known.epoch)) or self._known.get(known.key, known)
            if (known.key, known.epoch) in newest
            else _superseded(known.key, known.epoch)
            for known in leases
        ]

    async def open(self, key: PoolKey, seen_epoch: int, wanted_micros: int) -> KnownLease:
        """The current lease, which is a new one if that of `seen_epoch` is still current, because its
        allocations are lost; 0 to find the current one.
        """
        known = self._known.get(key)
        if known is not None and known.epoch > seen_epoch:
            return known
        task = self._opening.get(key)
        if task is None:
            # One look for all who miss the lease at once.
            task = self._opening[key] = asyncio.create_task(self._open(key, seen_epoch, wanted_micros))
            task.add_done_callback(lambda _: self._opening.pop(key, None))
        return await asyncio.shield(task)

    async def give_back(self, known: KnownLease) -> KnownLease:
        """Give what is not allocated back to the customer's available credits."""
        # First Redis stops allocating it, then the ledger frees it: never the other way round. Whoever finds
        # a return that was begun finishes that one, under its id.
        begun = await self._pools.withdraw(known.key, known.epoch, str(_return_number()), _EVERYTHING)
        # Nothing is free: said to the ledger too, which then recalls it no longer.
        return_id, amount = ("0", 0) if begun is None else begun
        asked_at = self._monotonic()
        granted = await self._ledger.return_lease(
            known.key.tag,
            known.key.name,
            epoch=known.epoch,
            return_number=int(return_id),
            amount_micros=amount,
        )
        await self._pools.returned(known.key, return_id, lease_state(granted.lease))
        return self._learn(known.key, granted, asked_at)

    async def finish_return(self, known: KnownLease) -> bool:
        """Finish a return that somebody has begun. Answers whether there was one."""
        (view,) = await self._pools.peek([known.key])
        if view is None or not view.returning or view.epoch != known.epoch:
            return False
        await self.give_back(known)
        return True

    async def _renew(self, renewals: Sequence[_Renewal]) -> list[KnownLease | TallystickError]:
        leases = [(renewal.key, renewal.epoch) for renewal in renewals]
        wanted = dict.fromkeys(_newest(leases), 0)
        # Several may wait for the same lease: what they want adds up, as far as one may ask for.
        for lease, renewal in zip(leases, renewals, strict=True):
            if lease in wanted:
                wanted[lease] = min(wanted[lease] + renewal.wanted_micros, MAX_AMOUNT_MICROS)
        verdicts = await self._ask(
            [_lease_renewal(key, epoch, wanted_micros=micros) for (key, epoch), micros in wanted.items()]
        )
        return [verdicts[lease] if lease in wanted else _superseded(*lease) for lease in leases]

    async def _ask(
        self, renewals: Sequence[credit_service_pb2.LeaseRenewal]
    ) -> Mapping[tuple[PoolKey, int], KnownLease | TallystickError]:
        """Renew leases, and learn what the ledger says of them. Those without news are not in the answer."""
        asked_at = self._monotonic()
        verdicts = await self._ledger.renew_leases(renewals)
        news: list[tuple[PoolKey, int, LeaseVerdict]] = []
        for renewal, verdict in zip(renewals, verdicts, strict=True):
            key = lease_key(renewal.customer_id, renewal.currency_code)
            if verdict is not None:
                news.append((key, renewal.epoch, verdict))
            else:
                self._learn_nothing_new(key, renewal.epoch, asked_at)
        # Before anybody is answered, or learns of a lease: who waited for more finds it there, and nobody
        # allocates what was captured.
        await self._pools.merge(
            [
                (key, state)
                for key, _, verdict in news
                if not isinstance(verdict, TallystickError)
                if not self._has_told(key, state := lease_state(verdict.lease))
            ]
        )
        return {
            (key, epoch): verdict
            if isinstance(verdict, TallystickError)
            else self._learn(key, verdict, asked_at)
            for key, epoch, verdict in news
        }

    async def _open(self, key: PoolKey, seen_epoch: int, wanted_micros: int) -> KnownLease:
        for _ in range(_OPEN_ATTEMPTS):
            asked_at = self._monotonic()
            answer = await self._ledger.open_lease(
                key.tag, key.name, seen_epoch=seen_epoch, wanted_micros=wanted_micros
            )
            granted, epoch = answer.granted, answer.granted.lease.epoch
            if answer.opened:
                # Nobody else puts this epoch into Redis, now or ever: its allocations begin here, from none.
                await self._pools.install(key, lease_state(granted.lease))
                _log.info("lease.opened", customer_id=key.tag, currency_code=key.name, epoch=epoch)
                return self._learn(key, granted, asked_at)
            if await self._is_in_redis(key, epoch):
                # Whoever used it last may have died before it told Redis what was captured: when that
                # reservation's time is over, Redis would give the same credits again.
                await self._pools.merge([(key, lease_state(granted.lease))])
                return self._learn(key, granted, asked_at)
            # Whoever opened it has died before it told Redis, or Redis has lost it since.
            seen_epoch = epoch
        raise Unavailable("other processes keep opening the customer's credit lease")

    async def _is_in_redis(self, key: PoolKey, epoch: int) -> bool:
        pause = _FIRST_PAUSE_SECONDS
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(pause)
                pause *= 2
            (view,) = await self._pools.peek([key])
            if view is None or view.epoch < epoch:
                # Not yet: whoever opened it is about to tell Redis.
                continue
            return view.epoch == epoch and view.server_matches
        return False

    def _has_told(self, key: PoolKey, state: LeaseState) -> bool:
        """Whether Redis has heard this of a lease from this process."""
        known = self._known.get(key)
        return known is not None and (known.epoch, known.version, known.expire_time) == (
            state.epoch,
            state.version,
            state.expire_time,
        )

    def _learn_nothing_new(self, key: PoolKey, epoch: int, asked_at: float) -> None:
        known = self._known.get(key)
        if known is not None and known.epoch == epoch and known.asked_at <= asked_at:
            # That it is recalled, or its customer frozen, would be news at every look.
            self._known[key] = replace(known, recall=False, frozen=False, asked_at=asked_at)

    def _learn(self, key: PoolKey, granted: credit_service_pb2.GrantedLease, asked_at: float) -> KnownLease:
        before = self._known.get(key)
        known = KnownLease(
            key=key,
            epoch=granted.lease.epoch,
            version=granted.lease.version,
            expire_time=granted.lease.expire_time.ToDatetime(tzinfo=UTC),
            recall=granted.lease.recall,
            frozen=granted.customer_frozen,
            available_micros=granted.available.amount_micros,
            room_micros=granted.credit_room.amount_micros,
            used_at=before.used_at if before is not None else self._monotonic(),
            said_at=asked_at,
            asked_at=asked_at,
        )
        if before is not None and before.epoch == known.epoch and before.said_at > asked_at:
            # Another call has heard since what is available: this answer may be from before what it did.
            known = replace(known, available_micros=before.available_micros, said_at=before.said_at)
        if before is not None and before.epoch == known.epoch:
            known = replace(known, asked_at=max(known.asked_at, before.asked_at))
        # An answer that was overtaken by that of a later epoch says nothing any more.
        if before is not None and before.epoch > known.epoch:
            return before
        self._known[key] = known
        while len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]
        return known


def _lease_renewal(
    key: PoolKey, epoch: int, *, wanted_micros: int = 0, version: int = 0, available: int = 0
) -> credit_service_pb2.LeaseRenewal:
    return credit_service_pb2.LeaseRenewal(
        customer_id=key.tag,
        currency_code=key.name,
        epoch=epoch,
        wanted_micros=wanted_micros,
        known_version=version,
        known_available_micros=available,
    )


def _newest(leases: Sequence[tuple[PoolKey, int]]) -> list[tuple[PoolKey, int]]:
    """The newest epoch of each pool: the ledger takes each customer and currency once per call, and the older
    ones are certain not to be the current one.
    """
    newest: dict[PoolKey, int] = {}
    for key, epoch in leases:
        newest[key] = max(epoch, newest.get(key, 0))
    return list(newest.items())


def _return_number() -> int:
    """Names a return, and orders it after those before it.

    The microseconds: a pool has one return at a time, each with a journey to the ledger in it, so no two
    begin at once. From a clock that is behind another's it may be too low: then the ledger takes nothing,
    Redis learns so and allocates the amount again, and the next return takes it back.
    """
    return time.time_ns() // 1000


def _superseded(key: PoolKey, epoch: int) -> FailedPrecondition:
    """What the ledger says of a lease that is not the current one."""
    return FailedPrecondition(
        "another lease is current, or this one is over",
        reason="LEASE_SUPERSEDED",
        metadata={"customer_id": key.tag, "currency_code": key.name, "epoch": str(epoch)},
    )


def lease_key(customer_id: str, currency_code: str) -> PoolKey:
    """The pool of a customer's lease in a currency."""
    return PoolKey(tag=customer_id, name=currency_code)


def lease_state(lease: credit_pb2.CreditLease) -> LeaseState:
    """What the ledger says of a lease, for Redis."""
    return LeaseState(
        epoch=lease.epoch,
        version=lease.version,
        remaining=lease.remaining.amount_micros,
        expire_time=lease.expire_time.ToDatetime(tzinfo=UTC),
    )
