"""Budgets: periods, which budgets match a charge, and what a refusal says."""

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.errors import Code, InvalidArgument
from services.metering.domain.budget import (
    Budget,
    BudgetIndex,
    BudgetPeriod,
    CounterKey,
    Period,
    budget_exceeded,
    check_identity,
    check_terms,
    counter_key,
    period_of,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# Clocks that change at two, at midnight, by half an hour, by a whole day, around a month, and never.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "UTC",
)


def a_budget(budget_id: str = "bud_1", **changes: Any) -> Budget:
    budget = Budget(
        budget_id=budget_id,
        owner_id="platform",
        display_name="Support",
        customer_id="cus_1",
        agent_id="",
        api_key_id="",
        per_workflow=False,
        period=BudgetPeriod.DAY,
        time_zone="UTC",
        currency_code="USD",
        limit_micros=5_000_000,
        hard=True,
        alert_thresholds=(),
        create_time=NOON,
        update_time=NOON,
    )
    return replace(budget, **changes)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("time_zone", "moment", "start", "hours"),
    [
        ("UTC", utc(2026, 11, 20, 0), utc(2026, 11, 20), 24),
        ("Europe/Berlin", utc(2026, 11, 20, 22, 59, 59), utc(2026, 11, 19, 23), 24),
        ("Europe/Berlin", utc(2026, 11, 20, 23), utc(2026, 11, 20, 23), 24),
        # Spring and autumn.
        ("Europe/Berlin", utc(2026, 3, 29, 12), utc(2026, 3, 28, 23), 23),
        ("Europe/Berlin", utc(2026, 10, 25, 12), utc(2026, 10, 24, 22), 25),
        ("America/New_York", utc(2026, 3, 8, 12), utc(2026, 3, 8, 5), 23),
        ("America/New_York", utc(2026, 11, 1, 12), utc(2026, 11, 1, 4), 25),
        ("Australia/Lord_Howe", utc(2026, 4, 4, 20), utc(2026, 4, 4, 13), 24.5),
        # Midnight is skipped: the day begins at one.
        ("America/Sao_Paulo", utc(2018, 11, 4, 12), utc(2018, 11, 4, 3), 23),
        ("Asia/Beirut", utc(2026, 3, 29, 12), utc(2026, 3, 28, 22), 23),
        # Midnight comes twice: the day begins with the first.
        ("America/Havana", utc(2026, 11, 1, 12), utc(2026, 11, 1, 4), 25),
        # At midnight it is eleven again: the day before is longer.
        ("America/Sao_Paulo", utc(2018, 2, 18, 2, 30), utc(2018, 2, 17, 2), 25),
        # 30 December was skipped.
        ("Pacific/Apia", utc(2011, 12, 30, 9, 59), utc(2011, 12, 29, 10), 24),
        ("Pacific/Apia", utc(2011, 12, 30, 10), utc(2011, 12, 30, 10), 24),
    ],
)
def test_a_day_is_from_local_midnight_to_local_midnight(
    time_zone: str, moment: datetime, start: datetime, hours: float
) -> None:
    budget = a_budget(time_zone=time_zone)
    assert period_of(budget, moment) == Period(start, start + timedelta(hours=hours))


@pytest.mark.parametrize(
    ("time_zone", "moment", "start", "reset"),
    [
        ("UTC", utc(2026, 12, 31, 23, 59, 59), utc(2026, 12, 1), utc(2027, 1, 1)),
        ("UTC", utc(2028, 2, 29), utc(2028, 2, 1), utc(2028, 3, 1)),
        ("Europe/Berlin", utc(2026, 3, 31, 22), utc(2026, 3, 31, 22), utc(2026, 4, 30, 22)),
        ("Europe/Berlin", utc(2026, 3, 31, 21, 59), utc(2026, 2, 28, 23), utc(2026, 3, 31, 22)),
        ("America/New_York", utc(2026, 11, 1, 4), utc(2026, 11, 1, 4), utc(2026, 12, 1, 5)),
    ],
)
def test_a_month_is_one_of_the_calendar(
    time_zone: str, moment: datetime, start: datetime, reset: datetime
) -> None:
    budget = a_budget(time_zone=time_zone, period=BudgetPeriod.MONTH)
    assert period_of(budget, moment) == Period(start, reset)


def test_a_total_never_starts_again() -> None:
    assert period_of(a_budget(period=BudgetPeriod.TOTAL), NOON) == Period(None, None)


