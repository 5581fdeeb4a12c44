"""Subscriptions: what is subscribed to from when on, and the fees that follow, exact to the second.

Everything here is a pure function of a subscription and a moment. A period's fees are the exact sum of what
each second of it costs, rounded once, half to even; a change in mid-period charges what that sum differs by
from what the period cost before. So the fees of a period never depend on how often something changed.
"""

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from services.kit import ids
from services.kit.money import MAX_AMOUNT_MICROS, round_half_even
from services.kit.runs import subscription_run
from services.metering.domain.billing_period import BillingPeriod, Period
from services.metering.domain.contract import ContractKey
from services.metering.domain.price_book import Allowance, Plan, UnitPrice
from services.metering.domain.rating import LineKind, RatedLine
from services.metering.domain.tiers import micros_of

MAX_SEATS: Final = 1_000_000
SEATS: Final = "seats"


class SubscriptionState(StrEnum):
    """The life of a subscription."""

    ACTIVE = "active"
    CANCELED = "canceled"


class ChangeTiming(StrEnum):
    """When a change takes effect; BY_FEE: at once, unless the fees fall: then at the end of the period."""

    BY_FEE = "by_fee"
    NOW = "now"
    PERIOD_END = "period_end"


@dataclass(frozen=True, slots=True)
class Segment:
    """What is subscribed to from a moment on. Fees are micros for a whole billing period."""

    start: datetime
    plan_name: str
    seats: int
    fee_micros: int
    seat_fee_micros: int
    allowances: tuple[Allowance, ...]
    price_version_id: str

    @property
    def period_fee_micros(self) -> int:
        return self.fee_micros + self.seats * self.seat_fee_micros

    def included(self) -> Mapping[str, int]:
        """What is included in a billing period: units by meter."""
        return {one.meter: one.quantity + self.seats * one.quantity_per_seat for one in self.allowances}


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it is. Amounts are micros of its currency.

    `segments` are those of the current period, `fees_micros` what that costs as far as it is known, charged
    or paid by `credit_micros`, and `fee_count` how many fees that made.
    """

    subscription_id: str
    customer_id: str
    organization_id: str
    agent_id: str
    currency_code: str
    price_book_id: str
    billing_period: BillingPeriod
    start_time: datetime
    period: Period
    segments: tuple[Segment, ...]
    state: SubscriptionState = SubscriptionState.ACTIVE
    cancel_at_period_end: bool = False
    pending_plan_name: str = ""
    pending_seats: int = 0
    credit_micros: int = 0
    fees_micros: int = 0
    fee_count: int = 0
    end_time: datetime | None = None

    @property
    def current(self) -> Segment:
        return self.segments[-1]

    @property
    def is_active(self) -> bool:
        return self.state is SubscriptionState.ACTIVE

    @property
    def next_plan(self) -> tuple[str, int]:
        """The plan and the seats of the next period."""
        if self.pending_plan_name:
            return self.pending_plan_name, self.pending_seats
        return self.current.plan_name, self.current.seats


@dataclass(frozen=True, slots=True)
class Fee:
    """A charge of a subscription for a part of a period, from `service.start` to its end.

    The lines add up to `amount_micros`, which is charged, and what credit paid of it: less than nothing where
    it became credit instead.
    """

    subscription_id: str
    customer_id: str
    organization_id: str
    agent_id: str
    currency_code: str
    price_version_id: str
    period_start: datetime
    service: Period
    ordinal: int
    lines: tuple[RatedLine, ...]
    amount_micros: int
    from_credit_micros: int

    @property
    def workflow_id(self) -> str:
        """The run of the charge: with the ordinal it says which fee this is, however often it is made."""
        # The service may have begun later than the period; they end together.
        return subscription_run(self.subscription_id, self.period_start, self.service.end)

    @property
    def charge_id(self) -> str:
        """The charge in the ledger, or "" if nothing is to be charged."""
        if not self.amount_micros:
            return ""
        return ids.charge_id(self.customer_id, self.workflow_id, "BASE", self.ordinal)


class Step(NamedTuple):
    """What a step in the life of a subscription made of it, and the fee that follows, if any."""

    subscription: Subscription
    fee: Fee | None = None


def segment_of(plan: Plan, seats: int, price_version_id: str, start: datetime) -> Segment:
    """What is subscribed to with a plan of a version."""
    return Segment(
        start=start,
        plan_name=plan.name,
        seats=seats,
        fee_micros=_micros(plan.fee),
        seat_fee_micros=_micros(plan.seat_fee),
        allowances=plan.allowances,
        price_version_id=price_version_id,
    )


def is_affordable(segment: Segment) -> bool:
    """Whether the fees of a period can be charged at all."""
    return segment.period_fee_micros <= MAX_AMOUNT_MICROS


def start(subscription: Subscription) -> Step:
    """Begin a subscription that has one segment: its first period costs what is left of it."""
    return _settled(subscription)


def change(subscription: Subscription, wanted: Segment, timing: ChangeTiming) -> Step:
    """Change plan or seats at the start of `wanted`, a moment of the current period."""
    current = subscription.current
    subscription = replace(subscription, pending_plan_name="", pending_seats=0)
    if (wanted.plan_name, wanted.seats) == (current.plan_name, current.seats):
        return Step(subscription)
    is_later = timing is ChangeTiming.PERIOD_END or (
        timing is ChangeTiming.BY_FEE and wanted.period_fee_micros < current.period_fee_micros
    )
    if is_later:
        return Step(replace(subscription, pending_plan_name=wanted.plan_name, pending_seats=wanted.seats))
    return _settled(replace(subscription, segments=(*subscription.segments, wanted)))


def cancel(subscription: Subscription, now: datetime, *, at_once: bool) -> Subscription:
    """End a subscription, with its period or now. What was charged stays; credit is forgone."""
    if not at_once:
        return replace(subscription, cancel_at_period_end=True)
    return replace(
        subscription,
        state=SubscriptionState.CANCELED,
        end_time=max(now, subscription.current.start),
        cancel_at_period_end=False,
        pending_plan_name="",
        pending_seats=0,
    )


def resume(subscription: Subscription) -> Subscription:
    """Let a subscription go on that was to end with its period."""
    return replace(subscription, cancel_at_period_end=False)


def renew(subscription: Subscription, following: Segment) -> Step:
    """Go on to the next period with what is subscribed to from its begin on; or end, if that is wanted."""
    end = subscription.period.end
    if subscription.cancel_at_period_end:
        return Step(cancel(subscription, end, at_once=True))
    return _settled(
        replace(
            subscription,
            period=subscription.billing_period.next(subscription.period),
            segments=(replace(following, start=end),),
            pending_plan_name="",
            pending_seats=0,
            fees_micros=0,
            fee_count=0,
        )
    )


def due(segments: Sequence[Segment], period: Period) -> int:
    """What a period costs with these segments, the last of which lasts until its end."""
    ends = [*(segment.start for segment in segments[1:]), period.end]
    exact = sum(
        segment.period_fee_micros * _seconds(segment.start, end)
        for segment, end in zip(segments, ends, strict=True)
    )
    return round_half_even(exact, period.seconds)


def _settled(subscription: Subscription) -> Step:
    """Charge what the period costs more than before, from credit first; what it costs less becomes credit."""
    total = due(subscription.segments, subscription.period)
    net = total - subscription.fees_micros
    from_credit = min(net, subscription.credit_micros)
    lines = _lines(subscription, net)
    settled = replace(
        subscription,
        fees_micros=total,
        credit_micros=subscription.credit_micros - from_credit,
        fee_count=subscription.fee_count + 1,
    )
    fee = Fee(
        subscription_id=subscription.subscription_id,
        customer_id=subscription.customer_id,
        organization_id=subscription.organization_id,
        agent_id=subscription.agent_id,
        currency_code=subscription.currency_code,
        price_version_id=subscription.current.price_version_id,
        period_start=subscription.period.start,
        service=Period(subscription.current.start, subscription.period.end),
        ordinal=subscription.fee_count,
        lines=lines,
        amount_micros=net - from_credit,
        from_credit_micros=from_credit,
    )
    return Step(settled, fee)


def _lines(subscription: Subscription, net: int) -> tuple[RatedLine, ...]:
    """What the fee is for: the plan, its seats, and what was paid before for the rest of the period.

    Each is rounded by itself but one, which makes them add up.
    """
    period, current = subscription.period, subscription.current
    rest = _seconds(current.start, period.end)

    def part(micros: int) -> int:
        return round_half_even(micros * rest, period.seconds)

    seats = part(current.seats * current.seat_fee_micros)
    lines = [
        RatedLine(SEATS, current.seats, _decimal(current.seat_fee_micros), seats, LineKind.SUBSCRIPTION)
    ] * bool(current.seats and current.seat_fee_micros)
    if len(subscription.segments) == 1:
        fee = RatedLine(
            current.plan_name, 1, _decimal(current.fee_micros), net - seats, LineKind.SUBSCRIPTION
        )
        return (fee, *lines)
    fee_amount = part(current.fee_micros)
    fee = RatedLine(current.plan_name, 1, _decimal(current.fee_micros), fee_amount, LineKind.SUBSCRIPTION)
    before = subscription.segments[-2]
    off = net - fee_amount - seats
    unused = RatedLine(before.plan_name, 1, _decimal(before.period_fee_micros), off, LineKind.PRORATION)
    return (fee, *lines, unused)


def _seconds(begin: datetime, end: datetime) -> int:
    return int((end - begin).total_seconds())


def _micros(price: UnitPrice | None) -> int:
    return 0 if price is None else round(micros_of(price))


def _decimal(micros: int) -> UnitPrice:
    whole, part = divmod(micros, 1_000_000)
    return UnitPrice(f"{whole}.{part:06}")


class Subscribed(NamedTuple):
    """What a customer is subscribed to from a moment on; nothing from an end on."""

    subscription_id: str
    number: int
    start: datetime
    billing_period: BillingPeriod
    # Units by meter; None where the subscription ended.
    included: Mapping[str, int] | None


class SubscriptionIndex:
    """What customers are subscribed to, by customer, organization and currency."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[ContractKey, dict[str, list[Subscribed]]] = defaultdict(dict)

    @property
    def has_any(self) -> bool:
        """Whether anybody is, or was, subscribed to anything."""
        return bool(self._subscriptions)

    def add(self, key: ContractKey, new: Subscribed) -> None:
        """Add what a customer is subscribed to from a moment on."""
        insort(self._subscriptions[key].setdefault(new.subscription_id, []), new, key=_order)

    def has_any_of(self, key: ContractKey) -> bool:
        """Whether there is or was a subscription about this."""
        return key in self._subscriptions

    def moments(self, key: ContractKey) -> Iterator[datetime]:
        """The moments at which subscriptions about this began or ended, in no order."""
        for segments in self._subscriptions.get(key, {}).values():
            yield segments[0].start
            if segments[-1].included is None:
                yield segments[-1].start

    def in_force(self, key: ContractKey, at: datetime) -> Subscribed | None:
        """What a customer was subscribed to at that time. Subscriptions about the same follow each other."""
        subscriptions = self._subscriptions.get(key)
        if not subscriptions:
            return None
        for segments in subscriptions.values():
            index = bisect_right(segments, at, key=lambda segment: segment.start)
            if index and segments[index - 1].included is not None:
                return segments[index - 1]
        return None


def _order(segment: Subscribed) -> tuple[datetime, int]:
    return segment.start, segment.number
