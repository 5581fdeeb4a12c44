"""The stored form of what a version says: plain JSON with the field names of the contract, sets sorted.

Whatever says nothing is left out, as it was before there was such a field: what older releases stored reads
the same, and equal prices are stored equal.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from services.metering.domain.price_book import (
    DEFAULT_OUTCOME_DEFERRAL,
    Allowance,
    BaseFee,
    Component,
    Discount,
    MeterFormula,
    MeterRate,
    MeterRounding,
    MeterTerm,
    OutcomeBonus,
    OutcomeDeferral,
    OutcomeFactor,
    PeriodUnit,
    Plan,
    Price,
    PriceComponent,
    PriceSelector,
    Tier,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.usage_event import Outcome

_LIMITS = ("minimum", "maximum", "period_minimum", "period_maximum")


def to_json(prices: Iterable[Price]) -> list[dict[str, Any]]:
    """What is stored in price_version.prices: equal for equal prices."""
    return [
        {
            "name": price.name,
            "selector": {
                "action_types": sorted(price.selector.action_types),
                "agent_ids": sorted(price.selector.agent_ids),
            },
            "components": [_named(named) for named in price.components],
            **_deferral(price.deferral),
            **_said(
                outcome_factors=[
                    {"outcome": one.outcome.value, "basis_points": one.basis_points}
                    for one in price.outcome_factors
                ],
                discounts=discounts_to_json(price.discounts),
                **{name: _optional(getattr(price, name)) for name in _LIMITS},
            ),
        }
        for price in prices
    ]


def from_json(stored: Iterable[dict[str, Any]]) -> tuple[Price, ...]:
    """The prices that `to_json` stored."""
    return tuple(
        Price(
            name=price["name"],
            selector=PriceSelector(
                action_types=frozenset(price["selector"]["action_types"]),
                agent_ids=frozenset(price["selector"]["agent_ids"]),
            ),
            components=tuple(
                PriceComponent(
                    name=named["name"],
                    component=_parse_component(named),
                    condition=named.get("condition", ""),
                )
                for named in price["components"]
            ),
            deferral=_parse_deferral(price),
            outcome_factors=tuple(
                OutcomeFactor(Outcome(one["outcome"]), one["basis_points"])
                for one in price.get("outcome_factors", ())
            ),
            discounts=discounts_from_json(price.get("discounts", ())),
            **{name: _parse_optional(price, name) for name in _LIMITS},
        )
        for price in stored
    )


def meters_to_json(meters: Iterable[MeterFormula]) -> list[dict[str, Any]]:
    """What is stored in price_version.meters."""
    return [
        {
            "meter": formula.meter,
            "terms": [
                {"meter": term.meter, "units": term.units, "per_units": term.per_units}
                for term in formula.terms
            ],
            "rounding": formula.rounding.value,
        }
        for formula in meters
    ]


def meters_from_json(stored: Iterable[dict[str, Any]]) -> tuple[MeterFormula, ...]:
    """The formulas that `meters_to_json` stored."""
    return tuple(
        MeterFormula(
            meter=formula["meter"],
            terms=tuple(
                MeterTerm(term["meter"], term["units"], term["per_units"]) for term in formula["terms"]
            ),
            rounding=MeterRounding(formula["rounding"]),
        )
        for formula in stored
    )


def plans_to_json(plans: Iterable[Plan]) -> list[dict[str, Any]]:
    """What is stored in price_version.plans."""
    return [
        {
            "name": plan.name,
            "period_unit": plan.period_unit.value,
            **_said(
                fee=_optional(plan.fee),
                seat_fee=_optional(plan.seat_fee),
                allowances=[
                    {
                        "meter": one.meter,
                        "quantity": one.quantity,
                        "quantity_per_seat": one.quantity_per_seat,
                    }
                    for one in plan.allowances
                ],
            ),
        }
        for plan in plans
    ]


def plans_from_json(stored: Iterable[dict[str, Any]]) -> tuple[Plan, ...]:
    """The plans that `plans_to_json` stored."""
    return tuple(
        Plan(
            name=plan["name"],
            fee=_parse_optional(plan, "fee"),
            seat_fee=_parse_optional(plan, "seat_fee"),
            allowances=tuple(
                Allowance(one["meter"], one["quantity"], one["quantity_per_seat"])
                for one in plan.get("allowances", ())
            ),
            period_unit=PeriodUnit(plan["period_unit"]),
        )
        for plan in stored
    )


def discounts_to_json(discounts: Iterable[Discount]) -> list[dict[str, Any]]:
    """The discounts of a price, as they are stored with it."""
    return [
        {
            "name": one.name,
            **_said(
                basis_points=one.basis_points,
                amount=_optional(one.amount),
                volume=[
                    {"from_amount": _unit_price(step.from_amount), "basis_points": step.basis_points}
                    for step in one.volume
                ],
                start_time=None if one.start_time is None else one.start_time.isoformat(),
                end_time=None if one.end_time is None else one.end_time.isoformat(),
            ),
        }
        for one in discounts
    ]


def discounts_from_json(stored: Iterable[dict[str, Any]]) -> tuple[Discount, ...]:
    """The discounts that `discounts_to_json` stored."""
    return tuple(
        Discount(
            name=one["name"],
            basis_points=one.get("basis_points"),
            amount=_parse_optional(one, "amount"),
            volume=tuple(
                VolumeDiscountStep(_parse_price(step["from_amount"]), step["basis_points"])
                for step in one.get("volume", ())
            ),
            start_time=_parse_time(one, "start_time"),
            end_time=_parse_time(one, "end_time"),
        )
        for one in stored
    )


def _deferral(deferral: OutcomeDeferral) -> dict[str, Any]:
    if deferral == DEFAULT_OUTCOME_DEFERRAL:
        return {}
    return {
        "deferral": {
            "expire_after_seconds": deferral.expire_after // timedelta(seconds=1),
            "expired_outcome": deferral.expired_outcome.value,
        }
    }


def _parse_deferral(price: dict[str, Any]) -> OutcomeDeferral:
    match price:
        case {"deferral": {"expire_after_seconds": seconds, "expired_outcome": outcome}}:
            return OutcomeDeferral(timedelta(seconds=seconds), Outcome(outcome))
        case _:
            return DEFAULT_OUTCOME_DEFERRAL


def _named(named: PriceComponent) -> dict[str, Any]:
    return {
        "name": named.name,
        **_component(named.component),
        **_said(condition=named.condition),
    }


def _component(component: Component) -> dict[str, Any]:
    match component:
        case BaseFee(price):
            return {"base_fee": {"price": _unit_price(price)}}
        case TokenRate(token_kind, price):
            return {"token_rate": {"token_kind": token_kind.value, "price": _unit_price(price)}}
        case OutcomeBonus(outcome, price):
            return {
                "outcome_bonus": {
                    **_said(outcome=None if outcome is None else outcome.value),
                    "price": _unit_price(price),
                }
            }
        case MeterRate(meter, tiers, tier_mode, tier_scope, models):
            return {
                "meter_rate": {
                    "meter": meter,
                    "tiers": [_tier(tier) for tier in tiers],
                    "tier_mode": tier_mode.value,
                    "tier_scope": tier_scope.value,
                    **_said(models=list(models)),
                }
            }


def _tier(tier: Tier) -> dict[str, Any]:
    return {"price": _unit_price(tier.price), **_said(up_to=tier.up_to, fee=_optional(tier.fee))}


def _parse_component(named: dict[str, Any]) -> Component:
    match named:
        case {"base_fee": fee}:
            return BaseFee(_parse_price(fee["price"]))
        case {"token_rate": rate}:
            return TokenRate(TokenKind(rate["token_kind"]), _parse_price(rate["price"]))
        case {"outcome_bonus": bonus}:
            outcome = Outcome(bonus["outcome"]) if "outcome" in bonus else None
            return OutcomeBonus(outcome, _parse_price(bonus["price"]))
        case {"meter_rate": rate}:
            return MeterRate(
                meter=rate["meter"],
                tiers=_parse_tiers(rate["tiers"]),
                tier_mode=TierMode(rate["tier_mode"]),
                tier_scope=TierScope(rate["tier_scope"]),
                models=tuple(rate.get("models", ())),
            )
        case _:
            raise ValueError(f"component {named.get('name')!r} is of no kind that this release knows")


def _parse_tiers(stored: Sequence[dict[str, Any]]) -> tuple[Tier, ...]:
    return tuple(
        Tier(tier.get("up_to"), _parse_price(tier["price"]), _parse_optional(tier, "fee")) for tier in stored
    )


def _unit_price(price: UnitPrice) -> dict[str, Any]:
    return {"amount": price.amount, "per_units": price.per_units}


def _optional(price: UnitPrice | None) -> dict[str, Any] | None:
    return None if price is None else _unit_price(price)


def _parse_price(stored: dict[str, Any]) -> UnitPrice:
    return UnitPrice(amount=stored["amount"], per_units=stored["per_units"])


def _parse_optional(stored: dict[str, Any], field: str) -> UnitPrice | None:
    return _parse_price(stored[field]) if field in stored else None


def _parse_time(stored: dict[str, Any], field: str) -> datetime | None:
    return datetime.fromisoformat(stored[field]) if field in stored else None


def _said(**fields: Any) -> dict[str, Any]:
    """The fields that say something."""
    return {name: value for name, value in fields.items() if value not in (None, "", [])}
