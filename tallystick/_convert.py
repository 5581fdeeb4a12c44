"""Between the public types and the messages that travel."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, cast, get_args

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick._status import from_item_error
from tallystick.common.v1 import money_pb2
from tallystick.errors import TallystickError
from tallystick.metering.v1 import (
    charge_line_pb2,
    metering_service_pb2,
    outcome_pb2,
    reservation_pb2,
    usage_pb2,
)
from tallystick.models import (
    Access,
    Balance,
    ChargeLine,
    DeferredOutcome,
    LineKind,
    Metered,
    ModelUsage,
    Outcome,
    Payment,
    Purchase,
    PurchaseState,
    Reservation,
    Settled,
    Settlement,
    UnitPrice,
    Usage,
    UsageEvent,
)
from tallystick.money import Money
from tallystick.payouts.v1 import payment_service_pb2, purchase_pb2

_OUTCOMES: dict[Outcome, usage_pb2.Outcome.ValueType] = {
    "success": usage_pb2.OUTCOME_SUCCESS,
    "failure": usage_pb2.OUTCOME_FAILURE,
    "partial": usage_pb2.OUTCOME_PARTIAL,
    "unknown": usage_pb2.OUTCOME_UNKNOWN,
    "pending": usage_pb2.OUTCOME_PENDING,
}
_MAX_RESULT_BYTES = 16 * 1024
OUTCOME_NAMES = {value: name for name, value in _OUTCOMES.items()}
assert set(_OUTCOMES) == set(get_args(Outcome))  # noqa: S101 - a mistake of ours, found on import
_OUTCOME_STATES: dict[int, Literal["pending", "resolved", "expired"]] = {
    outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING: "pending",
    outcome_pb2.DEFERRED_OUTCOME_STATE_RESOLVED: "resolved",
    outcome_pb2.DEFERRED_OUTCOME_STATE_EXPIRED: "expired",
}
_LINE_KINDS: dict[int, LineKind] = {
    charge_line_pb2.CHARGE_LINE_KIND_ALLOWANCE: "allowance",
    charge_line_pb2.CHARGE_LINE_KIND_OUTCOME_FACTOR: "outcome_factor",
    charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT: "discount",
    charge_line_pb2.CHARGE_LINE_KIND_MINIMUM: "minimum",
    charge_line_pb2.CHARGE_LINE_KIND_MAXIMUM: "maximum",
    charge_line_pb2.CHARGE_LINE_KIND_SUBSCRIPTION: "subscription",
    charge_line_pb2.CHARGE_LINE_KIND_PRORATION: "proration",
}
_RESERVATION_STATES: dict[int, Literal["settled", "released", "expired"]] = {
    reservation_pb2.RESERVATION_STATE_SETTLED: "settled",
    reservation_pb2.RESERVATION_STATE_RELEASED: "released",
    reservation_pb2.RESERVATION_STATE_EXPIRED: "expired",
}
_PURCHASE_STATES: dict[int, PurchaseState] = {
    purchase_pb2.PURCHASE_STATE_PROCESSING: "processing",
    purchase_pb2.PURCHASE_STATE_REQUIRES_ACTION: "requires_action",
    purchase_pb2.PURCHASE_STATE_SUCCEEDED: "succeeded",
    purchase_pb2.PURCHASE_STATE_FAILED: "failed",
    purchase_pb2.PURCHASE_STATE_CANCELLED: "cancelled",
}


def outcome_to_proto(outcome: Outcome) -> usage_pb2.Outcome.ValueType:
    """The outcome as it travels."""
    return _OUTCOMES[outcome]


def event_to_proto(event: UsageEvent) -> usage_pb2.UsageEvent:
    """The event as it travels. Raises TypeError or ValueError if a field does not fit its type there."""
    moment = event.outcome_expire_time
    return usage_pb2.UsageEvent(
        customer_id=event.customer,
        workflow_id=event.workflow_id,
        ordinal=event.ordinal,
        agent_id=event.agent,
        agent_version=event.agent_version,
        action_type=event.action,
        tool_name=event.tool,
        usage=usage_to_proto(event),
        outcome=_OUTCOMES[event.outcome],
        outcome_candidate=event.outcome_candidate,
        occur_time=None if event.occur_time is None else timestamp_of(event.occur_time),
        request_id=event.request_id,
        idempotency_key=event.idempotency_key,
        span_id=event.span_id,
        parent_span_id=event.parent_span_id,
        billable_rule_version=event.billable_rule_version,
        evidence_ref=event.evidence_ref,
        evidence_hash=event.evidence_hash,
        currency_code=event.currency,
        outcome_expire_time=None if moment is None else timestamp_of(moment),
        result=None if event.result is None else result_to_proto(event.result),
    )


def event_from_proto(event: usage_pb2.UsageEvent) -> UsageEvent:
    """The event that a message stands for."""
    return UsageEvent(
        customer=event.customer_id,
        workflow_id=event.workflow_id,
        ordinal=event.ordinal,
        agent=event.agent_id,
        agent_version=event.agent_version,
        action=event.action_type,
        tool=event.tool_name,
        model=event.usage.model,
        input_tokens=event.usage.input_tokens,
        output_tokens=event.usage.output_tokens,
        cached_input_tokens=event.usage.cached_input_tokens,
        reasoning_tokens=event.usage.reasoning_tokens,
        inference_calls=event.usage.inference_calls,
        tool_calls=event.usage.tool_calls,
        cpu_milliseconds=event.usage.cpu_milliseconds,
        memory_megabyte_seconds=event.usage.memory_megabyte_seconds,
        network_bytes=event.usage.network_bytes,
        meters=dict(event.usage.meters) or None,
        models=tuple(
            ModelUsage(
                model=one.model,
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
                cached_input_tokens=one.cached_input_tokens,
                reasoning_tokens=one.reasoning_tokens,
                inference_calls=one.inference_calls,
            )
            for one in event.usage.models
        ),
        outcome=OUTCOME_NAMES.get(event.outcome, "unknown"),
        outcome_candidate=event.outcome_candidate,
        occur_time=optional_time(event, "occur_time"),
        request_id=event.request_id,
        idempotency_key=event.idempotency_key,
        span_id=event.span_id,
        parent_span_id=event.parent_span_id,
        billable_rule_version=event.billable_rule_version,
        evidence_ref=event.evidence_ref,
        evidence_hash=event.evidence_hash,
        currency=event.currency_code,
        outcome_expire_time=optional_time(event, "outcome_expire_time"),
        result=MessageToDict(event.result) if event.HasField("result") else None,
    )


def metered_from_proto(metered: metering_service_pb2.MeteredEvent) -> Metered:
    """What an event cost."""
    return Metered(
        charge_id=metered.charge_id,
        outcome_id=metered.outcome_id,
        price_charged=money_from_proto(metered.price_charged),
        lines=lines_from_proto(metered.lines),
        price_version_id=metered.price_version_id,
        payment=Payment(
            from_credits=money_from_proto(metered.from_credits),
            from_receivable=money_from_proto(metered.from_receivable),
            unpaid=money_from_proto(metered.unpaid),
        ),
        available=optional_money(metered, "available_balance"),
        duplicate=metered.duplicate,
        evidence_differs=metered.evidence_differs,
        deferred_outcome=(
            outcome_from_proto(metered.deferred_outcome) if metered.HasField("deferred_outcome") else None
        ),
    )


def lines_from_proto(lines: Iterable[charge_line_pb2.ChargeLine]) -> tuple[ChargeLine, ...]:
    """How a price came about."""
    return tuple(
        ChargeLine(
            component=line.component_name,
            quantity=line.quantity,
            unit_price=UnitPrice(
                amount=Decimal(line.unit_price.amount or "0"), per_units=line.unit_price.per_units or 1
            ),
            amount=money_from_proto(line.amount),
            kind=_LINE_KINDS.get(line.kind, "component"),
            tier=line.tier,
        )
        for line in lines
    )


def verdict_from_proto(verdict: metering_service_pb2.MeterVerdict) -> Metered | TallystickError:
    """What became of one event of a batch."""
    if verdict.HasField("metered"):
        return metered_from_proto(verdict.metered)
    return from_item_error(verdict.error)


def outcome_from_proto(outcome: outcome_pb2.DeferredOutcome) -> DeferredOutcome:
    """An outcome that was reported as pending."""
    return DeferredOutcome(
        outcome_id=outcome.outcome_id,
        customer=outcome.customer_id,
        workflow_id=outcome.workflow_id,
        ordinal=outcome.ordinal,
        agent=outcome.agent_id,
        state=_OUTCOME_STATES.get(outcome.state, "pending"),
        outcome=OUTCOME_NAMES.get(outcome.outcome, "unknown"),
        expired_outcome=OUTCOME_NAMES.get(outcome.expired_outcome, "unknown"),
        expire_time=outcome.expire_time.ToDatetime(UTC),
        resolve_time=optional_time(outcome, "resolve_time"),
        max_bonus=money_from_proto(outcome.max_bonus),
        bonus=optional_money(outcome, "bonus"),
        charge_id=outcome.charge_id,
        evidence_ref=outcome.evidence_ref,
        evidence_hash=outcome.evidence_hash,
    )


def resolved_from_proto(response: metering_service_pb2.ResolveOutcomeResponse) -> DeferredOutcome:
    """An outcome that was resolved just now, or before."""
    return replace(
        outcome_from_proto(response.outcome),
        available=optional_money(response, "available_balance"),
        duplicate=response.duplicate,
    )


def usage_to_proto(usage: Usage | UsageEvent) -> usage_pb2.Usage:
    """What was consumed, or is expected to be."""
    return usage_pb2.Usage(
        model=usage.model,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        inference_calls=usage.inference_calls,
        tool_calls=usage.tool_calls,
        cpu_milliseconds=usage.cpu_milliseconds,
        memory_megabyte_seconds=usage.memory_megabyte_seconds,
        network_bytes=usage.network_bytes,
        meters=usage.meters,
        models=[
            usage_pb2.ModelUsage(
                model=one.model,
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
                cached_input_tokens=one.cached_input_tokens,
                reasoning_tokens=one.reasoning_tokens,
                inference_calls=one.inference_calls,
            )
            for one in usage.models
        ],
    )


def result_to_proto(result: Mapping[str, object]) -> Struct:
    """What came of the work, as it travels. Raises TypeError or ValueError for what is not JSON."""
    # Neither NaN nor infinity is JSON, which protobuf does not mind.
    json.dumps(result, allow_nan=False)
    message = Struct()
    message.update(cast(dict[str, Any], result))
    if message.ByteSize() > _MAX_RESULT_BYTES:
        raise ValueError(f"a result has at most {_MAX_RESULT_BYTES} bytes")
    return message


def reservation_from_proto(
    response: metering_service_pb2.AuthorizeResponse | metering_service_pb2.ExtendResponse,
) -> Reservation:
    """What is reserved."""
    reservation = response.reservation
    return Reservation(
        reservation_id=reservation.reservation_id,
        token=reservation.token,
        customer=reservation.customer_id,
        workflow_id=reservation.workflow_id,
        ordinal=reservation.ordinal,
        agent=reservation.agent_id,
        amount=money_from_proto(reservation.amount),
        price_version_id=reservation.price_version_id,
        expire_time=reservation.expire_time.ToDatetime(UTC),
        kind="leased" if reservation.kind == reservation_pb2.RESERVATION_KIND_LEASED else "durable",
        available=optional_money(response, "available_balance"),
        duplicate=isinstance(response, metering_service_pb2.AuthorizeResponse) and response.duplicate,
    )


def settled_from_proto(response: metering_service_pb2.SettleResponse) -> Settled:
    """What a run cost, and what became of its reservation."""
    metered = metered_from_proto(response.metered)
    return Settled(metered=metered, settlement=_settlement(response.settlement, metered.available))


def released_from_proto(response: metering_service_pb2.ReleaseResponse) -> Settlement:
    """What became of a reservation that no charge came for."""
    return _settlement(response.settlement, optional_money(response, "available_balance"))


def access_from_proto(response: metering_service_pb2.CheckAccessResponse) -> Access:
    """Whether a customer may run an agent."""
    return Access(
        allowed=response.allowed,
        up_to=optional_money(response, "up_to"),
        refusal=from_item_error(response.refusal) if response.HasField("refusal") else None,
        price_version_id=response.price_version_id,
    )


def balance_from_proto(balance: reservation_pb2.Balance) -> Balance:
    """What a customer has and owes."""
    return Balance(
        customer=balance.customer_id,
        credits=money_from_proto(balance.credits),
        available=money_from_proto(balance.available),
        reserved=money_from_proto(balance.reserved),
        held=money_from_proto(balance.held),
        receivable=money_from_proto(balance.receivable),
        unpaid=money_from_proto(balance.unpaid),
        credit_limit=money_from_proto(balance.credit_limit),
        credit_room=money_from_proto(balance.credit_room),
        chargebacks=money_from_proto(balance.chargebacks),
    )


def purchase_from_proto(response: payment_service_pb2.PurchaseCreditsResponse) -> Purchase:
    """What became of a purchase."""
    bought = response.purchase
    return Purchase(
        purchase_id=bought.purchase_id,
        customer=bought.customer_id,
        amount=money_from_proto(bought.amount),
        state=_PURCHASE_STATES.get(bought.state, "processing"),
        failure_code=bought.failure_code,
        failure_reason=bought.failure_reason,
        payment_method=bought.payment_method_id,
        transaction_id=bought.transaction_id,
        client_secret=response.client_secret,
        action_url=response.action_url,
    )


def money_to_proto(money: Money) -> money_pb2.Money:
    """The amount as it travels."""
    return money_pb2.Money(currency_code=money.currency, amount_micros=money.micros)


def repeats(event: usage_pb2.UsageEvent, recorded: usage_pb2.UsageEvent) -> bool:
    """Whether both say the same but for when it happened, where the evidence is, and what was left open."""
    ours, theirs = usage_pb2.UsageEvent(), usage_pb2.UsageEvent()
    for copy, original in ((ours, event), (theirs, recorded)):
        copy.CopyFrom(original)
        for field in ("occur_time", "evidence_ref", "evidence_hash"):
            copy.ClearField(field)
    if not ours.currency_code:
        # Left to the servers, where it became that of the price book, or of the reservation.
        theirs.ClearField("currency_code")
    if not theirs.usage.models:
        # Recorded by an older release of this library, which did not say which models consumed it.
        ours.usage.ClearField("models")
    return ours == theirs


def timestamp_of(moment: datetime) -> Timestamp:
    """The time as it travels."""
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def optional_time(message: Message, field: str) -> datetime | None:
    """The time in this field; None if it is unset."""
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(UTC)
    return moment


def money_from_proto(money: money_pb2.Money) -> Money:
    """The amount."""
    # "XXX" is ISO 4217's code for no currency: an amount that a server left out is zero, and no failure.
    return Money(money.currency_code or "XXX", money.amount_micros)


def optional_money(message: Message, field: str) -> Money | None:
    """The amount in this field; None if it is unset."""
    return money_from_proto(getattr(message, field)) if message.HasField(field) else None


def _settlement(settlement: reservation_pb2.Settlement, available: Money | None) -> Settlement:
    return Settlement(
        reservation_id=settlement.reservation_id,
        state=_RESERVATION_STATES.get(settlement.state, "expired"),
        reserved=money_from_proto(settlement.reserved),
        captured=money_from_proto(settlement.captured),
        returned=money_from_proto(settlement.returned),
        excess=money_from_proto(settlement.excess),
        excess_from_credits=money_from_proto(settlement.excess_from_credits),
        excess_from_receivable=money_from_proto(settlement.excess_from_receivable),
        excess_unpaid=money_from_proto(settlement.excess_unpaid),
        available=available,
    )
