"""Reservation tokens: what they tell their holders, what they let them do, and where they do not turn up."""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tallystick.metering.v1 import budget_pb2, budget_service_pb2, usage_pb2
from tallystick.metering.v1 import metering_service_pb2 as metering
from tests.integration.security.case import METERING
from tests.integration.security.requests import authorize_request, usd
from tests.integration.security.world import METHODS, Answer, Running, Things

OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
RUN_MICROS = 10_000


async def _ask(running: Running, name: str, method: str, *requests: Message) -> Sequence[Answer]:
    """The answers to requests that are sent at once."""
    caller = running.world.principals[name]
    called = METHODS[f"tallystick.{METERING}.{method}"]
    return await asyncio.gather(*(caller.call(called, request) for request in requests))


def ask(running: Running, name: str, method: str, *requests: Message) -> Sequence[Answer]:
    return running.runner.run(_ask(running, name, method, *requests))


def authorize(running: Running, name: str, request: metering.AuthorizeRequest) -> str:
    """The token."""

    async def call() -> str:
        caller = running.world.metering.caller(running.world.principals[name].key)
        return (await caller.metering.Authorize(request)).reservation.token

    return running.runner.run(call())


def of(things: Things, workflow_id: str, micros: int = RUN_MICROS) -> metering.AuthorizeRequest:
    return authorize_request(things.customer, things.agent, workflow_id, micros)


def content_of(token: str) -> list[object]:
    """What whoever holds a token reads in it."""
    content, _, _ = token.removeprefix("rst_").partition(".")
    fields: list[object] = json.loads(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)))
    return fields


def resigned(token: str, **changes: object) -> str:
    """The token with other fields, by their number, under its old signature."""
    content, signature = content_of(token), token.partition(".")[2]
    for number, value in changes.items():
        content[int(number.removeprefix("field"))] = value
    encoded = base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode())
    return f"rst_{encoded.decode().rstrip('=')}.{signature}"


def test_a_token_says_nothing_that_its_holder_may_not_know(running: Running) -> None:
    """An organization's host learns that a customer keeps a hard budget on its runs, and no amount of it."""
    world = running.world
    bravo_limit = 7_654_321

    async def keep_a_hard_budget() -> None:
        await world.metering.operator.budgets.CreateBudget(
            budget_service_pb2.CreateBudgetRequest(
                budget=budget_pb2.Budget(
                    budget_id="bud_secret",
                    display_name="cut them off in spring",
                    customer_id=world.bravo.customer,
                    agent_id=world.alpha.agent,
                    period=budget_pb2.BUDGET_PERIOD_TOTAL,
                    limit=usd(bravo_limit),
                    hard=True,
                )
            )
        )

    running.runner.run(keep_a_hard_budget())
    request = authorize_request(world.bravo.customer, world.alpha.agent, "wf-told", 1)
    token = authorize(running, "host_alpha", request)
    assert content_of(token)[-1] == [["bud_secret", None, False]]
    request.workflow_id, request.max_cost.amount_micros = "wf-refused", 20_000_000
    check = metering.CheckAccessRequest(
        customer_id=request.customer_id, agent_id=request.agent_id, action_type="run", cost=request.max_cost
    )
    (refused,) = ask(running, "host_alpha", "Authorize", request)
    (checked,) = ask(running, "host_alpha", "CheckAccess", check)
    (raised,) = ask(
        running, "host_alpha", "Extend", metering.ExtendRequest(token=token, amount=request.max_cost)
    )
    assert (refused.code, checked.code) == (grpc.StatusCode.FAILED_PRECONDITION, OK)
    for answer in (refused, checked, raised):
        assert "BUDGET_EXCEEDED" in answer.text
        for secret in ("limit_micros", "spent_micros", "reserved_micros", "7.65", "spring", "up_to"):
            assert secret not in answer.text, answer.text


