"""What the end of a billing period charges: a pure function of what was counted in it.

It moves no counter. What closing comes to may be computed at any time and as often as one likes, after late
events too, and is always what it would have been if the period were closed once, after all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from services.metering.domain.billing_period import Period
from services.metering.domain.compiled_price import CompiledPrice, CompiledTerms
from services.metering.domain.price_counter import CounterPeriod
from services.metering.domain.rating import Counters, Rated, close_period
from services.metering.domain.usage_event import PERIOD_WORKFLOW

_INSTANT: Final = timedelta(microseconds=1)


class PricedAtClose(NamedTuple):
    """A price that was counted for, and the version that it is taken from."""

    price_version_id: str
    price: CompiledPrice


class ClosedPrice(NamedTuple):
    """What closing makes of a price."""

    price_version_id: str
    price_name: str
    rated: Rated


class Settlement(NamedTuple):
    """What a closing charges, and what credit pays of it: negative for what becomes credit."""

    amount_micros: int
    from_credit_micros: int


def last_instant(period: Period) -> datetime:
    """The moment whose prices and terms close a period."""
    return period.end - _INSTANT


def workflow_id_of(key: CounterPeriod) -> str:
    """The run of the charges that close a period."""
    # Two ways to cut periods may begin some on the same day.
    start = key.start.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{PERIOD_WORKFLOW}{key.organization_id}/{key.currency_code}/{start}"


def counted_prices(counters: Iterable[str]) -> list[str]:
    """The keys of the prices that counters are of, "{price_book_id}/{price.name}", sorted."""
    keys: set[str] = set()
    for name in counters:
        book, slash, rest = name.partition("/")
        # Neither names of prices nor of components hold one of these. Other counters are no price's own.
        if slash and ":" not in book:
            keys.add(f"{book}/{rest.partition('/')[0].partition(':')[0]}")
    return sorted(keys)


def find_prices(
    keys: Iterable[str], versions: Sequence[str], compiled: Mapping[str, Sequence[CompiledPrice]]
) -> list[PricedAtClose]:
    """Each price in the first of the versions that has it, in the order of the keys."""
    found: list[PricedAtClose] = []
    for key in keys:
        for version in versions:
            price = next((one for one in compiled.get(version, ()) if one.key == key), None)
            if price is not None:
                found.append(PricedAtClose(version, price))
                break
    return found


def close_prices(
    prices: Iterable[PricedAtClose], terms: CompiledTerms, counters: Counters
) -> list[ClosedPrice]:
    """What closing makes of prices, one after the other: what the maximum of a contract leaves to one, those
    before it have not used. Only those are answered of which there is something to say.
    """
    left = dict(counters)
    closed: list[ClosedPrice] = []
    for version, price in prices:
        if price.period_minimum is None and all(one.close is None for one in price.components):
            continue
        rated = close_period(price, terms, left)
        left.update(rated.closing)
        if rated.lines:
            closed.append(ClosedPrice(version, price.name, rated))
    return closed


def settle(difference_micros: int, credit_micros: int) -> Settlement:
    """What is charged of what a closing comes to, beyond what was closed before, and what credit pays."""
    from_credit = min(difference_micros, credit_micros)
    return Settlement(difference_micros - from_credit, from_credit)
