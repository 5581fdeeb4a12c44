"""What a price list says, in the words of its YAML form: names, texts and lists, nothing of messages.

The same document is written as YAML, and compared line by line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, timedelta
from typing import Any, Final, TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.metering.v1 import price_book_pb2, usage_pb2

# Keys to texts, lists of texts, documents, or lists of documents. What says nothing is left out.
Document: TypeAlias = dict[str, Any]

OUTCOMES: Final = {
    "success": usage_pb2.OUTCOME_SUCCESS,
    "failure": usage_pb2.OUTCOME_FAILURE,
    "partial": usage_pb2.OUTCOME_PARTIAL,
    "unknown": usage_pb2.OUTCOME_UNKNOWN,
}
TOKEN_KINDS: Final = {
    "input": price_book_pb2.TOKEN_KIND_INPUT,
    "output": price_book_pb2.TOKEN_KIND_OUTPUT,
}
# The key that holds the tiers says how they work.
TIER_MODES: Final = {
    "price": price_book_pb2.TIER_MODE_UNSPECIFIED,
    "package": price_book_pb2.TIER_MODE_PACKAGE,
    "graduated": price_book_pb2.TIER_MODE_GRADUATED,
    "volume": price_book_pb2.TIER_MODE_VOLUME,
}
TIER_SCOPES: Final = {
    "execution": price_book_pb2.TIER_SCOPE_UNSPECIFIED,
    "billing_period": price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
}
ROUNDINGS: Final = {
    "up": price_book_pb2.METER_ROUNDING_UNSPECIFIED,
    "half_even": price_book_pb2.METER_ROUNDING_HALF_EVEN,
    "down": price_book_pb2.METER_ROUNDING_DOWN,
}
PERIODS: Final = {
    "month": price_book_pb2.PERIOD_UNIT_MONTH,
    "quarter": price_book_pb2.PERIOD_UNIT_QUARTER,
    "year": price_book_pb2.PERIOD_UNIT_YEAR,
}
_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


class Amount(str):
    """A decimal number, perhaps per a number of units. 0.60 and 0.6 are the same amount."""

    __slots__ = ()

    def same_as(self, other: object) -> bool:
        return isinstance(other, Amount) and self._normal() == other._normal()

    def _normal(self) -> tuple[str, str]:
        number, _, units = self.partition(" per ")
        if "." in number:
            number = number.rstrip("0").rstrip(".")
        return number, units


def document(
    prices: Iterable[price_book_pb2.Price],
    meters: Iterable[price_book_pb2.MeterFormula] = (),
    plans: Iterable[price_book_pb2.Plan] = (),
) -> Document:
    """What a version says."""
    return _without_nothing(
        {
            "meters": [_formula(one) for one in meters],
            "prices": [_price(one) for one in prices],
            "plans": [_plan(one) for one in plans],
        }
    )


def span(seconds: int) -> str:
    """A duration in the largest unit that says it exactly: "7d", "90m"."""
    unit, size = next((unit, size) for unit, size in _UNITS.items() if seconds % size == 0)
    return f"{seconds // size}{unit}"


def percent(basis_points: int) -> str:
    """Basis points as "12.5 %"."""
    whole, rest = divmod(basis_points, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") + " %"


def count(number: int) -> str:
    """A number of units: "1_000_000"."""
    return f"{number:_}"


def moment(time: Timestamp) -> str:
    """A time: "2026-12-01" for its first moment in UTC, else "2026-12-01T09:30:00Z"."""
    at = time.ToDatetime(UTC)
    if at.time() == at.min.time():
        return at.date().isoformat()
    return at.isoformat().replace("+00:00", "Z")


def amount(price: price_book_pb2.UnitPrice) -> Amount:
    """A price: "0.60 per 1_000_000"."""
    if price.per_units > 1:
        return Amount(f"{price.amount} per {count(price.per_units)}")
    return Amount(price.amount)


def _price(price: price_book_pb2.Price) -> Document:
    return _without_nothing(
        {
            "name": price.name,
            # Sets: their order says nothing.
            "actions": sorted(price.selector.action_types),
            "agents": sorted(price.selector.agent_ids),
            "components": [_component(one) for one in price.components],
            "outcomes": _factors(price),
            "discounts": [_discount(one) for one in price.discounts],
            **_amounts(price, ("minimum", "maximum", "period_minimum", "period_maximum")),
            "pending": _deferral(price),
        }
    )


def _factors(price: price_book_pb2.Price) -> Document:
    return {_word(OUTCOMES, one.outcome): percent(one.basis_points) for one in price.outcome_factors}


def _component(component: price_book_pb2.PriceComponent) -> Document:
    says: Document = {"name": component.name}
    match component.WhichOneof("component"):
        case "base_fee":
            says["fee"] = amount(component.base_fee.price)
        case "token_rate":
            says["tokens"] = _word(TOKEN_KINDS, component.token_rate.token_kind)
            says["price"] = amount(component.token_rate.price)
        case "outcome_bonus":
            says["bonus"] = amount(component.outcome_bonus.price)
            if component.outcome_bonus.outcome:
                says["outcome"] = _word(OUTCOMES, component.outcome_bonus.outcome)
        case "meter_rate":
            says |= _meter_rate(component.meter_rate)
    if component.condition:
        says["when"] = component.condition
    return says


def _meter_rate(rate: price_book_pb2.MeterRate) -> Document:
    mode = _word(TIER_MODES, rate.tier_mode)
    says: Document = {"meter": rate.meter, "models": list(rate.models)}
    if mode in ("graduated", "volume"):
        says[mode] = [_tier(tier) for tier in rate.tiers]
    elif rate.tiers:
        says[mode] = amount(rate.tiers[0].price)
        says |= _amounts(rate.tiers[0], ("fee",), {"fee": "entry_fee"})
    if rate.tier_scope:
        says["scope"] = _word(TIER_SCOPES, rate.tier_scope)
    return _without_nothing(says)


def _tier(tier: price_book_pb2.Tier) -> Document:
    says: Document = {"up_to": count(tier.up_to)} if tier.up_to else {}
    return says | _amounts(tier, ("price", "fee"), {"fee": "entry_fee"})


def _discount(discount: price_book_pb2.Discount) -> Document:
    says: Document = {"name": discount.name}
    match discount.WhichOneof("discount"):
        case "basis_points":
            says["percent"] = percent(discount.basis_points)
        case "amount":
            says["amount"] = amount(discount.amount)
        case "volume":
            says["volume"] = [
                {"above": amount(step.from_amount), "percent": percent(step.basis_points)}
                for step in discount.volume.steps
            ]
    if discount.HasField("start_time"):
        says["from"] = moment(discount.start_time)
    if discount.HasField("end_time"):
        says["until"] = moment(discount.end_time)
    return says


def _deferral(price: price_book_pb2.Price) -> Document:
    says: Document = {}
    if price.deferral.HasField("expire_after"):
        after = price.deferral.expire_after.ToTimedelta() // timedelta(seconds=1)
        # What is so without being said.
        if after != 7 * 86_400:
            says["expire_after"] = span(after)
    if price.deferral.expired_outcome not in (usage_pb2.OUTCOME_UNSPECIFIED, usage_pb2.OUTCOME_UNKNOWN):
        says["becomes"] = _word(OUTCOMES, price.deferral.expired_outcome)
    return says


def _formula(formula: price_book_pb2.MeterFormula) -> Document:
    terms = {}
    for term in formula.terms:
        units = price_book_pb2.UnitPrice(amount=term.units, per_units=term.per_units)
        terms[term.meter] = amount(units)
    says: Document = {"name": formula.meter, "terms": terms}
    if formula.rounding:
        says["round"] = _word(ROUNDINGS, formula.rounding)
    return says


def _plan(plan: price_book_pb2.Plan) -> Document:
    says: Document = {"name": plan.name} | _amounts(plan, ("fee", "seat_fee"))
    if plan.period_unit not in (price_book_pb2.PERIOD_UNIT_UNSPECIFIED, price_book_pb2.PERIOD_UNIT_MONTH):
        says["period"] = _word(PERIODS, plan.period_unit)
    includes: Document = {}
    for allowance in plan.allowances:
        if allowance.quantity_per_seat:
            includes[allowance.meter] = {
                "quantity": count(allowance.quantity),
                "per_seat": count(allowance.quantity_per_seat),
            }
        else:
            includes[allowance.meter] = count(allowance.quantity)
    return _without_nothing(says | {"includes": includes})


def _amounts(message: Any, fields: Sequence[str], renamed: dict[str, str] | None = None) -> Document:
    """Those of the prices that the message has."""
    names = renamed or {}
    there = [field for field in fields if message.HasField(field)]
    return {names.get(field, field): amount(getattr(message, field)) for field in there}


def _word(words: dict[str, Any], number: int) -> str:
    """What a value is called; its number if it is newer than this release."""
    return next((word for word, value in words.items() if value == number), str(number))


def _without_nothing(says: Document) -> Document:
    return {key: value for key, value in says.items() if value not in ([], {})}
