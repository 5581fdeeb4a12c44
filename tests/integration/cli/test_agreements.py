"""Contracts and subscriptions on the command line, against a real metering."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tallystick.reporting.v1 import charge_report_pb2
from tests.integration.cli.conftest import Run
from tests.integration.cli.test_commands import lines
from tests.integration.cli.world import World
from tests.support.reporting_fake import usd

CONTRACT = """
contract: con_{0}
customer: cus_{0}
organization: org_wren
currency: USD
billing_period: {{unit: month, anchor: 2026-01-31T08:00:00Z, time_zone: Europe/Rome}}
from: 2026-11-01
discounts:
  - {{name: loyal, percent: 5 %}}
includes: {{input_tokens: 1_000_000}}
period_maximum: 500.25
terms: {{sla: "99.9 %"}}
"""


@pytest.fixture
def customer(world: World) -> str:
    """Somebody new, with money."""
    name = f"n{len(world.customers)}"
    world.background.run(world.new_customer(f"cus_{name}"))
    return name


def test_a_contract_is_created_changed_and_ended(run: Run, customer: str, tmp_path: Path) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(CONTRACT.format(customer))
    made = run("operator", "contracts", "create", str(file))
    assert {
        f"Contract con_{customer}",
        "version 1",
        "in force 2026-11-01 00:00:00 UTC to –",
        "prices none of its own",
        "billing period month, from 2026-01-31 08:00:00 UTC, Europe/Rome",
        "discount loyal 5.00 %",
        "includes input_tokens 1,000,000",
        "period maximum 500.250000 USD",
        "term sla 99.9 %",
    } <= set(lines(made.out)), made
    assert run("operator", "contracts", "create", str(file), "--json").data["version_number"] == 1
    file.write_text(CONTRACT.format(customer).replace("5 %", "7.5 %", 1))
    changed = run("operator", "contracts", "update", str(file), "--replaces", "1")
    assert "discount loyal 7.50 %" in lines(changed.out)
    refused = run("operator", "contracts", "update", str(file), "--replaces", "7")
    assert (refused.status, "AGREEMENT_STATE_CONFLICT" in refused.err) == (1, True)
    old = run("operator", "contracts", "show", f"con_{customer}", "--version", "1")
    assert "discount loyal 5.00 %" in lines(old.out)
    ended = run("operator", "contracts", "end", f"con_{customer}", "--json").data
    assert "end_time" in ended["content"]
    (listed,) = run("operator", "contracts", "list", "--customer", f"cus_{customer}", "--json").data[
        "contracts"
    ]
    assert (listed["contract_id"], listed["version_number"]) == (f"con_{customer}", 3)


@pytest.mark.parametrize(
    ("old", "new", "place", "reason"),
    [
        ("currency: USD", "currency: usd", "5:11", "must be an ISO 4217 code"),
        ("5 %", "500 %", "9:28", "must be more than 0 to 100 %"),
        ("500.25", "-1", "11:17", "must not be negative"),
        ("org_wren", "wren", "4:15", "must be an id"),
        ("terms:", "term:", "12:1", "did you mean 'terms'"),
        # What only the service finds.
        ("Europe/Rome", "Europe/Roma", "6:72", "time zone"),
    ],
)
def test_mistakes_are_told_where_they_stand(
    run: Run, customer: str, tmp_path: Path, old: str, new: str, place: str, reason: str
) -> None:
    file = tmp_path / "contract.yaml"
    file.write_text(CONTRACT.format(customer).replace(old, new, 1))
    refused = run("operator", "contracts", "create", str(file))
    assert refused.status == 1
    assert f"contract.yaml:{place}: " in refused.err
    assert reason in refused.err


def test_a_subscription_is_started_changed_canceled_and_resumed(run: Run, customer: str) -> None:
    started = run(
        *("operator", "subscriptions", "start", "--customer", f"cus_{customer}", "--agent", "agt_wren"),
        *("--book", "pb_wren", "--plan", "team", "--seats", "2"),
    )
    assert {"plan team of pb_wren, 2 seats", "state active", "fees of the period 69.000000 USD"} <= set(
        lines(started.out)
    ), started
    (id_,) = re.findall(r"sub_\w+", started.out)
    preview = run("operator", "subscriptions", "change", id_, "--plan", "large", "--dry-run")
    assert "Dry run: nothing is changed." in lines(preview.out)
    assert any(line.startswith("charged now 1") for line in lines(preview.out)), preview.out
    assert "plan team of pb_wren, 2 seats" in lines(run("operator", "subscriptions", "show", id_).out)
    # Nobody is at the terminal of a test.
    assert run("operator", "subscriptions", "change", id_, "--plan", "large").status == 2
    later = run("operator", "subscriptions", "change", id_, "--plan", "team", "--seats", "1", "--yes")
    assert "state changes with its period to team, 1 seats" in lines(later.out)
    assert "Nothing is charged now." in lines(later.out)
    changed = run("operator", "subscriptions", "change", id_, "--plan", "large", "--yes", "--json").data
    assert (changed["change"], changed["plan_name"]) == ("changed", "large")
    assert changed["fee"]["lines"][-1]["kind"] == "proration"
    canceled = run("operator", "subscriptions", "cancel", id_)
    assert "state ends with its period" in lines(canceled.out)
    assert "state active" in lines(run("operator", "subscriptions", "resume", id_).out)
    shown = run("operator", "subscriptions", "show", id_, "--json").data
    assert [fee["ordinal"] for fee in shown["fees"]] == [1, 0]
    ended = run("operator", "subscriptions", "cancel", id_, "--now", "--json").data
    assert ended["state"] == "canceled"
    (listed,) = run("operator", "subscriptions", "list", "--customer", f"cus_{customer}", "--json").data[
        "subscriptions"
    ]
    assert listed["subscription_id"] == id_


def test_the_charge_of_a_fee_says_what_it_is_for(run: Run, world: World, customer: str) -> None:
    id_ = run(
        *("operator", "subscriptions", "start", "--customer", f"cus_{customer}", "--agent", "agt_wren"),
        *("--book", "pb_wren", "--plan", "team", "--seats", "2", "--json"),
    ).data["subscription_id"]
    (fee,) = run("operator", "subscriptions", "show", id_, "--json").data["fees"]
    assert fee["posted"]
    reported = charge_report_pb2.ReportedCharge(
        charge_id=fee["charge_id"],
        customer_id=f"cus_{customer}",
        workflow_id=fee["workflow_id"],
        gross=usd(69_000_000),
        agent_id="agt_wren",
        kind=charge_report_pb2.CHARGE_KIND_SUBSCRIPTION,
    )
    reported.service_start_time.FromJsonString(fee["service_start_time"])
    reported.service_end_time.FromJsonString(fee["service_end_time"])
    before = world.reporting.charges
    world.reporting.charges = [*before, reported]
    try:
        shown = lines(run("operator", "charge", "show", fee["charge_id"]).out)
        told = run("operator", "charge", "show", fee["charge_id"], "--json").data
    finally:
        world.reporting.charges = before
    assert "what subscription fee" in shown
    assert any(re.fullmatch(r"service period \S+ \S+ UTC to \S+ \S+ UTC", line) for line in shown)
    assert any(line.startswith("accounting date ") for line in shown)
    assert "team, subscription 1 49.000000 49.000000" in shown
    assert "seats, subscription 2 10.000000 20.000000" in shown
    assert not any(line.startswith("outcome") for line in shown)
    assert told["usage"]["kind"] == "subscription"
    assert len(told["agreed"]["lines"]) == 2
