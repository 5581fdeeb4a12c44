"""Usage events: what an agent host reports, and the rules that make a report acceptable."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from services.kit.errors import FieldViolation
from services.kit.money import MINOR_UNIT_DIGITS

# Far above anything that one run consumes; a report beyond it is a mistake in units.
MAX_TOKENS = 10**12
# Of what comes in smaller units: bytes, milliseconds, meters of the host's own.
MAX_QUANTITY = 10**15
MAX_METERS = 32
MAX_MODELS = 32
# Clocks of hosts may be a little ahead of ours.
MAX_CLOCK_SKEW = timedelta(minutes=5)
MAX_AGE = timedelta(days=400)
# How long an outcome may stay pending.
MAX_DEFERRAL = timedelta(days=90)
MAX_ORDINAL = 2**31 - 1

# workflow_id and action_type.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}", re.ASCII)
# What the runs of charges begin with that close billing periods.
PERIOD_WORKFLOW = "period/"
# The runs of the fees of subscriptions: the subscription, and the begin of the period.
_FEE_WORKFLOW = re.compile(r"sub_[^/]+/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_IDENTIFIER_RULE = "must be 1 to 128 letters, digits, '_', '.', ':', '/' or '-', the first a letter or digit"
_ID_RULE = "must be {} followed by 1 to 59 letters, digits, '_', '.' or '-', the first a letter or digit"
_CUSTOMER_ID = re.compile(r"cus_[A-Za-z0-9][A-Za-z0-9_.-]{0,58}", re.ASCII)
_AGENT_ID = re.compile(r"agt_[A-Za-z0-9][A-Za-z0-9_.-]{0,58}", re.ASCII)
_SPAN_ID = re.compile(r"[0-9A-Fa-f]{16}", re.ASCII)

# Free text: what people and other systems chose, bounded, and free of control characters.
_TEXT_LIMITS = {
    "agent_version": 64,
    "tool_name": 128,
    "outcome_candidate": 128,
    "request_id": 128,
    "idempotency_key": 128,
    "billable_rule_version": 64,
}
_MAX_EVIDENCE_REF = 1_024
_MAX_MODEL = 128
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Outcome(Enum):
    """How a run or action ended for the customer."""

    SUCCESS = "success"
    FAILURE = "failure"
    PARTIAL = "partial"
    UNKNOWN = "unknown"
    # Not decided yet: what does not depend on it is charged at once.
    PENDING = "pending"


# What a pending outcome can become.
FINAL_OUTCOMES = (Outcome.SUCCESS, Outcome.FAILURE, Outcome.PARTIAL, Outcome.UNKNOWN)


class ModelUsage(NamedTuple):
    """The part of a usage that one model consumed."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    inference_calls: int = 0


class Usage(NamedTuple):
    """What was consumed. A quantity that is not known is zero.

    Cached tokens are among the input tokens, those of reasoning among the output tokens. Memory is in
    megabytes (10^6 bytes) times seconds. `meters` are the host's own, by name. `models` says which models
    consumed it when there were several; `model` is then empty.
    """

    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    inference_calls: int = 0
    tool_calls: int = 0
    cpu_milliseconds: int = 0
    memory_megabyte_seconds: int = 0
    network_bytes: int = 0
    meters: Mapping[str, int] = _NOTHING
    models: tuple[ModelUsage, ...] = ()


# The quantities of a usage, in their order.
_QUANTITIES: Final = Usage._fields[1:10]
_SMALL_UNITS: Final = frozenset({"cpu_milliseconds", "memory_megabyte_seconds", "network_bytes"})
# The meters that every usage has: its quantities, and what they leave of each other.
METERS: Final = frozenset({*_QUANTITIES, "uncached_input_tokens", "text_output_tokens"})
METER_NAME: Final = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


class EventKey(NamedTuple):
    """The identity of a usage event."""

    customer_id: str
    workflow_id: str
    ordinal: int


