"""Numbers at their ends, very many of everything, and what one caller's greed does to the others."""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

import grpc
import pytest
import redis
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from sandbox.servers import Stores
from services.metering.domain.budget import MAX_ALIKE
from tallystick.ledger.v1 import credit_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import budget_pb2, budget_service_pb2
from tallystick.metering.v1 import metering_service_pb2 as metering
from tests.integration.security.case import LEDGER, METERING
from tests.integration.security.requests import authorize_request, charge_intent, usage_event, usd
from tests.integration.security.world import METHODS, Answer, Running, Things
from tests.support.metering_server import Caller

OK = grpc.StatusCode.OK
REFUSED = grpc.StatusCode.FAILED_PRECONDITION
MOST = 10**14


def ask(running: Running, name: str, method: str, *requests: Message) -> Sequence[Answer]:
    """The answers to requests that are sent at once."""

    async def call() -> Sequence[Answer]:
        caller = running.world.principals[name]
        called = METHODS[f"tallystick.{METERING}.{method}"]
        return await asyncio.gather(*(caller.call(called, request) for request in requests))

    return running.runner.run(call())


def caller(running: Running, name: str) -> Caller:
    return running.world.metering.caller(running.world.principals[name].key)


def of(things: Things, workflow_id: str, micros: int = 1, ttl: int = 900) -> metering.AuthorizeRequest:
    request = authorize_request(things.customer, things.agent, workflow_id, micros)
    request.ttl.CopyFrom(Duration(seconds=ttl))
    return request


async def keep_budget(host: Caller, **fields: object) -> None:
    budget = budget_pb2.Budget(**fields)  # type: ignore[arg-type]
    await host.budgets.CreateBudget(budget_service_pb2.CreateBudgetRequest(budget=budget))


def epochs(running: Running, things: Things) -> list[tuple[object, ...]]:
    return running.world.rows(
        "SELECT epoch, draining FROM ledger.credit_lease"
        f" WHERE customer_id = '{things.customer}' ORDER BY epoch"
    )


@pytest.mark.parametrize(
    "ttl",
    [
        Duration(seconds=2**63 - 1),
        Duration(seconds=-(2**63)),
        Duration(seconds=315_576_000_001),
        Duration(seconds=86_400, nanos=1_000),
        Duration(seconds=1, nanos=-1),
        Duration(nanos=2**31 - 1, seconds=86_399),
        Duration(nanos=-(2**31)),
        Duration(),
    ],
    ids=str,
)
def test_a_time_to_live_beyond_its_bounds_is_refused(running: Running, ttl: Duration) -> None:
    alpha = running.world.alpha
    request = of(alpha, "wf-ttl")
    request.ttl.CopyFrom(ttl)
    extension = metering.ExtendRequest(token=alpha.token, ttl=ttl)
    for answer in (*ask(running, "host", "Authorize", request), *ask(running, "host", "Extend", extension)):
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, answer
        assert 'field: "ttl"' in answer.text


def test_the_last_ordinal_is_one_like_any_other(running: Running) -> None:
    request = of(running.world.alpha, "wf-last")
    request.ordinal, request.idempotency_key = 2**31 - 1, "😀" * 128

    async def run() -> str:
        host = caller(running, "host").metering
        token = (await host.Authorize(request)).reservation.token
        settled = await host.Settle(metering.SettleRequest(token=token))
        return settled.metered.charge_id

    charge_id = running.runner.run(run())
    found = running.world.rows("SELECT charge_id FROM ledger.charge WHERE ordinal = 2147483647")
    assert found == [(charge_id,)]


def test_who_asks_for_more_than_all_there_is_spoils_nothing_for_others(running: Running) -> None:
    """Together they want more than any amount may be, of a customer that has enough for some of them."""
    alpha = running.world.alpha
    greedy = [of(alpha, f"wf-greedy-{number}", MOST) for number in range(6)]
    modest = [of(alpha, f"wf-modest-{number}", 10) for number in range(6)]
    answers = ask(running, "host", "Authorize", *greedy, *modest)
    assert [answer.code for answer in answers] == [REFUSED] * 6 + [OK] * 6


