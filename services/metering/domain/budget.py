"""Budgets: what is charged per period, and the limits that stop runs before they start."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

from services.kit import zones
from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument, PreconditionViolation
from services.kit.money import MAX_AMOUNT_MICROS, MINOR_UNIT_DIGITS, Money

MAX_DISPLAY_NAME: Final = 200
MAX_THRESHOLDS: Final = 10
MAX_THRESHOLD: Final = 1_000
# Every budget that matches costs each charge a little: so many may have the same owner and count the same.
MAX_ALIKE: Final = 20
# Every process remembers all budgets that count: so many may an owner have, unless it is the platform.
MAX_OWN: Final = 1_000

_ONE_DAY: Final = timedelta(days=1)


class BudgetPeriod(StrEnum):
    """When the counter of a budget starts again."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for what is charged per period to a customer, for an agent, by an API key, or any mix of these.

    An empty id matches every charge; at least one is set. Of these fields only the name, the limit, the
    thresholds, whether it is hard, and the times ever change.
    """

    budget_id: str
    # A customer, an organization, or PLATFORM_OWNER.
    owner_id: str
    display_name: str
    customer_id: str
    agent_id: str
    api_key_id: str
    # Every workflow has a counter of its own.
    per_workflow: bool
    period: BudgetPeriod
    time_zone: str
    currency_code: str
    limit_micros: int
    # Whether it refuses runs; otherwise it only alerts.
    hard: bool
    # In per cent of the limit, rising.
    alert_thresholds: tuple[int, ...]
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None = None


class Period(NamedTuple):
    """From `start` up to, and without, `reset`, when the counter starts again. Both are None for ever."""

    start: datetime | None
    reset: datetime | None


class CounterKey(NamedTuple):
    """Which counter of a budget: that of a period (None for ever), and of a workflow ("" for all of them)."""

    budget_id: str
    period_start: datetime | None
    workflow_id: str


class Counter(NamedTuple):
    """A counter: what was charged, and what is reserved for runs under way, in micros."""

    key: CounterKey
    spent: int
    reserved: int


class Alert(NamedTuple):
    """A threshold that was reached, in per cent, and what had been spent of which limit then."""

    budget_id: str
    period_start: datetime | None
    workflow_id: str
    threshold: int
    currency_code: str
    spent_micros: int
    limit_micros: int
    create_time: datetime


def period_of(budget: Budget, moment: datetime) -> Period:
    """The period of a budget that a moment lies in, in UTC.

    A day is from local midnight to local midnight, however many hours that is; a month likewise. Where clocks
    skip midnight, it is the moment when they do.
    """
    if budget.period is BudgetPeriod.TOTAL:
        return Period(None, None)
    zone = zones.zone(budget.time_zone)
    is_day = budget.period is BudgetPeriod.DAY
    following, first = (_next_day, _same_day) if is_day else (_next_month, _first_of_month)
    day = first(moment.astimezone(zone).date())
    start, reset = zones.midnight(day, zone), zones.midnight(following(day), zone)
    # Where clocks go back over midnight a local date comes twice: the second time it is in the day after.
    while moment >= reset:
        day = following(day)
        start, reset = reset, zones.midnight(following(day), zone)
    while moment < start:
        day = first(day - _ONE_DAY)
        start, reset = zones.midnight(day, zone), start
    return Period(start, reset)


def counter_key(budget: Budget, period: Period, workflow_id: str) -> CounterKey:
    """Which counter of a budget counts what a workflow spends in a period."""
    return CounterKey(budget.budget_id, period.start, workflow_id if budget.per_workflow else "")


class BudgetIndex:
    """Every budget that counts, by what it counts. Immutable."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._by_id: dict[str, Budget] = {}
        self._by_scope: dict[tuple[str, str, str, str], tuple[Budget, ...]] = {}
        self._apply(budgets)

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> Iterable[Budget]:
        """Every budget."""
        return self._by_id.values()

    def find(self, budget_id: str) -> Budget | None:
        """A budget, unless it was deleted."""
        return self._by_id.get(budget_id)

    def matching(
        self, customer_id: str, agent_id: str, api_key_id: str, currency_code: str
    ) -> Sequence[Budget]:
        """The budgets that count a charge to this customer, for this agent, reported by this key; soft ones
        too. Equal questions have equal answers, in the same order.
        """
        if not self._by_id:
            return ()
        by_scope = self._by_scope
        return [
            budget
            for customer in _any_or(customer_id)
            for agent in _any_or(agent_id)
            for api_key in _any_or(api_key_id)
            for budget in by_scope.get((customer, agent, api_key, currency_code), ())
        ]

    def updated(self, changed: Iterable[Budget]) -> "BudgetIndex":
        """The index after some budgets were created, changed or deleted."""
        index = BudgetIndex()
        index._by_id, index._by_scope = dict(self._by_id), dict(self._by_scope)
        index._apply(changed)
        return index

    def _apply(self, budgets: Iterable[Budget]) -> None:
        for budget in budgets:
            scope = (budget.customer_id, budget.agent_id, budget.api_key_id, budget.currency_code)
            # What a budget counts never changes: its old state is found where the new one belongs.
            alike = [one for one in self._by_scope.get(scope, ()) if one.budget_id != budget.budget_id]
            if budget.delete_time is None:
                self._by_id[budget.budget_id] = budget
                alike.append(budget)
            else:
                self._by_id.pop(budget.budget_id, None)
            if alike:
                self._by_scope[scope] = tuple(sorted(alike, key=lambda one: one.budget_id))
            else:
                self._by_scope.pop(scope, None)


