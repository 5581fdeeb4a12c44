"""Usage events: what an agent host reports, and the rules that make a report acceptable."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from typing import NamedTuple

from services.kit.errors import FieldViolation
from services.kit.money import MINOR_UNIT_DIGITS

# Far above anything that one run consumes; a report beyond it is a mistake in units.
MAX_TOKENS = 10**12
# Clocks of hosts may be a little ahead of ours.
MAX_CLOCK_SKEW = timedelta(minutes=5)
MAX_AGE = timedelta(days=400)
# How long an outcome may stay pending.
MAX_DEFERRAL = timedelta(days=90)
MAX_ORDINAL = 2**31 - 1

# workflow_id and action_type.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}", re.ASCII)
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


class Outcome(Enum):
    """How a run or action ended for the customer."""

    SUCCESS = "success"
    FAILURE = "failure"
    PARTIAL = "partial"
    UNKNOWN = "unknown"
    # Not decided yet: what does not depend on it is charged at once.
    PENDING = "pending"


class Usage(NamedTuple):
    """What was consumed, in tokens. A quantity that is not known is zero."""

    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


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
    without its evidence: what a repeated report must equal.
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
    _check_text("usage.model", event.usage.model, _MAX_MODEL, refuse)
    for name, tokens in (
        ("usage.input_tokens", event.usage.input_tokens),
        ("usage.output_tokens", event.usage.output_tokens),
    ):
        if not 0 <= tokens <= MAX_TOKENS:
            refuse(name, f"must be from 0 to {MAX_TOKENS}")
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


def _check_evidence(evidence_ref: str, evidence_hash: bytes, refuse: Callable[[str, str], None]) -> None:
    _check_text("evidence_ref", evidence_ref, _MAX_EVIDENCE_REF, refuse)
    if len(evidence_hash) not in (0, 32):
        refuse("evidence_hash", "must be the 32 bytes of a SHA-256, or empty")


def _check_identity(event: UsageEvent, refuse: Callable[[str, str], None]) -> None:
    if not _CUSTOMER_ID.fullmatch(event.key.customer_id):
        refuse("customer_id", _ID_RULE.format("cus_"))
    if not IDENTIFIER.fullmatch(event.key.workflow_id):
        refuse("workflow_id", _IDENTIFIER_RULE)
    if not 0 <= event.key.ordinal <= MAX_ORDINAL:
        refuse("ordinal", "must not be negative")
    if not _AGENT_ID.fullmatch(event.agent_id):
        refuse("agent_id", _ID_RULE.format("agt_"))
    if not IDENTIFIER.fullmatch(event.action_type):
        refuse("action_type", _IDENTIFIER_RULE)


def _check_text(name: str, text: str, limit: int, refuse: Callable[[str, str], None]) -> None:
    if len(text) > limit or not text.isprintable():
        refuse(name, f"must be at most {limit} printable characters")
