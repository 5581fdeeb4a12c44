"""What goes in and what comes out: usage events, what they cost, reservations, outcomes, balances.

All are frozen, typed and keyword-only, so that fields may be added without breaking anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, NotRequired, TypedDict, get_args

from tallystick.errors import TallystickError
from tallystick.money import Money

FinalOutcome = Literal["success", "failure", "partial", "unknown"]
Outcome = Literal["success", "failure", "partial", "unknown", "pending"]
LineKind = Literal[
    "component",
    "allowance",
    "outcome_factor",
    "discount",
    "minimum",
    "maximum",
    "subscription",
    "proration",
]


# The quantities of an event, in their order.
QUANTITIES = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
    "inference_calls",
    "tool_calls",
    "cpu_milliseconds",
    "memory_megabyte_seconds",
    "network_bytes",
)


def require_int(name: str, value: object) -> None:
    """Raise TypeError unless the value is an integer."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What one of several models consumed. Fields as in UsageEvent."""

    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    inference_calls: int = 0


class EventFields(TypedDict):
    """The keyword arguments of `meter` and `record`: the fields of UsageEvent, where each is explained."""

    customer: str
    agent: str
    workflow_id: str
    action: str
    ordinal: NotRequired[int]
    agent_version: NotRequired[str]
    model: NotRequired[str]
    input_tokens: NotRequired[int]
    output_tokens: NotRequired[int]
    cached_input_tokens: NotRequired[int]
    reasoning_tokens: NotRequired[int]
    inference_calls: NotRequired[int]
    tool_calls: NotRequired[int]
    cpu_milliseconds: NotRequired[int]
    memory_megabyte_seconds: NotRequired[int]
    network_bytes: NotRequired[int]
    meters: NotRequired[Mapping[str, int] | None]
    models: NotRequired[tuple[ModelUsage, ...]]
    tool: NotRequired[str]
    outcome: NotRequired[Outcome]
    outcome_candidate: NotRequired[str]
    occur_time: NotRequired[datetime | None]
    request_id: NotRequired[str]
    idempotency_key: NotRequired[str]
    span_id: NotRequired[str]
    parent_span_id: NotRequired[str]
    billable_rule_version: NotRequired[str]
    evidence_ref: NotRequired[str]
    evidence_hash: NotRequired[bytes]
    currency: NotRequired[str]
    outcome_expire_time: NotRequired[datetime | None]
    result: NotRequired[Mapping[str, object] | None]


class WorkFields(TypedDict):
    """The keyword arguments of `authorize`, which say what is to be done: as in UsageEvent."""

    customer: str
    agent: str
    workflow_id: str
    action: str
    ordinal: NotRequired[int]
    agent_version: NotRequired[str]
    currency: NotRequired[str]


