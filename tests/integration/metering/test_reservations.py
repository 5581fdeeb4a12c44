"""Authorize, Extend, Settle, Release: the same promises whether Redis keeps a reservation or a hold does."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest

from services.kit.errors import Code
from services.kit.status import from_rpc_error
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2, reservation_service_pb2, usage_pb2
from tests.integration.metering.reserving import Reserving, outcome_of_run, usd
from tests.integration.metering.world import RUN_MICROS, refused, run
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import AGENT_RUN, fee, price, running_metering
from tests.support.valkey_cluster import ValkeyCluster
from tests.support.waiting import eventually

pytest_plugins = ["tests.support.valkey_fixtures"]

CREDITS = 100_000_000


@pytest.fixture(params=["durable", "leased", "cluster"])
def redis_settings(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """Where metering finds Redis: nowhere, so that all is durable; on one server; on a cluster of three."""
    if request.param == "durable":
        return {}
    if request.param == "leased":
        return {"redis_url": request.getfixturevalue("redis_url")}
    cluster: ValkeyCluster = request.getfixturevalue("cluster")
    return {"redis_url": cluster.url, "redis_cluster": True}


@pytest.fixture
async def reserving(
    database_url: str, redis_settings: Mapping[str, Any], ledger: LedgerServer, host_key: str
) -> AsyncIterator[Reserving]:
    """Metering that keeps reservations in one of these ways."""
    async with running_metering(database_url, ledger, **redis_settings) as running:
        await running.publish(AGENT_RUN)
        kind = (
            reservation_pb2.RESERVATION_KIND_LEASED
            if redis_settings
            else reservation_pb2.RESERVATION_KIND_DURABLE
        )
        yield Reserving(running, running.caller(host_key), kind)


async def grant(ledger: LedgerServer, customer_id: str, micros: int, key: str = "more") -> None:
    await ledger.operator.ledger.GrantCredits(
        ledger_service_pb2.GrantCreditsRequest(
            customer_id=customer_id,
            amount=usd(micros),
            source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
            idempotency_key=key,
        )
    )


async def test_a_run_is_reserved_charged_and_the_rest_returned(reserving: Reserving) -> None:
    answer = await reserving.authorize("run-1", 500_000)

    reservation = answer.reservation
    assert reservation.kind == reserving.kind
    assert reservation.amount == usd(500_000)
    assert reservation.price_version_id.startswith("pv_")
    assert not answer.duplicate
    assert answer.available_balance == usd(CREDITS - 500_000)
    assert (await reserving.balance())["reserved"] == 500_000

    settled = await reserving.settle(reservation.token)

    assert settled.settlement == reservation_pb2.Settlement(
        reservation_id=reservation.reservation_id,
        state=reservation_pb2.RESERVATION_STATE_SETTLED,
        reserved=usd(500_000),
        captured=usd(RUN_MICROS),
        returned=usd(500_000 - RUN_MICROS),
        excess=usd(0),
        excess_from_credits=usd(0),
        excess_from_receivable=usd(0),
        excess_unpaid=usd(0),
    )
    assert settled.metered.price_charged == usd(RUN_MICROS)
    assert settled.metered.from_credits == usd(RUN_MICROS)
    assert settled.metered.available_balance == usd(CREDITS - RUN_MICROS)
    balance = await reserving.balance()
    assert (balance["available"], balance["reserved"], balance["credits"]) == (
        CREDITS - RUN_MICROS,
        0,
        CREDITS - RUN_MICROS,
    )


async def test_what_a_run_costs_beyond_its_reservation_goes_down_the_waterfall(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await grant(ledger, "cus_2", 150_000)
    token = (await reserving.authorize("run-1", 100_000, customer_id="cus_2")).reservation.token

    settled = await reserving.settle(token)

    assert settled.settlement.captured == usd(100_000)
    assert settled.settlement.returned == usd(0)
    assert settled.settlement.excess == usd(RUN_MICROS - 100_000)
    paid = settled.settlement.excess_from_credits.amount_micros
    left = settled.settlement.excess_unpaid.amount_micros
    assert paid + left == RUN_MICROS - 100_000
    # What is free in a lease comes back when the ledger asks for it, and then pays too.

    async def all_is_spent() -> bool:
        found = await reserving.balance("cus_2")
        return found["credits"] == 0 and found["unpaid"] == RUN_MICROS - 150_000

    await eventually(all_is_spent)


async def test_a_refused_run_names_what_is_missing_and_stays_refused(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await grant(ledger, "cus_2", 100_000)

    error = await refused(reserving.authorize("run-1", 100_001, customer_id="cus_2"))

    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "INSUFFICIENT_CREDITS")
    assert error.metadata == {
        "customer_id": "cus_2",
        "currency_code": "USD",
        "requested_micros": "100001",
        "available_micros": "100000",
    }
    await grant(ledger, "cus_2", 100_000, "again")
    # The same attempt hears the same; a new one finds the new credits.
    again = await refused(reserving.authorize("run-1", 100_001, customer_id="cus_2"))
    assert again.reason == "INSUFFICIENT_CREDITS"
    assert (await reserving.authorize("run-1", 100_001, customer_id="cus_2", key="2")).reservation.token
    # The last cent is spendable.
    assert (await reserving.authorize("run-2", 99_999, customer_id="cus_2")).reservation.token


async def test_authorizing_again_answers_the_same_reservation(reserving: Reserving) -> None:
    first = await reserving.authorize("run-1", 500_000)
    again = await reserving.authorize("run-1", 500_000)

    assert again.duplicate
    assert again.reservation.reservation_id == first.reservation.reservation_id
    assert again.reservation.expire_time == first.reservation.expire_time
    assert (await reserving.balance())["reserved"] == 500_000
    error = await refused(reserving.authorize("run-1", 600_000))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"
    await reserving.settle(first.reservation.token)
    ended = await refused(reserving.authorize("run-1", 500_000))
    assert (ended.reason, ended.metadata["state"]) == ("RESERVATION_ENDED", "settled")


async def test_released_credits_are_free_again_and_a_later_charge_takes_the_waterfall(
    reserving: Reserving,
) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token

    released = await reserving.release(token)

    assert released.settlement.state == reservation_pb2.RESERVATION_STATE_RELEASED
    assert released.settlement.excess == released.settlement.excess_unpaid == usd(0)
    assert released.settlement.returned == usd(500_000)
    assert released.available_balance == usd(CREDITS)
    assert (await reserving.release(token)).settlement == released.settlement
    # The work was done after all: it is charged, and not from what is gone.
    settled = await reserving.settle(token)
    assert settled.settlement.state == reservation_pb2.RESERVATION_STATE_RELEASED
    assert (settled.settlement.captured, settled.settlement.excess) == (usd(0), usd(RUN_MICROS))
    assert (await reserving.balance())["available"] == CREDITS - RUN_MICROS


async def test_a_settled_reservation_stays_settled(reserving: Reserving) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    first = await reserving.settle(token)

    again = await reserving.settle(token)
    released = await reserving.release(token)

    assert again.metered.duplicate
    assert again.settlement == first.settlement
    assert released.settlement.state == reservation_pb2.RESERVATION_STATE_SETTLED
    assert released.settlement.captured == usd(RUN_MICROS)
    assert (await reserving.balance())["available"] == CREDITS - RUN_MICROS
    assert reserving.charge_count() == 1


async def test_settle_and_release_at_once_have_one_effect(reserving: Reserving) -> None:
    for number in range(5):
        token = (await reserving.authorize(f"run-{number}", 500_000)).reservation.token
        settled, released = await asyncio.gather(reserving.settle(token), reserving.release(token))
        assert settled.settlement.state == released.settlement.state
    balance = await reserving.balance()
    assert (balance["available"], balance["reserved"]) == (CREDITS - 5 * RUN_MICROS, 0)


async def test_what_nobody_ends_comes_back_when_its_time_is_over(reserving: Reserving) -> None:
    token = (await reserving.authorize("run-1", 500_000, ttl=1)).reservation.token
    assert (await reserving.balance())["available"] == CREDITS - 500_000

    async def is_back() -> bool:
        return (await reserving.balance())["available"] == CREDITS

    await eventually(is_back)
    settled = await reserving.settle(token)
    assert settled.settlement.state == reservation_pb2.RESERVATION_STATE_EXPIRED
    assert settled.settlement.excess_from_credits == usd(RUN_MICROS)


async def test_of_two_hundred_runs_at_once_on_credits_for_a_hundred_exactly_a_hundred_run(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await grant(ledger, "cus_2", 100 * RUN_MICROS)
    reasons: set[str] = set()

    async def attempt(number: int) -> str | None:
        try:
            answer = await reserving.authorize(f"run-{number}", RUN_MICROS, customer_id="cus_2")
        except grpc.aio.AioRpcError as error:
            reasons.add(from_rpc_error(error).reason)
            return None
        return answer.reservation.token

    tokens = [token for token in await asyncio.gather(*map(attempt, range(200))) if token]
    assert (len(tokens), reasons) == (100, {"INSUFFICIENT_CREDITS"})
    settled = await asyncio.gather(*map(reserving.settle, tokens))
    assert all(one.settlement.captured == usd(RUN_MICROS) for one in settled)
    balance = await reserving.balance("cus_2")
    assert {balance[name] for name in ("credits", "reserved", "unpaid", "receivable")} == {0}


async def test_two_meterings_on_the_same_credits_let_exactly_a_hundred_of_two_hundred_runs_run(
    reserving: Reserving,
    ledger: LedgerServer,
    database_url: str,
    redis_settings: Mapping[str, Any],
    host_key: str,
) -> None:
    await grant(ledger, "cus_2", 100 * RUN_MICROS)
    reasons: set[str] = set()
    async with running_metering(database_url, ledger, **redis_settings) as other:
        hosts = [reserving.host, other.caller(host_key)]

        async def attempt(number: int) -> str | None:
            try:
                answer = await reserving.authorize(
                    f"run-{number}", RUN_MICROS, customer_id="cus_2", host=hosts[number % 2]
                )
            except grpc.aio.AioRpcError as error:
                reasons.add(from_rpc_error(error).reason)
                return None
            return answer.reservation.token

        tokens = [token for token in await asyncio.gather(*map(attempt, range(200))) if token]
        assert (len(tokens), reasons) == (100, {"INSUFFICIENT_CREDITS"})
        # Whoever reserved it, any of them settles it.
        settled = await asyncio.gather(
            *(
                hosts[number % 2].metering.Settle(pb.SettleRequest(token=token, event=outcome_of_run()))
                for number, token in enumerate(tokens)
            )
        )
        assert all(one.settlement.captured == usd(RUN_MICROS) for one in settled)
        balance = await reserving.balance("cus_2")
    assert {balance[name] for name in ("credits", "reserved", "unpaid", "receivable")} == {0}


async def test_what_was_captured_by_a_metering_that_died_is_not_reserved_again(
    database_url: str, redis_settings: Mapping[str, Any], ledger: LedgerServer, host_key: str
) -> None:
    await grant(ledger, "cus_2", RUN_MICROS)
    async with running_metering(database_url, ledger, **redis_settings) as first:
        await first.publish(AGENT_RUN)
        here = Reserving(first, first.caller(host_key), reservation_pb2.RESERVATION_KIND_LEASED)
        token = (await here.authorize("run-1", RUN_MICROS, customer_id="cus_2", ttl=5)).reservation.token
    # The ledger knows, and Redis is never told.
    async with running_metering(database_url, ledger) as without_redis:
        there = Reserving(without_redis, without_redis.caller(host_key), here.kind)
        assert (await there.settle(token)).settlement.captured == usd(RUN_MICROS)
    async with running_metering(database_url, ledger, **redis_settings) as last:
        here = Reserving(last, last.caller(host_key), here.kind)

        async def is_swept() -> bool:
            listed = await last.operator.reservations.ListReservations(
                reservation_service_pb2.ListReservationsRequest(customer_id="cus_2")
            )
            return not listed.reservations

        # Past its time and grace, Redis counts the reservation no longer.
        if redis_settings:
            await eventually(is_swept)
        error = await refused(here.authorize("run-2", RUN_MICROS, customer_id="cus_2"))
    assert error.reason == "INSUFFICIENT_CREDITS"


async def test_a_reservation_is_raised_and_prolonged_while_the_run_goes_on(reserving: Reserving) -> None:
    first = (await reserving.authorize("run-1", 100_000, ttl=60)).reservation

    request = pb.ExtendRequest(token=first.token, amount=usd(300_000))
    request.ttl.FromSeconds(600)
    extended = (await reserving.host.metering.Extend(request)).reservation

    assert extended.reservation_id == first.reservation_id
    assert extended.amount == usd(300_000)
    assert extended.expire_time.seconds > first.expire_time.seconds + 500
    assert (await reserving.balance())["reserved"] == 300_000
    settled = await reserving.settle(extended.token)
    assert settled.settlement.captured == usd(RUN_MICROS)
    assert settled.settlement.reserved == usd(300_000)
    ended = await refused(reserving.host.metering.Extend(request))
    assert ended.reason == "RESERVATION_ENDED"


async def test_a_reservation_is_not_raised_beyond_what_there_is(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await grant(ledger, "cus_2", 200_000)
    token = (await reserving.authorize("run-1", 150_000, customer_id="cus_2")).reservation.token

    error = await refused(reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(200_001))))
    assert error.reason == "INSUFFICIENT_CREDITS"
    # What was reserved still is, and the rest can be had.
    raised = await reserving.host.metering.Extend(pb.ExtendRequest(token=token, amount=usd(200_000)))
    assert raised.reservation.amount == usd(200_000)
    assert (await reserving.balance("cus_2"))["available"] == 0


async def test_a_credit_limit_lets_runs_start_without_credits(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await ledger.operator.directory.SetCreditLimit(
        directory_service_pb2.SetCreditLimitRequest(customer_id="cus_2", credit_limit=usd(250_000))
    )
    await grant(ledger, "cus_2", 50_000)

    answer = await reserving.authorize("run-1", 300_000, customer_id="cus_2")
    assert answer.reservation.kind == reservation_pb2.RESERVATION_KIND_DURABLE
    assert (await reserving.balance("cus_2"))["credit_room"] == 0
    assert (await refused(reserving.authorize("run-2", 1, customer_id="cus_2"))).reason == (
        "INSUFFICIENT_CREDITS"
    )
    settled = await reserving.settle(answer.reservation.token)
    assert settled.settlement.captured == usd(RUN_MICROS)
    assert settled.metered.from_credits == usd(50_000)
    assert settled.metered.from_receivable == usd(RUN_MICROS - 50_000)
    balance = await reserving.balance("cus_2")
    assert (balance["receivable"], balance["credit_room"]) == (RUN_MICROS - 50_000, 300_000 - RUN_MICROS)


async def test_the_price_is_the_one_of_the_authorization(reserving: Reserving) -> None:
    reservation = (await reserving.authorize("run-1", 500_000)).reservation
    await reserving.server.publish(price(fee("9")))

    settled = await reserving.settle(reservation.token)

    assert settled.metered.price_version_id == reservation.price_version_id
    assert settled.metered.price_charged == usd(RUN_MICROS)


async def test_an_estimate_of_usage_is_priced_with_the_outcome_that_costs_most(reserving: Reserving) -> None:
    answer = await reserving.host.metering.Authorize(
        pb.AuthorizeRequest(
            customer_id="cus_1",
            workflow_id="run-1",
            agent_id="agt_a",
            action_type="run",
            usage=usage_pb2.Usage(input_tokens=1_000, output_tokens=500),
        )
    )
    assert answer.reservation.amount == usd(RUN_MICROS)


@pytest.mark.parametrize(
    "workflow_id",
    [
        "period/org_a/USD/2026-10-01T00:00:00Z",
        "sub_01m7xj2ex96zkkhb2kskg39v87/2026-10-01T00:00:00Z/2026-11-01T00:00:00Z",
    ],
)
async def test_a_run_that_could_not_be_reported_reserves_nothing(
    reserving: Reserving, workflow_id: str
) -> None:
    answer = await refused(reserving.authorize(workflow_id, 1_000))
    assert (answer.code, answer.field_violations[0].field) == (Code.INVALID_ARGUMENT, "workflow_id")
    assert (await reserving.balance())["reserved"] == 0


async def test_a_run_for_a_day_is_a_hold(reserving: Reserving) -> None:
    # In use before, so that a lease has taken half of the credits.
    await reserving.authorize("run-0", 1)
    answer = await reserving.authorize("run-1", CREDITS - 1, ttl=86_400)
    assert answer.reservation.kind == reservation_pb2.RESERVATION_KIND_DURABLE
    balance = await reserving.balance()
    assert (balance["available"], balance["reserved"]) == (0, CREDITS)


async def test_work_that_was_metered_without_it_leaves_the_reservation_to_be_released(
    reserving: Reserving,
) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    await reserving.meter(run("run-1"))

    settled = await reserving.settle(token)

    assert settled.metered.duplicate
    assert settled.settlement.state == reservation_pb2.RESERVATION_STATE_RELEASED
    assert settled.settlement.excess == usd(RUN_MICROS)
    balance = await reserving.balance()
    assert (balance["available"], balance["reserved"]) == (CREDITS - RUN_MICROS, 0)


async def test_a_token_is_good_for_its_own_work_and_caller_only(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    token = (await reserving.authorize("run-1", 500_000)).reservation.token
    stranger = await reserving.new_host("stranger", organization_id="org_b")

    for field, event in {
        "event.workflow_id": outcome_of_run(workflow_id="run-2"),
        "event.customer_id": outcome_of_run(customer_id="cus_2"),
        "event.agent_id": outcome_of_run(agent_id="agt_b"),
        "event.currency_code": outcome_of_run(currency_code="EUR"),
    }.items():
        error = await refused(reserving.settle(token, event))
        assert error.reason == "RESERVATION_TOKEN_INVALID"
        assert [violation.field for violation in error.field_violations] == [field]
    for bad in ("", "rst_", token[:-2] + "AA", token.replace("rst_", ""), "rst_" + "a" * 5000):
        assert (await refused(reserving.release(bad))).reason == "RESERVATION_TOKEN_INVALID"
    error = await refused(stranger.metering.Release(pb.ReleaseRequest(token=token)))
    assert error.reason == "RESERVATION_TOKEN_INVALID"
    assert (await reserving.balance())["reserved"] == 500_000


async def test_an_organization_learns_nothing_of_what_the_customer_has(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    host = await reserving.new_host("of-a", organization_id="org_a")
    answer = await reserving.authorize("run-1", 500_000, host=host)
    assert not answer.HasField("available_balance")
    error = await refused(reserving.authorize("run-2", CREDITS, host=host))
    assert error.reason == "INSUFFICIENT_CREDITS"
    assert "available_micros" not in error.metadata
    access = await host.metering.CheckAccess(
        pb.CheckAccessRequest(customer_id="cus_1", agent_id="agt_a", action_type="run", cost=usd(CREDITS))
    )
    assert not access.allowed
    assert not access.HasField("up_to")
    assert "available_micros" not in access.refusal.metadata
    assert (
        await refused(host.metering.GetBalance(pb.GetBalanceRequest(customer_id="cus_1")))
    ).reason == "CUSTOMER_NOT_FOUND"


async def test_access_is_allowed_up_to_what_could_be_reserved(reserving: Reserving) -> None:
    request = pb.CheckAccessRequest(customer_id="cus_1", agent_id="agt_a", action_type="run")
    await reserving.authorize("run-1", 40_000_000)

    access = await reserving.host.metering.CheckAccess(request)

    assert access.allowed
    assert access.up_to == usd(60_000_000)
    assert access.price_version_id.startswith("pv_")
    request.cost.CopyFrom(usd(60_000_001))
    access = await reserving.host.metering.CheckAccess(request)
    assert not access.allowed
    assert access.refusal.metadata["available_micros"] == "60000000"
    assert (await reserving.authorize("run-2", 60_000_000)).reservation.token


async def test_a_customer_sees_its_own_balance_only(reserving: Reserving, ledger: LedgerServer) -> None:
    caller = await ledger.create_caller(access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_1")
    customer = reserving.server.caller(caller.key)
    own = await customer.metering.GetBalance(pb.GetBalanceRequest())
    assert own.balance.credits == usd(CREDITS)
    error = await refused(customer.metering.GetBalance(pb.GetBalanceRequest(customer_id="cus_2")))
    assert error.reason == "CUSTOMER_NOT_FOUND"


async def test_a_run_that_costs_nothing_needs_no_credits(reserving: Reserving) -> None:
    await reserving.server.publish(price(fee("0")))
    answer = await reserving.host.metering.Authorize(
        pb.AuthorizeRequest(
            customer_id="cus_2",
            workflow_id="run-1",
            agent_id="agt_a",
            action_type="run",
            usage=usage_pb2.Usage(input_tokens=1_000),
        )
    )
    await reserving.server.publish(price(fee("9")))
    request = pb.ExtendRequest(token=answer.reservation.token, amount=usd(1))
    assert (await refused(reserving.host.metering.Extend(request))).reason == "INSUFFICIENT_CREDITS"
    settled = await reserving.settle(answer.reservation.token)
    assert settled.metered.price_charged == usd(0)
    assert settled.settlement.state == reservation_pb2.RESERVATION_STATE_SETTLED
    assert (await reserving.balance("cus_2"))["unpaid"] == 0


async def test_a_pending_outcome_is_held_from_what_the_run_leaves(reserving: Reserving) -> None:
    token = (await reserving.authorize("run-1", RUN_MICROS)).reservation.token

    settled = await reserving.settle(token, outcome_of_run(outcome=usage_pb2.OUTCOME_PENDING))

    assert settled.metered.price_charged == usd(RUN_MICROS - 200_000)
    assert settled.metered.deferred_outcome.max_bonus == usd(200_000)
    balance = await reserving.balance()
    assert (balance["reserved"], balance["held"]) == (0, 200_000)
    assert balance["available"] == CREDITS - RUN_MICROS
    resolved = await reserving.host.metering.ResolveOutcome(
        pb.ResolveOutcomeRequest(outcome_id=settled.metered.outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS)
    )
    assert resolved.outcome.bonus == usd(200_000)
    assert resolved.available_balance == usd(CREDITS - RUN_MICROS)
    balance = await reserving.balance()
    assert (balance["credits"], balance["held"]) == (CREDITS - RUN_MICROS, 0)


async def test_of_two_attempts_the_one_that_was_not_charged_is_released(reserving: Reserving) -> None:
    first = (await reserving.authorize("run-1", 1_000_000, key="a")).reservation.token
    second = (await reserving.authorize("run-1", 2_000_000, key="b")).reservation.token
    await reserving.settle(first)

    settled = await reserving.settle(second)

    assert settled.metered.duplicate
    assert settled.settlement.state == reservation_pb2.RESERVATION_STATE_RELEASED
    assert (settled.settlement.captured, settled.settlement.excess) == (usd(0), usd(RUN_MICROS))
    balance = await reserving.balance()
    assert (balance["reserved"], balance["credits"]) == (0, CREDITS - RUN_MICROS)


async def test_a_free_run_is_released_and_prolonged_like_any_other(reserving: Reserving) -> None:
    await reserving.server.publish(price(fee("0")))
    # So that a lease holds a part.
    await reserving.authorize("paid", 1_000_000)

    async def authorize(workflow_id: str) -> str:
        answer = await reserving.host.metering.Authorize(
            pb.AuthorizeRequest(
                customer_id="cus_1",
                workflow_id=workflow_id,
                agent_id="agt_a",
                action_type="run",
                usage=usage_pb2.Usage(),
            )
        )
        assert answer.available_balance == usd(CREDITS - 1_000_000)
        return answer.reservation.token

    released = await reserving.release(await authorize("run-1"))
    assert released.settlement.state == reservation_pb2.RESERVATION_STATE_RELEASED
    assert released.available_balance == usd(CREDITS - 1_000_000)
    token = await authorize("run-2")
    request = pb.ExtendRequest(token=token)
    request.ttl.FromSeconds(600)
    extended = (await reserving.host.metering.Extend(request)).reservation
    for micros in (5, 10):
        raised = pb.ExtendRequest(token=extended.token, amount=usd(micros))
        assert (await reserving.host.metering.Extend(raised)).reservation.amount == usd(micros)
    settled = await reserving.settle(token)
    assert settled.metered.available_balance.amount_micros >= CREDITS - 1_000_010
    assert (await reserving.release(token)).settlement.state == reservation_pb2.RESERVATION_STATE_SETTLED


async def test_what_is_left_is_current_in_every_answer(reserving: Reserving, ledger: LedgerServer) -> None:
    await reserving.authorize("run-1", 1_000_000)
    metered = await reserving.meter(run("run-2"))
    assert metered.available_balance == usd(CREDITS - 1_000_000 - RUN_MICROS)
    answer = await reserving.authorize("run-3", 1_000_000)
    assert answer.available_balance == usd(CREDITS - 2_000_000 - RUN_MICROS)
    released = await reserving.release(answer.reservation.token)
    assert released.available_balance == usd(CREDITS - 1_000_000 - RUN_MICROS)


async def test_an_extension_whose_answer_was_lost_can_be_asked_for_again(
    reserving: Reserving, ledger: LedgerServer
) -> None:
    await ledger.operator.directory.SetCreditLimit(
        directory_service_pb2.SetCreditLimitRequest(customer_id="cus_2", credit_limit=usd(250_000))
    )
    await grant(ledger, "cus_2", 50_000)
    token = (await reserving.authorize("run-1", 40_000, customer_id="cus_2")).reservation.token
    # With the room under the credit limit it is a hold, under a token that the host may never see.
    for micros in (200_000, 200_000, 210_000):
        again = pb.ExtendRequest(token=token, amount=usd(micros))
        answer = (await reserving.host.metering.Extend(again)).reservation
        assert (answer.kind, answer.amount) == (reservation_pb2.RESERVATION_KIND_DURABLE, usd(micros))
