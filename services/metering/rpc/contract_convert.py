"""Between the contract and the domain: contracts with customers. What is stored of them is what travels."""

from collections.abc import Iterable
from datetime import datetime

from services.kit.errors import InvalidArgument
from services.kit.money import check_currency
from services.kit.times import optional_time_from_proto, set_timestamp, timestamp
from services.metering.domain.billing_period import (
    UTC_ZONE,
    BillingPeriod,
    check_billing_period,
)
from services.metering.domain.contract import (
    Contract,
    ContractContent,
    ContractKey,
    check_content,
)
from services.metering.domain.price_book import MAX_ALLOWANCES, MAX_DISCOUNTS, Allowance, PeriodUnit
from services.metering.rpc.prices import discounts_from_proto, discounts_to_proto
from services.metering.store.contracts import StoredContract
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import contract_pb2, price_book_pb2

_UNITS = {
    price_book_pb2.PERIOD_UNIT_UNSPECIFIED: PeriodUnit.MONTH,
    price_book_pb2.PERIOD_UNIT_MONTH: PeriodUnit.MONTH,
    price_book_pb2.PERIOD_UNIT_QUARTER: PeriodUnit.QUARTER,
    price_book_pb2.PERIOD_UNIT_YEAR: PeriodUnit.YEAR,
}
_UNITS_TO_PROTO = {
    PeriodUnit.MONTH: price_book_pb2.PERIOD_UNIT_MONTH,
    PeriodUnit.QUARTER: price_book_pb2.PERIOD_UNIT_QUARTER,
    PeriodUnit.YEAR: price_book_pb2.PERIOD_UNIT_YEAR,
}


def billing_period_from_proto(message: contract_pb2.BillingPeriod, *, path: str) -> BillingPeriod:
    """How billing periods are cut. Raises InvalidArgument for what is malformed."""
    if message.unit not in _UNITS:
        raise InvalidArgument.of(f"{path}.unit", "must be MONTH, QUARTER or YEAR")
    billing_period = stored_billing_period(message, path=path)
    check_billing_period(billing_period, field=path)
    return billing_period


def stored_billing_period(message: contract_pb2.BillingPeriod, *, path: str = "") -> BillingPeriod:
    """The same of one that was checked before."""
    return BillingPeriod(
        unit=_UNITS[message.unit],
        anchor=optional_time(message, "anchor_time", path=path),
        time_zone=message.time_zone or UTC_ZONE,
    )


def billing_period_to_proto(billing_period: BillingPeriod) -> contract_pb2.BillingPeriod:
    """How billing periods are cut, as it travels."""
    message = contract_pb2.BillingPeriod(
        unit=_UNITS_TO_PROTO[billing_period.unit], time_zone=billing_period.time_zone
    )
    if billing_period.anchor is not None:
        set_timestamp(message.anchor_time, billing_period.anchor)
    return message


def content_from_proto(
    message: contract_pb2.ContractContent, *, currency_code: str, start_time: datetime, path: str
) -> ContractContent:
    """The content in a request, checked. Raises InvalidArgument for what is malformed."""
    # Before anything is made of it: a request of a few megabytes can hold a million empty messages.
    for field, count, most in (
        ("discounts", len(message.discounts), MAX_DISCOUNTS),
        ("allowances", len(message.allowances), MAX_ALLOWANCES),
    ):
        if count > most:
            raise InvalidArgument.of(f"{path}.{field}", f"must be at most {most}")
    for field, is_set, money in (
        ("period_maximum", message.HasField("period_maximum"), message.period_maximum),
        ("credit_limit", message.HasField("credit_limit"), message.credit_limit),
    ):
        if is_set and money.currency_code != currency_code:
            raise InvalidArgument.of(f"{path}.{field}.currency_code", f"must be {currency_code}")
    content = _content(message, path)
    check_content(content, start_time=start_time, path=path)
    return content