class RunFields(WorkFields):
    """The keyword arguments of `run`, which say what is to be done: as in UsageEvent."""

    outcome_candidate: NotRequired[str]
    request_id: NotRequired[str]
    span_id: NotRequired[str]
    parent_span_id: NotRequired[str]
    billable_rule_version: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One finished run or action of an agent.

    `workflow_id` is required because it is the event's identity: (customer, workflow_id, ordinal) is
    charged once, however often it is reported. So it has to come from your side and survive your crash: the
    id of the run, job or ticket that you keep anyway. An id that this library made up would be a new one
    after a restart, and the work would be charged twice.

    Raises TypeError or ValueError for what cannot be an event; what only the servers can know (does the
    customer exist?) they answer.
    """

    customer: str
    """Who pays: "cus_…"."""
    agent: str
    """The agent that did the work: "agt_…". Its organization earns."""
    workflow_id: str
    """The run, as you name it: up to 128 letters, digits and "_.:/-". The same for every retry."""
    action: str
    """What the agent did, for example "ticket.resolve". Prices are chosen by it."""
    ordinal: int = 0
    """Numbers the events of one run, if there are several."""
    agent_version: str = ""
    """The agent's release; one that is named must exist."""
    model: str = ""
    """The model that was called, as its provider names it; empty when there was none or several."""
    input_tokens: int = 0
    """Tokens sent to models, cached ones included."""
    output_tokens: int = 0
    """Tokens that models produced, reasoning included."""
    cached_input_tokens: int = 0
    """Those of the input tokens that the provider had cached."""
    reasoning_tokens: int = 0
    """Those of the output tokens that are reasoning."""
    inference_calls: int = 0
    """Calls of models."""
    tool_calls: int = 0
    """Calls of tools."""
    cpu_milliseconds: int = 0
    """CPU time, in milliseconds."""
    memory_megabyte_seconds: int = 0
    """Memory held over time, in megabytes (10^6 bytes) times seconds."""
    network_bytes: int = 0
    """Bytes sent and received."""
    meters: Mapping[str, int] | None = None
    """Meters of your own, which your prices may count: up to 32 names of lowercase letters, digits, "_"."""
    models: tuple[ModelUsage, ...] = ()
    """Which models consumed it, when there were several; they add up to the quantities above."""
    tool: str = ""
    """The tool that was used, if any."""
    outcome: Outcome = "unknown"
    """How it ended for the customer: "success", "failure", "partial" or "unknown"; or "pending", not decided
    yet: what does not depend on it is charged at once, the rest when it is resolved."""
    outcome_candidate: str = ""
    """Names the business outcome that the event may be billed for, for example "ticket.resolved"."""
    occur_time: datetime | None = None
    """When the work ended, with a time zone. When left out, the time at which it is reported."""
    request_id: str = ""
    """Your own request id, for finding the event in your logs."""
    idempotency_key: str = ""
    """Your own idempotency key, recorded as sent; the identity does not depend on it."""
    span_id: str = ""
    """OpenTelemetry span of the work: 16 hexadecimal digits."""
    parent_span_id: str = ""
    """The span's parent."""
    billable_rule_version: str = ""
    """The version of the rule by which you judged the outcome."""
    evidence_ref: str = ""
    """Where you keep the evidence, for example a URI. No personal data."""
    evidence_hash: bytes = b""
    """SHA-256 of the evidence, 32 bytes."""
    currency: str = ""
    """The currency that you expect to be charged in; empty for that of the price book."""
    outcome_expire_time: datetime | None = None
    """When a pending outcome falls to its default, with a time zone: within 90 days. When left out, as the
    price says."""
    result: Mapping[str, object] | None = None
    """What came of the work, as JSON of up to 16 KiB, for prices with conditions. No personal data."""

    def __post_init__(self) -> None:
        for name in ("customer", "agent", "workflow_id", "action"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} is required, and a str")
        for name in ("ordinal", *QUANTITIES):
            require_int(name, getattr(self, name))
        for name, quantity in (self.meters or {}).items():
            require_int(f"the meter {name}", quantity)
        if self.outcome not in get_args(Outcome):
            raise ValueError(f"outcome is one of {', '.join(get_args(Outcome))}, not {self.outcome!r}")
        for name in ("occur_time", "outcome_expire_time"):
            moment = getattr(self, name)
            if moment is not None and moment.utcoffset() is None:
                raise ValueError(f"{name} needs a time zone, for example datetime.now(timezone.utc)")
        if self.outcome_expire_time is not None and self.outcome != "pending":
            raise ValueError("outcome_expire_time goes with the outcome pending only")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """`amount` units of the price book's currency for every `per_units`: 0.60 for 1,000,000 tokens."""

    amount: Decimal
    per_units: int

    def __str__(self) -> str:
        return f"{self.amount:f}" if self.per_units == 1 else f"{self.amount:f} per {self.per_units:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeLine:
    """The part of a charge that comes from one component of its price, or from what the price makes of their
    sum. Lines add up to the charge exactly."""

    component: str
    """The name of the component or of the discount; that of the price for other kinds."""
    quantity: int
    unit_price: UnitPrice
    amount: Money
    """What it came to; negative for what is taken off."""
    kind: LineKind = "component"
    """What the line is for. An allowance is what is included: a quantity, no amount."""
    tier: int = 0
    """The tier that the units fall into, from 1; 0 where there are no tiers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """How a charge is paid, now: the three add up to it. A later top-up moves the rest to `from_credits`."""

    from_credits: Money
    """Paid."""
    from_receivable: Money
    """Owed under the customer's credit limit."""
    unpaid: Money
    """Neither paid nor covered by the credit limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferredOutcome:
    """The outcome of an event that was reported as pending."""

    outcome_id: str
    """"out_…", as in Metered."""
    customer: str
    workflow_id: str
    ordinal: int
    agent: str
    state: Literal["pending", "resolved", "expired"]
    """It leaves "pending" once: resolved by somebody, or expired, and then fallen to its default."""
    outcome: Outcome
    """What it was resolved to, or fell to; "pending" until then."""
    expired_outcome: Outcome
    """What it falls to when it expires."""
    expire_time: datetime
    resolve_time: datetime | None
    """When it left "pending"."""
    max_bonus: Money
    """The most that it may add to the charge; held for it, as far as there was money."""
    bonus: Money | None
    """What it added. None until it left "pending"."""
    charge_id: str
    """The charge for it; empty if it added nothing."""
    evidence_ref: str
    evidence_hash: bytes
    available: Money | None = None
    """What the customer has left to spend. Only in the answer of `resolve_outcome`; None for an
    organization's API key."""
    duplicate: bool = False
    """Whether it had been resolved so before, so that this call of `resolve_outcome` changed nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What one usage event cost, and how that was paid."""

    charge_id: str
    outcome_id: str
    """Names the outcome of this event, for resolving it later."""
    price_charged: Money
    """The sum of the lines."""
    lines: tuple[ChargeLine, ...]
    price_version_id: str
    payment: Payment
    available: Money | None
    """What the customer has left to spend. None for an organization's API key: it may not know."""
    duplicate: bool
    """Whether the event had been recorded before, so that this call charged nothing."""
    evidence_differs: bool
    """Whether it had been recorded before with other evidence. The first one stands."""
    deferred_outcome: DeferredOutcome | None = None
    """Its outcome, if that was reported as pending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a run is expected to consume. It is priced with the outcome that costs most. Fields as in
    UsageEvent."""

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
    meters: Mapping[str, int] | None = None
    models: tuple[ModelUsage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money that is kept for one run, until it is settled, released or over."""

    reservation_id: str
    token: str = field(repr=False)
    """What extends, settles or releases it. Keep it with the run, and out of logs."""
    customer: str
    workflow_id: str
    ordinal: int
    agent: str
    amount: Money
    """What is reserved."""
    price_version_id: str
    """The price that the run will be charged by, whatever is published meanwhile."""
    expire_time: datetime
    """When it ends by itself."""
    kind: Literal["leased", "durable"]
    """How the servers keep it. A durable one may last longer than 15 minutes."""
    available: Money | None = None
    """What the customer has left to spend beside it. None for an organization's API key: it may not know."""
    duplicate: bool = False
    """Whether it had been made before, by the same attempt, so that this call reserved nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of a reservation: reserved = captured + returned."""

    reservation_id: str
    state: Literal["settled", "released", "expired"]
    """How it ended. Finished work is charged also if its reservation had ended otherwise before; it is then
    paid as work without one."""
    reserved: Money
    captured: Money
    """What the charge took of it."""
    returned: Money
    """What went back."""
    excess: Money
    """What the run cost beyond what was captured. The next three add up to it."""
    excess_from_credits: Money
    """Paid from available credits."""
    excess_from_receivable: Money
    """Owed under the credit limit."""
    excess_unpaid: Money
    """Neither."""
    available: Money | None = None
    """What the customer has left to spend. None for an organization's API key: it may not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A run that was charged: what it cost, and what became of its reservation."""

    metered: Metered
    settlement: Settlement


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Whether a customer may run an agent now. Nothing is reserved: only `authorize` and `run` promise."""

    allowed: bool
    up_to: Money | None
    """The most that could be reserved. None for an organization's API key: it may not know."""
    refusal: TallystickError | None
    """If not allowed, what `authorize` would raise: InsufficientCredits, BudgetExceeded or CustomerFrozen."""
    price_version_id: str
    """The price that would apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What a customer has and owes in one currency, at one moment. credits = available + reserved + held."""

    customer: str
    credits: Money
    """Granted and not spent."""
    available: Money
    """The part of them that can be spent or reserved now."""
    reserved: Money
    """The part that is reserved for runs under way."""
    held: Money
    """The part that is held for outcomes which are not decided yet."""
    receivable: Money
    """Owed under the credit limit."""
    unpaid: Money
    """Finished work beyond credits and credit limit."""
    credit_limit: Money
    """How much may be owed as receivable; zero means prepaid only."""
    credit_room: Money
    """What the credit limit still leaves for new runs: not owed, and not reserved or held either."""
    chargebacks: Money
    """Owed because money that was paid went back. Credits that come in pay it first."""


PurchaseState = Literal["processing", "requires_action", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Credits that a customer buys, and how that stands."""

    purchase_id: str
    customer: str
    amount: Money
    """What is paid, and credited."""
    state: PurchaseState
    """The customer has the credits once it is "succeeded"."""
    failure_code: str
    """Why it failed, as the payment processor's code, such as "insufficient_funds"; empty otherwise."""
    failure_reason: str
    """The same in words."""
    payment_method: str
    """The saved payment method that pays."""
    transaction_id: str
    """The transaction in the ledger; empty until it is "succeeded"."""
    client_secret: str = field(repr=False)
    """With "requires_action", what the payment processor's page needs to let the customer confirm."""
    action_url: str
    """With "requires_action", where the customer can confirm without a page of yours. May be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A recorded event that can never be charged as it is, and why."""

    event: UsageEvent
    error: TallystickError
