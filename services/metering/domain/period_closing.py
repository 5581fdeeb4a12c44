"""What the end of a billing period charges: a pure function of what was counted in it.

It moves no counter. What closing comes to may be computed at any time and as often as one likes, after late
events too, and is always what it would have been if the period were closed once, after all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from services.kit.money import round_half_even
from services.kit.runs import period_run
from services.metering.domain.billing_period import Period
from services.metering.domain.compiled_price import (
    UNCHARGED,
    CompiledComponent,
    CompiledPrice,
    CompiledTerms,
    Limit,
)
from services.metering.domain.price_book import UnitPrice
from services.metering.domain.price_counter import CounterPeriod
from services.metering.domain.rating import Counters, Rated, close_period

_INSTANT: Final = timedelta(microseconds=1)


class Offer(NamedTuple):
    """A version that may close a period, and the terms that it then has."""

    price_version_id: str
    terms: CompiledTerms


class PricedAtClose(NamedTuple):
    """A price that was counted for, the version that it is taken from, and its terms."""

    price_version_id: str
    price: CompiledPrice
    terms: CompiledTerms


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
    """The moment of a period's charge."""
    return period.end - _INSTANT


def workflow_id_of(key: CounterPeriod) -> str:
    """The run of the charges that close a period."""
    return period_run(key.organization_id, key.currency_code, key.start)


def counted_prices(counters: Iterable[str]) -> list[str]:
    """The keys of the prices that counters are of, "{price_book_id}/{price.name}", sorted."""
    keys: set[str] = set()
    for name in counters:
        book, slash, rest = name.partition("/")
        # Neither names of prices nor of components hold one of these. Other counters are no price's own.
        if slash and ":" not in book:
            keys.add(f"{book}/{rest.partition('/')[0].partition(':')[0]}")
    return sorted(keys)


def to_find(counters: Counters) -> set[str]:
    """What closing needs versions for: keys of prices, and counters of what nobody has charged yet."""
    return {*counted_prices(counters), *_uncharged(counters)}


def found_in(prices: Iterable[CompiledPrice]) -> set[str]:
    """What of that a version answers."""
    found: set[str] = set()
    for price in prices:
        found.add(price.key)
        found.update(one.counter for one in price.components if one.close is not None)
    return found


def find_prices(
    counters: Counters, offers: Sequence[Offer], compiled: Mapping[str, Sequence[CompiledPrice]]
) -> list[PricedAtClose]:
    """Each price in the first of the versions that has it, in the order of the keys.

    Units that this version does not charge at the end, because it has another component of that name or
    none, were counted for an earlier one: they cost what the first version says that does. They come before,
    with the discounts and limits of the price.
    """
    found: list[PricedAtClose] = []
    uncharged = _uncharged(counters)
    for key in counted_prices(counters):
        having = [
            PricedAtClose(version, price, terms)
            for version, terms in offers
            for price in compiled.get(version, ())
            if price.key == key
        ]
        if not having:
            continue
        last = having[0]
        left = {name for name in uncharged if name.startswith(f"{key}/")} - found_in([last.price])
        for version, price, _ in having[1:]:
            components = tuple(one for one in price.components if one.counter in left)
            if components:
                left.difference_update(one.counter for one in components)
                remainder = _remainder(last.price, price, components)
                found.append(PricedAtClose(version, remainder, last.terms))
        found.append(last)
    return found


def _uncharged(counters: Counters) -> list[str]:
    return [name for name, value in counters.items() if value and name.endswith(UNCHARGED)]


def _remainder(
    last: CompiledPrice, earlier: CompiledPrice, components: tuple[CompiledComponent, ...]
) -> CompiledPrice:
    """What an earlier version charges at the end of what the last one does not."""
    is_limited = last.period_minimum is not None or last.period_maximum is not None
    return last._replace(
        components=components,
        denominator=earlier.denominator,
        # Never reached: it has what is charged counted, for the minimum of the last version.
        period_minimum=Limit(0, UnitPrice("0")) if is_limited else None,
    )


def prorate_minimum(price: CompiledPrice, applied: timedelta, whole: timedelta) -> CompiledPrice:
    """A price with the part of its minimum that is due if it had one for so long of a whole period."""
    limit = price.period_minimum
    if limit is None or applied >= whole:
        return price
    micros = round_half_even(limit.micros * (applied // _INSTANT), whole // _INSTANT)
    return price._replace(period_minimum=limit._replace(micros=micros))


def close_prices(prices: Iterable[PricedAtClose], counters: Counters) -> list[ClosedPrice]:
    """What closing makes of prices, one after the other: what the maximum of a contract leaves to one, those
    before it have not used. Only those are answered of which there is something to say.
    """
    left = dict(counters)
    closed: list[ClosedPrice] = []
    for version, price, terms in prices:
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
