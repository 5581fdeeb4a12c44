"""Between the contract and the domain: usage events and charges."""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument
from services.metering.domain.rating import RatedLine
from services.metering.domain.usage_event import EventKey, Outcome, Usage, UsageEvent, violations
from services.metering.domain.usage_record import IntendedCharge, UsageRecord, outcome_id
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import charge_line_pb2, metering_service_pb2, price_book_pb2, usage_pb2

_OUTCOMES = {
    usage_pb2.OUTCOME_UNSPECIFIED: Outcome.UNKNOWN,
    usage_pb2.OUTCOME_SUCCESS: Outcome.SUCCESS,
    usage_pb2.OUTCOME_FAILURE: Outcome.FAILURE,
    usage_pb2.OUTCOME_PARTIAL: Outcome.PARTIAL,
    usage_pb2.OUTCOME_UNKNOWN: Outcome.UNKNOWN,
}


def event_from_proto(message: usage_pb2.UsageEvent, now: datetime) -> UsageEvent:
    """The event in a request. Raises InvalidArgument with every malformed field, by its path in the event.

    Consumes the message: its evidence is taken out of it, so that what is left is the event's content and
    need not be copied.
    """
    malformed: list[FieldViolation] = []
    occur_time = None
    if message.HasField("occur_time"):
        try:
            occur_time = message.occur_time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            malformed.append(FieldViolation("occur_time", "is not a valid time"))
    evidence_ref, evidence_hash = message.evidence_ref, message.evidence_hash
    message.ClearField("evidence_ref")
    message.ClearField("evidence_hash")
    usage = message.usage
    event = UsageEvent(
        key=EventKey(message.customer_id, message.workflow_id, message.ordinal),
        agent_id=message.agent_id,
        agent_version=message.agent_version,
        action_type=message.action_type,
        tool_name=message.tool_name,
        usage=Usage(usage.model, usage.input_tokens, usage.output_tokens),
        outcome=_OUTCOMES.get(message.outcome),
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
    )
    malformed += violations(event, now)
    if malformed:
        raise InvalidArgument(_message(malformed), field_violations=malformed)
    return event


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
    return one == other or usage_pb2.UsageEvent.FromString(one) == usage_pb2.UsageEvent.FromString(other)


def event_to_proto(record: UsageRecord) -> usage_pb2.UsageEvent:
    """A recorded event, with its evidence, and the time that it was given if it came without."""
    event = usage_pb2.UsageEvent.FromString(record.content)
    event.evidence_ref = record.evidence_ref
    event.evidence_hash = record.charge.evidence_hash
    if not event.HasField("occur_time"):
        event.occur_time.CopyFrom(time_to_proto(record.charge.occur_time))
    return event


def intent_to_proto(charge: IntendedCharge) -> charge_pb2.ChargeIntent:
    """What the ledger is asked to post. It follows from the charge alone: asking again asks the same."""
    return charge_pb2.ChargeIntent(
        customer_id=charge.key.customer_id,
        workflow_id=charge.key.workflow_id,
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        ordinal=charge.key.ordinal,
        gross=_money(charge.currency_code, charge.amount_micros),
        payees=[charge_pb2.Payee(organization_id=charge.organization_id, agent_id=charge.agent_id, weight=1)],
        occur_time=time_to_proto(charge.occur_time),
        price_version_id=charge.price_version_id,
        evidence_hash=charge.evidence_hash,
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
    return metering_service_pb2.MeteredEvent(
        charge_id=charge.charge_id,
        outcome_id=outcome_id(charge.charge_id),
        price_charged=_money(intended.currency_code, intended.amount_micros),
        lines=[_line_to_proto(line, intended.currency_code) for line in record.lines],
        price_version_id=intended.price_version_id,
        from_credits=charge.payment.from_credits,
        from_receivable=charge.payment.from_receivable,
        unpaid=charge.payment.unpaid,
        available_balance=available,
        duplicate=duplicate,
        evidence_differs=evidence_differs,
    )


def time_to_proto(moment: datetime) -> Timestamp:
    """A moment as it travels."""
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _message(malformed: Sequence[FieldViolation]) -> str:
    return "; ".join(f"{one.field}: {one.description}" for one in malformed)


def _money(currency_code: str, amount_micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount_micros)


def _line_to_proto(line: RatedLine, currency_code: str) -> charge_line_pb2.ChargeLine:
    return charge_line_pb2.ChargeLine(
        component_name=line.component_name,
        quantity=line.quantity,
        unit_price=price_book_pb2.UnitPrice(
            amount=line.unit_price.amount, per_units=line.unit_price.per_units
        ),
        amount=_money(currency_code, line.amount_micros),
    )
