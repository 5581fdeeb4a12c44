"""A run with the synchronous client: authorized, settled, released, and never in the agent's way."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from services.kit import errors as server
from tallystick import (
    BudgetExceeded,
    BufferFull,
    Client,
    CustomerFrozen,
    IdempotencyKeyReused,
    InsufficientCredits,
    Money,
    NotFound,
    Refused,
    Run,
    Unavailable,
    Usage,
    evidence_hash,
)
from tallystick._operations import Call, Operation, Wait
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tests.unit.sdk.support import (
    EVENT,
    KEY,
    Servers,
    authorized,
    charged,
    extended,
    metered,
    released,
    servers,
    settled,
    usd,
)

# Asks for more patience than there is: no attempt is left.
AWAY = server.Unavailable("away", retry_after=timedelta(hours=1))
AWAY_FOR_A_MOMENT = server.Unavailable("away", retry_after=timedelta(milliseconds=1))
RUN: Any = EVENT | {"max_cost": "0.50"}


class AgentError(Exception):
    """What goes wrong in an agent."""


@pytest.fixture
def fake() -> Iterator[Servers]:
    with servers() as running:
        yield running


@pytest.fixture
def client(fake: Servers) -> Iterator[Client]:
    with fake.client() as made:
        yield made


def begin(fake: Servers, client: Client, work: Callable[[Run], object], **changes: Any) -> Future[Run]:
    """Let an agent work; the run that it made."""

    def agent() -> Run:
        with client.run(**RUN | changes) as run:
            work(run)
        return run

    return fake.begin(agent)


def fail(run: Run) -> None:
    raise AgentError


def worked(run: Run) -> None:
    run.tokens(input=10, output=2, model="gpt")
    run.tool("search")


def test_a_run_is_authorized_and_settled(fake: Servers, client: Client) -> None:
    seen: list[Any] = []

    def work(run: Run) -> None:
        seen.append((run.reservation, run.result, run.settlement, run.recorded))
        run.tokens(input=10, output=2, model="gpt")
        run.tool("search")
        run.tokens(input=5, model="gpt")
        run.tool("search")
        run.succeed({"ticket": 4711}, evidence_ref="s3://evidence/1")

    done = begin(
        fake, client, work, ordinal=3, agent_version="7", ttl=timedelta(minutes=1), outcome_candidate="solved"
    )
    asked = fake.answer("Authorize", authorized())
    said = fake.answer("Settle", settled(7))
    run = done.result()
    assert asked.idempotency_key
    asked.ClearField("idempotency_key")
    assert asked == metering_service_pb2.AuthorizeRequest(
        customer_id="cus_1",
        workflow_id="run-1",
        ordinal=3,
        agent_id="agt_a",
        agent_version="7",
        action_type="run",
        max_cost=usd(500_000),
        ttl=Duration(seconds=60),
    )
    assert said.token == "rst_1"
    # The servers fill in the time, so that the same call by another process is the same event.
    assert said.event == usage_pb2.UsageEvent(
        customer_id="cus_1",
        workflow_id="run-1",
        ordinal=3,
        agent_id="agt_a",
        agent_version="7",
        action_type="run",
        tool_name="search",
        usage=usage_pb2.Usage(model="gpt", input_tokens=15, output_tokens=2),
        outcome=usage_pb2.OUTCOME_SUCCESS,
        outcome_candidate="solved",
        evidence_ref="s3://evidence/1",
        evidence_hash=hashlib.sha256(b'{"ticket":4711}').digest(),
        currency_code="USD",
    )
    ((reservation, *nothing),) = seen
    assert reservation.amount == Money.of("0.50")
    assert reservation.available == Money.of("0.50")
    assert nothing == [None, None, False]
    assert run.result is not None
    assert run.result.metered.price_charged == Money("USD", 7)
    settlement = run.result.settlement
    assert run.settlement == settlement
    assert (settlement.state, settlement.captured.micros, settlement.returned.micros) == (
        "settled",
        7,
        499_993,
    )
    assert settlement.available == Money("USD", 93)
    assert not run.recorded


def test_who_says_nothing_ends_unknown(fake: Servers, client: Client) -> None:
    done = begin(fake, client, lambda run: None)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert event.outcome == usage_pb2.OUTCOME_UNKNOWN
    assert event.usage == usage_pb2.Usage()


def test_what_is_said_last_counts(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        run.succeed({"a": 1}, evidence_ref="x")
        run.partial()

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert (event.outcome, event.evidence_ref, event.evidence_hash) == (usage_pb2.OUTCOME_PARTIAL, "", b"")


def test_several_models_and_tools_are_none(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        for name in ("one", "two"):
            run.tokens(input=1, output=1, model=name)
            run.tool(name)

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert (event.usage.model, event.tool_name) == ("", "")
    assert (event.usage.input_tokens, event.usage.output_tokens) == (2, 2)


def test_several_models_are_reported_with_their_parts(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        run.tokens(input=100, output=20, model="two", cached=60, reasoning=5, calls=1)
        run.tokens(input=10, output=2, model="one", calls=1)
        run.tokens(input=50, output=3, model="two", calls=1)

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    usage = fake.answer("Settle", settled()).event.usage
    done.result()
    assert usage == usage_pb2.Usage(
        input_tokens=160,
        output_tokens=25,
        cached_input_tokens=60,
        reasoning_tokens=5,
        inference_calls=3,
        models=[
            usage_pb2.ModelUsage(model="one", input_tokens=10, output_tokens=2, inference_calls=1),
            usage_pb2.ModelUsage(
                model="two",
                input_tokens=150,
                output_tokens=23,
                cached_input_tokens=60,
                reasoning_tokens=5,
                inference_calls=2,
            ),
        ],
    )


def test_tokens_of_a_model_without_a_name_leave_no_parts(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        for name in ("one", "two", ""):
            run.tokens(input=1, model=name)

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    usage = fake.answer("Settle", settled()).event.usage
    done.result()
    assert usage == usage_pb2.Usage(input_tokens=3)


def test_other_quantities_are_counted(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        run.count(pages=2, cpu_milliseconds=1_500)
        run.count(pages=1, memory_megabyte_seconds=7, network_bytes=10**6)
        run.tool("search", calls=2)
        run.tool("search")

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    usage = fake.answer("Settle", settled()).event.usage
    done.result()
    assert usage == usage_pb2.Usage(
        tool_calls=2,
        cpu_milliseconds=1_500,
        memory_megabyte_seconds=7,
        network_bytes=10**6,
        meters={"pages": 3},
    )


@pytest.mark.parametrize("said", ["succeed", "fail", "partial", "pending"])
def test_the_result_is_reported_as_it_was_then(fake: Servers, client: Client, said: str) -> None:
    result: dict[str, object] = {"resolved": True, "score": 4}

    def work(run: Run) -> None:
        getattr(run, said)(result=result)
        result["score"] = 0

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert dict(event.result) == {"resolved": True, "score": 4}


def test_threads_of_an_agent_share_a_run(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: run.tokens(input=number), range(500)))

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert event.usage.input_tokens == sum(range(500))


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (server.FailedPrecondition("no money", reason="INSUFFICIENT_CREDITS"), InsufficientCredits),
        (server.FailedPrecondition("no entry", reason="CUSTOMER_FROZEN"), CustomerFrozen),
        (
            server.FailedPrecondition("no room", reason="BUDGET_EXCEEDED", metadata={"budget_id": "bud_1"}),
            BudgetExceeded,
        ),
    ],
)
@pytest.mark.parametrize("when_unavailable", ["raise", "run"])
def test_a_refused_run_does_no_work(
    fake: Servers,
    client: Client,
    refusal: server.TallystickError,
    kind: type[Exception],
    when_unavailable: str,
) -> None:
    worked: list[Run] = []
    done = begin(fake, client, worked.append, when_unavailable=when_unavailable)
    fake.answer("Authorize", refusal)
    assert type(done.exception()) is kind
    assert worked == []


def test_what_may_pass_is_sent_again_as_the_same_attempt(fake: Servers, client: Client) -> None:
    done = begin(fake, client, worked)
    lost = grpc.StatusCode.DEADLINE_EXCEEDED
    asked = [fake.answer("Authorize", answer) for answer in (lost, lost, authorized())]
    said = [fake.answer("Settle", answer) for answer in (lost, AWAY_FOR_A_MOMENT, settled())]
    assert done.result().result is not None
    assert asked[0] == asked[1] == asked[2]
    assert said[0] == said[1] == said[2]
    assert len(set(fake.metadata)) == 2


def test_every_run_is_an_attempt_of_its_own_unless_named(client: Client) -> None:
    keys = [client.run(**RUN)._plan.request.idempotency_key for _ in range(2)]
    assert len({*keys, ""}) == 3
    assert client.run(**RUN, idempotency_key="first")._plan.request.idempotency_key == "first"


def test_an_exception_gives_the_reservation_back(fake: Servers, client: Client) -> None:
    runs: list[Run] = []

    def work(run: Run) -> None:
        runs.append(run)
        worked(run)
        raise AgentError

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    assert fake.answer("Release", released()).token == "rst_1"
    assert isinstance(done.exception(), AgentError)
    (run,) = runs
    assert run.settlement is not None
    assert (run.settlement.state, run.settlement.returned) == ("released", Money.of("0.50"))
    assert run.settlement.available == Money.of("1")
    assert (run.result, run.recorded) == (None, False)


@pytest.mark.parametrize("failure", [AWAY, server.InvalidArgument("x", reason="RESERVATION_TOKEN_INVALID")])
def test_a_release_that_fails_is_nobodys_business(
    fake: Servers, client: Client, failure: server.TallystickError, caplog: pytest.LogCaptureFixture
) -> None:
    done = begin(fake, client, fail)
    fake.answer("Authorize", authorized())
    fake.answer("Release", failure)
    assert isinstance(done.exception(), AgentError)
    assert "cus_1/run-1/0 is not released" in caplog.text


def test_who_wants_it_charges_runs_that_fail(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        worked(run)
        raise AgentError

    done = begin(fake, client, work, on_error="settle")
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    assert isinstance(done.exception(), AgentError)
    assert (event.outcome, event.usage.input_tokens) == (usage_pb2.OUTCOME_FAILURE, 10)


def test_what_was_said_before_it_failed_stands(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        run.succeed()
        raise AgentError

    done = begin(fake, client, work, on_error="settle")
    fake.answer("Authorize", authorized())
    assert fake.answer("Settle", settled()).event.outcome == usage_pb2.OUTCOME_SUCCESS
    assert isinstance(done.exception(), AgentError)


def test_a_run_that_fails_before_it_consumed_anything_is_free(fake: Servers, client: Client) -> None:
    done = begin(fake, client, fail, on_error="settle")
    fake.answer("Authorize", authorized())
    fake.answer("Release", released())
    assert isinstance(done.exception(), AgentError)


def test_finished_work_is_settled_later_when_the_servers_are_away(fake: Servers, client: Client) -> None:
    done = begin(fake, client, worked)
    fake.answer("Authorize", authorized())
    first = fake.answer("Settle", AWAY)
    run = done.result()
    assert (run.recorded, run.result, run.settlement) == (True, None, None)
    later = fake.answer("Settle", settled())
    assert client.flush(timeout=30) == 0
    assert (client.stats.recorded, client.stats.delivered) == (1, 1)
    assert later.token == first.token == "rst_1"
    # Delivered later, it still happened now.
    assert later.event.HasField("occur_time")
    later.event.ClearField("occur_time")
    assert later.event == first.event


def test_the_next_process_settles_what_this_one_could_not(fake: Servers, tmp_path: Any) -> None:
    path = tmp_path / "usage"
    first = fake.client(buffer_path=path)
    done = begin(fake, first, worked)
    fake.answer("Authorize", authorized())
    fake.answer("Settle", AWAY)
    assert done.result().recorded
    fake.answer("Settle", AWAY)
    assert [event.workflow_id for event in first.close(timeout=0)] == ["run-1"]
    with fake.client(buffer_path=path) as second:
        assert fake.answer("Settle", settled()).token == "rst_1"
        assert second.flush(timeout=30) == 0
        assert (second.stats.replayed, second.stats.delivered) == (1, 1)


def test_a_charge_that_is_pending_is_safe(fake: Servers, client: Client) -> None:
    done = begin(fake, client, worked)
    fake.answer("Authorize", authorized())
    fake.answer("Settle", server.Unavailable("soon", reason="CHARGE_PENDING", retry_after=timedelta(hours=1)))
    assert done.result().recorded
    assert client.stats.recorded == 0


def test_what_is_refused_for_good_is_raised_and_kept(fake: Servers) -> None:
    told: list[Refused] = []
    refusal = server.AlreadyExists("other content", reason="IDEMPOTENCY_KEY_REUSED")
    recorded = metering_service_pb2.GetUsageEventResponse(
        event=usage_pb2.UsageEvent(customer_id="cus_1", workflow_id="run-1"), metered=metered()
    )
    with fake.client(on_refused=told.append) as client:
        done = begin(fake, client, worked)
        fake.answer("Authorize", authorized())
        for _ in ("at the end of the run", "from the buffer"):
            fake.answer("Settle", refusal)
            fake.answer("GetUsageEvent", recorded)
        # Nothing stays reserved for a charge that does not come.
        assert fake.answer("Release", released()).token == "rst_1"
        assert isinstance(done.exception(), IdempotencyKeyReused)
        assert client.flush(timeout=30) == 0
    assert [(one.event.workflow_id, one.event.input_tokens) for one in told] == [("run-1", 10)]


@pytest.mark.parametrize("failure", [AWAY, server.InvalidArgument("x", reason="RESERVATION_TOKEN_INVALID")])
def test_why_it_was_refused_is_raised_also_if_nothing_can_be_released(
    fake: Servers, failure: server.TallystickError
) -> None:
    refusal = server.NotFound("no agent", reason="AGENT_NOT_FOUND")
    with fake.client() as client:
        done = begin(fake, client, worked)
        fake.answer("Authorize", authorized())
        for _ in ("at the end of the run", "from the buffer"):
            fake.answer("Settle", refusal)
        fake.answer("Release", failure)
        assert isinstance(done.exception(), NotFound)


def test_a_token_that_is_worth_nothing_leaves_the_work_to_be_charged(fake: Servers, client: Client) -> None:
    invalid = server.InvalidArgument("not ours", reason="RESERVATION_TOKEN_INVALID")
    done = begin(fake, client, worked)
    fake.answer("Authorize", authorized())
    fake.answer("Settle", invalid)
    assert done.result().recorded
    fake.answer("Settle", invalid)
    (event,) = fake.answer_batch(charged()).events
    assert (event.workflow_id, event.usage.input_tokens) == ("run-1", 10)
    assert client.flush(timeout=30) == 0
    assert client.stats.delivered == 1


def test_what_was_delivered_from_a_buffer_is_the_same_run(fake: Servers, client: Client) -> None:
    """The process died after its buffer was delivered, and the run is done again."""
    done = begin(fake, client, worked)
    fake.answer("Authorize", authorized())
    first = fake.answer("Settle", server.AlreadyExists("other", reason="IDEMPOTENCY_KEY_REUSED"))
    recorded = usage_pb2.UsageEvent()
    recorded.CopyFrom(first.event)
    recorded.occur_time.FromSeconds(1_000)
    fake.answer(
        "GetUsageEvent", metering_service_pb2.GetUsageEventResponse(event=recorded, metered=metered())
    )
    again = fake.answer("Settle", settled())
    assert done.result().result is not None
    assert again.event == recorded


def test_without_the_servers_a_run_does_not_begin(fake: Servers, client: Client) -> None:
    runs: list[Run] = []
    done = begin(fake, client, runs.append)
    fake.answer("Authorize", AWAY)
    assert isinstance(done.exception(), Unavailable)
    assert runs == []


@pytest.mark.parametrize("failure", [AWAY, server.Internal("defect")])
def test_without_the_servers_a_run_begins_if_asked_for(
    fake: Servers, client: Client, failure: server.TallystickError
) -> None:
    def work(run: Run) -> None:
        assert run.reservation is None
        run.extend(max_cost="2")
        worked(run)

    done = begin(fake, client, work, when_unavailable="run")
    fake.answer("Authorize", failure)
    run = done.result()
    assert (run.recorded, run.result) == (True, None)
    (event,) = fake.answer_batch(charged()).events
    assert (event.workflow_id, event.usage.input_tokens, event.currency_code) == ("run-1", 10, "USD")
    assert client.flush(timeout=30) == 0


def test_what_has_no_reservation_needs_no_release(fake: Servers, client: Client) -> None:
    done = begin(fake, client, fail, when_unavailable="run")
    fake.answer("Authorize", AWAY)
    assert isinstance(done.exception(), AgentError)
    assert client.stats.recorded == 0


def test_a_reservation_is_raised_when_asked_for(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        run.extend(max_cost="2", ttl=timedelta(minutes=10))
        assert run.reservation is not None
        assert run.reservation.amount == Money.of("2")

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    asked = fake.answer("Extend", extended(number=2, micros=2_000_000, end=3_000))
    assert fake.answer("Settle", settled()).token == "rst_2"
    done.result()
    assert (asked.token, asked.amount.amount_micros) == ("rst_1", 2_000_000)
    assert asked.ttl.ToTimedelta() == timedelta(minutes=10)


def test_a_reservation_that_cannot_be_raised_stays_as_it_is(fake: Servers, client: Client) -> None:
    def work(run: Run) -> None:
        with pytest.raises(InsufficientCredits):
            run.extend(max_cost="2")
        with pytest.raises(Unavailable):
            run.extend(max_cost="2")

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    fake.answer("Extend", server.FailedPrecondition("no money", reason="INSUFFICIENT_CREDITS"))
    fake.answer("Extend", AWAY)
    assert fake.answer("Settle", settled()).token == "rst_1"
    done.result()


def test_a_long_run_keeps_its_reservation(fake: Servers, client: Client) -> None:
    long_enough = Event()
    ttl = timedelta(milliseconds=60)
    done = begin(fake, client, lambda run: long_enough.wait(), ttl=ttl)
    fake.answer("Authorize", authorized(end=1_000))
    # A failure in between is nobody's business, nor is that there is nothing to keep alive any more.
    tokens = []
    ended = server.FailedPrecondition("it has ended", reason="RESERVATION_ENDED")
    for answer in (grpc.StatusCode.UNAVAILABLE, extended(number=2, end=2_000), ended):
        asked = fake.answer("Extend", answer)
        tokens.append(asked.token)
        assert (asked.ttl.ToTimedelta(), asked.HasField("amount")) == (ttl, False)
    long_enough.set()
    assert tokens == ["rst_1", "rst_1", "rst_2"]
    assert fake.answer("Settle", settled()).token == "rst_2"
    assert done.result().result is not None


def test_a_reservation_that_stood_before_is_prolonged_at_once(fake: Servers, client: Client) -> None:
    """Who authorized it died, and it may be about to end."""
    long_enough = Event()
    done = begin(fake, client, lambda run: long_enough.wait(), ttl=timedelta(hours=1))
    answer = authorized()
    answer.duplicate = True
    fake.answer("Authorize", answer)
    fake.answer("Extend", extended(number=2, end=3_000))
    long_enough.set()
    fake.answer("Settle", settled())
    assert done.result().result is not None


def steps(operation: Operation[None], *answers: object) -> list[Call | Wait]:
    """Drive an operation by hand, with these answers to its calls, until they are used up or it ends."""
    left = list(answers)
    seen: list[Call | Wait] = []
    try:
        step = next(operation)
        while True:
            seen.append(step)
            if isinstance(step, Call) and not left:
                return seen
            step = operation.send(left.pop(0) if isinstance(step, Call) else None)
    except StopIteration:
        return seen


def entered(fake: Servers, client: Client, **changes: Any) -> Run:
    run = client.run(**RUN | {"keep_alive": False} | changes)
    done = fake.begin(run.__enter__)
    fake.answer("Authorize", authorized(end=1_000))
    return done.result()


def leave(fake: Servers, run: Run) -> Any:
    done = fake.begin(lambda: run.__exit__(None, None, None))
    asked = fake.answer("Settle", settled())
    done.result()
    return asked


def test_it_is_extended_twice_before_it_ends(fake: Servers, client: Client) -> None:
    run = entered(fake, client, ttl=timedelta(minutes=15))
    seen = steps(
        run._keep_alive(),
        extended(number=2, end=2_000),
        Unavailable("away", retry_after=timedelta(seconds=9)),
        extended(number=3, end=3_000),
    )
    waits = [step.seconds for step in seen if isinstance(step, Wait)]
    assert waits[0] == waits[1] == waits[3] == 300
    assert 9 <= waits[2] <= 9.01
    tokens = [step.request.token for step in seen if isinstance(step, Call)]  # type: ignore[attr-defined]
    assert tokens == ["rst_1", "rst_2", "rst_2", "rst_3"]
    assert leave(fake, run).token == "rst_3"


def test_extensions_that_cross_never_lower_the_amount(fake: Servers, client: Client) -> None:
    run = entered(fake, client)
    kept = run._keep_alive()
    next(kept)
    kept.send(None)
    # While that call is under way, the agent asks for more.
    raised = fake.begin(lambda: run.extend(max_cost="2"))
    fake.answer("Extend", extended(number=2, micros=2_000_000, end=1_000))
    raised.result()
    kept.send(extended(number=3, micros=500_000, end=2_000))
    assert leave(fake, run).token == "rst_2"


def test_nothing_is_kept_alive_after_the_end(fake: Servers, client: Client) -> None:
    run = entered(fake, client)
    kept = run._keep_alive()
    next(kept)
    kept.send(None)
    leave(fake, run)
    before = run.reservation
    # The answer comes too late to matter, and no other call follows.
    assert isinstance(kept.send(extended(number=2, end=2_000)), Wait)
    with pytest.raises(StopIteration):
        kept.send(None)
    assert run.reservation == before


def test_a_run_is_used_once(fake: Servers, client: Client) -> None:
    run = client.run(**RUN | {"keep_alive": False})
    with pytest.raises(RuntimeError, match="not begun"):
        run.tokens(input=1)
    with pytest.raises(RuntimeError, match="not begun"):
        run.__exit__(None, None, None)
    done = fake.begin(run.__enter__)
    fake.answer("Authorize", authorized())
    done.result()
    with pytest.raises(RuntimeError, match="used once"):
        run.__enter__()
    leave(fake, run)
    uses: list[Callable[[], object]] = [
        lambda: run.tokens(input=1),
        lambda: run.tool("x"),
        lambda: run.succeed(),
        lambda: run.pending(),
        lambda: run.extend(max_cost="1"),
        lambda: run.__exit__(None, None, None),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="over"):
            use()
    with pytest.raises(RuntimeError, match="used once"):
        run.__enter__()


def test_a_run_that_outlives_its_client_says_so(fake: Servers) -> None:
    client = fake.client()
    run = entered(fake, client)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        run.__exit__(None, None, None)
    run = client.run(**RUN)
    with pytest.raises(RuntimeError, match="closed"):
        run.__enter__()


def test_a_full_buffer_is_an_error_for_the_host_to_see(
    fake: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    with fake.client(buffer_capacity=1) as client:
        client.record(**EVENT | {"workflow_id": "before"})
        fake.answer("MeterBatch", AWAY)
        done = begin(fake, client, worked)
        fake.answer("Authorize", authorized())
        fake.answer("Settle", AWAY)
        assert isinstance(done.exception(), BufferFull)
        client.close(timeout=0)
    # The log has it whole.
    assert "workflow_id='run-1'" in caplog.text
    assert "input_tokens=10" in caplog.text


def test_who_is_interrupted_at_the_end_loses_nothing(
    fake: Servers, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = entered(fake, client)
    run.tokens(input=10)

    def interrupt(call: Call) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "_call", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.__exit__(None, None, None)
    assert run.recorded
    said = fake.answer("Settle", settled())
    assert (said.token, said.event.usage.input_tokens) == ("rst_1", 10)
    assert client.flush(timeout=30) == 0


def test_pending_work_is_decided_later(fake: Servers, client: Client) -> None:
    soon = datetime.now(UTC) + timedelta(days=3)

    def work(run: Run) -> None:
        run.pending(timedelta(days=1))
        run.pending(soon, {"a": 1})

    done = begin(fake, client, work)
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert event.outcome == usage_pb2.OUTCOME_PENDING
    assert event.outcome_expire_time.ToDatetime(UTC) == soon
    assert event.evidence_hash == evidence_hash({"a": 1})


def test_pending_as_long_as_the_price_says(fake: Servers, client: Client) -> None:
    done = begin(fake, client, lambda run: run.pending())
    fake.answer("Authorize", authorized())
    event = fake.answer("Settle", settled()).event
    done.result()
    assert event.outcome == usage_pb2.OUTCOME_PENDING
    assert not event.HasField("outcome_expire_time")


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda run: run.tokens(input=-1), ValueError),
        (lambda run: run.tokens(output=1.0), TypeError),
        (lambda run: run.tokens(input=True), TypeError),
        (lambda run: run.tokens(model="x" * 129), ValueError),
        (lambda run: run.tokens(model=None), TypeError),
        (lambda run: run.tokens(input=1, cached=2), ValueError),
        (lambda run: run.tokens(output=1, reasoning=2), ValueError),
        (lambda run: run.tokens(calls=-1), ValueError),
        (lambda run: run.tool("a\nb"), ValueError),
        (lambda run: run.tool("a", calls=1.0), TypeError),
        (lambda run: run.count(pages=-1), ValueError),
        (lambda run: run.count(pages="1"), TypeError),
        (lambda run: run.count(input_tokens=1), ValueError),
        (lambda run: run.succeed(result={"a": float("nan")}), ValueError),
        (lambda run: run.succeed(result={"a": object()}), TypeError),
        (lambda run: run.succeed({"a": float("nan")}), ValueError),
        (lambda run: run.succeed({"a": object()}), TypeError),
        (lambda run: run.succeed(evidence_ref="x" * 1_025), ValueError),
        (lambda run: run.pending(timedelta(0)), ValueError),
        (lambda run: run.pending(timedelta(days=91)), ValueError),
        (lambda run: run.pending(datetime(2999, 1, 1, tzinfo=UTC)), ValueError),
        (lambda run: run.pending(datetime(2999, 1, 1)), ValueError),  # noqa: DTZ001 - that is the point
        (lambda run: run.extend(), ValueError),
        (lambda run: run.extend(max_cost=0.5), TypeError),
        (lambda run: run.extend(max_cost=Money.of("1", "EUR")), ValueError),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_said(
    fake: Servers, client: Client, use: Callable[[Any], object], expected: type[Exception]
) -> None:
    run = entered(fake, client)
    with pytest.raises(expected):
        use(run)
    event = leave(fake, run).event
    # It left no trace.
    assert (event.outcome, event.usage, event.tool_name) == (
        usage_pb2.OUTCOME_UNKNOWN,
        usage_pb2.Usage(),
        "",
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"max_cost": 0.5}, TypeError),
        ({"max_cost": True}, TypeError),
        ({"max_cost": "0"}, ValueError),
        ({"max_cost": "-1"}, ValueError),
        ({"max_cost": "0.0000001"}, ValueError),
        ({"max_cost": None}, ValueError),
        ({"expected": Usage(input_tokens=1)}, ValueError),
        ({"max_cost": Money.of("1", "EUR"), "currency": "USD"}, ValueError),
        ({"ttl": 60}, TypeError),
        ({"ttl": timedelta(0)}, ValueError),
        ({"when_unavailable": "wait"}, ValueError),
        ({"on_error": "ignore"}, ValueError),
        ({"workflow_id": ""}, ValueError),
        ({"nonsense": 1}, TypeError),
        ({"outcome": "success"}, TypeError),
    ],
)
def test_what_cannot_be_run_is_refused_here(
    client: Client, change: dict[str, Any], expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        client.run(**RUN | change)


def test_what_is_expected_may_be_usage(client: Client) -> None:
    run = client.run(**EVENT, expected=Usage(model="gpt", input_tokens=1_000, output_tokens=5))
    request = run._plan.request
    assert request.usage == usage_pb2.Usage(model="gpt", input_tokens=1_000, output_tokens=5)
    assert not request.HasField("max_cost")
    # As the servers have it, so that we know when to extend it.
    assert request.ttl.ToTimedelta() == timedelta(minutes=5)


CURRENCIES = st.sampled_from(["", "USD", "EUR", "JPY"])
MICROS = st.integers(1, 10**14)


@given(MICROS, CURRENCIES, st.sampled_from(["str", "Decimal", "Money", "int"]))
def test_amounts_are_exact_however_they_are_written(micros: int, currency: str, kind: str) -> None:
    money = Money(currency or "USD", micros)
    written: Any = {"str": f"{money.decimal:f}", "Decimal": money.decimal, "Money": money, "int": micros}[
        kind
    ]
    with Client(KEY) as client:
        run = client.run(**EVENT, max_cost=written, currency=currency)
    request = run._plan.request
    assert (request.max_cost.currency_code, request.max_cost.amount_micros) == (money.currency, micros)
    # What is authorized is what is charged.
    assert run._plan.event.currency == money.currency


@given(st.floats() | st.complex_numbers() | st.binary() | st.booleans() | st.fractions())
def test_nothing_else_is_an_amount(amount: Any) -> None:
    with Client(KEY) as client, pytest.raises(TypeError):
        client.run(**EVENT, max_cost=amount)


@given(
    st.dictionaries(st.text(alphabet=st.characters(codec="utf-8")), st.integers() | st.text(alphabet="aü€"))
)
def test_evidence_is_the_same_in_any_order(evidence: dict[str, Any]) -> None:
    backwards = dict(reversed(list(evidence.items())))
    assert evidence_hash(evidence) == evidence_hash(backwards)
    assert len(evidence_hash(evidence)) == 32
    assert evidence_hash(evidence | {"another": 1}) != evidence_hash(evidence | {"another": 2})