@settings(max_examples=400)
@given(
    seconds=st.integers(0, 128 * 365 * 86_400),
    time_zone=st.sampled_from(ZONES),
    period=st.sampled_from([BudgetPeriod.DAY, BudgetPeriod.MONTH]),
)
def test_every_moment_lies_in_exactly_one_period(seconds: int, time_zone: str, period: BudgetPeriod) -> None:
    moment = utc(1972, 1, 1) + timedelta(seconds=seconds)
    budget = a_budget(time_zone=time_zone, period=period)
    start, reset = period_of(budget, moment)
    assert start is not None
    assert reset is not None

    assert start <= moment < reset
    for inside in (start, reset - MICROSECOND):
        assert period_of(budget, inside) == (start, reset)
    assert period_of(budget, reset).start == reset
    assert period_of(budget, start - MICROSECOND).reset == start
    assert start.tzinfo is reset.tzinfo is UTC


@settings(max_examples=300)
@given(
    day=st.dates(date(2015, 1, 1), date(2045, 1, 1)),
    minute=st.integers(0, 24 * 60 - 1),
    time_zone=st.sampled_from(ZONES),
)
def test_the_local_date_names_the_day(day: date, minute: int, time_zone: str) -> None:
    """Since 2012 no zone of these has had a date twice or not at all."""
    zone = ZoneInfo(time_zone)
    moment = datetime.combine(day, datetime.min.time(), zone) + timedelta(minutes=minute)
    start, reset = period_of(a_budget(time_zone=time_zone), moment.astimezone(UTC))
    assert start is not None
    assert reset is not None
    local = moment.astimezone(UTC).astimezone(zone).date()
    assert start.astimezone(zone).date() == local
    assert (reset - MICROSECOND).astimezone(zone).date() == local
    assert (start - MICROSECOND).astimezone(zone).date() == local - timedelta(days=1)


def test_workflows_share_a_counter_unless_each_is_counted_by_itself() -> None:
    day = period_of(a_budget(), NOON)
    assert counter_key(a_budget(), day, "wf") == CounterKey("bud_1", utc(2026, 11, 20), "")
    each = a_budget(per_workflow=True, period=BudgetPeriod.TOTAL)
    assert counter_key(each, period_of(each, NOON), "wf") == CounterKey("bud_1", None, "wf")


def some(values: Iterable[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(list(values))


BUDGETS = st.lists(
    st.builds(
        a_budget,
        some(f"bud_{number}" for number in range(12)),
        customer_id=some(["", "cus_1", "cus_2"]),
        agent_id=some(["", "agt_1", "agt_2"]),
        api_key_id=some(["", "key_1"]),
        currency_code=some(["USD", "EUR"]),
    ).filter(lambda budget: budget.customer_id or budget.agent_id or budget.api_key_id),
    max_size=12,
    unique_by=lambda budget: budget.budget_id,
)


@given(
    budgets=BUDGETS,
    changes=st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.integers(1, 10**6)), max_size=8),
)
def test_what_matches_is_found_as_if_all_were_looked_at(
    budgets: list[Budget], changes: list[tuple[int, bool, int]]
) -> None:
    index = BudgetIndex(budgets)
    before, known = index, {budget.budget_id: budget for budget in budgets}
    for position, deleted, limit in changes:
        if position < len(budgets):
            changed = replace(budgets[position], limit_micros=limit, delete_time=NOON if deleted else None)
            known[changed.budget_id] = changed
            index = index.updated([changed])
    alive = {id_: budget for id_, budget in known.items() if budget.delete_time is None}

    assert len(index) == len(alive)
    assert {id_: index.find(id_) for id_ in known} == {id_: alive.get(id_) for id_ in known}
    for charge in itertools.product(
        ["cus_1", "cus_2"], ["agt_1", "agt_3"], ["key_1", "key_2", ""], ["USD", "EUR"]
    ):
        assert sorted(budget.budget_id for budget in index.matching(*charge)) == sorted(
            budget.budget_id for budget in alive.values() if _matches(budget, *charge)
        )
        assert all(alive[budget.budget_id] is budget for budget in index.matching(*charge))
    # An index that somebody holds does not change.
    assert [before.find(budget.budget_id) for budget in budgets] == budgets


