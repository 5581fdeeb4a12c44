"""`doctor` finds what is not well, says what to do, and exits with 0 only if there is nothing to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from tallystick.cli import probe
from tallystick.cli.checks import Look, compare_clocks
from tallystick.reporting.v1 import projection_pb2
from tests.integration.cli.conftest import Ran, Run
from tests.integration.cli.world import World
from tests.support.reporting_fake import projection

NOWHERE = "127.0.0.1:1"
SERVING = projection_pb2.PROJECTION_STATE_SERVING
BUILDING = projection_pb2.PROJECTION_STATE_BUILDING


@pytest.fixture(autouse=True)
def well(world: World) -> Iterator[None]:
    """Every test begins with everything well."""
    world.reporting.projections = [projection()]
    world.schema.told = health_pb2.HealthCheckResponse.SERVING
    yield
    world.schema.told = health_pb2.HealthCheckResponse.SERVING


def problems(ran: Ran) -> list[tuple[str, str, str, str]]:
    """What is not well: about what, by which check, what was found, what to do."""
    told = json.loads(ran.out)
    found = [
        (one["about"], one["check"], one["found"], one["advice"])
        for one in told["findings"]
        if one["state"] == "problem"
    ]
    assert told["healthy"] == (not found)
    assert ran.status == (1 if found else 0)
    return found


def test_all_is_well(run: Run, world: World) -> None:
    shown = run("operator", "doctor")
    assert shown.status == 0, shown.out
    assert shown.out.rstrip().endswith("All is well.")
    told = run("operator", "doctor", "--json").data
    assert {(one["about"], one["check"]) for one in told["findings"] if one["state"] == "ok"} == {
        *(
            (service, check)
            for service in ("ledger", "metering", "payouts", "reporting")
            for check in ("health", "schema")
        ),
        *((service, "callers") for service in ("metering", "payouts", "reporting")),
        ("clocks", "skew"),
        ("API key", "bearer"),
        ("feeds", "lag"),
        ("books", "audit"),
    }
    (key,) = [one["found"] for one in told["findings"] if one["about"] == "API key"]
    assert "role operator of the platform" in key
    assert world.keys["operator"] not in shown.out


def test_a_service_that_is_down_is_found(run: Run) -> None:
    assert problems(run("operator", "doctor", "--payouts", NOWHERE, "--json")) == [
        (
            "payouts",
            "health",
            f"nobody answers at {NOWHERE}",
            (
                "start it (`python -m services.payouts serve`), or correct TALLYSTICK_PAYOUTS_ADDRESS;"
                " if it speaks TLS, give --tls-ca"
            ),
        )
    ]
    shown = run("operator", "doctor", "--payouts", NOWHERE)
    assert "What to do:\n1. payouts, health: start it" in shown.out
    assert shown.err == ""


def test_without_the_ledger_nothing_of_the_key_is_said(run: Run) -> None:
    ran = run("operator", "doctor", "--ledger", NOWHERE, "--json")
    assert [one[:2] for one in problems(ran)] == [("ledger", "health")]
    skipped = {
        (one["about"], one["check"]) for one in json.loads(ran.out)["findings"] if one["state"] == "skipped"
    }
    assert {("API key", "bearer"), ("metering", "callers"), ("feeds", "lag")} <= skipped


def test_an_address_of_another_service_is_found(run: Run, world: World) -> None:
    ((about, check, found, advice),) = problems(
        run("operator", "doctor", "--metering", world.addresses["payouts"], "--json")
    )
    assert (about, check) == ("metering", "health")
    assert found == f"{world.addresses['payouts']} is not metering"
    assert advice == "correct TALLYSTICK_METERING_ADDRESS"


def test_a_schema_that_is_behind_is_found(run: Run, world: World) -> None:
    world.schema.told = health_pb2.HealthCheckResponse.NOT_SERVING
    found = problems(run("operator", "doctor", "--json"))
    assert [(one[0], one[1]) for one in found] == [("payouts", "schema"), ("reporting", "schema")]
    assert found[0][3] == "run `python -m services.payouts migrate` on its database"
    world.schema.told = health_pb2.HealthCheckResponse.UNKNOWN
    found = problems(run("operator", "doctor", "--json"))
    assert [one[2] for one in found] == ["its database does not answer"] * 2


def test_lag_is_found(run: Run, world: World) -> None:
    world.reporting.projections = [projection(lag=timedelta(minutes=5))]
    journal, usage = problems(run("operator", "doctor", "--json"))
    assert journal[:3] == ("feeds", "lag", "journal read to 100 of 120, 0:05:00 behind")
    assert "whether the ledger serves it" in journal[3]
    assert "whether metering serves it" in usage[3]


def test_a_feed_of_which_nothing_is_heard_is_found(run: Run, world: World) -> None:
    world.reporting.projections = [projection(heard=datetime(2026, 11, 29, 12, tzinfo=UTC))]
    journal, usage = problems(run("operator", "doctor", "--json"))
    assert "nothing was heard since 2026-11-29 12:00:00 UTC" in journal[2]
    assert usage[0] == "feeds"


def test_a_rebuild_is_no_problem_but_no_projection_is(run: Run, world: World) -> None:
    world.reporting.projections = [projection(state=BUILDING), projection(state=SERVING)]
    ran = run("operator", "doctor", "--json")
    assert problems(ran) == []
    assert "projection 1 is being built: journal 100 of 100, usage 100 of 100" in ran.out
    world.reporting.projections = [projection(state=BUILDING)]
    ((_, _, found, advice),) = problems(run("operator", "doctor", "--json"))
    assert found == "no projection answers yet"
    assert advice.startswith("wait until the first is built")


@pytest.mark.parametrize("somebody", ["owner", "customer", "host"])
def test_anybody_may_ask(run: Run, somebody: str) -> None:
    ran = run(somebody, "doctor", "--json")
    assert problems(ran) == []
    (feeds,) = [one for one in json.loads(ran.out)["findings"] if one["about"] == "feeds"]
    assert (feeds["state"], feeds["found"]) == ("skipped", "only a key of role operator sees it")


def test_a_key_that_does_not_work_is_found(run: Run) -> None:
    for key, said in (
        ("tsk_wrong_" + "w" * 43, "the API key is unknown, revoked or expired"),
        ("nonsense", "the API key is malformed"),
        ("", "an API key is needed"),
    ):
        ((about, check, found, advice),) = problems(run(key, "doctor", "--json"))
        assert (about, check, found) == ("API key", "bearer", said)
        assert advice == "give a valid one: --api-key-file, or TALLYSTICK_API_KEY"


def test_a_key_that_ends_soon_is_found(run: Run) -> None:
    options = ("--role", "customer", "--customer", "cus_ada", "--json", "--expires")
    soon = run("operator", "keys", "create", *options, "2d").data["secret"]
    later = run("operator", "keys", "create", *options, "30d").data["secret"]
    ((_, _, found, advice),) = problems(run(soon, "doctor", "--json"))
    assert "role customer of cus_ada, ends " in found
    assert "keys create" in advice
    assert problems(run(later, "doctor", "--json")) == []


def look(service: str, ahead: timedelta | None, within: timedelta = timedelta(0)) -> Look:
    return Look(service, serving=True, ahead=ahead, uncertainty=within)


def test_clocks_are_compared() -> None:
    second = timedelta(seconds=1)
    (nothing,) = compare_clocks([look("ledger", None)])
    assert nothing.state == "skipped"
    (fine,) = compare_clocks([look("ledger", -second), look("metering", 2 * second)])
    assert (fine.state, fine.found) == ("ok", "2 services are within 2.000 s of this machine")
    (one,) = compare_clocks([look("ledger", second), look("metering", -100 * second)])
    assert (one.state, one.found) == ("problem", "metering is 0:01:40 behind")
    assert one.advice.startswith("set the clock of metering")
    (all_of_them,) = compare_clocks([look("ledger", 10 * second), look("metering", 11 * second)])
    assert all_of_them.found == "ledger is 10.000 s ahead, metering is 11.000 s ahead"
    assert all_of_them.advice.startswith("set the clock of this machine, or of all of theirs")
    # A long way there and back: it is not known to be wrong.
    (unclear,) = compare_clocks([look("ledger", 8 * second, within=4 * second)])
    assert unclear.state == "ok"


def test_a_clock_that_is_wrong_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = probe.check

    def check(*args: Any) -> probe.Health:
        health = asked(*args)
        assert health.ahead is not None
        return probe.Health(health.status, health.round_trip, health.ahead + timedelta(hours=1))

    monkeypatch.setattr(probe, "check", check)
    ((about, check_name, _, advice),) = problems(run("operator", "doctor", "--json"))
    assert (about, check_name) == ("clocks", "skew")
    assert "best by NTP" in advice
