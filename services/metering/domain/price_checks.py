"""What is wrong with a list of prices, each mistake by the path of its field in the contract."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.ids import AGENT, check_id
from services.metering.domain.condition import ConditionError, compile_condition
from services.metering.domain.meters import MODEL_METERS
from services.metering.domain.price_book import (
    MAX_ALLOWANCES,
    MAX_COMPONENTS,
    MAX_CONDITIONS,
    MAX_DISCOUNTS,
    MAX_METERS,
    MAX_MODELS,
    MAX_PER_UNITS,
    MAX_PLANS,
    MAX_PRICES,
    MAX_SELECTED,
    MAX_TERMS,
    MAX_TIERS,
    MIN_DEFERRAL,
    BaseFee,
    Discount,
    MeterFormula,
    MeterRate,
    OutcomeBonus,
    OutcomeDeferral,
    OutcomeFactor,
    Plan,
    Price,
    PriceComponent,
    PriceList,
    PriceSelector,
    Tier,
    TierMode,
    TierScope,
    TokenRate,
    UnitPrice,
    VolumeDiscountStep,
)
from services.metering.domain.usage_event import (
    IDENTIFIER,
    MAX_DEFERRAL,
    MAX_QUANTITY,
    METER_NAME,
    METERS,
    Outcome,
)

_ALL: Final = 10_000
# What one customer may use in a billing period; counters hold that.
_MAX_POSITION: Final = 10**18
_MAX_MODEL: Final = 128

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# Strictly decimal: no sign, exponent, separator, infinity, or leading zero.
_DECIMAL: Final = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?", re.ASCII)
_DECIMAL_RULE: Final = (
    "must be a decimal number with at most 12 digits before and 12 after the point, such as 0.60"
)
# Where a micro is the smallest amount that there is.
_MICROS: Final = re.compile(r"(0|[1-9][0-9]{0,7})(\.[0-9]{1,6})?", re.ASCII)
_MICROS_RULE: Final = (
    "must be a decimal number with at most 8 digits before and 6 after the point, such as 0.60"
)

Violations = Iterator[FieldViolation]


def check_price_list(price_list: PriceList) -> None:
    """Raise InvalidArgument with everything that is wrong with what a version says."""
    violations = list(price_list_violations(price_list))
    if violations:
        first = violations[0]
        raise InvalidArgument(f"{first.field}: {first.description}", field_violations=violations)


def price_list_violations(price_list: PriceList) -> Violations:
    """Everything that is wrong with what a version says: prices, then meters, then plans."""
    prices = price_list.prices
    formulas = frozenset(formula.meter for formula in price_list.meters)
    if not 1 <= len(prices) <= MAX_PRICES:
        yield FieldViolation("prices", f"must be 1 to {MAX_PRICES}")
        return
    if sum(bool(named.condition) for price in prices for named in price.components) > MAX_CONDITIONS:
        yield FieldViolation("prices", f"must have at most {MAX_CONDITIONS} conditions in all")
        return
    yield from _name_violations("prices", (price.name for price in prices))
    for index, price in enumerate(prices):
        yield from _price_violations(f"prices[{index}]", price, formulas)
    yield from _meters_violations(price_list.meters, formulas)
    yield from _plans_violations(price_list.plans, formulas)


def discounts_violations(path: str, discounts: Sequence[Discount]) -> Violations:
    """Everything that is wrong with the discounts of a price or of a contract."""
    if len(discounts) > MAX_DISCOUNTS:
        yield FieldViolation(path, f"must be at most {MAX_DISCOUNTS}")
        return
    yield from _name_violations(path, (one.name for one in discounts))
    is_all_gone = is_behind_others = False
    for index, one in enumerate(discounts):
        at = f"{path}[{index}]"
        if is_all_gone:
            yield FieldViolation(at, "has no effect: one before it takes off everything")
        if one.volume and is_behind_others:
            yield FieldViolation(
                f"{at}.volume", "must come before the others: it counts what is spent without discounts"
            )
        is_behind_others = is_behind_others or not one.volume
        yield from _discount_violations(at, one)
        is_unlimited = one.start_time is None and one.end_time is None
        is_all_gone = is_all_gone or (is_unlimited and one.basis_points == _ALL)


def allowance_meter_violations(path: str, meter: str, formulas: Collection[str] = ()) -> Violations:
    """What is wrong with the name of a meter that somebody may use without paying by the unit."""
    yield from _meter_violations(path, meter, formulas)


def _price_violations(path: str, price: Price, formulas: Collection[str]) -> Violations:
    yield from _selector_violations(f"{path}.selector", price.selector)
    if not 1 <= len(price.components) <= MAX_COMPONENTS:
        yield FieldViolation(f"{path}.components", f"must be 1 to {MAX_COMPONENTS}")
    else:
        yield from _name_violations(f"{path}.components", (named.name for named in price.components))
        for index, named in enumerate(price.components):
            at = f"{path}.components[{index}]"
            yield from _component_violations(at, named, formulas)
            if price.outcome_factors and _settles_at_close(named):
                yield FieldViolation(
                    f"{at}.meter_rate.tier_mode",
                    "must not be volume over a billing period in a price with outcome factors: those are"
                    " known by execution, its price at the end of the period",
                )
    yield from _deferral_violations(f"{path}.deferral", price.deferral)
    yield from _factor_violations(f"{path}.outcome_factors", price.outcome_factors)
    yield from discounts_violations(f"{path}.discounts", price.discounts)
    for least, most in (("minimum", "maximum"), ("period_minimum", "period_maximum")):
        yield from _limits_violations(path, price, least, most)


def _settles_at_close(named: PriceComponent) -> bool:
    rate = named.component
    return (
        isinstance(rate, MeterRate)
        and rate.tier_mode is TierMode.VOLUME
        and rate.tier_scope is TierScope.BILLING_PERIOD
    )


def _limits_violations(path: str, price: Price, least: str, most: str) -> Violations:
    minimum: UnitPrice | None = getattr(price, least)
    maximum: UnitPrice | None = getattr(price, most)
    wrong = [
        violation
        for name, limit in ((least, minimum), (most, maximum))
        if limit is not None
        for violation in _amount_violations(f"{path}.{name}", limit)
    ]
    yield from wrong
    if wrong or minimum is None or maximum is None:
        return
    if Decimal(maximum.amount) < Decimal(minimum.amount):
        yield FieldViolation(f"{path}.{most}", f"must be at least the {least}, {minimum.amount}")


def _name_violations(path: str, names: Iterable[str]) -> Violations:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not _NAME.fullmatch(name):
            yield FieldViolation(f"{path}[{index}].name", "must be 1 to 64 letters, digits, '_', '.' or '-'")
        elif name in seen:
            yield FieldViolation(f"{path}[{index}].name", f"{name!r} is used twice")
        seen.add(name)


def _selector_violations(path: str, selector: PriceSelector) -> Violations:
    checks: tuple[tuple[str, frozenset[str], Callable[[str], bool], str], ...] = (
        ("action_types", selector.action_types, _is_action_type, "an action type"),
        ("agent_ids", selector.agent_ids, _is_agent_id, "an agent id"),
    )
    for field, values, is_valid, kind in checks:
        if len(values) > MAX_SELECTED:
            yield FieldViolation(f"{path}.{field}", f"must be at most {MAX_SELECTED}")
        wrong = sorted(value for value in values if not is_valid(value))
        if wrong:
            yield FieldViolation(f"{path}.{field}", f"{wrong[0][:64]!r} is not {kind}")


def _is_action_type(value: str) -> bool:
    return IDENTIFIER.fullmatch(value) is not None


def _is_agent_id(value: str) -> bool:
    try:
        check_id(value, AGENT, field="agent_ids")
    except InvalidArgument:
        return False
    return True


def _deferral_violations(path: str, deferral: OutcomeDeferral) -> Violations:
    after = deferral.expire_after
    if not MIN_DEFERRAL <= after <= MAX_DEFERRAL or after.microseconds:
        yield FieldViolation(
            f"{path}.expire_after", f"must be a second to {MAX_DEFERRAL.days} days, in whole seconds"
        )
    if deferral.expired_outcome is Outcome.PENDING:
        yield FieldViolation(f"{path}.expired_outcome", "must be success, failure, partial or unknown")


def _factor_violations(path: str, factors: Sequence[OutcomeFactor]) -> Violations:
    seen: set[Outcome] = set()
    for index, factor in enumerate(factors):
        if factor.outcome is Outcome.PENDING:
            yield FieldViolation(
                f"{path}[{index}].outcome",
                "must be success, failure, partial or unknown: a pending one owes what any other does",
            )
        elif factor.outcome in seen:
            yield FieldViolation(f"{path}[{index}].outcome", f"{factor.outcome.value!r} is named twice")
        seen.add(factor.outcome)
        if not 0 <= factor.basis_points <= _ALL:
            yield FieldViolation(f"{path}[{index}].basis_points", f"must be from 0 to {_ALL}")


def _component_violations(path: str, named: PriceComponent, formulas: Collection[str]) -> Violations:
    match named.component:
        case BaseFee(price):
            yield from _fee_violations(f"{path}.base_fee.price", price)
        case TokenRate(_, price):
            yield from _unit_price_violations(f"{path}.token_rate.price", price)
        case OutcomeBonus(outcome, price):
            if outcome in (Outcome.UNKNOWN, Outcome.PENDING) or (outcome is None and not named.condition):
                yield FieldViolation(f"{path}.outcome_bonus.outcome", "must be success, failure or partial")
            yield from _fee_violations(f"{path}.outcome_bonus.price", price)
        case MeterRate() as rate:
            yield from _rate_violations(f"{path}.meter_rate", rate, formulas)
    if named.condition:
        try:
            compile_condition(named.condition)
        except ConditionError as error:
            yield FieldViolation(f"{path}.condition", str(error))


def _rate_violations(path: str, rate: MeterRate, formulas: Collection[str]) -> Violations:
    yield from _meter_violations(f"{path}.meter", rate.meter, formulas)
    yield from _models_violations(f"{path}.models", rate)
    if not 1 <= len(rate.tiers) <= MAX_TIERS:
        yield FieldViolation(f"{path}.tiers", f"must be 1 to {MAX_TIERS}")
        return
    if rate.tier_mode in (TierMode.FLAT, TierMode.PACKAGE) and len(rate.tiers) > 1:
        yield FieldViolation(
            f"{path}.tiers[1]", f"must not be there: {rate.tier_mode.value} has one tier, without end"
        )
    yield from _tiers_violations(f"{path}.tiers", rate.tiers)
    for index, tier in enumerate(rate.tiers):
        yield from _unit_price_violations(f"{path}.tiers[{index}].price", tier.price)
        if tier.fee is not None:
            yield from _fee_violations(f"{path}.tiers[{index}].fee", tier.fee)


def _tiers_violations(path: str, tiers: Sequence[Tier]) -> Violations:
    """Whether every quantity is in one tier, and every tier has one."""
    before = 0
    for index, tier in enumerate(tiers):
        at, is_last = f"{path}[{index}].up_to", index == len(tiers) - 1
        if tier.up_to is None:
            if not is_last:
                yield FieldViolation(at, "is required: the tiers behind one without end are never reached")
                return
        elif not 1 <= tier.up_to <= _MAX_POSITION:
            yield FieldViolation(at, f"must be from 1 to {_MAX_POSITION}")
            return
        elif tier.up_to <= before:
            yield FieldViolation(at, f"must be more than {before}, where the tier before ends")
            return
        elif is_last:
            yield FieldViolation(at, "must be left out: the last tier has no end")
        else:
            before = tier.up_to


def _models_violations(path: str, rate: MeterRate) -> Violations:
    if not rate.models:
        return
    if rate.meter not in MODEL_METERS:
        yield FieldViolation(path, f"must be empty: {rate.meter!r} does not say which model consumed it")
    if len(rate.models) > MAX_MODELS:
        yield FieldViolation(path, f"must be at most {MAX_MODELS}")
        return
    for index, model in enumerate(rate.models):
        if not model or len(model) > _MAX_MODEL or not model.isprintable() or "*" in model[:-1]:
            yield FieldViolation(
                f"{path}[{index}]", "must be a model's name, or the beginning of names followed by '*'"
            )
        elif model in rate.models[:index]:
            yield FieldViolation(f"{path}[{index}]", f"{model!r} is there twice")


def _meter_violations(path: str, meter: str, formulas: Collection[str]) -> Violations:
    """Hosts name meters of their own as they like, but hardly so that they differ from ours by a letter."""
    if not METER_NAME.fullmatch(meter):
        yield FieldViolation(path, "must be 1 to 64 lowercase letters, digits or '_'")
    elif meter not in METERS and meter not in formulas:
        near = get_close_matches(meter, sorted({*METERS, *formulas}), n=1, cutoff=0.9)
        if near:
            yield FieldViolation(path, f"{meter!r} is not a meter; {near[0]!r} is")


def _discount_violations(path: str, one: Discount) -> Violations:
    said = (one.basis_points is not None) + (one.amount is not None) + bool(one.volume)
    if said != 1:
        yield FieldViolation(path, "must be one of basis points, an amount, or by volume")
    if one.basis_points is not None and not 1 <= one.basis_points <= _ALL:
        yield FieldViolation(f"{path}.basis_points", f"must be from 1 to {_ALL}")
    if one.amount is not None:
        wrong = list(_amount_violations(f"{path}.amount", one.amount))
        yield from wrong
        if not wrong and not Decimal(one.amount.amount):
            yield FieldViolation(f"{path}.amount.amount", "has no effect: must be more than 0")
    if one.volume:
        yield from _steps_violations(f"{path}.volume.steps", one.volume)
    if one.start_time is not None and one.end_time is not None and one.end_time <= one.start_time:
        yield FieldViolation(f"{path}.end_time", "must be after the start time")


def _steps_violations(path: str, steps: Sequence[VolumeDiscountStep]) -> Violations:
    if len(steps) > MAX_TIERS:
        yield FieldViolation(path, f"must be at most {MAX_TIERS}")
        return
    before: VolumeDiscountStep | None = None
    for index, step in enumerate(steps):
        at = f"{path}[{index}]"
        if not 1 <= step.basis_points <= _ALL:
            yield FieldViolation(f"{at}.basis_points", f"must be from 1 to {_ALL}")
        wrong = list(_amount_violations(f"{at}.from_amount", step.from_amount))
        yield from wrong
        if wrong:
            return
        if before is not None:
            if Decimal(step.from_amount.amount) <= Decimal(before.from_amount.amount):
                yield FieldViolation(
                    f"{at}.from_amount.amount",
                    f"must be more than that of the step before, {before.from_amount.amount}",
                )
            elif step.basis_points == before.basis_points:
                yield FieldViolation(f"{at}.basis_points", "has no effect: the step before takes off as much")
        before = step


def _meters_violations(meters: Sequence[MeterFormula], formulas: Collection[str]) -> Violations:
    if len(meters) > MAX_METERS:
        yield FieldViolation("meters", f"must be at most {MAX_METERS}")
        return
    seen: set[str] = set()
    for index, formula in enumerate(meters):
        path = f"meters[{index}]"
        if not METER_NAME.fullmatch(formula.meter):
            yield FieldViolation(f"{path}.meter", "must be 1 to 64 lowercase letters, digits or '_'")
        elif formula.meter in METERS:
            yield FieldViolation(f"{path}.meter", f"{formula.meter!r} is a meter that every usage has")
        elif formula.meter in seen:
            yield FieldViolation(f"{path}.meter", f"{formula.meter!r} is defined twice")
        seen.add(formula.meter)
        yield from _terms_violations(f"{path}.terms", formula, formulas)


def _terms_violations(path: str, formula: MeterFormula, formulas: Collection[str]) -> Violations:
    if not 1 <= len(formula.terms) <= MAX_TERMS:
        yield FieldViolation(path, f"must be 1 to {MAX_TERMS}")
        return
    seen: set[str] = set()
    for index, term in enumerate(formula.terms):
        at = f"{path}[{index}]"
        if term.meter in formulas:
            yield FieldViolation(f"{at}.meter", f"{term.meter!r} is a formula itself: name what hosts report")
        elif term.meter in seen:
            yield FieldViolation(f"{at}.meter", f"{term.meter!r} is there twice")
        else:
            yield from _meter_violations(f"{at}.meter", term.meter, ())
        seen.add(term.meter)
        if not _DECIMAL.fullmatch(term.units):
            yield FieldViolation(f"{at}.units", _DECIMAL_RULE)
        elif not Decimal(term.units):
            yield FieldViolation(f"{at}.units", "has no effect: must be more than 0")
        if not 1 <= term.per_units <= MAX_PER_UNITS:
            yield FieldViolation(f"{at}.per_units", f"must be from 1 to {MAX_PER_UNITS}")


def _plans_violations(plans: Sequence[Plan], formulas: Collection[str]) -> Violations:
    if len(plans) > MAX_PLANS:
        yield FieldViolation("plans", f"must be at most {MAX_PLANS}")
        return
    yield from _name_violations("plans", (plan.name for plan in plans))
    for index, plan in enumerate(plans):
        path = f"plans[{index}]"
        if plan.fee is None and plan.seat_fee is None and not plan.allowances:
            yield FieldViolation(path, "must have a fee, a fee of a seat, or an allowance")
        for name, fee in (("fee", plan.fee), ("seat_fee", plan.seat_fee)):
            if fee is not None:
                yield from _amount_violations(f"{path}.{name}", fee)
        if len(plan.allowances) > MAX_ALLOWANCES:
            yield FieldViolation(f"{path}.allowances", f"must be at most {MAX_ALLOWANCES}")
            continue
        seen: set[str] = set()
        for position, one in enumerate(plan.allowances):
            at = f"{path}.allowances[{position}]"
            if one.meter in seen:
                yield FieldViolation(f"{at}.meter", f"{one.meter!r} is there twice")
            else:
                yield from _meter_violations(f"{at}.meter", one.meter, formulas)
            seen.add(one.meter)
            for field, quantity in (
                ("quantity", one.quantity),
                ("quantity_per_seat", one.quantity_per_seat),
            ):
                if not 0 <= quantity <= MAX_QUANTITY:
                    yield FieldViolation(f"{at}.{field}", f"must be from 0 to {MAX_QUANTITY}")
            if not one.quantity and not one.quantity_per_seat:
                yield FieldViolation(f"{at}.quantity", "has no effect: must be more than 0")


def _unit_price_violations(path: str, price: UnitPrice) -> Violations:
    """The price of so many units."""
    yield from _decimal_violations(path, price)
    if not 1 <= price.per_units <= MAX_PER_UNITS:
        yield FieldViolation(f"{path}.per_units", f"must be from 1 to {MAX_PER_UNITS}")


def _fee_violations(path: str, price: UnitPrice) -> Violations:
    """What is charged once: exact, since it is rounded together with the rest of the price."""
    yield from _decimal_violations(path, price)
    yield from _single_violations(path, price)


def _amount_violations(path: str, price: UnitPrice) -> Violations:
    """What a whole amount is compared with or reduced by: in whole micros."""
    if not _MICROS.fullmatch(price.amount):
        yield FieldViolation(f"{path}.amount", _MICROS_RULE)
    yield from _single_violations(path, price)


def _decimal_violations(path: str, price: UnitPrice) -> Violations:
    if not _DECIMAL.fullmatch(price.amount):
        yield FieldViolation(f"{path}.amount", _DECIMAL_RULE)


def _single_violations(path: str, price: UnitPrice) -> Violations:
    if price.per_units != 1:
        yield FieldViolation(f"{path}.per_units", "must be 1 for a fee")
