"""What reporting answers: usage, earnings, payouts and charges, as far as the feeds were read.

All are frozen, typed and keyword-only, so that fields may be added without breaking anybody.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from tallystick.models import ChargeLine, Outcome
from tallystick.money import Money

UsageGrouping = Literal["agent", "agent_version", "customer", "action", "model"]
Interval = Literal["hour", "day", "month"]
Period: TypeAlias = str | tuple[datetime, datetime]
"""A name ("today", "24h", "30d", "12m", "mtd" for the month to date, "2026", "2026-11", "2026-11-29"), or a
start and an end with time zones; the start belongs to it, the end does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOf:
    """What an answer knows: everything up to these positions of the feeds."""

    journal_position: int
    """In the ledger's journal."""
    usage_position: int
    """In metering's usage feed."""
    time: datetime | None
    """Up to when everything is known; None as long as that cannot be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCounts:
    """How many events ended how."""

    success: int
    failure: int
    partial: int
    unknown: int
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotals:
    """What agents did in some time, and what it cost."""

    executions: int
    """Events that were metered."""
    input_tokens: int
    output_tokens: int
    cost: Money
    """What was charged for it, with what decided outcomes added. What corrections took back is not in it."""
    outcomes: OutcomeCounts
    success_rate_bps: int | None
    """success ÷ (success + failure + partial), in basis points, rounded down; None if there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageGroup:
    """The usage of one agent, version, customer, action or model."""

    key: str
    """"agt_…", "agt_…@1.2.0", "cus_…", an action or a model. Empty for what events leave out."""
    totals: UsageTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class UsagePoint:
    """One step of a series. It ends where the next one begins."""

    start_time: datetime
    totals: UsageTotals


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What agents did and what it cost."""

    groups: tuple[UsageGroup, ...]
    """The one that cost most first. Empty if nothing was to be told apart."""
    total: UsageTotals
    """Of all groups, shown or not."""
    points: tuple[UsagePoint, ...]
    """All usage over time, without gaps, if it was asked for."""
    interval: Interval | None
    """How long the steps are, if there are any."""
    as_of: AsOf


@dataclass(frozen=True, slots=True, kw_only=True)
class Revenue:
    """What an organization earned in some time: gross = platform_fees + processing_fees + net."""

    gross: Money
    platform_fees: Money
    processing_fees: Money
    net: Money
    charges: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RevenuePoint:
    """The revenue of one step of time. It ends where the next one begins."""

    start_time: datetime
    revenue: Revenue


@dataclass(frozen=True, slots=True, kw_only=True)
class Earnings:
    """What an organization earned, what that would come to, and what of it can be paid out."""

    organization: str
    month_to_date: Revenue
    """The current calendar month so far."""
    previous_month_to_date: Revenue
    """The month before it, as long as this one is old."""
    usage: Revenue
    """Of `month_to_date`, what was earned by work."""
    subscriptions: Revenue
    """Of `month_to_date`, what was earned by fees of subscriptions, at the begin of their service periods."""
    period_closings: Revenue
    """Of `month_to_date`, what was earned by closing billing periods, at their last instants."""
    monthly_proxy: Money
    """Monthly recurring revenue, by proxy: net earnings by usage of this month so far. Not contracted."""
    annual_proxy: Money
    """Annual run rate, by proxy: twelve times that."""
    available: Money
    """May be paid out. Negative after a clawback."""
    pending: Money
    """Earned and not yet payable."""
    uncollected: Money
    """The part of `pending` that customers still owe."""
    in_transit: Money
    """Taken by payouts that have not ended."""
    trend: tuple[RevenuePoint, ...]
    """The months, the oldest first."""
    lifetime: Revenue
    as_of: AsOf


PayoutState = Literal["requested", "processing", "completed", "failed", "cancelled"]
BankStatus = Literal["waiting", "pending", "in_transit", "paid", "failed", "canceled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutStep:
    """One step of a payout."""

    state: PayoutState
    bank_status: BankStatus | None
    create_time: datetime
    reason: str
    """Why, in words or as the payment processor's code. May be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """Money that an organization withdraws from its earnings, and how far it came."""

    payout_id: str
    organization: str
    amount: Money
    state: PayoutState
    bank_status: BankStatus | None
    """How far a completed payout came on its way to the bank; None until it is completed."""
    reversed: Money
    """How much of it came back after it was completed."""
    hold: str
    """Why it stands still although nothing failed, such as "frozen"; empty if it does not."""
    failure_code: str
    failure_reason: str
    """Why it failed or was cancelled, in words."""
    bank_failure_code: str
    """Why the bank refused it, as the payment processor's code."""
    create_time: datetime
    update_time: datetime
    bank_arrival_time: datetime | None
    """When the bank has it, or is expected to."""
    steps: tuple[PayoutStep, ...]
    """The first one first."""
    debit_transaction_id: str
    """The transaction that took its money from the earnings; empty if reporting has not read so far."""
    end_transaction_id: str
    """The transaction that ended it; empty until then."""


ChargeKind = Literal["usage", "subscription", "period_close"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedCharge:
    """A charge with what it was for. An organization sees its own share, a customer what it paid."""

    charge_id: str
    customer: str
    workflow_id: str
    ordinal: int
    component: Literal["base", "outcome"]
    gross: Money
    """What was charged; for an organization, its own share of that."""
    corrected: Money
    """What corrections took back of it."""
    net: Money | None
    """What the organization earns of it. None for customers."""
    agent: str
    agent_version: str
    action: str
    """What the agent did. Empty if the charge was not posted by metering, or its usage was not read yet."""
    model: str
    input_tokens: int
    output_tokens: int
    outcome: Outcome
    lines: tuple[ChargeLine, ...]
    """How the price came about. Empty under the same conditions as the action."""
    price_version_id: str
    occur_time: datetime
    """When the work happened; the begin of a fee's service, or the last instant of a closed period."""
    create_time: datetime
    """When the charge was posted: its accounting date."""
    kind: ChargeKind
    """What it is for: "usage" for work, "subscription" for the fee of one, "period_close" for what is only
    known when a billing period is over."""
    service_start: datetime | None
    """When the service period begins that a fee, or a closing, is for; None for work."""
    service_end: datetime | None
    """When it ends, exclusive."""
    as_of: AsOf
