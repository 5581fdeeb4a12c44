"""Between the contract and the domain: subscriptions and their fees. What is stored is what travels."""

from datetime import UTC, datetime
from typing import Final

from services.kit.errors import InvalidArgument
from services.kit.times import set_timestamp, timestamp
from services.metering.domain.billing_period import Period
from services.metering.domain.price_book import Allowance
from services.metering.domain.subscription import (
    ChangeTiming,
    Fee,
    Segment,
    Subscription,
    SubscriptionState,
)
from services.metering.rpc.contract_convert import (
    allowances_to_proto,
    billing_period_to_proto,
    stored_billing_period,
)
from services.metering.rpc.convert import line_to_proto, money_to_proto
from services.metering.store.subscriptions import ListedFee, StoredFee, StoredSegment, StoredSubscription
from tallystick.metering.v1 import subscription_pb2

_STATES: Final = {
    SubscriptionState.ACTIVE: subscription_pb2.SUBSCRIPTION_STATE_ACTIVE,
    SubscriptionState.CANCELED: subscription_pb2.SUBSCRIPTION_STATE_CANCELED,
}
_STATES_FROM_PROTO: Final = {number: state for state, number in _STATES.items()}
_TIMINGS: Final = {
    subscription_pb2.CHANGE_TIMING_UNSPECIFIED: ChangeTiming.BY_FEE,
    subscription_pb2.CHANGE_TIMING_NOW: ChangeTiming.NOW,
    subscription_pb2.CHANGE_TIMING_PERIOD_END: ChangeTiming.PERIOD_END,
}


def timing_from_proto(value: subscription_pb2.ChangeTiming.ValueType) -> ChangeTiming:
    """When a change takes effect. Raises InvalidArgument for what this release does not know."""
    timing = _TIMINGS.get(value)
    if timing is None:
        raise InvalidArgument.of("timing", "must be NOW or PERIOD_END, or unspecified")
    return timing


def subscription_to_proto(subscription: Subscription) -> subscription_pb2.Subscription:
    """A subscription as it travels."""
    currency_code = subscription.currency_code
    return subscription_pb2.Subscription(
        subscription_id=subscription.subscription_id,
        customer_id=subscription.customer_id,
        organization_id=subscription.organization_id,
        agent_id=subscription.agent_id,
        currency_code=currency_code,
        price_book_id=subscription.price_book_id,
        billing_period=billing_period_to_proto(subscription.billing_period),
        state=_STATES[subscription.state],
        cancel_at_period_end=subscription.cancel_at_period_end,
        segments=[_segment_to_proto(segment, currency_code) for segment in subscription.segments],
        pending_plan_name=subscription.pending_plan_name,
        pending_seats=subscription.pending_seats,
        credit=money_to_proto(currency_code, subscription.credit_micros),
        period_fees=money_to_proto(currency_code, subscription.fees_micros),
        fee_count=subscription.fee_count,
        start_time=timestamp(subscription.start_time),
        period_start_time=timestamp(subscription.period.start),
        period_end_time=timestamp(subscription.period.end),
        end_time=None if subscription.end_time is None else timestamp(subscription.end_time),
    )


def subscription_from_stored(content: bytes) -> Subscription:
    """The subscription that was stored."""
    message = subscription_pb2.Subscription.FromString(content)
    return Subscription(
        subscription_id=message.subscription_id,
        customer_id=message.customer_id,
        organization_id=message.organization_id,
        agent_id=message.agent_id,
        currency_code=message.currency_code,
        price_book_id=message.price_book_id,
        billing_period=stored_billing_period(message.billing_period),
        start_time=message.start_time.ToDatetime(UTC),
        period=Period(message.period_start_time.ToDatetime(UTC), message.period_end_time.ToDatetime(UTC)),
        segments=tuple(_segment_from_proto(segment) for segment in message.segments),
        state=_STATES_FROM_PROTO[message.state],
        cancel_at_period_end=message.cancel_at_period_end,
        pending_plan_name=message.pending_plan_name,
        pending_seats=message.pending_seats,
        credit_micros=message.credit.amount_micros,
        fees_micros=message.period_fees.amount_micros,
        fee_count=message.fee_count,
        end_time=message.end_time.ToDatetime(UTC) if message.HasField("end_time") else None,
    )