def test_a_lease_larger_than_any_amount_is_given_back(running: Running) -> None:
    """Otherwise the customer of three such grants could place no hold beside the lease, ever."""
    world, bravo = running.world, running.world.bravo

    async def grant() -> None:
        for number in range(3):
            await world.ledger.operator.ledger.GrantCredits(
                ledger_service_pb2.GrantCreditsRequest(
                    customer_id=bravo.customer,
                    amount=usd(MOST),
                    source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                    idempotency_key=f"large-{number}",
                )
            )
        # As a host that wants little is given half of what there is.
        request = credit_service_pb2.LeaseRenewal(
            customer_id=bravo.customer, currency_code="USD", epoch=1, wanted_micros=1
        )
        await world.ledger.service.credits.RenewLeases(
            credit_service_pb2.RenewLeasesRequest(renewals=[request])
        )

    running.runner.run(grant())
    ((remaining,),) = world.rows(
        f"SELECT max(remaining) FROM ledger.credit_lease WHERE customer_id = '{bravo.customer}'"
    )
    assert isinstance(remaining, int)
    assert remaining > MOST
    # Longer than a lease may last: these are holds.
    for number in range(3):
        (answer,) = ask(running, "host", "Authorize", of(bravo, f"wf-large-{number}", MOST, ttl=3600))
        assert (number, answer.code) == (number, OK), answer


def test_an_old_token_does_not_end_the_lease(running: Running, session_stores: Stores) -> None:
    """Redis has forgotten its reservation, as it does in time: that is no sign of what Redis has lost.

    Otherwise whoever keeps old tokens could have a customer's credits drained for 20 minutes, over and over.
    """
    bravo = running.world.bravo

    async def authorize() -> metering.AuthorizeResponse:
        return await caller(running, "host").metering.Authorize(of(bravo, "wf-old", ttl=1))

    reservation = running.runner.run(authorize()).reservation
    expires = reservation.expire_time.ToNanoseconds() / 1e9
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    with redis.Redis.from_url(session_stores.redis_url) as client:
        key = f"tallystick:{{{bravo.customer}}}:reservation:{reservation.reservation_id}"
        assert client.delete(key) == 1
    before = epochs(running, bravo)
    request = metering.ExtendRequest(token=reservation.token, amount=usd(2), ttl=Duration(seconds=60))
    (answer,) = ask(running, "host", "Extend", request)
    assert answer.code is REFUSED
    assert "RESERVATION_ENDED" in answer.text
    assert epochs(running, bravo) == before
    assert not running.world.rows(f"SELECT FROM ledger.hold WHERE hold_id = '{reservation.reservation_id}'")


def test_a_counter_beyond_what_redis_counts_fails_nobody(running: Running) -> None:
    """Some eleven events at the highest price bring a budget here."""
    world, alpha, bravo = running.world, running.world.alpha, running.world.bravo
    world.rows(
        f"UPDATE metering.budget_counter SET spent = {2 * 10**15}"
        f" WHERE budget_id = '{alpha.budget}' RETURNING 1"
    )

    async def bind() -> None:
        await world.metering.operator.budgets.UpdateBudget(
            budget_service_pb2.UpdateBudgetRequest(budget_id=alpha.budget, limit=usd(MOST), hard=True)
        )

    async def loosen() -> None:
        await world.metering.operator.budgets.UpdateBudget(
            budget_service_pb2.UpdateBudgetRequest(budget_id=alpha.budget, limit=usd(MOST), hard=False)
        )

    running.runner.run(bind())
    try:
        check = metering.CheckAccessRequest(
            customer_id=alpha.customer, agent_id=alpha.agent, action_type="run"
        )
        (refused,) = ask(running, "host", "Authorize", of(alpha, "wf-beyond"))
        assert "BUDGET_EXCEEDED" in refused.text
        (checked,) = ask(running, "host", "CheckAccess", check)
        assert "BUDGET_EXCEEDED" in checked.text
        events = [usage_event(one.customer, one.agent, "wf-beyond") for one in (alpha, bravo)]
        (metered,) = ask(running, "host", "MeterBatch", metering.MeterBatchRequest(events=events))
        assert metered.code is OK
        assert metered.text.count("metered {") == 2
        # The token of what was reserved before the budget was one that binds.
        (settled,) = ask(running, "host", "Settle", metering.SettleRequest(token=alpha.second_token))
        assert settled.code is OK
    finally:
        running.runner.run(loosen())


