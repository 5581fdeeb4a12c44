"""What is asked, checked before it travels.

All of them raise TypeError or ValueError for what cannot be asked.
"""

import os
from datetime import timedelta
from decimal import Decimal
from typing import TypeAlias, get_args

from google.protobuf.duration_pb2 import Duration

from tallystick._convert import money_to_proto, timestamp_of, usage_to_proto
from tallystick.metering.v1 import metering_service_pb2
from tallystick.models import Reservation, RunFields, Usage, UsageEvent, WorkFields
from tallystick.money import Money
from tallystick.payouts.v1 import payment_service_pb2
from tallystick.reporting.v1 import period_pb2, reporting_service_pb2, usage_report_pb2
from tallystick.reports import Interval, Period, UsageGrouping

Amount: TypeAlias = Money | Decimal | str | int


def planned(work: WorkFields | RunFields, fields: type[WorkFields | RunFields]) -> UsageEvent:
    """The event that work will be reported as. Raises TypeError for what nobody can say before it is done."""
    unknown = work.keys() - fields.__annotations__.keys()
    if unknown:
        raise TypeError(f"not known before the work is done: {', '.join(sorted(unknown))}")
    return UsageEvent(**work)


def authorize_request(
    max_cost: Amount | None,
    expected: Usage | None,
    ttl: timedelta | None,
    idempotency_key: str,
    event: UsageEvent,
) -> metering_service_pb2.AuthorizeRequest:
    """What asks for a reservation for this event."""
    if (max_cost is None) == (expected is None):
        raise ValueError("either max_cost or expected says how much to reserve")
    return metering_service_pb2.AuthorizeRequest(
        customer_id=event.customer,
        workflow_id=event.workflow_id,
        ordinal=event.ordinal,
        agent_id=event.agent,
        agent_version=event.agent_version,
        action_type=event.action,
        max_cost=None if max_cost is None else money_to_proto(amount_of(max_cost, event.currency)),
        usage=None if expected is None else usage_to_proto(expected),
        ttl=None if ttl is None else _duration(ttl),
        idempotency_key=idempotency_key,
        currency_code=event.currency,
    )


def extend_request(
    reservation: Reservation | str, max_cost: Amount | None, ttl: timedelta | None
) -> metering_service_pb2.ExtendRequest:
    """What raises or prolongs a reservation."""
    if max_cost is None and ttl is None:
        raise ValueError("either max_cost or ttl says how to extend the reservation")
    currency = "" if isinstance(reservation, str) else reservation.amount.currency
    return metering_service_pb2.ExtendRequest(
        token=token_of(reservation),
        amount=None if max_cost is None else money_to_proto(amount_of(max_cost, currency)),
        ttl=None if ttl is None else _duration(ttl),
    )


def check_access_request(
    customer: str, agent: str, action: str, cost: Amount | None, workflow_id: str
) -> metering_service_pb2.CheckAccessRequest:
    """What asks whether a customer may run an agent."""
    return metering_service_pb2.CheckAccessRequest(
        customer_id=customer,
        agent_id=agent,
        action_type=action,
        workflow_id=workflow_id,
        cost=None if cost is None else money_to_proto(amount_of(cost, "")),
    )


def purchase_request(
    amount: Amount, currency: str, payment_method: str | None, idempotency_key: str | None, customer: str
) -> payment_service_pb2.PurchaseCreditsRequest:
    """The request of a purchase. Without a key it gets one of its own, under which it may be sent again."""
    return payment_service_pb2.PurchaseCreditsRequest(
        customer_id=customer,
        amount=money_to_proto(amount_of(amount, currency)),
        payment_method_id=payment_method or "",
        idempotency_key=idempotency_key or os.urandom(16).hex(),
    )


def usage_request(
    period: Period,
    group_by: UsageGrouping | None,
    organization: str,
    customer: str,
    currency: str,
    time_zone: str,
    limit: int,
    series: Interval | bool,
) -> reporting_service_pb2.GetUsageRequest:
    """What asks for the usage of a period."""
    if group_by is not None and group_by not in get_args(UsageGrouping):
        raise ValueError(
            f"group_by is one of {', '.join(get_args(UsageGrouping))}, or None, not {group_by!r}"
        )
    if not isinstance(series, bool) and series not in get_args(Interval):
        raise ValueError(f"series is one of {', '.join(get_args(Interval))}, or a bool, not {series!r}")
    return reporting_service_pb2.GetUsageRequest(
        organization_id=organization,
        customer_id=customer,
        currency_code=currency,
        period=_period(period, time_zone),
        grouping=usage_report_pb2.UsageGrouping.Value(
            f"USAGE_GROUPING_{(group_by or 'unspecified').upper()}"
        ),
        limit=limit,
        include_series=bool(series),
        interval=period_pb2.Interval.Value(
            f"INTERVAL_{'UNSPECIFIED' if isinstance(series, bool) else series.upper()}"
        ),
    )


def _period(period: Period, time_zone: str) -> period_pb2.Period:
    if isinstance(period, str):
        return period_pb2.Period(name=period, time_zone=time_zone)
    start, end = period
    for moment in (start, end):
        if moment.utcoffset() is None:
            raise ValueError(
                "a period's start and end need a time zone, for example datetime.now(timezone.utc)"
            )
    return period_pb2.Period(start_time=timestamp_of(start), end_time=timestamp_of(end), time_zone=time_zone)


def amount_of(amount: Amount, currency: str) -> Money:
    """A cost above zero; of `currency`, or, if that is empty, of its own currency or in USD.

    Raises TypeError for a float, ValueError for what is no amount, or not above zero.
    """
    own = amount.currency if isinstance(amount, Money) else "USD"
    money = Money.of(amount, currency or own)
    if money.micros <= 0:
        raise ValueError(f"a cost is above zero, not {money}")
    return money


def token_of(reservation: Reservation | str) -> str:
    return reservation if isinstance(reservation, str) else reservation.token


def _duration(ttl: timedelta) -> Duration:
    if not isinstance(ttl, timedelta):
        raise TypeError(f"ttl is a timedelta, not {type(ttl).__name__}")
    if ttl <= timedelta():
        raise ValueError(f"ttl is above zero, not {ttl}")
    duration = Duration()
    duration.FromTimedelta(ttl)
    return duration