def subscription_to_stored(subscription: Subscription) -> StoredSubscription:
    """A subscription as it is stored."""
    return StoredSubscription(
        subscription_id=subscription.subscription_id,
        customer_id=subscription.customer_id,
        organization_id=subscription.organization_id,
        currency_code=subscription.currency_code,
        state=subscription.state.value,
        start_time=subscription.start_time,
        renew_time=subscription.end_time or subscription.period.end,
        content=subscription_to_proto(subscription).SerializeToString(),
    )


def segment_to_stored(subscription: Subscription, api_key_id: str) -> StoredSegment:
    """What is subscribed to now as it is stored; the end, if that is what came."""
    current = subscription.current
    content = None
    if subscription.is_active:
        content = _segment_to_proto(current, subscription.currency_code).SerializeToString()
    return StoredSegment(
        subscription_id=subscription.subscription_id,
        customer_id=subscription.customer_id,
        organization_id=subscription.organization_id,
        currency_code=subscription.currency_code,
        start_time=subscription.end_time or current.start,
        billing_period=billing_period_to_proto(subscription.billing_period).SerializeToString(),
        content=content,
        api_key_id=api_key_id,
    )


def included_in(content: bytes) -> dict[str, int]:
    """What a stored segment includes: units by meter."""
    message = subscription_pb2.SubscriptionSegment.FromString(content)
    return dict(_segment_from_proto(message).included())


def fee_to_proto(fee: Fee, create_time: datetime) -> subscription_pb2.SubscriptionFee:
    """A fee as it travels."""
    return subscription_pb2.SubscriptionFee(
        subscription_id=fee.subscription_id,
        workflow_id=fee.workflow_id,
        ordinal=fee.ordinal,
        charge_id=fee.charge_id,
        lines=[line_to_proto(line, fee.currency_code) for line in fee.lines],
        amount=money_to_proto(fee.currency_code, fee.amount_micros),
        from_credit=money_to_proto(fee.currency_code, fee.from_credit_micros),
        service_start_time=timestamp(fee.service.start),
        service_end_time=timestamp(fee.service.end),
        create_time=timestamp(create_time),
        price_version_id=fee.price_version_id,
    )


def fee_to_stored(fee: Fee, create_time: datetime) -> StoredFee:
    """A fee as it is stored."""
    return StoredFee(
        subscription_id=fee.subscription_id,
        customer_id=fee.customer_id,
        organization_id=fee.organization_id,
        agent_id=fee.agent_id,
        currency_code=fee.currency_code,
        price_version_id=fee.price_version_id,
        workflow_id=fee.workflow_id,
        ordinal=fee.ordinal,
        occur_time=fee.service.start,
        amount_micros=fee.amount_micros,
        content=fee_to_proto(fee, create_time).SerializeToString(),
        create_time=create_time,
    )


def listed_fee_to_proto(fee: ListedFee) -> subscription_pb2.SubscriptionFee:
    """A stored fee as it travels."""
    message = subscription_pb2.SubscriptionFee.FromString(fee.content)
    message.posted = fee.posted
    message.last_error = fee.last_error
    return message


def _segment_to_proto(segment: Segment, currency_code: str) -> subscription_pb2.SubscriptionSegment:
    message = subscription_pb2.SubscriptionSegment(
        plan_name=segment.plan_name,
        seats=segment.seats,
        fee=money_to_proto(currency_code, segment.fee_micros),
        seat_fee=money_to_proto(currency_code, segment.seat_fee_micros),
        allowances=allowances_to_proto(segment.allowances),
        price_version_id=segment.price_version_id,
    )
    set_timestamp(message.start_time, segment.start)
    return message


def _segment_from_proto(message: subscription_pb2.SubscriptionSegment) -> Segment:
    return Segment(
        start=message.start_time.ToDatetime(UTC),
        plan_name=message.plan_name,
        seats=message.seats,
        fee_micros=message.fee.amount_micros,
        seat_fee_micros=message.seat_fee.amount_micros,
        allowances=tuple(
            Allowance(one.meter, one.quantity, one.quantity_per_seat) for one in message.allowances
        ),
        price_version_id=message.price_version_id,
    )
