"""Keeps the credit leases in use alive, and gives back what nobody uses."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import grpc
from prometheus_client import Counter, Gauge

from services.kit import log
from services.kit.errors import TallystickError
from services.kit.worker import PeriodicWorker
from services.metering.rpc.leases import KnownLease, Leases
from services.metering.store.pools import PoolKey, Pools, PoolsUnavailable, PoolView
from services.metering.valkey import Valkey

_BATCH: Final = 500
# Of so many looks at a lease that nobody uses, one is at Redis too: there it stays as it was.
_LOOKS_WITHOUT_USE: Final = 5
_IN_USE = Gauge("tallystick_leases", "Credit leases that this process allocates in.")
_LOST = Counter("tallystick_lost_leases", "Credit leases whose allocations Redis lost.")
_SWEPT = Counter(
    "tallystick_leaked_micros",
    "Micros of reservations that nobody ended: they came back with their time.",
)
_RETURNED = Counter("tallystick_returned_leases", "Leases given back, by why.", ["reason"])
_log = log.get_logger()


class LeaseKeeper:
    """Prolongs leases, sweeps them, and returns them when they are recalled or idle for `idle`."""

    def __init__(
        self,
        *,
        leases: Leases,
        pools: Pools,
        valkey: Valkey,
        idle: timedelta,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._pools = pools
        self._valkey = valkey
        self._idle = idle.total_seconds()
        self._monotonic = monotonic
        self._looks = 0
        self._looked_at = monotonic()
        # The sequence of each lease at the last look, with its epoch.
        self._sequences: dict[PoolKey, tuple[int, int]] = {}
        # The sequences of leases that others keep, or nobody, at the last scan.
        self._scanned: dict[PoolKey, int] = {}

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("lease_keeper", interval, self.step)

    def scanner(self, interval: timedelta) -> PeriodicWorker:
        """The worker that finds leases which nobody looks after; `interval` is longer than the keeper's."""
        return PeriodicWorker("lease_scan", interval, self.scan)

    async def scan(self) -> bool:
        """Adopt the leases that nobody has touched since the last scan: those of a process that is gone.

        Answers False: there is no more to do.
        """
        if not self._valkey.is_up:
            return False
        seen: dict[PoolKey, int] = {}
        try:
            async for key, view in self._pools.scan_leases():
                if self._leases.knows(key) or not view.server_matches or view.remaining == 0:
                    continue
                # Whoever keeps a lease prolongs it, which raises its sequence.
                if self._scanned.get(key) == view.sequence:
                    await self._adopt(key, view.epoch)
                else:
                    seen[key] = view.sequence
        except PoolsUnavailable as error:
            self._valkey.failed(error)
        self._scanned = seen
        return False

    async def step(self) -> bool:
        """Look once at every lease in use. Answers False: there is no more to do."""
        in_use = self._leases.in_use()
        _IN_USE.set(len(in_use))
        if not self._valkey.is_up:
            return False
        self._looks += 1
        began = self._monotonic()
        self._sequences = {
            known.key: self._sequences[known.key] for known in in_use if known.key in self._sequences
        }
        try:
            for first in range(0, len(in_use), _BATCH):
                await self._look(in_use[first : first + _BATCH])
        except PoolsUnavailable as error:
            self._valkey.failed(error)
        else:
            self._looked_at = began
        return False

    async def _look(self, leases: Sequence[KnownLease]) -> None:
        kept: list[KnownLease] = []
        seen: list[KnownLease] = []
        for known in leases:
            (seen if self._is_to_be_seen(known) else kept).append(known)
        views = await self._pools.peek([known.key for known in seen])
        for known, view in zip(seen, views, strict=True):
            if view is None or not view.server_matches or view.epoch != known.epoch:
                # Lost, or superseded by another process: whoever uses it next asks the ledger.
                _LOST.inc(view is None or not view.server_matches)
                self._leases.forget(known.key)
            elif self._is_older_copy(known, view):
                _log.warning("lease.went_back", customer_id=known.key.tag, epoch=known.epoch)
                _LOST.inc()
                await self._open_next(known)
            else:
                _SWEPT.inc(view.expired)
                if view.expired:
                    await self._pools.sweep([known.key])
                if self._is_idle(known) and view.reserved == 0:
                    await self._return(known, "idle")
                    self._leases.forget(known.key)
                elif view.returning:
                    # Begun by a process that is gone, or about to be finished: twice is as good as once.
                    await self._return(known, "begun")
                else:
                    kept.append(known)
        if not kept:
            return
        for known, answer in zip(kept, await self._leases.prolong(kept), strict=True):
            if isinstance(answer, TallystickError):
                # Whoever opened the next lease may have died before it told Redis, which would go on to
                # allocate in this one, beyond its end.
                await self._open_next(known)
            elif answer.recall:
                await self._return(answer, "recall")

    async def _adopt(self, key: PoolKey, epoch: int) -> None:
        try:
            await self._leases.adopt(key, epoch)
        except TallystickError as error:
            # The next scan but one tries again.
            _log.warning("lease.not_adopted", customer_id=key.tag, reason=error.reason)

    async def _open_next(self, known: KnownLease) -> None:
        try:
            await self._leases.open(known.key, known.epoch, 0)
        except (TallystickError, grpc.aio.AioRpcError) as error:
            # Its next look tries again; the others wait for nothing.
            _log.warning("lease.not_opened", customer_id=known.key.tag, detail=str(error))
        else:
            self._sequences.pop(known.key, None)

    def _is_older_copy(self, known: KnownLease, view: PoolView) -> bool:
        """Whether the lease in Redis is behind what it was at the last look, as after a restored backup."""
        epoch, sequence = self._sequences.get(known.key, (view.epoch, 0))
        if epoch == view.epoch and view.sequence < sequence:
            # Not noted: it stays so until the next lease is open.
            return True
        self._sequences[known.key] = (view.epoch, view.sequence)
        return False

    def _is_to_be_seen(self, known: KnownLease) -> bool:
        """Whether a look at the lease is one at Redis too, and not only at what the ledger says of it."""
        is_its_turn = self._looks % _LOOKS_WITHOUT_USE == 0
        return is_its_turn or known.used_at >= self._looked_at or self._is_idle(known)

    def _is_idle(self, known: KnownLease) -> bool:
        return self._monotonic() - known.used_at > self._idle

    async def _return(self, known: KnownLease, reason: str) -> None:
        try:
            await self._leases.give_back(known)
        except TallystickError as error:
            # Its next look tries again; the others wait for nothing.
            _log.warning("lease.not_returned", customer_id=known.key.tag, reason=error.reason)
        else:
            _RETURNED.labels(reason).inc()