# A NamedTuple, as are the other records of the hot path: a frozen dataclass takes five times as long to make.
class UsageEvent(NamedTuple):
    """One finished run or action of an agent, as its host reported it.

    `outcome` is None when the host sent a value that this release does not know. `occur_time` and
    `outcome_expire_time` are None when the host left them to us. `content` is the event as sent, serialized
    without its evidence: what a repeated report must equal. `result` is what came of the work, as JSON.
    """

    key: EventKey
    agent_id: str
    agent_version: str
    action_type: str
    tool_name: str
    usage: Usage
    outcome: Outcome | None
    outcome_candidate: str
    occur_time: datetime | None
    request_id: str
    idempotency_key: str
    span_id: str
    parent_span_id: str
    billable_rule_version: str
    evidence_ref: str
    evidence_hash: bytes
    currency_code: str
    content: bytes
    outcome_expire_time: datetime | None = None
    result: Mapping[str, Any] = _NOTHING


def violations(event: UsageEvent, now: datetime) -> list[FieldViolation]:
    """Everything that makes the event unacceptable, by the path of the field within the event."""
    found: list[FieldViolation] = []

    def refuse(field: str, description: str) -> None:
        found.append(FieldViolation(field, description))

    _check_identity(event, refuse)
    for name, limit in _TEXT_LIMITS.items():
        # Most are empty, which is always fine.
        if text := getattr(event, name):
            _check_text(name, text, limit, refuse)
    _check_usage(event.usage, lambda field, description: refuse(f"usage.{field}", description))
    if event.outcome is None:
        refuse("outcome", "is not an outcome")
    if event.outcome_expire_time is not None:
        if event.outcome is not Outcome.PENDING:
            refuse("outcome_expire_time", "must be unset unless the outcome is pending")
        # One that has passed is fine: usage may come late, or again. Its outcome then expires at once.
        elif event.outcome_expire_time > now + MAX_DEFERRAL:
            refuse("outcome_expire_time", f"must be at most {MAX_DEFERRAL.days} days ahead")
    if event.occur_time is not None:
        if event.occur_time > now + MAX_CLOCK_SKEW:
            refuse("occur_time", f"is in the future: it is {now.isoformat()} here")
        elif event.occur_time < now - MAX_AGE:
            refuse("occur_time", f"is more than {MAX_AGE.days} days ago")
    for name, span in (("span_id", event.span_id), ("parent_span_id", event.parent_span_id)):
        if span and not _SPAN_ID.fullmatch(span):
            refuse(name, "must be 16 hexadecimal digits, or empty")
    _check_evidence(event.evidence_ref, event.evidence_hash, refuse)
    if event.currency_code and event.currency_code not in MINOR_UNIT_DIGITS:
        refuse("currency_code", f"{event.currency_code[:16]!r} is not an active ISO 4217 currency code")
    return found


def evidence_violations(evidence_ref: str, evidence_hash: bytes) -> list[FieldViolation]:
    """Everything that makes evidence unacceptable that does not come with an event."""
    found: list[FieldViolation] = []

    def refuse(field: str, description: str) -> None:
        found.append(FieldViolation(field, description))

    _check_evidence(evidence_ref, evidence_hash, refuse)
    return found


def usage_violations(usage: Usage) -> list[FieldViolation]:
    """Everything that makes a usage unacceptable that does not come with an event."""
    found: list[FieldViolation] = []

    def refuse(field: str, description: str) -> None:
        found.append(FieldViolation(f"usage.{field}", description))

    _check_usage(usage, refuse)
    return found


def _check_usage(usage: Usage, refuse: Callable[[str, str], None]) -> None:
    _check_text("model", usage.model, _MAX_MODEL, refuse)
    _check_quantities(usage, "", refuse)
    if usage.meters:
        _check_meters(usage.meters, refuse)
    if usage.models:
        _check_models(usage, refuse)