def test_a_run_that_very_many_budgets_count_is_a_run_like_any_other(running: Running) -> None:
    """As many as a customer and an organization may keep on the same work, under the longest ids."""
    alpha = running.world.alpha
    customer, owner = caller(running, "customer_alpha"), caller(running, "owner_alpha")
    numbers = iter(range(1000))
    scopes = (
        (customer, {"customer_id": alpha.customer, "agent_id": alpha.agent}),
        (owner, {"agent_id": alpha.agent}),
        (owner, {"customer_id": alpha.customer, "agent_id": alpha.agent}),
    )

    async def keep(scope: tuple[Caller, dict[str, str]]) -> None:
        for _ in range(MAX_ALIKE):
            await keep_budget(
                scope[0],
                budget_id=f"bud_{next(numbers):059}",
                period=budget_pb2.BUDGET_PERIOD_DAY,
                limit=usd(MOST),
                hard=True,
                **scope[1],
            )

    async def run() -> metering.SettleResponse:
        await asyncio.gather(*map(keep, scopes))
        host = caller(running, "host").metering
        token = (await host.Authorize(of(alpha, "wf-counted"))).reservation.token
        assert len(token) > 7_000
        token = (await host.Extend(metering.ExtendRequest(token=token, amount=usd(2)))).reservation.token
        return await host.Settle(metering.SettleRequest(token=token))

    settled = running.runner.run(run())
    assert settled.settlement.captured.amount_micros == 2
    check = metering.CheckAccessRequest(customer_id=alpha.customer, agent_id=alpha.agent, action_type="run")
    (checked,) = ask(running, "host", "CheckAccess", check)
    assert "allowed: true" in checked.text
    over = budget_pb2.Budget(
        customer_id=alpha.customer,
        agent_id=alpha.agent,
        period=budget_pb2.BUDGET_PERIOD_DAY,
        limit=usd(1),
    )

    async def one_more() -> None:
        await customer.budgets.CreateBudget(budget_service_pb2.CreateBudgetRequest(budget=over))

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        running.runner.run(one_more())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_host_leaves_in_redis_goes_away(running: Running, session_stores: Stores) -> None:
    """Refusals, counters of workflows, ends: every key has a time, that of the run and little more."""
    world, bravo = running.world, running.world.bravo

    async def keep() -> None:
        await keep_budget(
            world.metering.operator,
            customer_id=bravo.customer,
            per_workflow=True,
            period=budget_pb2.BUDGET_PERIOD_TOTAL,
            limit=usd(100),
            hard=True,
        )

    running.runner.run(keep())
    refused = [of(bravo, f"wf-no-{number}", 101, ttl=1) for number in range(50)]
    assert {one.code for one in ask(running, "host", "Authorize", *refused)} == {REFUSED}
    allowed = [of(bravo, f"wf-yes-{number}", 100, ttl=1) for number in range(50)]
    assert {one.code for one in ask(running, "host", "Authorize", *allowed)} == {OK}
    with redis.Redis.from_url(session_stores.redis_url) as client:
        lasting = [key.decode() for key in client.scan_iter("tallystick:*") if client.ttl(key) < 0]
        assert lasting == []
        records = [client.ttl(key) for key in client.scan_iter("tallystick:*:reservation:*")]
        assert len(records) > 100
        # A counter for every workflow is no longer there than a reservation could be.
        counters = [
            client.ttl(key)
            for key in client.scan_iter("tallystick:{bud_*}:pool::*")
            if not key.endswith(b":")
        ]
        assert len(counters) >= 100
        assert max(counters) <= timedelta(days=2).total_seconds()


def test_a_debt_beyond_all_bounds_fails_no_neighbour(running: Running) -> None:
    """Some 92,000 events at the highest price bring a customer here: a minute's work for a malicious host."""
    world = running.world
    alpha, bravo = world.alpha, world.bravo
    world.rows(
        "UPDATE ledger.account SET debits = 9223372036854775807 - 5"
        f" WHERE owner_id = '{bravo.customer}' AND kind = 'customer_unpaid' RETURNING owner_id"
    )
    request = ledger_service_pb2.PostChargesRequest(
        intents=[
            charge_intent(bravo.customer, "wf-poison", MOST, bravo),
            charge_intent(alpha.customer, "wf-neighbour", 10, alpha),
        ]
    )
    post_charges = METHODS[f"tallystick.{LEDGER}.PostCharges"]
    answer = running.runner.run(world.principals["service"].call(post_charges, request))
    assert answer.code is OK
    assert "posted {" in answer.text
