"""What quantities cost in tiers: exact integers, in parts, `denominator` of which make a micro."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from services.kit.money import MICROS_PER_UNIT, round_half_even
from services.metering.domain.price_book import MeterRate, TierMode, UnitPrice

# Units that have one price: how many, at which, in which tier (0 for none), and the parts that they cost.
# A plain tuple: this is the hot path of rating.
Piece = tuple[int, UnitPrice, int, int]

# What the units behind one position up to another cost, of which there is at least one. Within an execution
# the first position is 0.
Charge = Callable[[int, int], Sequence[Piece]]


class _Tier(NamedTuple):
    """A tier: its first unit is the one behind `start`; `base` is what all units before it cost."""

    number: int
    start: int
    end: int | None
    price: UnitPrice
    rate: int
    fee_price: UnitPrice | None
    fee: int
    base: int


def micros_of(price: UnitPrice) -> Fraction:
    """The price of one unit, in micros, exactly."""
    return Fraction(Decimal(price.amount)) * MICROS_PER_UNIT / price.per_units


def prices_of(rate: MeterRate) -> list[Fraction]:
    """All that a rate multiplies by, in micros: these have to be whole numbers of parts."""
    fees = [micros_of(tier.fee) for tier in rate.tiers if tier.fee is not None]
    if rate.tier_mode is TierMode.PACKAGE:
        return fees + [micros_of(tier.price) * tier.price.per_units for tier in rate.tiers]
    return fees + [micros_of(tier.price) for tier in rate.tiers]


def charge_execution(rate: MeterRate, denominator: int) -> Charge:
    """What the units of an execution cost by itself, exactly."""
    tiers = _compile(rate, denominator)
    if rate.tier_mode is TierMode.PACKAGE:
        return _packages(tiers[0])
    if rate.tier_mode is TierMode.VOLUME:
        return lambda start, end: volume(tiers, end)
    return _graduated(tiers)


def charge_period(rate: MeterRate, denominator: int) -> Charge:
    """What the next units of a billing period cost, each piece a whole number of micros.

    What all units up to a position cost is rounded, half to even, and a piece costs the difference: however a
    quantity is split into executions, they add up to the same.
    """
    tiers = _compile(rate, denominator)
    exact = _packages(tiers[0]) if rate.tier_mode is TierMode.PACKAGE else _graduated(tiers)
    cost_until = _package_cost(tiers[0]) if rate.tier_mode is TierMode.PACKAGE else _graduated_cost(tiers)

    def charge(start: int, end: int) -> Sequence[Piece]:
        at = cost_until(start)
        rounded = round_half_even(at, denominator)
        pieces = []
        for quantity, unit_price, tier, parts in exact(start, end):
            at += parts
            until = round_half_even(at, denominator)
            pieces.append((quantity, unit_price, tier, (until - rounded) * denominator))
            rounded = until
        return pieces

    return charge


def charge_close(rate: MeterRate, denominator: int) -> Charge:
    """What all units of a billing period cost whose last one decides about the price, exactly."""
    tiers = _compile(rate, denominator)
    return lambda start, end: volume(tiers, end)


def volume(tiers: Sequence[_Tier], quantity: int) -> Sequence[Piece]:
    """All units at the price of the tier that the last one falls into, and that tier's fee."""
    for tier in tiers:
        if tier.end is None or quantity <= tier.end:
            break
    pieces = [(quantity, tier.price, tier.number, quantity * tier.rate)]
    if tier.fee_price is not None:
        pieces.append((1, tier.fee_price, tier.number, tier.fee))
    return pieces


def _graduated(tiers: Sequence[_Tier]) -> Charge:
    """Each unit at the price of its tier; a tier's fee once its first unit is used."""

    def charge(start: int, end: int) -> Sequence[Piece]:
        pieces: list[Piece] = []
        for number, tier_start, tier_end, price, rate, fee_price, fee, _ in tiers:
            if tier_end is not None and start >= tier_end:
                continue
            first = start if start > tier_start else tier_start
            if fee_price is not None and first == tier_start:
                pieces.append((1, fee_price, number, fee))
            if tier_end is None or end <= tier_end:
                pieces.append((end - first, price, number, (end - first) * rate))
                break
            pieces.append((tier_end - first, price, number, (tier_end - first) * rate))
        return pieces

    return charge


def _graduated_cost(tiers: Sequence[_Tier]) -> Callable[[int], int]:
    """What all units up to a position cost."""

    def cost(position: int) -> int:
        if position == 0:
            return 0
        for tier in tiers:
            if tier.end is None or position <= tier.end:
                break
        return tier.base + tier.fee + (position - tier.start) * tier.rate

    return cost


def _packages(tier: _Tier) -> Charge:
    """Every package that is begun, whole: as many units as there are in it. Its rate is that of a package."""
    size = tier.price.per_units

    def charge(start: int, end: int) -> Sequence[Piece]:
        pieces: list[Piece] = []
        begun = -(-end // size) + start // -size
        if tier.fee_price is not None and start == 0:
            pieces.append((1, tier.fee_price, tier.number, tier.fee))
        if begun:
            pieces.append((begun * size, tier.price, tier.number, begun * tier.rate))
        return pieces

    return charge


def _package_cost(tier: _Tier) -> Callable[[int], int]:
    size = tier.price.per_units
    return lambda position: tier.fee - (position // -size) * tier.rate if position else 0


def _compile(rate: MeterRate, denominator: int) -> list[_Tier]:
    compiled: list[_Tier] = []
    start = base = 0
    has_tiers = rate.tier_mode in (TierMode.GRADUATED, TierMode.VOLUME)
    for number, tier in enumerate(rate.tiers, 1):
        per_unit = micros_of(tier.price)
        if rate.tier_mode is TierMode.PACKAGE:
            per_unit *= tier.price.per_units
        fee = 0 if tier.fee is None else _parts(micros_of(tier.fee), denominator)
        one = _Tier(
            number=number if has_tiers else 0,
            start=start,
            end=tier.up_to,
            price=tier.price,
            rate=_parts(per_unit, denominator),
            fee_price=tier.fee,
            fee=fee,
            base=base,
        )
        compiled.append(one)
        if tier.up_to is not None:
            base += fee + (tier.up_to - start) * one.rate
            start = tier.up_to
    return compiled


def _parts(micros: Fraction, denominator: int) -> int:
    return micros.numerator * (denominator // micros.denominator)