def _check_quantities(usage: Usage | ModelUsage, path: str, refuse: Callable[[str, str], None]) -> None:
    # All but the name of the model before them, and the lists behind them.
    quantities: tuple[int, ...] = usage[1:10]
    if min(quantities) < 0 or max(quantities) > MAX_TOKENS:
        is_in_range = True
        for name, quantity in zip(_QUANTITIES, quantities, strict=False):
            most = MAX_QUANTITY if name in _SMALL_UNITS else MAX_TOKENS
            if not 0 <= quantity <= most:
                refuse(f"{path}{name}", f"must be from 0 to {most}")
                is_in_range = False
        if not is_in_range:
            return
    if usage.cached_input_tokens > usage.input_tokens:
        refuse(f"{path}cached_input_tokens", "must be at most input_tokens, which they are among")
    if usage.reasoning_tokens > usage.output_tokens:
        refuse(f"{path}reasoning_tokens", "must be at most output_tokens, which they are among")


def _check_meters(meters: Mapping[str, int], refuse: Callable[[str, str], None]) -> None:
    if len(meters) > MAX_METERS:
        refuse("meters", f"must be at most {MAX_METERS}")
        return
    for name, quantity in sorted(meters.items()):
        if not METER_NAME.fullmatch(name):
            refuse("meters", f"{name[:64]!r} must be 1 to 64 lowercase letters, digits or '_'")
        elif name in METERS:
            refuse("meters", f"{name!r} is not one of your own: report it in its own field")
        elif not 0 <= quantity <= MAX_QUANTITY:
            refuse(f"meters[{name}]", f"must be from 0 to {MAX_QUANTITY}")


def _check_models(usage: Usage, refuse: Callable[[str, str], None]) -> None:
    if len(usage.models) > MAX_MODELS:
        refuse("models", f"must be at most {MAX_MODELS}")
        return
    if usage.model:
        refuse("model", "must be empty when there are several models")
    seen: set[str] = set()
    for index, part in enumerate(usage.models):
        path = f"models[{index}]"
        _check_text(f"{path}.model", part.model, _MAX_MODEL, refuse)
        if not part.model:
            refuse(f"{path}.model", "is required")
        elif part.model in seen:
            refuse(f"{path}.model", f"{part.model!r} is there twice")
        seen.add(part.model)
        _check_quantities(part, f"{path}.", refuse)
    for name in ModelUsage._fields[1:]:
        total, parts = getattr(usage, name), sum(getattr(part, name) for part in usage.models)
        if parts != total:
            refuse(name, f"must be what its models add up to, {parts}")


def _check_evidence(evidence_ref: str, evidence_hash: bytes, refuse: Callable[[str, str], None]) -> None:
    _check_text("evidence_ref", evidence_ref, _MAX_EVIDENCE_REF, refuse)
    if len(evidence_hash) not in (0, 32):
        refuse("evidence_hash", "must be the 32 bytes of a SHA-256, or empty")


def _check_identity(event: UsageEvent, refuse: Callable[[str, str], None]) -> None:
    if not _CUSTOMER_ID.fullmatch(event.key.customer_id):
        refuse("customer_id", _ID_RULE.format("cus_"))
    if not IDENTIFIER.fullmatch(event.key.workflow_id):
        refuse("workflow_id", _IDENTIFIER_RULE)
    elif event.key.workflow_id.startswith(PERIOD_WORKFLOW):
        # Who reported that run first would keep the period from being charged.
        refuse("workflow_id", f"must not begin with {PERIOD_WORKFLOW}: the charges that close periods do")
    elif _FEE_WORKFLOW.fullmatch(event.key.workflow_id):
        refuse("workflow_id", "must not be that of a fee: a subscription and the begin of a billing period")
    if not 0 <= event.key.ordinal <= MAX_ORDINAL:
        refuse("ordinal", "must not be negative")
    if not _AGENT_ID.fullmatch(event.agent_id):
        refuse("agent_id", _ID_RULE.format("agt_"))
    if not IDENTIFIER.fullmatch(event.action_type):
        refuse("action_type", _IDENTIFIER_RULE)


def _check_text(name: str, text: str, limit: int, refuse: Callable[[str, str], None]) -> None:
    if len(text) > limit or not text.isprintable():
        refuse(name, f"must be at most {limit} printable characters")