def _matches(budget: Budget, customer_id: str, agent_id: str, api_key_id: str, currency_code: str) -> bool:
    return (
        budget.customer_id in ("", customer_id)
        and budget.agent_id in ("", agent_id)
        and budget.api_key_id in ("", api_key_id)
        and budget.currency_code == currency_code
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"customer_id": ""}, "budget"),
        ({"per_workflow": True}, "budget.period"),
        (
            {"per_workflow": True, "period": BudgetPeriod.TOTAL, "customer_id": "", "agent_id": "agt_1"},
            "budget.customer_id",
        ),
        *(
            ({"time_zone": zone}, "budget.time_zone")
            for zone in (
                "",
                "Europe",
                "Europe/Bonn",
                "Mars/Olympus",
                "../../etc/passwd",
                "/etc/localtime",
                "zone.tab",
                "tzdata.zi",
                "localtime",
                "Factory",
                "posix/Europe/Berlin",
                "right/Europe/Berlin",
                "Europe/Berlin\0",
                "Europe//Berlin",
                "Európa/Berlin",
                "+01:00",
                "A" * 10_000,
            )
        ),
    ],
)
def test_what_a_budget_counts_must_make_sense(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_identity(a_budget(**changes))
    assert [violation.field for violation in raised.value.field_violations] == [field]


@pytest.mark.parametrize(
    "time_zone", [*ZONES, "America/Argentina/Buenos_Aires", "Etc/GMT+12", "GMT", "EST5EDT"]
)
def test_time_zones_have_iana_names(time_zone: str) -> None:
    check_identity(a_budget(time_zone=time_zone))


GOOD: dict[str, Any] = {
    "display_name": "",
    "limit_currency_code": "USD",
    "limit_micros": 1,
    "alert_thresholds": [],
    "currency_code": "USD",
}


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"display_name": "x" * 201}, ["display_name"]),
        ({"display_name": "a\nb"}, ["display_name"]),
        ({"limit_currency_code": ""}, ["limit.currency_code"]),
        ({"limit_currency_code": "EUR"}, ["limit.currency_code"]),
        ({"limit_micros": 0}, ["limit.amount_micros"]),
        ({"limit_micros": -(2**63)}, ["limit.amount_micros"]),
        ({"limit_micros": 10**14 + 1}, ["limit.amount_micros"]),
        ({"alert_thresholds": range(1, 12)}, ["alert_thresholds"]),
        ({"alert_thresholds": [50, 50]}, ["alert_thresholds"]),
        ({"alert_thresholds": [0]}, ["alert_thresholds"]),
        ({"alert_thresholds": [1_001]}, ["alert_thresholds"]),
        ({"display_name": "\t", "limit_micros": 0}, ["display_name", "limit.amount_micros"]),
    ],
)
def test_what_may_change_of_a_budget_must_make_sense(changes: dict[str, Any], fields: list[str]) -> None:
    for within in ("", "budget."):
        with pytest.raises(InvalidArgument) as raised:
            check_terms(**GOOD | changes, within=within)
        assert [one.field for one in raised.value.field_violations] == [within + field for field in fields]


def test_thresholds_are_kept_in_order() -> None:
    assert check_terms(**GOOD | {"alert_thresholds": [1_000, 1, 80], "display_name": "x" * 200}) == (
        1,
        80,
        1_000,
    )
    assert check_terms(**GOOD | {"currency_code": None, "limit_micros": 10**14}) == ()


def test_a_refusal_names_the_budget_its_limit_and_when_it_starts_again() -> None:
    budget = a_budget(time_zone="Europe/Berlin")
    error = budget_exceeded(budget, period_of(budget, NOON), 4_000_000, 700_000, 300_001, show_amounts=True)

    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "BUDGET_EXCEEDED")
    assert error.metadata == {
        "budget_id": "bud_1",
        "currency_code": "USD",
        "requested_micros": "300001",
        "limit_micros": "5000000",
        "spent_micros": "4000000",
        "reserved_micros": "700000",
        "reset_time": "2026-11-20T23:00:00Z",
    }
    assert error.message == (
        "budget bud_1 (Support) allows 5.00 USD per day; 4.00 USD are spent and 0.70 USD reserved,"
        " which leaves no room for 0.300001 USD; it starts again at 2026-11-20T23:00:00Z"
    )
    assert [(one.type, one.subject) for one in error.precondition_violations] == [
        ("BUDGET_EXCEEDED", "bud_1")
    ]


def test_a_refusal_tells_strangers_nothing_of_anybodys_money() -> None:
    budget = a_budget(period=BudgetPeriod.TOTAL, per_workflow=True)
    error = budget_exceeded(budget, Period(None, None), 4_000_000, 700_000, 300_001, show_amounts=False)

    assert error.metadata == {"budget_id": "bud_1", "currency_code": "USD", "requested_micros": "300001"}
    assert error.message == "budget bud_1 leaves no room for 0.300001 USD; it never starts again"
    shown = budget_exceeded(budget, Period(None, None), 0, 0, 1, show_amounts=True)
    assert "5.00 USD for each workflow" in shown.message
    assert "reset_time" not in shown.metadata
