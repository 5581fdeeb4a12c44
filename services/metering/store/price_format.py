"""The stored form of prices: plain JSON with the field names of the contract, sets sorted."""

from datetime import timedelta
from typing import Any

from services.metering.domain.price_book import (
    DEFAULT_OUTCOME_DEFERRAL,
    BaseFee,
    Component,
    OutcomeBonus,
    OutcomeDeferral,
    Price,
    PriceComponent,
    PriceSelector,
    TokenKind,
    TokenRate,
    UnitPrice,
)
from services.metering.domain.usage_event import Outcome


def to_json(prices: tuple[Price, ...]) -> list[dict[str, Any]]:
    """What is stored in price_version.prices: equal for equal prices."""
    return [
        {
            "name": price.name,
            "selector": {
                "action_types": sorted(price.selector.action_types),
                "agent_ids": sorted(price.selector.agent_ids),
            },
            "components": [{"name": named.name, **_component(named.component)} for named in price.components],
            **_deferral(price.deferral),
        }
        for price in prices
    ]


def from_json(stored: list[dict[str, Any]]) -> tuple[Price, ...]:
    """The prices that `to_json` stored."""
    return tuple(
        Price(
            name=price["name"],
            selector=PriceSelector(
                action_types=frozenset(price["selector"]["action_types"]),
                agent_ids=frozenset(price["selector"]["agent_ids"]),
            ),
            components=tuple(
                PriceComponent(name=named["name"], component=_parse_component(named))
                for named in price["components"]
            ),
            deferral=_parse_deferral(price),
        )
        for price in stored
    )


def _deferral(deferral: OutcomeDeferral) -> dict[str, Any]:
    # Left out where it says nothing: as prices were stored before there was one.
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


def _component(component: Component) -> dict[str, Any]:
    price = {"amount": component.price.amount, "per_units": component.price.per_units}
    match component:
        case BaseFee():
            return {"base_fee": {"price": price}}
        case TokenRate(token_kind):
            return {"token_rate": {"token_kind": token_kind.value, "price": price}}
        case OutcomeBonus(outcome):
            return {"outcome_bonus": {"outcome": outcome.value, "price": price}}


def _parse_component(named: dict[str, Any]) -> Component:
    match named:
        case {"base_fee": fee}:
            return BaseFee(_parse_price(fee))
        case {"token_rate": rate}:
            return TokenRate(TokenKind(rate["token_kind"]), _parse_price(rate))
        case {"outcome_bonus": bonus}:
            return OutcomeBonus(Outcome(bonus["outcome"]), _parse_price(bonus))
        case _:
            raise ValueError(f"component {named.get('name')!r} is of no kind that this release knows")


def _parse_price(component: dict[str, Any]) -> UnitPrice:
    return UnitPrice(amount=component["price"]["amount"], per_units=component["price"]["per_units"])
