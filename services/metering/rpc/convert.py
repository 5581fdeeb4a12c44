"""Between the contract and the domain: usage events and charges."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.messages import set_money
from services.kit.times import optional_time_from_proto, set_timestamp
from services.metering.domain.claim import Claim, OutcomeHold
from services.metering.domain.compiled_price import Execution
from services.metering.domain.outcome import DeferredOutcome, OutcomeState
from services.metering.domain.rating import LineKind, RatedLine
from services.metering.domain.usage_event import (
    EventKey,
    ModelUsage,
    Outcome,
    Usage,
    UsageEvent,
    violations,
)
from services.metering.domain.usage_record import (
    ChargeKey,
    Component,
    IntendedCharge,
    UsageRecord,
    outcome_id,
)
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2, credit_service_pb2
from tallystick.metering.v1 import (
    charge_line_pb2,
    metering_service_pb2,
    outcome_pb2,
    rating_service_pb2,
    usage_pb2,
)

MAX_RESULT_BYTES: Final = 16 * 1024

OUTCOMES_TO_PROTO: Final = {
    Outcome.SUCCESS: usage_pb2.OUTCOME_SUCCESS,
    Outcome.FAILURE: usage_pb2.OUTCOME_FAILURE,
    Outcome.PARTIAL: usage_pb2.OUTCOME_PARTIAL,
    Outcome.UNKNOWN: usage_pb2.OUTCOME_UNKNOWN,
    Outcome.PENDING: usage_pb2.OUTCOME_PENDING,
}
OUTCOMES_FROM_PROTO: Final = {number: outcome for outcome, number in OUTCOMES_TO_PROTO.items()}
_REPORTED_OUTCOMES: Final = {usage_pb2.OUTCOME_UNSPECIFIED: Outcome.UNKNOWN, **OUTCOMES_FROM_PROTO}
_COMPONENTS: Final = {
    Component.BASE: charge_pb2.CHARGE_COMPONENT_BASE,
    Component.OUTCOME: charge_pb2.CHARGE_COMPONENT_OUTCOME,
}
LINE_KINDS_TO_PROTO: Final = {
    LineKind.COMPONENT: charge_line_pb2.CHARGE_LINE_KIND_UNSPECIFIED,
    LineKind.ALLOWANCE: charge_line_pb2.CHARGE_LINE_KIND_ALLOWANCE,
    LineKind.OUTCOME_FACTOR: charge_line_pb2.CHARGE_LINE_KIND_OUTCOME_FACTOR,
    LineKind.DISCOUNT: charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT,
    LineKind.MINIMUM: charge_line_pb2.CHARGE_LINE_KIND_MINIMUM,
    LineKind.MAXIMUM: charge_line_pb2.CHARGE_LINE_KIND_MAXIMUM,
    LineKind.SUBSCRIPTION: charge_line_pb2.CHARGE_LINE_KIND_SUBSCRIPTION,
    LineKind.PRORATION: charge_line_pb2.CHARGE_LINE_KIND_PRORATION,
}
_OUTCOME_STATES: Final = {
    OutcomeState.PENDING: outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING,
    OutcomeState.RESOLVED: outcome_pb2.DEFERRED_OUTCOME_STATE_RESOLVED,
    OutcomeState.EXPIRED: outcome_pb2.DEFERRED_OUTCOME_STATE_EXPIRED,
}


def event_from_proto(message: usage_pb2.UsageEvent, now: datetime) -> UsageEvent:
    """The event in a request. Raises InvalidArgument with every malformed field, by its path in the event.

    Consumes the message: its evidence is taken out of it, so that what is left is the event's content and
    need not be copied.
    """
    malformed: list[FieldViolation] = []
    occur_time = _time(message, "occur_time", malformed)
    outcome_expire_time = _time(message, "outcome_expire_time", malformed)
    evidence_ref, evidence_hash = message.evidence_ref, message.evidence_hash
    message.ClearField("evidence_ref")
    message.ClearField("evidence_hash")
    event = UsageEvent(
        key=EventKey(message.customer_id, message.workflow_id, message.ordinal),
        agent_id=message.agent_id,
        agent_version=message.agent_version,
        action_type=message.action_type,
        tool_name=message.tool_name,
        usage=usage_from_proto(message.usage),
        outcome=_REPORTED_OUTCOMES.get(message.outcome),
        outcome_candidate=message.outcome_candidate,
        occur_time=occur_time,
        request_id=message.request_id,
        idempotency_key=message.idempotency_key,
        span_id=message.span_id,
        parent_span_id=message.parent_span_id,
        billable_rule_version=message.billable_rule_version,
        evidence_ref=evidence_ref,
        evidence_hash=evidence_hash,
        currency_code=message.currency_code,
        content=message.SerializeToString(deterministic=True),
        outcome_expire_time=outcome_expire_time,
        result=result_from_proto(message, malformed),
    )
    malformed += violations(event, now)
    if malformed:
        raise malformed_fields(malformed)
    return event


def usage_from_proto(message: usage_pb2.Usage) -> Usage:
    """A usage as it comes; usage_violations judges it."""
    return Usage(
        message.model,
        message.input_tokens,
        message.output_tokens,
        message.cached_input_tokens,
        message.reasoning_tokens,
        message.inference_calls,
        message.tool_calls,
        message.cpu_milliseconds,
        message.memory_megabyte_seconds,
        message.network_bytes,
        dict(message.meters),
        tuple(map(_model_usage, message.models)),
    )


def result_from_proto(
    message: usage_pb2.UsageEvent
    | metering_service_pb2.ResolveOutcomeRequest
    | rating_service_pb2.QuoteRequest
    | rating_service_pb2.Workload,
    malformed: list[FieldViolation],
) -> Mapping[str, Any]:
    """What came of the work, as JSON; nothing if it is unset, or `malformed`."""
    if not message.HasField("result"):
        return {}
    if message.result.ByteSize() > MAX_RESULT_BYTES:
        malformed.append(FieldViolation("result", f"must be at most {MAX_RESULT_BYTES} bytes"))
        return {}
    try:
        found: Mapping[str, Any] = MessageToDict(message.result)
    except (SerializeToJsonError, ValueError):
        malformed.append(FieldViolation("result", "is not JSON, which has neither NaN nor infinity"))
        return {}
    return found


def execution_of(record: UsageRecord) -> Execution:
    """The execution that a recorded event reported, with the outcome that it had then."""
    message = usage_pb2.UsageEvent.FromString(record.content)
    return execution_from_proto(message, record.charge.occur_time)


def execution_from_proto(message: usage_pb2.UsageEvent, occur_time: datetime) -> Execution:
    """The execution that an event reports which was accepted, at the time that it was given."""
    return Execution(
        usage_from_proto(message.usage),
        _REPORTED_OUTCOMES.get(message.outcome, Outcome.UNKNOWN),
        occur_time,
        result_from_proto(message, []),
        message.action_type,
        message.agent_id,
        message.agent_version,
        message.tool_name,
        message.outcome_candidate,
    )


def decided_execution_of(record: UsageRecord, outcome: Outcome, result: bytes | None) -> Execution:
    """The execution that a recorded event reported, as it was decided: `result` is a serialized Struct, None
    where that of the event counts.
    """
    execution = execution_of(record)._replace(outcome=outcome)
    if result is None:
        return execution
    return execution._replace(result=decided_result(result))


def decided_result(result: bytes) -> Mapping[str, Any]:
    """The result that came with a decision: a serialized Struct, as JSON."""
    found: Mapping[str, Any] = MessageToDict(Struct.FromString(result))
    return found


def malformed_fields(malformed: Sequence[FieldViolation]) -> InvalidArgument:
    """The error for a request with these malformed fields."""
    return InvalidArgument(_message(malformed), field_violations=malformed)


def within(field: str, error: InvalidArgument) -> InvalidArgument:
    """The same error, its paths seen from the message that holds the malformed one in `field`."""
    seen = [FieldViolation(f"{field}.{one.field}", one.description) for one in error.field_violations]
    return InvalidArgument(
        # An error that names no field, such as one that the ledger answered, has no path to lengthen.
        _message(seen) or error.message,
        reason=error.reason,
        metadata=error.metadata,
        field_violations=seen,
    )


def same_content(one: bytes, other: bytes) -> bool:
    """Whether two serialized events say the same."""
    # The bytes of equal events are equal as long as one release serialized both; the messages always are.
    if one == other:
        return True
    events = usage_pb2.UsageEvent.FromString(one), usage_pb2.UsageEvent.FromString(other)
    if not all(event.usage.models for event in events):
        # Releases of the SDK before there was such a field report a run of several models without it.
        for event in events:
            event.usage.ClearField("models")
    return events[0] == events[1]


def event_to_proto(record: UsageRecord) -> usage_pb2.UsageEvent:
    """A recorded event, with its evidence, and the time that it was given if it came without."""
    event = usage_pb2.UsageEvent.FromString(record.content)
    event.evidence_ref = record.evidence_ref
    event.evidence_hash = record.charge.evidence_hash
    if not event.HasField("occur_time"):
        event.occur_time.CopyFrom(time_to_proto(record.charge.occur_time))
    return event


def fill_intent(intent: charge_pb2.ChargeIntent, charge: IntendedCharge) -> None:
    """Say in a new message what the ledger is asked to post.

    It follows from the charge alone: asking again asks the same.
    """
    intent.customer_id = charge.key.customer_id
    intent.workflow_id = charge.key.workflow_id
    intent.component = _COMPONENTS[charge.component]
    intent.ordinal = charge.key.ordinal
    set_money(intent.gross, charge.currency_code, charge.amount_micros)
    payee = intent.payees.add()
    payee.organization_id = charge.organization_id
    payee.agent_id = charge.agent_id
    payee.weight = 1
    set_timestamp(intent.occur_time, charge.occur_time)
    intent.price_version_id = charge.price_version_id
    intent.evidence_hash = charge.evidence_hash
    # Of what costs nothing nothing was reserved: such a claim only pins the price.
    if charge.claim is not None and charge.claim.amount_micros:
        _fill_claim(intent.reservation, charge.claim)
    if charge.outcome_hold is not None:
        intent.outcome_hold.CopyFrom(_hold_to_proto(charge.outcome_hold, charge.currency_code))


def release_to_proto(charge: IntendedCharge) -> credit_service_pb2.ReservationRelease:
    """What the ledger is asked to release when there is nothing to charge."""
    if charge.claim is None:
        raise ValueError(f"{charge.charge_key.charge_id} has nothing to release")
    return credit_service_pb2.ReservationRelease(
        customer_id=charge.key.customer_id,
        currency_code=charge.currency_code,
        reservation_id=charge.claim.reservation_id,
        lease_epoch=charge.claim.lease_epoch,
        expire_time=time_to_proto(charge.claim.expire_time),
    )


def metered_to_proto(
    record: UsageRecord,
    charge: charge_pb2.Charge,
    available: money_pb2.Money | None,
    *,
    duplicate: bool = False,
    evidence_differs: bool = False,
) -> metering_service_pb2.MeteredEvent:
    """A recorded event, what it cost, and how the ledger says that its charge is paid.

    `available` is what the customer has left; None for a caller who may not know it.
    """
    intended = record.charge
    currency = intended.currency_code
    metered = metering_service_pb2.MeteredEvent(
        charge_id=charge.charge_id,
        outcome_id=outcome_id(charge.charge_id),
        price_version_id=intended.price_version_id,
        duplicate=duplicate,
        evidence_differs=evidence_differs,
    )
    set_money(metered.price_charged, currency, intended.amount_micros)
    for line in record.lines:
        _fill_line(metered.lines.add(), line, currency)
    payment = charge.payment
    metered.from_credits.CopyFrom(payment.from_credits)
    metered.from_receivable.CopyFrom(payment.from_receivable)
    metered.unpaid.CopyFrom(payment.unpaid)
    if available is not None:
        metered.available_balance.CopyFrom(available)
    if record.deferred is not None:
        metered.deferred_outcome.CopyFrom(deferred_to_proto(record.deferred))
    if record.counted is not None:
        metered.opening_counters.update(record.counted.opening)
        metered.closing_counters.update(record.counted.closing)
        set_timestamp(metered.period_start_time, record.counted.period_start)
    return metered


def deferred_to_proto(deferred: DeferredOutcome) -> outcome_pb2.DeferredOutcome:
    """A deferred outcome as it travels."""
    message = outcome_pb2.DeferredOutcome(
        outcome_id=deferred.outcome_id,
        customer_id=deferred.key.customer_id,
        workflow_id=deferred.key.workflow_id,
        ordinal=deferred.key.ordinal,
        agent_id=deferred.agent_id,
        state=_OUTCOME_STATES[deferred.state],
        outcome=OUTCOMES_TO_PROTO[deferred.outcome],
        expired_outcome=OUTCOMES_TO_PROTO[deferred.expired_outcome],
        expire_time=time_to_proto(deferred.expire_time),
        max_bonus=money_to_proto(deferred.currency_code, deferred.max_bonus_micros),
        evidence_ref=deferred.evidence_ref,
        evidence_hash=deferred.evidence_hash,
    )
    if deferred.resolve_time is not None:
        message.resolve_time.CopyFrom(time_to_proto(deferred.resolve_time))
        message.bonus.CopyFrom(money_to_proto(deferred.currency_code, deferred.bonus_micros))
    if deferred.result is not None:
        message.result.MergeFromString(deferred.result)
    if deferred.counted is not None:
        message.opening_counters.update(deferred.counted.opening)
        message.closing_counters.update(deferred.counted.closing)
    if deferred.bonus_micros:
        message.charge_id = ChargeKey(*deferred.key, Component.OUTCOME).charge_id
    return message


def line_to_proto(line: RatedLine, currency_code: str) -> charge_line_pb2.ChargeLine:
    """A line as it travels."""
    message = charge_line_pb2.ChargeLine()
    _fill_line(message, line, currency_code)
    return message


def _fill_line(message: charge_line_pb2.ChargeLine, line: RatedLine, currency_code: str) -> None:
    message.component_name = line.component_name
    message.quantity = line.quantity
    message.unit_price.amount = line.unit_price.amount
    message.unit_price.per_units = line.unit_price.per_units
    set_money(message.amount, currency_code, line.amount_micros)
    if line.kind is not LineKind.COMPONENT:
        message.kind = LINE_KINDS_TO_PROTO[line.kind]
    if line.tier:
        message.tier = line.tier


def money_to_proto(currency_code: str, amount_micros: int) -> money_pb2.Money:
    """An amount as it travels."""
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount_micros)


def time_to_proto(moment: datetime) -> Timestamp:
    """A moment as it travels."""
    message = Timestamp()
    set_timestamp(message, moment)
    return message


def _model_usage(message: usage_pb2.ModelUsage) -> ModelUsage:
    return ModelUsage(
        message.model,
        message.input_tokens,
        message.output_tokens,
        message.cached_input_tokens,
        message.reasoning_tokens,
        message.inference_calls,
    )


def _message(malformed: Sequence[FieldViolation]) -> str:
    return "; ".join(f"{one.field}: {one.description}" for one in malformed)


def _time(message: usage_pb2.UsageEvent, field: str, malformed: list[FieldViolation]) -> datetime | None:
    """The time in a field; None if it is unset, or `malformed`."""
    try:
        return optional_time_from_proto(message, field)
    except InvalidArgument as error:
        malformed += error.field_violations
        return None


def _fill_claim(message: charge_pb2.ReservationClaim, claim: Claim) -> None:
    message.reservation_id = claim.reservation_id
    message.lease_epoch = claim.lease_epoch
    set_money(message.amount, claim.currency_code, claim.amount_micros)
    set_timestamp(message.expire_time, claim.expire_time)


def _hold_to_proto(hold: OutcomeHold, currency_code: str) -> charge_pb2.OutcomeHold:
    return charge_pb2.OutcomeHold(
        hold_id=hold.hold_id,
        amount=money_to_proto(currency_code, hold.amount_micros),
        expire_time=time_to_proto(hold.expire_time),
    )
