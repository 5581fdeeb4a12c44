"""Short ways to ask pools for something, for tests."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from services.metering.store.pools import (
    CounterState,
    CounterUse,
    End,
    Extend,
    LeaseState,
    LeaseUse,
    PoolKey,
    Reserve,
    State,
    Use,
)

T = TypeVar("T")

LATER = datetime(2100, 1, 1, 12, 30, 15, 123_457, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LEASE_END = datetime(2101, 1, 1, tzinfo=UTC)

USD = PoolKey("cus_1", "USD")
DAY = PoolKey("cus_1", "bud_day:2026-11-01")
MONTH = PoolKey("cus_1", "bud_month:2026-11")


def lease(
    remaining: int, *, epoch: int = 1, version: int = 1, expire_time: datetime = LEASE_END
) -> LeaseState:
    return LeaseState(epoch, version, remaining, expire_time)


def in_usd(epoch: int = 1) -> LeaseUse:
    return LeaseUse(USD, epoch)


def request(
    reservation_id: str,
    amount: int,
    *uses: Use,
    expire_time: datetime = LATER,
    content: str = "",
    token: str = "",
    freeze: bool = False,
) -> Reserve:
    return Reserve(
        reservation_id=reservation_id,
        amount=amount,
        expire_time=expire_time,
        content_hash=content or f"content of {reservation_id}",
        token=token or f"token of {reservation_id}",
        uses=uses or (in_usd(),),
        freeze=freeze,
    )


def extension(
    reservation_id: str, amount: int, *uses: Use, expire_time: datetime = LATER, token: str = ""
) -> Extend:
    return Extend(
        reservation_id=reservation_id,
        amount=amount,
        expire_time=expire_time,
        token=token or "longer",
        uses=uses or (in_usd(),),
    )


def ending(
    reservation_id: str,
    *pools: tuple[PoolKey, State | None],
    state: str = "settled",
    token: str = "",
    expire_time: datetime = LATER,
) -> End:
    return End(
        reservation_id=reservation_id,
        state=state,
        token=token or "how",
        expire_time=expire_time,
        pools=pools or ((USD, None),),
    )


def day(limit: int) -> CounterUse:
    return CounterUse(DAY, limit)


def month(limit: int) -> CounterUse:
    return CounterUse(MONTH, limit)


def spent(micros: int) -> CounterState:
    return CounterState(micros)


def only(answers: Sequence[Any], kind: type[T]) -> T:
    """The one answer, which is of this kind."""
    (answer,) = answers
    assert isinstance(answer, kind), answer
    return answer
