"""What pools are asked and what they answer. Amounts are micros, times are UTC."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

# Lua counts in doubles, which are exact to 2^53, some 9 × 10^15: below this bound, every sum of a few is.
MAX_MICROS: Final = 10**15
# How long a counter stays after its last use: longer than the longest period, a month.
COUNTER_KEEP: Final = timedelta(days=40)
# States that records have by themselves; a reservation cannot end in one.
OPEN_STATE: Final = "open"
REFUSED_STATE: Final = "refused"
# How a reservation ended of which nobody told: its time was over, or nothing is known of it any more.
EXPIRED_STATE: Final = "expired"
UNKNOWN_STATE: Final = "unknown"


class PoolKey(NamedTuple):
    """Names a pool. Pools of one tag live on one node of a cluster, so that one call can use several.

    `tag` is the id of the owner ("cus_…", "bud_…"), and holds no braces.
    """

    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """Allocate in a lease, if it is at this epoch."""

    key: PoolKey
    epoch: int


@dataclass(frozen=True, slots=True)
class CounterUse:
    """Allocate in a counter as far as this limit goes."""

    key: PoolKey
    limit: int


Use = LeaseUse | CounterUse


@dataclass(frozen=True, slots=True)
class LeaseState:
    """A lease as the ledger said. Of two states of one epoch the one with the higher version is the newer."""

    epoch: int
    version: int
    remaining: int
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class CounterState:
    """A counter as PostgreSQL said. Of two the higher is the newer."""

    spent: int


State = LeaseState | CounterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Reserve an amount in all of `uses`, which have one tag, or in none.

    `content_hash` tells a retry from another request under the same id; `token` is stored and answered again.
    With `freeze` a refusal is remembered, so that a retry is refused as well.
    """

    reservation_id: str
    amount: int
    expire_time: datetime
    content_hash: str
    token: str
    uses: Sequence[Use]
    freeze: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Raise an open reservation to an amount and a time; what is already higher stays as it is."""

    reservation_id: str
    amount: int
    expire_time: datetime
    token: str
    uses: Sequence[Use]


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Take a reservation out of all its pools, and remember how it ended.

    `pools` are those that it was made in, each with its newest state if that is known.
    """

    reservation_id: str
    state: str
    token: str
    expire_time: datetime
    pools: Sequence[tuple[PoolKey, State | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """`free` and `sequence` are those of the first pool, after the call; None where Redis does not hold it.

    A sequence that falls while the epoch stays the same means that the pool is an old copy.
    """

    free: int | None
    sequence: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved(_Answered):
    """The reservation is open. As a `duplicate` it was so before, and this is what was stored then."""

    token: str
    amount: int
    expire_time: datetime
    duplicate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(_Answered):
    """The pool of `use` (an index) had only this room: limit or lease, less spent and reserved.

    `frozen` if an earlier call was refused so, and this repeats its answer.
    """

    use: int
    room: int
    spent: int
    reserved: int
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing(_Answered):
    """Redis does not hold the pool of `use`: it was never made, or it is lost."""

    use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale(_Answered):
    """The pool of `use` was made in another server process: it may be an old copy."""

    use: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded(_Answered):
    """The lease of `use` is at another epoch: a later one, or an earlier one if that is not installed yet."""

    use: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlives(_Answered):
    """The lease of `use` ends at `expire_time`, as far as Redis knows, before the reservation would."""

    use: int
    expire_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused(_Answered):
    """The id was used before, for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(_Answered):
    """The reservation is over. `state` and `token` are what end() was told.

    Or the state is EXPIRED_STATE, with the token of the reservation; or UNKNOWN_STATE, of extend() only.
    """

    state: str
    token: str


Answer = Reserved | Refused | Missing | Stale | Superseded | Outlives | Reused | Ended


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAnswer(_Answered):
    """How the reservation ended: as told now, or as told before if that came first.

    `known` if Redis remembered it; `was_open` if this call ended it. `free` is None for a counter.
    """

    state: str
    token: str
    known: bool
    was_open: bool


class Installed(NamedTuple):
    """Whether install() made the pool, and its sequence."""

    installed: bool
    sequence: int


class Withdrawal(NamedTuple):
    """A return under way: Redis does not allocate it any more, the ledger is to take it under this id."""

    return_id: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """A pool as the next call would find it: `reserved` and `free` leave out what is merely not swept yet.

    That is `expired`. `free` is None for a counter, whose limit Redis does not know; a counter has no epoch,
    and a lease has not spent. `server_matches` is False for what may be an old copy.
    """

    is_lease: bool
    server_matches: bool
    epoch: int
    version: int
    remaining: int
    expire_time: datetime
    returning: int
    return_id: str
    spent: int
    reserved: int
    free: int | None
    open_count: int
    expired: int
    sequence: int


class OpenReservation(NamedTuple):
    """A reservation in a pool."""

    reservation_id: str
    amount: int
    expire_time: datetime
