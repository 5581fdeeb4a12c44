"""Between the public types and the messages that travel."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import get_args

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick._status import from_item_error
from tallystick.common.v1 import money_pb2
from tallystick.errors import TallystickError
from tallystick.ledger.v1 import account_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.models import Balance, ChargeLine, Metered, Outcome, Payment, UnitPrice, UsageEvent
from tallystick.money import Money

_OUTCOMES: dict[Outcome, usage_pb2.Outcome.ValueType] = {
    "success": usage_pb2.OUTCOME_SUCCESS,
    "failure": usage_pb2.OUTCOME_FAILURE,
    "partial": usage_pb2.OUTCOME_PARTIAL,
    "unknown": usage_pb2.OUTCOME_UNKNOWN,
}
_OUTCOME_NAMES = {value: name for name, value in _OUTCOMES.items()}
assert set(_OUTCOMES) == set(get_args(Outcome))  # noqa: S101 - a mistake of ours, found on import


def event_to_proto(event: UsageEvent) -> usage_pb2.UsageEvent:
    """The event as it travels. Raises TypeError or ValueError if a field does not fit its type there."""
    return usage_pb2.UsageEvent(
        customer_id=event.customer,
        workflow_id=event.workflow_id,
        ordinal=event.ordinal,
        agent_id=event.agent,
        agent_version=event.agent_version,
        action_type=event.action,
        tool_name=event.tool,
        usage=usage_pb2.Usage(
            model=event.model, input_tokens=event.input_tokens, output_tokens=event.output_tokens
        ),
        outcome=_OUTCOMES[event.outcome],
        outcome_candidate=event.outcome_candidate,
        occur_time=None if event.occur_time is None else _timestamp(event.occur_time),
        request_id=event.request_id,
        idempotency_key=event.idempotency_key,
        span_id=event.span_id,
        parent_span_id=event.parent_span_id,
        billable_rule_version=event.billable_rule_version,
        evidence_ref=event.evidence_ref,
        evidence_hash=event.evidence_hash,
        currency_code=event.currency,
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
        outcome=_OUTCOME_NAMES.get(event.outcome, "unknown"),
        outcome_candidate=event.outcome_candidate,
        occur_time=event.occur_time.ToDatetime(UTC) if event.HasField("occur_time") else None,
        request_id=event.request_id,
        idempotency_key=event.idempotency_key,
        span_id=event.span_id,
        parent_span_id=event.parent_span_id,
        billable_rule_version=event.billable_rule_version,
        evidence_ref=event.evidence_ref,
        evidence_hash=event.evidence_hash,
        currency=event.currency_code,
    )


def metered_from_proto(metered: metering_service_pb2.MeteredEvent) -> Metered:
    """What an event cost."""
    return Metered(
        charge_id=metered.charge_id,
        outcome_id=metered.outcome_id,
        price_charged=_money(metered.price_charged),
        lines=tuple(
            ChargeLine(
                component=line.component_name,
                quantity=line.quantity,
                unit_price=UnitPrice(
                    amount=Decimal(line.unit_price.amount or "0"), per_units=line.unit_price.per_units or 1
                ),
                amount=_money(line.amount),
            )
            for line in metered.lines
        ),
        price_version_id=metered.price_version_id,
        payment=Payment(
            from_credits=_money(metered.from_credits),
            from_receivable=_money(metered.from_receivable),
            unpaid=_money(metered.unpaid),
        ),
        available=_money(metered.available_balance) if metered.HasField("available_balance") else None,
        duplicate=metered.duplicate,
        evidence_differs=metered.evidence_differs,
    )


def verdict_from_proto(verdict: metering_service_pb2.MeterVerdict) -> Metered | TallystickError:
    """What became of one event of a batch."""
    if verdict.HasField("metered"):
        return metered_from_proto(verdict.metered)
    return from_item_error(verdict.error)


def balance_from_proto(balance: account_pb2.CustomerBalance) -> Balance:
    """What a customer has and owes."""
    return Balance(
        customer=balance.customer_id,
        available=_money(balance.available),
        held=_money(balance.held),
        receivable=_money(balance.receivable),
        unpaid=_money(balance.unpaid),
        credit_limit=_money(balance.credit_limit),
    )


def repeats(event: usage_pb2.UsageEvent, recorded: usage_pb2.UsageEvent) -> bool:
    """Whether both say the same but for when it happened and where the evidence is."""
    ours, theirs = usage_pb2.UsageEvent(), usage_pb2.UsageEvent()
    for copy, original in ((ours, event), (theirs, recorded)):
        copy.CopyFrom(original)
        for field in ("occur_time", "evidence_ref", "evidence_hash"):
            copy.ClearField(field)
    return ours == theirs


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _money(money: money_pb2.Money) -> Money:
    return Money(money.currency_code, money.amount_micros)
