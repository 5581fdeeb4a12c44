"""The runs of fees and closings say what they are for, and no other run does."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from services.kit.runs import (
    ChargeKind,
    kind_of,
    period_run,
    service_period,
    subscription_of,
    subscription_run,
)

BEGIN = datetime(2026, 1, 31, 8, tzinfo=UTC)
END = datetime(2026, 2, 28, 8, tzinfo=UTC)


def test_a_fee_is_for_the_rest_of_its_billing_period() -> None:
    run = subscription_run("sub_01m7xj2ex96zkkhb2kskg39v87", BEGIN, END)
    assert kind_of(run) is ChargeKind.SUBSCRIPTION
    assert subscription_of(run) == "sub_01m7xj2ex96zkkhb2kskg39v87"
    # An upgrade in the middle.
    later = BEGIN + timedelta(days=10)
    assert service_period(run, later) == (later, END)
    # Whatever zone the times are in, and within what a run may be called.
    rome = timezone(timedelta(hours=1))
    assert subscription_run("sub_1", BEGIN.astimezone(rome), END) == subscription_run("sub_1", BEGIN, END)
    assert len(subscription_run("sub_" + 26 * "z", BEGIN, END)) <= 128


def test_a_closing_is_for_the_whole_period_that_ended_with_it() -> None:
    run = period_run("org_a", "USD", BEGIN)
    assert kind_of(run) is ChargeKind.PERIOD_CLOSE
    assert service_period(run, END - timedelta(microseconds=1)) == (BEGIN, END)


@pytest.mark.parametrize(
    "workflow_id",
    [
        "ticket-1",
        "sub_1",
        "sub_1/2026-01-31T08:00:00Z",
        "sub_1/run-7/2026-01-31T08:00:00Z",
        "sub_/2026-01-31T08:00:00Z/2026-02-28T08:00:00Z",
        "x/sub_1/2026-01-31T08:00:00Z/2026-02-28T08:00:00Z",
        "sub_1/2026-01-31T08:00:00Z/2026-02-28T08:00:00Z/3",
        "periodic",
        "my/period/org_a/USD/2026-01-31T08:00:00Z",
    ],
)
def test_other_runs_are_those_of_hosts(workflow_id: str) -> None:
    assert kind_of(workflow_id) is ChargeKind.USAGE
    assert service_period(workflow_id, BEGIN) is None
