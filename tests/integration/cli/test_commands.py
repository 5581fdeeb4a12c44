"""Every command, as a table for people and as JSON for programs, exact in both."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tallystick.metering.v1 import charge_line_pb2
from tallystick.reporting.v1 import period_pb2, reporting_service_pb2, usage_report_pb2
from tests.integration.cli.conftest import Run
from tests.integration.cli.world import World
from tests.support.reporting_fake import payout

CHARGED = {"currency": "USD", "amount": "0.218012"}


def usd(amount: str) -> dict[str, str]:
    return {"currency": "USD", "amount": amount}


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_customer_sees_its_balance(run: Run) -> None:
    shown = run("customer", "balance")
    assert shown.status == 0
    assert {"Balance of cus_ada", "credits 9.781988 USD", "available 9.781988 USD"} <= set(lines(shown.out))
    told = run("customer", "balance", "--json").data
    assert (told["customer"], told["available"], told["unpaid"]) == (
        "cus_ada",
        usd("9.781988"),
        usd("0.000000"),
    )
    # An operator names whose balance it wants.
    assert run("operator", "--json", "balance", "--customer", "cus_ada").data == told


def test_an_organization_sees_its_earnings_balance(run: Run) -> None:
    told = run("owner", "balance", "--json").data
    assert told["organization"] == "org_lark"
    assert (told["available"], told["pending"]) == (usd("0.178989"), usd("0.000000"))
    assert told["platform_fees"] == usd("0.032701")
    shown = run("operator", "balance", "--organization", "org_lark")
    assert {"Earnings of org_lark", "processing fees so far 0.006322 USD"} <= set(lines(shown.out))


def test_usage_by_agent(run: Run, world: World) -> None:
    shown = run("owner", "usage", "--period", "7d")
    assert shown.status == 0
    assert {
        "Usage, 7d",
        "agent executions input tokens output tokens cost, USD success not known",
        "agt_helper 3 3,000 300 0.654036 66.66 % 0",
        "agt_scout 1 1,000 100 0.005000 – 1",
        "all 4 4,000 400 0.659036 66.66 % 1",
        "As of 2026-11-29 12:00:00 UTC: journal read to 120, usage to 80.",
    } <= set(lines(shown.out))
    asked = world.reporting.asked[-1]
    assert isinstance(asked, reporting_service_pb2.GetUsageRequest)
    assert (asked.period.name, asked.grouping) == ("7d", usage_report_pb2.USAGE_GROUPING_AGENT)
    told = run("owner", "usage", "--json").data
    assert [(group["key"], group["totals"]["cost"]) for group in told["groups"]] == [
        ("agt_helper", usd("0.654036")),
        ("agt_scout", usd("0.005000")),
    ]
    assert told["groups"][1]["totals"]["success_rate_bps"] is None
    assert told["as_of"] == {"journal_position": 120, "usage_position": 80, "time": "2026-11-29T12:00:00Z"}


def test_usage_over_time_in_a_time_zone(run: Run, world: World) -> None:
    options = (
        "--group-by",
        "none",
        "--series",
        "hour",
        "--time-zone",
        "Europe/Berlin",
        "--customer",
        "cus_ada",
    )
    shown = run("operator", "usage", *options)
    assert {"By day", "2026-11-29 13:00 4 4,000 400 0.659036 100.00 % 0"} <= set(lines(shown.out))
    asked = world.reporting.asked[-1]
    assert isinstance(asked, reporting_service_pb2.GetUsageRequest)
    assert (asked.include_series, asked.interval) == (True, period_pb2.INTERVAL_HOUR)
    assert (asked.customer_id, asked.period.time_zone) == ("cus_ada", "Europe/Berlin")
    (point,) = run("operator", "usage", *options, "--json").data["points"]
    assert point["start_time"] == "2026-11-29T12:00:00Z"


def test_earnings_are_labelled_as_proxies(run: Run) -> None:
    shown = run("owner", "earnings", "--months", "2")
    assert {
        "Earnings of org_lark",
        "available for payout 0.150000 USD",
        "annual run rate, by usage 2.147868 USD",
        "month to date 1 0.218012 0.032701 0.006322 0.178989",
        "2026-10 1 0.100000 0.015000 0.002900 0.082100",
        "Run rates follow from usage this month so far, not from fees; nobody has contracted them.",
    } <= set(lines(shown.out))
    told = run("owner", "earnings", "--json").data
    assert (told["annual_proxy"], told["in_transit"]) == (usd("2.147868"), usd("0.010000"))
    assert told["month_to_date"]["gross"] == CHARGED
    assert [point["start_time"] for point in told["trend"]] == [
        "2026-10-01T00:00:00Z",
        "2026-11-01T00:00:00Z",
    ]


def test_payouts_say_how_far_they_came(run: Run, world: World) -> None:
    shown = run("owner", "payouts")
    assert {
        "po_1 2026-11-29 12:00:00 UTC 8.030000 USD completed paid 2026-11-29 12:00:00 UTC –",
        "po_2 2026-11-29 12:00:00 UTC 8.030000 USD requested – – – stands still: frozen",
    } <= set(lines(shown.out))
    told = run("owner", "payouts", "--limit", "1", "--json").data
    assert [(one["payout_id"], one["amount"], one["bank_status"]) for one in told["payouts"]] == [
        ("po_1", usd("8.030000"), "paid")
    ]
    world.reporting.payouts = []
    try:
        assert run("owner", "payouts").out == "Payouts: none\n"
        assert run("owner", "payouts", "--json").data == {"payouts": []}
    finally:
        world.reporting.payouts = [payout(1), payout(2)]


def test_a_charge_is_shown_with_its_lines_and_payment(run: Run, world: World) -> None:
    shown = run("operator", "charge", "show", world.charge_id)
    assert {
        f"Charge {world.charge_id}",
        "customer cus_ada",
        "charged 0.218012 USD",
        "outcome success",
        "input 18,042 0.60 per 1,000,000 0.010825",
        "from credits 0.218012 USD",
        "org_lark agt_helper 0.218012 0.032701 0.006322 0.178989",
    } <= set(lines(shown.out))
    told = run("customer", "charge", "show", world.charge_id, "--json").data
    assert told["gross"] == CHARGED
    assert told["payment"] == {
        "from_credits": CHARGED,
        "from_receivable": usd("0.000000"),
        "unpaid": usd("0.000000"),
    }
    # A customer is not told who earns.
    assert told["shares"] == []
    assert told["usage"]["lines"][1]["unit_price"] == {"amount": "0.60", "per_units": 1_000_000}
    (share,) = run("owner", "charge", "show", world.charge_id, "--json").data["shares"]
    assert (share["net"], share["platform_fee"]) == (usd("0.178989"), usd("0.032701"))


def test_lines_of_a_charge_say_what_they_are_for(run: Run, world: World) -> None:
    before = world.reporting.charges
    tiered = type(before[0])()
    tiered.CopyFrom(before[0])
    tiered.lines[1].tier = 2
    for kind, micros in (
        (charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT, -1_000),
        (charge_line_pb2.CHARGE_LINE_KIND_MINIMUM, 250),
    ):
        line = tiered.lines.add(component_name="loyal", quantity=1, kind=kind)
        line.unit_price.amount = "0"
        line.amount.currency_code, line.amount.amount_micros = "USD", micros
    world.reporting.charges = [tiered]
    try:
        shown = lines(run("operator", "charge", "show", world.charge_id).out)
        told = run("operator", "charge", "show", world.charge_id, "--json").data["usage"]["lines"]
    finally:
        world.reporting.charges = before
    assert {
        "input, tier 2 18,042 0.60 per 1,000,000 0.010825",
        "loyal, discount 1 – -0.001000",
        "loyal, up to the minimum 1 – 0.000250",
    } <= set(shown)
    assert [(one["kind"], one["tier"]) for one in told] == [
        ("component", 0),
        ("component", 2),
        ("component", 0),
        ("component", 0),
        ("discount", 0),
        ("minimum", 0),
    ]


def test_a_charge_is_shown_before_reporting_knows_it(run: Run, world: World) -> None:
    charges, world.reporting.charges = world.reporting.charges, []
    try:
        shown = run("operator", "charge", "show", world.charge_id)
        assert "charged 0.218012 USD" in lines(shown.out)
        assert "reporting reads it within seconds" in shown.out
        told = run("operator", "charge", "show", world.charge_id, "--json").data
        assert (told["gross"], told["usage"]) == (CHARGED, None)
    finally:
        world.reporting.charges = charges
    away = run(
        "operator", "charge", "show", world.charge_id, "--reporting", "127.0.0.1:1", "--timeout", "0.5"
    )
    assert away.status == 0
    assert "reporting does not answer" in away.out


def test_a_key_is_shown_once_and_works(run: Run, world: World) -> None:
    created = run(
        "operator",
        *("keys", "create", "--role", "customer", "--customer", "cus_ada", "--expires", "90d"),
        *("--description", "the portal", "--idempotency-key", "portal", "--json"),
    ).data
    assert (created["role"], created["customer"]) == ("customer", "cus_ada")
    ends = datetime.fromisoformat(created["expire_time"]) - datetime.fromisoformat(created["create_time"])
    assert abs(ends - timedelta(days=90)) < timedelta(hours=1)
    assert run(created["secret"], "balance", "--json").data["customer"] == "cus_ada"
    # Once more with the same idempotency key: the same key, whose secret nobody can show again.
    shown = run(
        "operator",
        *("keys", "create", "--role", "owner", "--organization", "org_lark", "--idempotency-key", "o"),
    )
    assert "bearer role owner of org_lark" in lines(shown.out)
    assert "secret tsk_" in " ".join(lines(shown.out))
    again = run(
        "operator",
        *("keys", "create", "--role", "owner", "--organization", "org_lark", "--idempotency-key", "o"),
    )
    assert again.status == 1
    assert "tsk_" not in again.out
    assert "revoke the key" in again.out


def test_no_file_is_written_for_a_secret_that_nobody_can_show(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "again.key"
    options = ("keys", "create", "--role", "host", "--idempotency-key", "twice")
    assert run("operator", *options).status == 0
    again = run("operator", *options, "--out", str(out), "--json")
    assert (again.status, json.loads(again.out)["secret_file"]) == (1, "")
    assert not out.exists()


def test_a_secret_may_go_to_a_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "host.key"
    options = ("keys", "create", "--role", "host", "--only-agent", "agt_helper", "--out", str(out))
    shown = run("operator", *options, "--expires", "2099-01-31")
    assert shown.status == 0
    assert {"only agents agt_helper", "ends 2099-01-31 00:00:00 UTC"} <= set(lines(shown.out))
    assert "tsk_" not in shown.out
    assert out.read_text().startswith("tsk_")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    refused = run("operator", *options)
    assert (refused.status, refused.err) == (2, f"error: {out} exists; do: name a new file\n")


@pytest.mark.parametrize("where", ["before", "after", "file", "variable"])
def test_a_key_may_be_given_in_any_way(
    run: Run, world: World, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "owner.key"
    file.write_text(f"{world.keys['owner']}\n")
    flag = ("--api-key-file", str(file))
    if where == "variable":
        monkeypatch.setenv("TALLYSTICK_API_KEY_FILE", str(file))
        told = run("", "balance", "--json").data
    elif where == "before":
        told = run("customer", *flag, "--json", "balance").data
    elif where == "file":
        told = run("customer", "balance", *flag, "--json").data
    else:
        told = run("customer", *flag, "balance", "--api-key", world.keys["owner"], "--json").data
    assert told["organization"] == "org_lark"


def test_times_are_utc(run: Run, world: World) -> None:
    told = run("operator", "charge", "show", world.charge_id, "--json").data
    assert told["occur_time"].endswith("Z")
    assert datetime.fromisoformat(told["create_time"]).tzinfo == UTC
