"""Between the contract and the domain: price books and their versions."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from services.kit.errors import InvalidArgument
from services.kit.times import optional_time_from_proto
from services.metering.domain.price_book import (
    DEFAULT_DEFERRAL,
    DEFAULT_OUTCOME_DEFERRAL,
    MAX_ALLOWANCES,
    MAX_COMPONENTS,
    MAX_ENTRIES,
    MAX_METERS,
    MAX_PLANS,
    MAX_PRICES,
    MAX_TERMS,
    PLATFORM_OWNER,
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
    PriceBook,
    PriceComponent,
    PriceList,
    PriceSelector,
    PriceVersion,
    Tier,
    TierMode,
    TierScope,
    TokenKind,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.usage_event import Outcome
from services.metering.rpc.convert import OUTCOMES_FROM_PROTO, OUTCOMES_TO_PROTO, time_to_proto, within
from tallystick.metering.v1 import price_book_pb2, rating_service_pb2, usage_pb2
from tallystick.metering.v1 import pricing_service_pb2 as pb

_TOKEN_KINDS = {
    price_book_pb2.TOKEN_KIND_INPUT: TokenKind.INPUT,
    price_book_pb2.TOKEN_KIND_OUTPUT: TokenKind.OUTPUT,
}
_TOKEN_KINDS_TO_PROTO = {kind: number for number, kind in _TOKEN_KINDS.items()}
_TIER_MODES = {
    price_book_pb2.TIER_MODE_UNSPECIFIED: TierMode.FLAT,
    price_book_pb2.TIER_MODE_GRADUATED: TierMode.GRADUATED,
    price_book_pb2.TIER_MODE_VOLUME: TierMode.VOLUME,
    price_book_pb2.TIER_MODE_PACKAGE: TierMode.PACKAGE,
}
_TIER_MODES_TO_PROTO = {mode: number for number, mode in _TIER_MODES.items()}
_TIER_SCOPES = {
    price_book_pb2.TIER_SCOPE_UNSPECIFIED: TierScope.EXECUTION,
    price_book_pb2.TIER_SCOPE_BILLING_PERIOD: TierScope.BILLING_PERIOD,
}
_TIER_SCOPES_TO_PROTO = {scope: number for number, scope in _TIER_SCOPES.items()}
_ROUNDINGS = {
    price_book_pb2.METER_ROUNDING_UNSPECIFIED: MeterRounding.UP,
    price_book_pb2.METER_ROUNDING_HALF_EVEN: MeterRounding.HALF_EVEN,
    price_book_pb2.METER_ROUNDING_DOWN: MeterRounding.DOWN,
}
_ROUNDINGS_TO_PROTO = {rounding: number for number, rounding in _ROUNDINGS.items()}
_PERIOD_UNITS = {
    price_book_pb2.PERIOD_UNIT_MONTH: PeriodUnit.MONTH,
    price_book_pb2.PERIOD_UNIT_QUARTER: PeriodUnit.QUARTER,
    price_book_pb2.PERIOD_UNIT_YEAR: PeriodUnit.YEAR,
}
_PERIOD_UNITS_TO_PROTO = {unit: number for number, unit in _PERIOD_UNITS.items()}
# What a bonus may be paid for.
_OUTCOMES = {
    usage_pb2.OUTCOME_SUCCESS: Outcome.SUCCESS,
    usage_pb2.OUTCOME_FAILURE: Outcome.FAILURE,
    usage_pb2.OUTCOME_PARTIAL: Outcome.PARTIAL,
}


def price_list_from_proto(
    message: pb.CreatePriceVersionRequest
    | pb.UpdatePriceVersionRequest
    | pb.PreviewPriceVersionRequest
    | price_book_pb2.PriceVersion
    | rating_service_pb2.PriceList,
) -> PriceList:
    """All that a request, or a version, says; domain.price_checks judges it.

    Raises InvalidArgument for more than a version may hold, and for what is of no kind, since there is
    nothing to judge.
    """
    if len(message.meters) > MAX_METERS:
        raise InvalidArgument.of("meters", f"must be at most {MAX_METERS}")
    if len(message.plans) > MAX_PLANS:
        raise InvalidArgument.of("plans", f"must be at most {MAX_PLANS}")
    return PriceList(
        prices=prices_from_proto(message.prices),
        meters=tuple(_formula(f"meters[{index}]", one) for index, one in enumerate(message.meters)),
        plans=tuple(_plan(f"plans[{index}]", one) for index, one in enumerate(message.plans)),
    )


def prices_from_proto(messages: Sequence[price_book_pb2.Price]) -> tuple[Price, ...]:
    """The prices in a request. Raises InvalidArgument as `price_list_from_proto` does."""
    # Before anything is made of it: a request of a few megabytes can hold a million empty messages.
    _check_sizes(messages)
    return tuple(_price(f"prices[{index}]", message) for index, message in enumerate(messages))


def discounts_from_proto(path: str, messages: Iterable[price_book_pb2.Discount]) -> tuple[Discount, ...]:
    """Discounts of a price or of a contract, seen from `path`."""
    return tuple(_discount(f"{path}[{index}]", one) for index, one in enumerate(messages))


def discounts_to_proto(discounts: Iterable[Discount]) -> list[price_book_pb2.Discount]:
    """Discounts as they travel."""
    return [_discount_to_proto(one) for one in discounts]


def price_list_to_proto(
    price_list: PriceList,
) -> tuple[list[price_book_pb2.Price], list[price_book_pb2.MeterFormula], list[price_book_pb2.Plan]]:
    """Prices, meters and plans as they travel."""
    return (
        _prices_to_proto(price_list.prices),
        [_formula_to_proto(one) for one in price_list.meters],
        [_plan_to_proto(one) for one in price_list.plans],
    )


def book_to_proto(book: PriceBook) -> price_book_pb2.PriceBook:
    """A book as it travels."""
    return price_book_pb2.PriceBook(
        price_book_id=book.price_book_id,
        organization_id="" if book.owner_id == PLATFORM_OWNER else book.owner_id,
        currency_code=book.currency_code,
        display_name=book.display_name,
        create_time=time_to_proto(book.create_time),
        for_contracts=book.for_contracts,
    )


def version_to_proto(version: PriceVersion) -> price_book_pb2.PriceVersion:
    """A version as it travels."""
    prices, meters, plans = price_list_to_proto(version.price_list)
    message = price_book_pb2.PriceVersion(
        price_version_id=version.price_version_id,
        price_book_id=version.price_book_id,
        version_number=version.version_number,
        state=(
            price_book_pb2.PRICE_VERSION_STATE_PUBLISHED
            if version.is_published
            else price_book_pb2.PRICE_VERSION_STATE_DRAFT
        ),
        prices=prices,
        create_time=time_to_proto(version.create_time),
        publisher_api_key_id=version.publisher_api_key_id,
        creator_api_key_id=version.creator_api_key_id,
        meters=meters,
        plans=plans,
    )
    if version.effective_time is not None:
        message.effective_time.CopyFrom(time_to_proto(version.effective_time))
    if version.publish_time is not None:
        message.publish_time.CopyFrom(time_to_proto(version.publish_time))
    return message


def _check_sizes(messages: Sequence[price_book_pb2.Price]) -> None:
    if not 1 <= len(messages) <= MAX_PRICES:
        raise InvalidArgument.of("prices", f"must be 1 to {MAX_PRICES}")
    entries = 0
    for index, message in enumerate(messages):
        if len(message.components) > MAX_COMPONENTS:
            raise InvalidArgument.of(f"prices[{index}].components", f"must be 1 to {MAX_COMPONENTS}")
        entries += (
            len(message.components)
            + len(message.selector.action_types)
            + len(message.selector.agent_ids)
            + len(message.outcome_factors)
            + sum(1 + len(one.volume.steps) for one in message.discounts)
            + sum(len(one.meter_rate.tiers) + len(one.meter_rate.models) for one in message.components)
        )
        if entries > MAX_ENTRIES:
            raise InvalidArgument.of(
                "prices", f"must have at most {MAX_ENTRIES} components, tiers and other entries in all"
            )


def _price(path: str, message: price_book_pb2.Price) -> Price:
    return Price(
        name=message.name,
        selector=PriceSelector(
            action_types=frozenset(message.selector.action_types),
            agent_ids=frozenset(message.selector.agent_ids),
        ),
        components=tuple(
            PriceComponent(
                name=component.name,
                component=_component_from_proto(f"{path}.components[{position}]", component),
                condition=component.condition,
            )
            for position, component in enumerate(message.components)
        ),
        deferral=(
            _deferral_from_proto(f"{path}.deferral", message.deferral)
            if message.HasField("deferral")
            else DEFAULT_OUTCOME_DEFERRAL
        ),
        outcome_factors=tuple(
            # One that is none is refused like pending, which owes what any other does.
            OutcomeFactor(OUTCOMES_FROM_PROTO.get(one.outcome, Outcome.PENDING), one.basis_points)
            for one in message.outcome_factors
        ),
        discounts=discounts_from_proto(f"{path}.discounts", message.discounts),
        minimum=_optional_price(message, "minimum"),
        maximum=_optional_price(message, "maximum"),
        period_minimum=_optional_price(message, "period_minimum"),
        period_maximum=_optional_price(message, "period_maximum"),
    )


def _component_from_proto(path: str, message: price_book_pb2.PriceComponent) -> Component:
    match message.WhichOneof("component"):
        case "base_fee":
            return BaseFee(_unit_price(message.base_fee.price))
        case "token_rate":
            kind = _TOKEN_KINDS.get(message.token_rate.token_kind)
            if kind is None:
                raise InvalidArgument.of(f"{path}.token_rate.token_kind", "must be input or output")
            return TokenRate(kind, _unit_price(message.token_rate.price))
        case "outcome_bonus":
            bonus = message.outcome_bonus
            if bonus.outcome == usage_pb2.OUTCOME_UNSPECIFIED and message.condition:
                return OutcomeBonus(None, _unit_price(bonus.price))
            outcome = _OUTCOMES.get(bonus.outcome)
            if outcome is None:
                raise InvalidArgument.of(
                    f"{path}.outcome_bonus.outcome", "must be success, failure or partial"
                )
            return OutcomeBonus(outcome, _unit_price(bonus.price))
        case "meter_rate":
            return _meter_rate(f"{path}.meter_rate", message.meter_rate)
        case _:
            raise InvalidArgument.of(
                path, "must be a base fee, a token rate, an outcome bonus or a meter rate"
            )


def _meter_rate(path: str, message: price_book_pb2.MeterRate) -> MeterRate:
    mode = _TIER_MODES.get(message.tier_mode)
    scope = _TIER_SCOPES.get(message.tier_scope)
    if mode is None:
        raise InvalidArgument.of(f"{path}.tier_mode", "is none that this release knows")
    if scope is None:
        raise InvalidArgument.of(f"{path}.tier_scope", "is none that this release knows")
    return MeterRate(
        meter=message.meter,
        tiers=tuple(
            Tier(tier.up_to or None, _unit_price(tier.price), _optional_price(tier, "fee"))
            for tier in message.tiers
        ),
        tier_mode=mode,
        tier_scope=scope,
        models=tuple(message.models),
    )


def _discount(path: str, message: price_book_pb2.Discount) -> Discount:
    kind = message.WhichOneof("discount")
    if kind is None:
        raise InvalidArgument.of(path, "must be basis points, an amount or by volume")
    if kind == "volume" and not message.volume.steps:
        raise InvalidArgument.of(f"{path}.volume.steps", "must not be empty")
    return Discount(
        name=message.name,
        basis_points=message.basis_points if kind == "basis_points" else None,
        amount=_unit_price(message.amount) if kind == "amount" else None,
        volume=tuple(
            VolumeDiscountStep(_unit_price(step.from_amount), step.basis_points)
            for step in message.volume.steps
        ),
        start_time=_time(path, message, "start_time"),
        end_time=_time(path, message, "end_time"),
    )


def _time(path: str, message: price_book_pb2.Discount, field: str) -> datetime | None:
    try:
        return optional_time_from_proto(message, field)
    except InvalidArgument as error:
        raise within(path, error) from None


def _formula(path: str, message: price_book_pb2.MeterFormula) -> MeterFormula:
    rounding = _ROUNDINGS.get(message.rounding)
    if rounding is None:
        raise InvalidArgument.of(f"{path}.rounding", "is none that this release knows")
    if len(message.terms) > MAX_TERMS:
        raise InvalidArgument.of(f"{path}.terms", f"must be 1 to {MAX_TERMS}")
    return MeterFormula(
        meter=message.meter,
        terms=tuple(MeterTerm(one.meter, one.units, one.per_units or 1) for one in message.terms),
        rounding=rounding,
    )


def _plan(path: str, message: price_book_pb2.Plan) -> Plan:
    period_unit = _PERIOD_UNITS.get(message.period_unit or price_book_pb2.PERIOD_UNIT_MONTH)
    if period_unit is None:
        raise InvalidArgument.of(f"{path}.period_unit", "must be month, quarter or year")
    if len(message.allowances) > MAX_ALLOWANCES:
        raise InvalidArgument.of(f"{path}.allowances", f"must be at most {MAX_ALLOWANCES}")
    return Plan(
        name=message.name,
        fee=_optional_price(message, "fee"),
        seat_fee=_optional_price(message, "seat_fee"),
        allowances=tuple(
            Allowance(one.meter, one.quantity, one.quantity_per_seat) for one in message.allowances
        ),
        period_unit=period_unit,
    )


def _deferral_from_proto(path: str, message: price_book_pb2.OutcomeDeferral) -> OutcomeDeferral:
    expire_after = DEFAULT_DEFERRAL
    if message.HasField("expire_after"):
        try:
            expire_after = message.expire_after.ToTimedelta()
        except (ValueError, OverflowError):
            raise InvalidArgument.of(f"{path}.expire_after", "is not a valid duration") from None
    expired_outcome = Outcome.UNKNOWN
    if message.expired_outcome != usage_pb2.OUTCOME_UNSPECIFIED:
        # One that this release does not know is refused like pending, which is none to fall to.
        expired_outcome = OUTCOMES_FROM_PROTO.get(message.expired_outcome, Outcome.PENDING)
    return OutcomeDeferral(expire_after, expired_outcome)


def _unit_price(message: price_book_pb2.UnitPrice) -> UnitPrice:
    return UnitPrice(amount=message.amount, per_units=message.per_units or 1)


def _optional_price(message: Message, field: str) -> UnitPrice | None:
    return _unit_price(getattr(message, field)) if message.HasField(field) else None


def _prices_to_proto(prices: Iterable[Price]) -> list[price_book_pb2.Price]:
    return [
        price_book_pb2.Price(
            name=price.name,
            selector=price_book_pb2.PriceSelector(
                action_types=sorted(price.selector.action_types), agent_ids=sorted(price.selector.agent_ids)
            ),
            components=[_component_to_proto(named) for named in price.components],
            deferral=_deferral_to_proto(price.deferral),
            outcome_factors=[
                price_book_pb2.OutcomeFactor(
                    outcome=OUTCOMES_TO_PROTO[one.outcome], basis_points=one.basis_points
                )
                for one in price.outcome_factors
            ],
            discounts=discounts_to_proto(price.discounts),
            minimum=_optional_to_proto(price.minimum),
            maximum=_optional_to_proto(price.maximum),
            period_minimum=_optional_to_proto(price.period_minimum),
            period_maximum=_optional_to_proto(price.period_maximum),
        )
        for price in prices
    ]


def _deferral_to_proto(deferral: OutcomeDeferral) -> price_book_pb2.OutcomeDeferral | None:
    if deferral == DEFAULT_OUTCOME_DEFERRAL:
        return None
    expire_after = Duration(seconds=deferral.expire_after // timedelta(seconds=1))
    return price_book_pb2.OutcomeDeferral(
        expire_after=expire_after, expired_outcome=OUTCOMES_TO_PROTO[deferral.expired_outcome]
    )


def _component_to_proto(named: PriceComponent) -> price_book_pb2.PriceComponent:
    message = price_book_pb2.PriceComponent(name=named.name, condition=named.condition)
    match named.component:
        case BaseFee(price):
            message.base_fee.price.CopyFrom(_price_to_proto(price))
        case TokenRate(kind, price):
            message.token_rate.token_kind = _TOKEN_KINDS_TO_PROTO[kind]
            message.token_rate.price.CopyFrom(_price_to_proto(price))
        case OutcomeBonus(outcome, price):
            if outcome is not None:
                message.outcome_bonus.outcome = OUTCOMES_TO_PROTO[outcome]
            message.outcome_bonus.price.CopyFrom(_price_to_proto(price))
        case MeterRate() as rate:
            message.meter_rate.CopyFrom(_rate_to_proto(rate))
    return message


def _rate_to_proto(rate: MeterRate) -> price_book_pb2.MeterRate:
    return price_book_pb2.MeterRate(
        meter=rate.meter,
        models=rate.models,
        tier_mode=_TIER_MODES_TO_PROTO[rate.tier_mode],
        tiers=[
            price_book_pb2.Tier(
                up_to=tier.up_to or 0, price=_price_to_proto(tier.price), fee=_optional_to_proto(tier.fee)
            )
            for tier in rate.tiers
        ],
        tier_scope=_TIER_SCOPES_TO_PROTO[rate.tier_scope],
    )


def _discount_to_proto(discount: Discount) -> price_book_pb2.Discount:
    message = price_book_pb2.Discount(
        name=discount.name,
        start_time=None if discount.start_time is None else time_to_proto(discount.start_time),
        end_time=None if discount.end_time is None else time_to_proto(discount.end_time),
    )
    if discount.basis_points is not None:
        message.basis_points = discount.basis_points
    elif discount.amount is not None:
        message.amount.CopyFrom(_price_to_proto(discount.amount))
    else:
        message.volume.CopyFrom(_volume_to_proto(discount.volume))
    return message


def _volume_to_proto(steps: Iterable[VolumeDiscountStep]) -> price_book_pb2.VolumeDiscount:
    return price_book_pb2.VolumeDiscount(
        steps=[
            price_book_pb2.VolumeDiscountStep(
                from_amount=_price_to_proto(step.from_amount), basis_points=step.basis_points
            )
            for step in steps
        ]
    )


def _formula_to_proto(formula: MeterFormula) -> price_book_pb2.MeterFormula:
    return price_book_pb2.MeterFormula(
        meter=formula.meter,
        terms=[
            price_book_pb2.MeterTerm(meter=one.meter, units=one.units, per_units=one.per_units)
            for one in formula.terms
        ],
        rounding=_ROUNDINGS_TO_PROTO[formula.rounding],
    )


def _plan_to_proto(plan: Plan) -> price_book_pb2.Plan:
    return price_book_pb2.Plan(
        name=plan.name,
        fee=_optional_to_proto(plan.fee),
        seat_fee=_optional_to_proto(plan.seat_fee),
        allowances=[
            price_book_pb2.Allowance(
                meter=one.meter, quantity=one.quantity, quantity_per_seat=one.quantity_per_seat
            )
            for one in plan.allowances
        ],
        period_unit=_PERIOD_UNITS_TO_PROTO[plan.period_unit],
    )


def _price_to_proto(price: UnitPrice) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=price.amount, per_units=price.per_units)


def _optional_to_proto(price: UnitPrice | None) -> price_book_pb2.UnitPrice | None:
    return None if price is None else _price_to_proto(price)