@pytest.mark.parametrize("ttl", [60, 3600])
def test_an_organization_is_not_told_what_a_customer_has(running: Running, ttl: int) -> None:
    """Neither when it is refused in Redis, nor by the ledger."""
    world = running.world
    # Not the agent that the test before keeps a budget on: it would refuse first.
    agent_id = f"{world.alpha.agent}_2"
    request = authorize_request(world.bravo.customer, agent_id, f"wf-poor-{ttl}", 10**12)
    request.ttl.CopyFrom(Duration(seconds=ttl))
    check = metering.CheckAccessRequest(
        customer_id=request.customer_id, agent_id=request.agent_id, action_type="run", cost=request.max_cost
    )
    token = authorize(
        running,
        "host_alpha",
        authorize_request(world.bravo.customer, request.agent_id, f"wf-less-poor-{ttl}", 1),
    )
    answers = (
        *ask(running, "host_alpha", "Authorize", request),
        *ask(running, "host_alpha", "CheckAccess", check),
        *ask(
            running,
            "host_alpha",
            "Extend",
            metering.ExtendRequest(token=token, amount=usd(10**12), ttl=request.ttl),
        ),
    )
    for answer in answers:
        assert "INSUFFICIENT_CREDITS" in answer.text
        for secret in ("available", "up_to", "spendable"):
            assert secret not in answer.text, answer.text
    for answer in (
        *ask(running, "host_alpha", "Settle", metering.SettleRequest(token=token)),
        *ask(running, "host_alpha", "Release", metering.ReleaseRequest(token=token)),
    ):
        assert answer.code is OK
        assert "available_balance" not in answer.text


def test_who_may_not_use_every_customer_is_not_told_what_all_of_them_spend(running: Running) -> None:
    world = running.world

    async def keep_a_hard_budget() -> None:
        await world.metering.operator.budgets.CreateBudget(
            budget_service_pb2.CreateBudgetRequest(
                budget=budget_pb2.Budget(
                    agent_id=f"{world.bravo.agent}_2",
                    period=budget_pb2.BUDGET_PERIOD_DAY,
                    limit=usd(5),
                    hard=True,
                )
            )
        )

    running.runner.run(keep_a_hard_budget())
    request = authorize_request(world.alpha.customer, f"{world.bravo.agent}_2", "wf-all", 6)
    for name, is_told in (("host", True), ("host_of_customers", False)):
        (refused,) = ask(running, name, "Authorize", request)
        assert "BUDGET_EXCEEDED" in refused.text
        assert ("spent_micros" in refused.text) is is_told, name


def test_no_field_of_a_token_can_be_changed(running: Running) -> None:
    token = authorize(running, "host", of(running.world.alpha, "wf-forged"))
    content = content_of(token)
    forged = [
        resigned(token, **{f"field{number}": value + 1 if isinstance(value, int) else "cus_bravo"})
        for number, value in enumerate(content)
    ]
    body, signature = token.removeprefix("rst_").split(".")
    forged += [
        "",
        "rst_",
        "rst_.",
        f"rst_{body}.",
        f"rst_{body}",
        f"rst_{body}.{signature}=",
        f"rst_{body}.{signature[:-1]}",
        f"rst_{body}=.{signature}",
        f"rst_rst_{body}.{signature}",
        f"rst_{body}.{signature}.{signature}",
        f" {token}",
        f"{token}\n",
        token.replace("rst_", "RST_"),
        f"rst_{body}.{'é' * 43}",
        f"rst_{'A' * 3_000_000}.{signature}",
    ]
    for method, make in (
        ("Extend", lambda one: metering.ExtendRequest(token=one)),
        ("Release", lambda one: metering.ReleaseRequest(token=one)),
        ("Settle", lambda one: metering.SettleRequest(token=one)),
    ):
        for one, answer in zip(forged, ask(running, "host", method, *map(make, forged)), strict=True):
            assert answer.code is INVALID, one[:200]
            assert "RESERVATION_TOKEN_INVALID" in answer.text
            assert "cus_bravo" not in answer.text


