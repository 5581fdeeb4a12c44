"""When credits are bought by themselves, and why not."""

import dataclasses
from datetime import UTC, datetime, timedelta

from services.payouts.domain.auto_recharge import AutoRecharge, month_of

NOW = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
SETTING = AutoRecharge(
    customer_id="cus_ada",
    currency_code="USD",
    enabled=True,
    threshold_micros=5_000_000,
    amount_micros=20_000_000,
    ceiling_micros=50_000_000,
    next_time=NOW,
    update_time=NOW,
    month=month_of(NOW),
    bought_micros=40_000_000,
)


def test_the_ceiling_is_of_one_month() -> None:
    assert SETTING.why_not(NOW) == "the monthly ceiling is reached"
    next_month = NOW + timedelta(minutes=1)
    assert (SETTING.bought_in(month_of(next_month)), SETTING.why_not(next_month)) == (0, "")
    assert SETTING.may_buy(next_month)


def test_it_waits_for_its_time() -> None:
    early = dataclasses.replace(SETTING, bought_micros=0, next_time=NOW + timedelta(seconds=1))
    assert not early.may_buy(NOW)
    assert early.may_buy(NOW + timedelta(seconds=1))


def test_what_stopped_it_is_said_first() -> None:
    stopped = dataclasses.replace(SETTING, stopped_reason="a payment failed: declined")
    assert stopped.why_not(NOW) == "a payment failed: declined"
    assert not stopped.may_buy(NOW + timedelta(days=1))


def test_one_that_is_off_has_no_reason() -> None:
    off = dataclasses.replace(SETTING, enabled=False)
    assert (off.why_not(NOW), off.may_buy(NOW + timedelta(days=1))) == ("", False)
