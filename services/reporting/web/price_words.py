"""What a price list says, in words for a table."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from services.reporting.web.words import outcome
from tallystick.metering.v1 import price_book_pb2
from tallystick.prices.document import percent

_TOKENS: Final = {
    price_book_pb2.TOKEN_KIND_INPUT: "input tokens",
    price_book_pb2.TOKEN_KIND_OUTPUT: "output tokens",
}
_MODES: Final = {
    price_book_pb2.TIER_MODE_GRADUATED: "each unit at the price of its tier",
    price_book_pb2.TIER_MODE_VOLUME: "all units at the price of the last one's tier",
    price_book_pb2.TIER_MODE_PACKAGE: "whole packages",
}
_UNITS: Final = {
    price_book_pb2.PERIOD_UNIT_QUARTER: "quarter",
    price_book_pb2.PERIOD_UNIT_YEAR: "year",
}


class Row(NamedTuple):
    """A line of the table of a price: `name` is empty for what belongs to the line above."""

    name: str
    what: str
    amount: str
    condition: str = ""


def selector(price: price_book_pb2.Price) -> str:
    """Which work a price is for."""
    parts = []
    if price.selector.action_types:
        parts.append(_listed(price.selector.action_types))
    if price.selector.agent_ids:
        parts.append(f"by {_listed(price.selector.agent_ids)}")
    return " ".join(parts) or "all other work"


def component_rows(price: price_book_pb2.Price) -> Iterator[Row]:
    """What is charged."""
    for one in price.components:
        match one.WhichOneof("component"):
            case "base_fee":
                yield Row(one.name, "each execution", unit_price(one.base_fee.price), one.condition)
            case "token_rate":
                what = _TOKENS.get(one.token_rate.token_kind, "tokens")
                yield Row(one.name, what, unit_price(one.token_rate.price), one.condition)
            case "outcome_bonus":
                wanted = one.outcome_bonus.outcome
                what = (
                    f"when it ends as {outcome(wanted).text.lower()}"
                    if wanted
                    else "when its condition holds"
                )
                yield Row(one.name, what, unit_price(one.outcome_bonus.price), one.condition)
            case "meter_rate":
                yield from _meter_rows(one)
            case _:
                yield Row(one.name, "a kind that this release does not know", "", one.condition)


def rule_rows(price: price_book_pb2.Price) -> Iterator[Row]:
    """What is made of the sum, in the order in which it is done."""
    for factor in price.outcome_factors:
        what = f"of it, when it ends as {outcome(factor.outcome).text.lower()}"
        yield Row("outcome", what, percent(factor.basis_points))
    for discount in price.discounts:
        yield from _discount_rows(discount)
    for name, what, limit in (
        ("minimum", "the least that an execution costs", price.minimum),
        ("maximum", "the most that an execution costs", price.maximum),
        ("minimum", "the least in a billing period with work in it", price.period_minimum),
        ("maximum", "the most in a billing period", price.period_maximum),
    ):
        # One that is not set has none.
        if limit.amount:
            yield Row(name, what, unit_price(limit))


def formula(meter: price_book_pb2.MeterFormula) -> str:
    """How a meter is computed."""
    return " + ".join(f"{term.units} × {_meter(term.meter)}{_per(term.per_units)}" for term in meter.terms)


def plan_rows(plan: price_book_pb2.Plan) -> Iterator[Row]:
    """What a plan costs, and what it includes."""
    period = _UNITS.get(plan.period_unit, "month")
    if plan.HasField("fee"):
        yield Row("fee", f"each {period}", unit_price(plan.fee))
    if plan.HasField("seat_fee"):
        yield Row("seats", f"each seat, each {period}", unit_price(plan.seat_fee))
    for one in plan.allowances:
        seats = f", and {one.quantity_per_seat:,} for each seat" if one.quantity_per_seat else ""
        yield Row("included", f"{one.quantity:,} {_meter(one.meter)}{seats}", "")


def unit_price(price: price_book_pb2.UnitPrice) -> str:
    """An exact price as it was published: "0.60 per 1,000,000"."""
    return f"{price.amount}{_per(price.per_units)}"


def _meter_rows(one: price_book_pb2.PriceComponent) -> Iterator[Row]:
    rate = one.meter_rate
    of = f" of {_listed(rate.models)}" if rate.models else ""
    what = f"{_meter(rate.meter)}{of}"
    if rate.tier_mode == price_book_pb2.TIER_MODE_UNSPECIFIED and len(rate.tiers) == 1:
        yield Row(one.name, what, unit_price(rate.tiers[0].price), one.condition)
        return
    over = (
        " over a billing period"
        if rate.tier_scope == price_book_pb2.TIER_SCOPE_BILLING_PERIOD
        else " of an execution"
    )
    mode = _MODES.get(rate.tier_mode, "in tiers")
    if rate.tier_mode == price_book_pb2.TIER_MODE_PACKAGE and len(rate.tiers) == 1:
        yield Row(one.name, f"{what}{over}, {mode}", unit_price(rate.tiers[0].price), one.condition)
        return
    yield Row(one.name, f"{what}{over}, {mode}", "", one.condition)
    before = 0
    for tier in rate.tiers:
        reach = f"{before + 1:,} to {tier.up_to:,}" if tier.up_to else f"from {before + 1:,} on"
        fee = f", and {unit_price(tier.fee)} once" if tier.HasField("fee") else ""
        yield Row("", reach, f"{unit_price(tier.price)}{fee}")
        before = tier.up_to


def _discount_rows(discount: price_book_pb2.Discount) -> Iterator[Row]:
    when = _when(discount)
    match discount.WhichOneof("discount"):
        case "basis_points":
            yield Row(discount.name, f"discount{when}", f"\u2212{percent(discount.basis_points)}")
        case "amount":
            yield Row(
                discount.name, f"discount on an execution{when}", f"\u2212{unit_price(discount.amount)}"
            )
        case "volume":
            yield Row(discount.name, f"discount by what was spent in the billing period{when}", "")
            for step in discount.volume.steps:
                what = f"beyond {unit_price(step.from_amount)}"
                yield Row("", what, f"\u2212{percent(step.basis_points)}")
        case _:
            yield Row(discount.name, "a discount that this release does not know", "")


def _when(discount: price_book_pb2.Discount) -> str:
    start = f" from {_moment(discount.start_time)}" if discount.HasField("start_time") else ""
    end = f" until {_moment(discount.end_time)}" if discount.HasField("end_time") else ""
    return start + end


def _moment(time: Timestamp) -> str:
    at: datetime = time.ToDatetime(tzinfo=UTC)
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _meter(name: str) -> str:
    return name.replace("_", " ")


def _per(units: int) -> str:
    return f" per {units:,}" if units > 1 else ""


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(texts)