def test_a_run_is_not_paid_by_the_reservation_of_another(running: Running) -> None:
    """Whatever an event says of its identity must be what the reservation says."""
    alpha, bravo = running.world.alpha, running.world.bravo
    token = authorize(running, "host", of(alpha, "wf-bound"))
    events = (
        usage_pb2.UsageEvent(customer_id=bravo.customer),
        usage_pb2.UsageEvent(agent_id=bravo.agent),
        usage_pb2.UsageEvent(workflow_id="wf-unbound"),
        usage_pb2.UsageEvent(ordinal=1),
        usage_pb2.UsageEvent(ordinal=-1),
        usage_pb2.UsageEvent(ordinal=2**31 - 1),
        usage_pb2.UsageEvent(action_type="cheaper"),
        usage_pb2.UsageEvent(agent_version="1-alpha"),
        usage_pb2.UsageEvent(currency_code="JPY"),
    )
    requests = [metering.SettleRequest(token=token, event=event) for event in events]
    for answer in ask(running, "host", "Settle", *requests):
        assert answer.code is INVALID
        assert "RESERVATION_TOKEN_INVALID" in answer.text
    # It stands as before.
    (settled,) = ask(running, "host", "Settle", metering.SettleRequest(token=token))
    assert "state: RESERVATION_STATE_SETTLED" in settled.text


def test_a_token_pays_once_however_often_and_by_whom_it_is_shown(running: Running) -> None:
    """Every key that may do the work may settle it: another host of the organization takes over."""
    token = authorize(running, "host_alpha", of(running.world.alpha, "wf-often"))

    async def settle_from_everywhere() -> list[Answer]:
        request = metering.SettleRequest(token=token)
        names = ("host", "host_alpha", "host_alpha_limited", "host_of_agents", "host_of_customers")
        asked = (_ask(running, name, "Settle", request, request) for name in names)
        return [answer for answers in await asyncio.gather(*asked) for answer in answers]

    answers = running.runner.run(settle_from_everywhere())
    assert {answer.code for answer in answers} == {OK}
    assert sum("duplicate: true" in answer.text for answer in answers) == len(answers) - 1
    (charged,) = running.world.rows(
        "SELECT count(*), sum(gross) FROM ledger.charge WHERE workflow_id = 'wf-often'"
    )
    assert charged == (1, RUN_MICROS)


def test_releasing_twice_at_once_fails_nobody(running: Running) -> None:
    """A host that repeats itself, with the other hosts' releases in the same batch."""
    mine = authorize(running, "host", of(running.world.alpha, "wf-twice"))
    others = [authorize(running, "host", of(running.world.bravo, f"wf-once-{number}")) for number in range(5)]
    tokens = [mine, mine, *others, mine, mine, others[0]]
    answers = ask(running, "host", "Release", *(metering.ReleaseRequest(token=one) for one in tokens))
    assert [answer.code for answer in answers] == [OK] * len(tokens)
    assert all("RESERVATION_STATE_RELEASED" in answer.text for answer in answers)


def test_an_extended_reservation_is_released_by_any_of_its_tokens(running: Running) -> None:
    first = authorize(running, "host", of(running.world.alpha, "wf-raised"))

    async def extend() -> str:
        caller = running.world.metering.caller(running.world.principals["host"].key)
        request = metering.ExtendRequest(token=first, amount=usd(2 * RUN_MICROS))
        return (await caller.metering.Extend(request)).reservation.token

    second = running.runner.run(extend())
    assert second != first
    requests = [metering.ReleaseRequest(token=token) for token in (first, second, first, second)]
    answers = ask(running, "host", "Release", *requests)
    assert [answer.code for answer in answers] == [OK] * 4


def test_tokens_are_not_logged(
    running: Running, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    token = authorize(running, "host", of(running.world.alpha, "wf-logged"))
    for method, request in (
        ("Extend", metering.ExtendRequest(token=token, amount=usd(RUN_MICROS + 1))),
        ("Extend", metering.ExtendRequest(token=token, amount=usd(10**14))),
        ("Extend", metering.ExtendRequest(token=token + "x")),
        ("Settle", metering.SettleRequest(token=token, event=usage_pb2.UsageEvent(ordinal=-1))),
        ("Settle", metering.SettleRequest(token=token)),
        ("Release", metering.ReleaseRequest(token=token)),
        ("Extend", metering.ExtendRequest(token=token, amount=usd(RUN_MICROS + 1))),
    ):
        ask(running, "host", method, request)
        ask(running, "host_of_agents", method, request)
        ask(running, "customer_alpha", method, request)
    written = capfd.readouterr()
    logged = caplog.text + written.out + written.err
    assert "rpc.finished" in logged
    # Not even the part that is not secret: whoever reads it knows the rest by heart.
    assert token.removeprefix("rst_")[:40] not in logged