def content_to_proto(content: ContractContent, currency_code: str) -> contract_pb2.ContractContent:
    """The content of a contract as it travels."""
    message = contract_pb2.ContractContent(
        discounts=discounts_to_proto(content.discounts),
        allowances=allowances_to_proto(content.allowances),
        period_maximum=_money(currency_code, content.period_maximum_micros),
        credit_limit=_money(currency_code, content.credit_limit_micros),
        recorded_terms=content.recorded_terms,
        end_time=None if content.end_time is None else timestamp(content.end_time),
    )
    if content.price_version_id:
        message.price_version_id = content.price_version_id
    if content.price_book_id:
        message.price_book_id = content.price_book_id
    return message


def allowances_to_proto(allowances: Iterable[Allowance]) -> list[price_book_pb2.Allowance]:
    """Allowances as they travel."""
    return [
        price_book_pb2.Allowance(
            meter=allowance.meter,
            quantity=allowance.quantity,
            quantity_per_seat=allowance.quantity_per_seat,
        )
        for allowance in allowances
    ]


def contract_to_proto(contract: Contract) -> contract_pb2.Contract:
    """A version of a contract as it travels."""
    return contract_pb2.Contract(
        contract_id=contract.contract_id,
        customer_id=contract.key.customer_id,
        organization_id=contract.key.organization_id,
        currency_code=contract.key.currency_code,
        billing_period=(
            None if contract.billing_period is None else billing_period_to_proto(contract.billing_period)
        ),
        start_time=timestamp(contract.start_time),
        version_number=contract.version_number,
        content=content_to_proto(contract.content, contract.key.currency_code),
        effective_time=timestamp(contract.effective_time),
        create_time=timestamp(contract.create_time),
        api_key_id=contract.api_key_id,
    )


def to_stored(contract: Contract) -> StoredContract:
    """A version of a contract as it is stored."""
    billing_period = contract.billing_period
    return StoredContract(
        contract_id=contract.contract_id,
        **contract.key._asdict(),
        billing_period=(
            None if billing_period is None else billing_period_to_proto(billing_period).SerializeToString()
        ),
        start_time=contract.start_time,
        version_number=contract.version_number,
        content=content_to_proto(contract.content, contract.key.currency_code).SerializeToString(
            deterministic=True
        ),
        effective_time=contract.effective_time,
        create_time=contract.create_time,
        api_key_id=contract.api_key_id,
    )


def from_stored(stored: StoredContract) -> Contract:
    """The version of a contract that was stored."""
    return Contract(
        contract_id=stored.contract_id,
        key=ContractKey(stored.customer_id, stored.organization_id, stored.currency_code),
        billing_period=(
            None
            if stored.billing_period is None
            else stored_billing_period(contract_pb2.BillingPeriod.FromString(stored.billing_period))
        ),
        start_time=stored.start_time,
        version_number=stored.version_number,
        content=_content(contract_pb2.ContractContent.FromString(stored.content), "content"),
        effective_time=stored.effective_time,
        create_time=stored.create_time,
        api_key_id=stored.api_key_id,
    )


def key_from_proto(message: contract_pb2.Contract) -> ContractKey:
    """What a contract is about. Raises InvalidArgument for an unknown currency."""
    return ContractKey(message.customer_id, message.organization_id, check_currency(message.currency_code))


def optional_time(message: object, field: str, *, path: str) -> datetime | None:
    """The time in a field that may be unset. Raises InvalidArgument naming it by its path."""
    try:
        return optional_time_from_proto(message, field)
    except InvalidArgument:
        raise InvalidArgument.of(f"{path}.{field}", "is not a valid time") from None


def _content(message: contract_pb2.ContractContent, path: str) -> ContractContent:
    return ContractContent(
        price_version_id=message.price_version_id,
        price_book_id=message.price_book_id,
        discounts=discounts_from_proto(f"{path}.discounts", message.discounts),
        allowances=tuple(
            Allowance(allowance.meter, allowance.quantity, allowance.quantity_per_seat)
            for allowance in message.allowances
        ),
        period_maximum_micros=(
            message.period_maximum.amount_micros if message.HasField("period_maximum") else None
        ),
        credit_limit_micros=message.credit_limit.amount_micros if message.HasField("credit_limit") else None,
        recorded_terms=dict(message.recorded_terms),
        end_time=optional_time(message, "end_time", path=path),
    )


def _money(currency_code: str, amount_micros: int | None) -> money_pb2.Money | None:
    if amount_micros is None:
        return None
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount_micros)