def check_identity(budget: Budget) -> None:
    """Raise InvalidArgument with everything that is wrong with what a new budget counts."""
    _raise_if_any(_identity_violations(budget))


def check_terms(
    *,
    display_name: str,
    limit_currency_code: str,
    limit_micros: int,
    alert_thresholds: Sequence[int],
    currency_code: str | None = None,
    within: str = "",
) -> tuple[int, ...]:
    """The thresholds, in order. Raises InvalidArgument with everything that is wrong with what may change of
    a budget, which has this currency, if it is not new; `within` comes before the names of the fields.
    """
    _raise_if_any(
        FieldViolation(f"{within}{one.field}", one.description)
        for one in (
            *_name_violations(display_name),
            *_limit_violations(limit_currency_code, limit_micros, currency_code),
            *_threshold_violations(alert_thresholds),
        )
    )
    return tuple(sorted(alert_thresholds))


def budget_exceeded(
    budget: Budget, period: Period, spent: int, reserved: int, requested: int, show_amounts: bool
) -> FailedPrecondition:
    """The error for a run that a hard budget has no room for. Amounts are micros of the budget's currency.

    Without `show_amounts` it says nothing of the budget but its id and when it starts again: for callers who
    may not see it, because another tenant set it.
    """
    metadata = {
        "budget_id": budget.budget_id,
        "currency_code": budget.currency_code,
        "requested_micros": str(requested),
    }
    message = f"budget {budget.budget_id}"
    if show_amounts:
        metadata |= {
            "limit_micros": str(budget.limit_micros),
            "spent_micros": str(spent),
            "reserved_micros": str(reserved),
        }
        name = f" ({budget.display_name})" if budget.display_name else ""
        message += (
            f"{name} allows {_money(budget, budget.limit_micros)}{_per(budget)};"
            f" {_money(budget, spent)} are spent and {_money(budget, reserved)} reserved,"
            f" which leaves no room for {_money(budget, requested)}"
        )
    else:
        message += f" leaves no room for {_money(budget, requested)}"
    if period.reset is None:
        message += "; it never starts again"
    else:
        reset_time = period.reset.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["reset_time"] = reset_time
        message += f"; it starts again at {reset_time}"
    return FailedPrecondition(
        message,
        reason="BUDGET_EXCEEDED",
        metadata=metadata,
        precondition_violations=[PreconditionViolation("BUDGET_EXCEEDED", budget.budget_id, message)],
    )


def _any_or(id_: str) -> tuple[str, ...]:
    return (id_, "") if id_ else ("",)


def _same_day(day: date) -> date:
    return day


def _next_day(day: date) -> date:
    return day + _ONE_DAY


def _first_of_month(day: date) -> date:
    return day.replace(day=1)


def _next_month(first: date) -> date:
    return _first_of_month(first + timedelta(days=31))


def _identity_violations(budget: Budget) -> Iterator[FieldViolation]:
    if not (budget.customer_id or budget.agent_id or budget.api_key_id):
        yield FieldViolation("budget", "must name a customer, an agent or an API key")
    if budget.per_workflow and not budget.customer_id:
        yield FieldViolation("budget.customer_id", "must be set to count every workflow by itself")
    if budget.per_workflow and budget.period is not BudgetPeriod.TOTAL:
        yield FieldViolation("budget.period", "must be TOTAL to count every workflow by itself")
    if not zones.is_zone(budget.time_zone):
        yield FieldViolation(
            "budget.time_zone", "must be the IANA name of a time zone, such as Europe/Berlin, or empty"
        )


def _name_violations(display_name: str) -> Iterator[FieldViolation]:
    if len(display_name) > MAX_DISPLAY_NAME or not display_name.isprintable():
        yield FieldViolation("display_name", f"must be 0 to {MAX_DISPLAY_NAME} printable characters")


def _limit_violations(
    currency_code: str, micros: int, wanted_currency_code: str | None
) -> Iterator[FieldViolation]:
    if currency_code not in MINOR_UNIT_DIGITS:
        yield FieldViolation(
            "limit.currency_code", f"{currency_code[:16]!r} is not an active ISO 4217 currency code"
        )
    elif wanted_currency_code not in (None, currency_code):
        yield FieldViolation("limit.currency_code", f"must be that of the budget, {wanted_currency_code}")
    if not 1 <= micros <= MAX_AMOUNT_MICROS:
        yield FieldViolation("limit.amount_micros", f"must be from 1 to {MAX_AMOUNT_MICROS} micros")


def _threshold_violations(thresholds: Sequence[int]) -> Iterator[FieldViolation]:
    if len(thresholds) > MAX_THRESHOLDS:
        yield FieldViolation("alert_thresholds", f"must be at most {MAX_THRESHOLDS}")
    elif len(set(thresholds)) < len(thresholds):
        yield FieldViolation("alert_thresholds", "must be different ones")
    if not all(1 <= threshold <= MAX_THRESHOLD for threshold in thresholds):
        yield FieldViolation("alert_thresholds", f"must be from 1 to {MAX_THRESHOLD} per cent")


def _raise_if_any(violations: Iterable[FieldViolation]) -> None:
    found = list(violations)
    if found:
        raise InvalidArgument(
            "; ".join(f"{one.field}: {one.description}" for one in found), field_violations=found
        )


def _per(budget: Budget) -> str:
    per = "" if budget.period is BudgetPeriod.TOTAL else f" per {budget.period}"
    return f"{per} for each workflow" if budget.per_workflow else per


def _money(budget: Budget, micros: int) -> Money:
    return Money(budget.currency_code, micros)
