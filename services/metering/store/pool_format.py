"""What travels between pools and the functions of pools.lua: keys, arguments, answers."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from services.kit.errors import TallystickError
from services.metering.store.pool_functions import PoolError, text
from services.metering.store.pool_types import (
    MAX_MICROS,
    Answer,
    EndAnswer,
    Ended,
    LeaseState,
    LeaseUse,
    Missing,
    Outlives,
    PoolKey,
    PoolView,
    Refused,
    Reserved,
    Reused,
    Stale,
    State,
    Superseded,
    Use,
)

MICROSECOND: Final = timedelta(microseconds=1)
# Matches the first key of every pool.
ANY_POOL: Final = "tallystick:{*}:pool:*"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# In place of a state that is not known.
_NO_STATE: Final = ("", "", "", "", "")


def record_key(tag: str, reservation_id: str) -> str:
    """The key of a reservation's record."""
    return f"tallystick:{{{tag}}}:reservation:{reservation_id}"


def to_pool_key(name: str) -> PoolKey:
    """The pool whose first key this is."""
    tag, name = name.removeprefix("tallystick:{").split("}:pool:", 1)
    return PoolKey(tag, name)


def pool_keys(key: PoolKey) -> list[str]:
    """The keys of a pool. Raises PoolError if it cannot be one."""
    if not key.tag or not key.name or "{" in key.tag or "}" in key.tag:
        raise PoolError(f"no pool can be called {key}")
    return [f"tallystick:{{{key.tag}}}:{kind}:{key.name}" for kind in ("pool", "amounts", "expiries")]


def from_uses(uses: Sequence[Use]) -> list[str | int]:
    """The arguments for uses: two for each."""
    words: list[str | int] = []
    for use in uses:
        words += ("lease", use.epoch) if isinstance(use, LeaseUse) else ("counter", from_micros(use.limit))
    return words


def from_lease_state(state: LeaseState) -> tuple[str | int, ...]:
    """The five arguments for the state of a lease."""
    return "lease", state.epoch, state.version, from_micros(state.remaining), from_time(state.expire_time)


def from_state(state: State | None) -> tuple[str | int, ...]:
    """The five arguments for a state, or for none."""
    if state is None:
        return _NO_STATE
    if isinstance(state, LeaseState):
        return from_lease_state(state)
    return "counter", from_micros(state.spent), "", "", ""


def from_micros(amount: int) -> int:
    """The amount, if Redis can count it; else raises PoolError."""
    if not 0 <= amount <= MAX_MICROS:
        raise PoolError(f"{amount} is not from 0 to {MAX_MICROS} micros")
    return amount


def from_time(time: datetime) -> int:
    """Microseconds, which Redis can count as well."""
    return (time - _EPOCH) // MICROSECOND


def to_time(microseconds: int) -> datetime:
    """The time that from_time() gave."""
    return _EPOCH + microseconds * MICROSECOND


def to_answer(answer: Any) -> Answer | TallystickError:
    """What reserve() and extend() answer."""
    if isinstance(answer, TallystickError):
        return answer
    kind, *values, free, sequence = answer
    match text(kind):
        case "reserved":
            duplicate, token, amount, expire = values
            return Reserved(
                token=text(token),
                amount=amount,
                expire_time=to_time(expire),
                duplicate=duplicate == 1,
                free=free,
                sequence=sequence,
            )
        case "refused":
            frozen, use, room, spent, reserved = values
            return Refused(
                use=use,
                room=room,
                spent=spent,
                reserved=reserved,
                frozen=frozen == 1,
                free=free,
                sequence=sequence,
            )
        case "missing":
            return Missing(use=values[0], free=free, sequence=sequence)
        case "stale":
            return Stale(use=values[0], free=free, sequence=sequence)
        case "superseded":
            return Superseded(use=values[0], epoch=values[1], free=free, sequence=sequence)
        case "outlives":
            return Outlives(use=values[0], expire_time=to_time(values[1]), free=free, sequence=sequence)
        case "reused":
            return Reused(free=free, sequence=sequence)
        case "ended":
            return Ended(state=text(values[0]), token=text(values[1]), free=free, sequence=sequence)
    raise PoolError(f"an unknown answer: {answer!r}")


def to_end_answer(answer: Any) -> EndAnswer | TallystickError:
    """What end() answers."""
    if isinstance(answer, TallystickError):
        return answer
    known, was_open, state, token, free, sequence = answer
    return EndAnswer(
        state=text(state),
        token=text(token),
        known=known == 1,
        was_open=was_open == 1,
        free=free,
        sequence=sequence,
    )


def to_view(answer: Any) -> PoolView:
    """What peek() answers."""
    (kind, stale, epoch, version, remaining, expire, returning, return_id, spent, reserved, free, count,
     expired, sequence) = answer  # fmt: skip
    return PoolView(
        is_lease=text(kind) == "lease",
        server_matches=stale == 0,
        epoch=epoch,
        version=version,
        remaining=remaining,
        expire_time=to_time(expire),
        returning=returning,
        return_id=text(return_id),
        spent=spent,
        reserved=reserved,
        free=free,
        open_count=count,
        expired=expired,
        sequence=sequence,
    )
