"""Hard budgets stop runs before they start, whether Redis counts the reservations or PostgreSQL does."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import pytest
import redis

from services.kit.errors import Code
from services.kit.status import from_rpc_error
from tallystick.metering.v1 import budget_pb2, budget_service_pb2, reservation_pb2
from tallystick.metering.v1 import metering_service_pb2 as pb
from tests.integration.metering.reserving import Reserving, outcome_of_run, usd
from tests.integration.metering.world import RUN_MICROS, refused, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, running_metering


@pytest.fixture(params=["durable", "leased"])
async def reserving(
    request: pytest.FixtureRequest, database_url: str, redis_url: str, ledger: LedgerServer, host_key: str
) -> AsyncIterator[Reserving]:
    """Metering with Redis, or without."""
    leased = request.param == "leased"
    async with running_metering(database_url, ledger, redis_url=redis_url if leased else None) as running:
        await running.publish(AGENT_RUN)
        kind = reservation_pb2.RESERVATION_KIND_LEASED if leased else reservation_pb2.RESERVATION_KIND_DURABLE
        yield Reserving(running, running.caller(host_key), kind)


async def cap(
    reserving: Reserving, micros: int, *, hard: bool = True, thresholds: tuple[int, ...] = (), **scope: object
) -> str:
    fields: dict[str, object] = {"customer_id": "cus_1", "period": budget_pb2.BUDGET_PERIOD_DAY, **scope}
    created = await reserving.server.operator.budgets.CreateBudget(
        budget_service_pb2.CreateBudgetRequest(
            budget=budget_pb2.Budget(
                limit=usd(micros),
                hard=hard,
                alert_thresholds=thresholds,
                **fields,  # type: ignore[arg-type]
            )
        )
    )
    return created.budget.budget_id


async def status(reserving: Reserving, budget_id: str, workflow_id: str = "") -> tuple[int, int, int]:
    """(spent, reserved, remaining) in micros."""
    found = await reserving.server.operator.budgets.GetBudget(
        budget_service_pb2.GetBudgetRequest(budget_id=budget_id, workflow_id=workflow_id)
    )
    counter = found.status
    return (
        counter.spent.amount_micros,
        counter.reserved.amount_micros,
        counter.remaining.amount_micros,
    )


async def test_a_run_beyond_the_cap_is_refused_with_its_name_and_when_it_resets(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 500_000, time_zone="Europe/Berlin")
    first = await reserving.authorize("run-1", 300_000)
    assert await status(reserving, budget_id) == (0, 300_000, 200_000)

    error = await refused(reserving.authorize("run-2", 200_001))

    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "BUDGET_EXCEEDED")
    assert error.metadata["budget_id"] == budget_id
    assert error.metadata["limit_micros"] == "500000"
    assert error.metadata["reserved_micros"] == "300000"
    reset = datetime.fromisoformat(error.metadata["reset_time"])
    assert reset > datetime.now(UTC)
    # What a refused run would have taken of the credits is free.
    assert (await reserving.balance())["reserved"] == 300_000
    await reserving.settle(first.reservation.token)
    assert await status(reserving, budget_id) == (RUN_MICROS, 0, 500_000 - RUN_MICROS)
    # A refusal is for good for its attempt; the next one finds the room.
    assert (await refused(reserving.authorize("run-2", 200_001))).reason == "BUDGET_EXCEEDED"
    assert (await reserving.authorize("run-2", 500_000 - RUN_MICROS, key="2")).reservation.token
    assert (await refused(reserving.authorize("run-3", 1))).reason == "BUDGET_EXCEEDED"


async def test_a_long_name_does_not_hide_when_it_resets(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 100_000, display_name="n" * 200)
    error = await refused(reserving.authorize("run-1", 100_001))
    (violation,) = error.precondition_violations
    assert violation.subject == budget_id
    assert violation.description.endswith(f"it starts again at {error.metadata['reset_time']}")
    assert error.message == violation.description


async def test_a_refused_attempt_does_not_come_back_as_another(reserving: Reserving) -> None:
    await cap(reserving, 100_000)
    assert (await refused(reserving.authorize("run-1", 100_001))).reason == "BUDGET_EXCEEDED"
    again = await refused(reserving.authorize("run-1", 200_000))
    assert again.reason in ("IDEMPOTENCY_KEY_REUSED", "BUDGET_EXCEEDED")


async def test_what_is_released_or_refused_for_credits_is_not_counted(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 200_000_000)
    token = (await reserving.authorize("run-1", 300_000)).reservation.token
    await reserving.release(token)
    assert await status(reserving, budget_id) == (0, 0, 200_000_000)
    assert (await refused(reserving.authorize("run-2", 150_000_000))).reason == "INSUFFICIENT_CREDITS"
    assert await status(reserving, budget_id) == (0, 0, 200_000_000)


async def test_finished_work_counts_and_is_never_refused(reserving: Reserving) -> None:
    budget_id = await cap(reserving, RUN_MICROS, thresholds=(50, 100))
    await reserving.meter(run("run-1"))
    await reserving.meter(run("run-2"))

    assert await status(reserving, budget_id) == (2 * RUN_MICROS, 0, 0)
    assert (await refused(reserving.authorize("run-3", 1))).reason == "BUDGET_EXCEEDED"
    alerts = await reserving.server.operator.budgets.ListBudgetAlerts(
        budget_service_pb2.ListBudgetAlertsRequest(budget_id=budget_id)
    )
    assert sorted(alert.threshold for alert in alerts.alerts) == [50, 100]


async def test_of_many_runs_at_once_no_more_start_than_the_cap_allows(reserving: Reserving) -> None:
    await cap(reserving, 10 * RUN_MICROS)
    reasons: list[str] = []

    async def attempt(number: int) -> str | None:
        try:
            return (await reserving.authorize(f"run-{number}", RUN_MICROS)).reservation.token
        except grpc.aio.AioRpcError as error:
            reasons.append(from_rpc_error(error).reason)
            return None

    tokens = [token for token in await asyncio.gather(*map(attempt, range(40))) if token]
    assert (len(tokens), set(reasons)) == (10, {"BUDGET_EXCEEDED"})


@pytest.mark.parametrize(
    ("scope", "other"),
    [
        ({"customer_id": "", "agent_id": "agt_a"}, {"customer_id": "cus_1", "agent_id": "agt_b"}),
        ({"customer_id": "cus_1", "agent_id": "agt_a"}, {"customer_id": "cus_1", "agent_id": "agt_b"}),
    ],
)
async def test_a_cap_counts_what_it_names(
    reserving: Reserving, scope: dict[str, str], other: dict[str, str]
) -> None:
    await cap(reserving, 100_000, **scope)  # type: ignore[arg-type]
    assert (await refused(reserving.authorize("run-1", 100_001))).reason == "BUDGET_EXCEEDED"
    assert (await reserving.authorize("run-2", 100_001, **other)).reservation.token  # type: ignore[arg-type]


async def test_a_cap_of_an_api_key_counts_all_its_customers(reserving: Reserving) -> None:
    host = await reserving.new_host("capped")
    ((key_id,),) = reserving.server.query(
        "SELECT api_key_id FROM ledger.api_key ORDER BY create_time DESC LIMIT 1"
    )
    await cap(reserving, 300_000, customer_id="", api_key_id=key_id)
    assert (await reserving.authorize("run-1", 200_000, host=host)).reservation.token
    error = await refused(reserving.authorize("run-2", 100_001, host=host))
    assert error.reason == "BUDGET_EXCEEDED"
    assert (await reserving.authorize("run-2", 100_001)).reservation.token


async def test_every_workflow_has_a_cap_of_its_own(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 300_000, per_workflow=True, period=budget_pb2.BUDGET_PERIOD_TOTAL)
    token = (await reserving.authorize("run-1", 200_000)).reservation.token
    assert (await refused(reserving.authorize("run-1", 200_000, key="2"))).reason == "BUDGET_EXCEEDED"
    assert (await reserving.authorize("run-2", 300_000)).reservation.token
    assert await status(reserving, budget_id, "run-1") == (0, 200_000, 100_000)
    await reserving.settle(token, outcome_of_run())
    assert await status(reserving, budget_id, "run-1") == (RUN_MICROS, 0, 300_000 - RUN_MICROS)


async def test_a_run_is_not_raised_beyond_the_cap(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 300_000)
    token = (await reserving.authorize("run-1", 200_000)).reservation.token
    error = await refused(reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(300_001))))
    assert error.reason == "BUDGET_EXCEEDED"
    extended = await reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(300_000)))
    assert extended.reservation.amount == usd(300_000)
    assert await status(reserving, budget_id) == (0, 300_000, 0)


async def test_what_the_credits_refuse_to_raise_is_not_counted_either(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 500_000_000)
    token = (await reserving.authorize("run-1", 200_000)).reservation.token
    error = await refused(
        reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(400_000_000)))
    )
    assert error.reason == "INSUFFICIENT_CREDITS"
    assert (await status(reserving, budget_id))[1] == 200_000


async def test_a_soft_budget_refuses_nothing(reserving: Reserving) -> None:
    await cap(reserving, 1, hard=False)
    assert (await reserving.authorize("run-1", 500_000)).reservation.token


async def test_access_names_the_cap(reserving: Reserving) -> None:
    budget_id = await cap(reserving, 500_000)
    await reserving.authorize("run-1", 300_000)
    request = pb.CheckAccessRequest(customer_id="cus_1", agent_id="agt_a", action_type="run")
    access = await reserving.host.metering.CheckAccess(request)
    assert (access.allowed, access.up_to) == (True, usd(200_000))
    request.cost.CopyFrom(usd(200_001))
    access = await reserving.host.metering.CheckAccess(request)
    assert not access.allowed
    assert access.refusal.metadata["budget_id"] == budget_id


async def test_a_cap_is_not_forgotten_when_redis_is_emptied(reserving: Reserving, redis_url: str) -> None:

    budget_id = await cap(reserving, 500_000)
    await reserving.meter(run("run-1"))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert (await refused(reserving.authorize("run-2", 400_000))).reason == "BUDGET_EXCEEDED"
    assert (await status(reserving, budget_id))[0] == RUN_MICROS


async def test_what_is_reported_again_tells_redis_what_its_first_report_could_not(
    reserving: Reserving, redis_url: str
) -> None:
    budget_id = await cap(reserving, 500_000)
    await reserving.release((await reserving.authorize("run-1", 1)).reservation.token)
    await reserving.meter(run("run-2"))
    with redis.Redis.from_url(redis_url) as client:
        # As if whoever reported it had been gone between the commit and the news to Redis.
        for key in client.scan_iter(f"*{{{budget_id}}}*"):
            if client.type(key) == b"hash" and client.hexists(key, "spent"):
                client.hset(key, "spent", 0)
    await reserving.meter(run("run-2"))
    assert (await refused(reserving.authorize("run-3", 400_000))).reason == "BUDGET_EXCEEDED"
    assert (await status(reserving, budget_id))[0] == RUN_MICROS
