"""What pools should answer, in plain Python: the oracle of their state machine. Grace is zero."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from services.metering.store.pools import (
    Answer,
    CounterState,
    End,
    EndAnswer,
    Ended,
    Extend,
    LeaseState,
    LeaseUse,
    Missing,
    OpenReservation,
    Outlives,
    PoolKey,
    Refused,
    Reserve,
    Reserved,
    Reused,
    State,
    Superseded,
    Use,
)


@dataclass
class ModelPool:
    """One pool. `lease` is None for a counter."""

    lease: LeaseState | None = None
    spent: int = 0
    returning: tuple[str, int] | None = None
    open: dict[str, tuple[int, datetime]] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        return sum(amount for amount, _ in self.open.values())

    def free(self, use: Use | None = None) -> int | None:
        if self.lease is not None:
            return self.lease.remaining - (self.returning[1] if self.returning else 0) - self.reserved
        return use.limit - self.spent - self.reserved if use and not isinstance(use, LeaseUse) else None

    def room(self, use: Use) -> int:
        free = self.free(use)
        assert free is not None
        return free

    def sweep(self, now: datetime) -> None:
        self.open = {name: one for name, one in self.open.items() if one[1] >= now}

    def put(self, name: str, amount: int, expire_time: datetime) -> None:
        before = self.open.get(name, (0, expire_time))
        self.open[name] = (max(amount, before[0]), max(expire_time, before[1]))

    def merge(self, state: State | None) -> None:
        if isinstance(state, CounterState) and self.lease is None:
            self.spent = max(self.spent, state.spent)
        if isinstance(state, LeaseState) and self.lease is not None and state.epoch == self.lease.epoch:
            newer = max(self.lease, state, key=lambda one: one.version)
            if state.version == self.lease.version:
                newer = self.lease
            expire_time = max(self.lease.expire_time, state.expire_time)
            self.lease = LeaseState(newer.epoch, newer.version, newer.remaining, expire_time)


@dataclass
class _Record:
    state: str
    content: str | None
    token: str
    amount: int
    expire_time: datetime
    refusal: tuple[int, int, int, int] | None = None


class PoolModel:
    """Every pool and every record, and nothing of Redis."""

    def __init__(self) -> None:
        self.pools: dict[PoolKey, ModelPool] = {}
        self._records: dict[tuple[str, str], _Record] = {}

    def reserve(self, request: Reserve, now: datetime) -> Answer:
        record = self._record(request.uses[0].key.tag, request.reservation_id, now)
        free = self._free(request.uses)
        if record is not None:
            if record.content is not None and record.content != request.content_hash:
                return Reused(free=free, sequence=None)
            if record.state == "open":
                return self._reserved(record, free, duplicate=True)
            if record.refusal is not None and record.state == "refused":
                return self._refused(record.refusal, free, frozen=True)
            return Ended(state=record.state, token=record.token, free=free, sequence=None)
        problem = self._problem(request.uses, request.expire_time, now)
        if problem is not None:
            return problem
        refusal = self._refusal(request.reservation_id, request.amount, request.uses)
        record = _Record(
            "refused" if refusal else "open",
            request.content_hash,
            "" if refusal else request.token,
            request.amount,
            request.expire_time,
            refusal,
        )
        if refusal is None or request.freeze:
            self._records[request.uses[0].key.tag, request.reservation_id] = record
        if refusal is not None:
            return self._refused(refusal, self._free(request.uses), frozen=False)
        self._put(request.reservation_id, request.uses, record)
        return self._reserved(record, self._free(request.uses), duplicate=False)

    def extend(self, request: Extend, now: datetime) -> Answer:
        record = self._record(request.uses[0].key.tag, request.reservation_id, now)
        if record is not None and record.state != "open":
            return Ended(state=record.state, token=record.token, free=self._free(request.uses), sequence=None)
        problem = self._problem(request.uses, request.expire_time, now)
        if problem is not None:
            return problem
        if record is None:
            return Ended(state="unknown", token="", free=self._free(request.uses), sequence=None)
        if request.amount <= record.amount and request.expire_time <= record.expire_time:
            return self._reserved(record, self._free(request.uses), duplicate=True)
        amount = max(request.amount, record.amount)
        refusal = self._refusal(request.reservation_id, amount, request.uses)
        if refusal is not None:
            return self._refused(refusal, self._free(request.uses), frozen=False)
        record.amount, record.token = amount, request.token
        record.expire_time = max(request.expire_time, record.expire_time)
        self._put(request.reservation_id, request.uses, record)
        return self._reserved(record, self._free(request.uses), duplicate=False)

    def end(self, request: End, now: datetime) -> EndAnswer:
        tag = request.pools[0][0].tag
        record = self._record(tag, request.reservation_id, now)
        for key, state in request.pools:
            pool = self.pools.get(key)
            if pool is not None:
                pool.open.pop(request.reservation_id, None)
                pool.merge(state)
                pool.sweep(now)
        known, was_open = record is not None, record is not None and record.state == "open"
        if record is None:
            record = _Record("open", None, "", 0, request.expire_time)
        if record.state in ("open", "refused"):
            record.state, record.token = request.state, request.token
        self._records[tag, request.reservation_id] = record
        first = self.pools.get(request.pools[0][0])
        return EndAnswer(
            state=record.state,
            token=record.token,
            known=known,
            was_open=was_open,
            free=first.free() if first else None,
            sequence=None,
        )

    def install(self, key: PoolKey, state: LeaseState) -> bool:
        pool = self.pools.get(key)
        if pool is not None and pool.lease is not None and pool.lease.epoch >= state.epoch:
            return False
        self.pools[key] = ModelPool(lease=state)
        return True

    def seed(
        self, key: PoolKey, spent: int, reservations: Sequence[tuple[str, int, datetime]], now: datetime
    ) -> None:
        pool = self.pools.setdefault(key, ModelPool())
        pool.spent = max(pool.spent, spent)
        for reservation in reservations:
            pool.put(*reservation)
        pool.sweep(now)

    def merge(self, key: PoolKey, state: State, now: datetime) -> None:
        pool = self.pools.get(key)
        if pool is not None:
            pool.merge(state)
            pool.sweep(now)

    def withdraw(
        self, key: PoolKey, epoch: int, return_id: str, amount: int, now: datetime
    ) -> tuple[str, int] | None:
        pool = self.pools.get(key)
        if pool is None or pool.lease is None or pool.lease.epoch != epoch:
            return None
        pool.sweep(now)
        amount = min(amount, pool.free() or 0)
        if pool.returning is None and amount > 0:
            pool.returning = (return_id, amount)
        return pool.returning

    def returned(self, key: PoolKey, return_id: str, state: LeaseState, now: datetime) -> bool:
        pool = self.pools.get(key)
        if pool is None:
            return False
        matches = pool.returning is not None and pool.returning[0] == return_id
        if matches:
            pool.returning = None
        pool.merge(state)
        pool.sweep(now)
        return matches

    def listed(self, key: PoolKey) -> list[OpenReservation]:
        pool = self.pools.get(key, ModelPool())
        found = [OpenReservation(name, *one) for name, one in pool.open.items()]
        return sorted(found, key=lambda one: (one.expire_time, one.reservation_id))

    def flush(self) -> None:
        self.pools.clear()
        self._records.clear()

    def _record(self, tag: str, name: str, now: datetime) -> _Record | None:
        record = self._records.get((tag, name))
        if record is not None and record.state == "open" and record.expire_time < now:
            record.state = "expired"
        return record

    def _free(self, uses: Sequence[Use]) -> int | None:
        pool = self.pools.get(uses[0].key)
        return pool.free(uses[0]) if pool is not None else None

    def _problem(self, uses: Sequence[Use], expire_time: datetime, now: datetime) -> Answer | None:
        for i, use in enumerate(uses):
            pool = self.pools.get(use.key)
            if pool is None:
                return Missing(use=i, free=self._free(uses), sequence=None)
            if isinstance(use, LeaseUse):
                assert pool.lease is not None
                if pool.lease.epoch != use.epoch:
                    return Superseded(use=i, epoch=pool.lease.epoch, free=self._free(uses), sequence=None)
            pool.sweep(now)
            if pool.lease is not None and expire_time > pool.lease.expire_time:
                return Outlives(
                    use=i, expire_time=pool.lease.expire_time, free=self._free(uses), sequence=None
                )
        return None

    def _refusal(self, name: str, amount: int, uses: Sequence[Use]) -> tuple[int, int, int, int] | None:
        for i, use in enumerate(uses):
            pool = self.pools[use.key]
            before = pool.open.get(name, (-1, None))[0]
            if amount > before and amount - max(before, 0) > pool.room(use):
                return i, pool.room(use), pool.spent, pool.reserved
        return None

    def _put(self, name: str, uses: Sequence[Use], record: _Record) -> None:
        for use in uses:
            self.pools[use.key].put(name, record.amount, record.expire_time)

    def _reserved(self, record: _Record, free: int | None, *, duplicate: bool) -> Reserved:
        return Reserved(
            token=record.token,
            amount=record.amount,
            expire_time=record.expire_time,
            duplicate=duplicate,
            free=free,
            sequence=None,
        )

    def _refused(self, refusal: tuple[int, int, int, int], free: int | None, *, frozen: bool) -> Refused:
        use, room, spent, reserved = refusal
        return Refused(
            use=use, room=room, spent=spent, reserved=reserved, frozen=frozen, free=free, sequence=None
        )
