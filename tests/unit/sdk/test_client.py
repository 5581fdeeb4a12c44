"""The synchronous client, against services of a few lines."""

import socket
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import grpc
import pytest

from services.kit import errors as server
from services.kit.status import to_item_error
from tallystick import (
    ChargeLine,
    ChargePending,
    Client,
    EventFields,
    IdempotencyKeyReused,
    InvalidArgument,
    Metered,
    Money,
    NotFound,
    Payment,
    RetryPolicy,
    TallystickError,
    Unavailable,
    UnitPrice,
    UsageEvent,
)
from tallystick._channel import Caller, is_loopback
from tallystick._convert import event_from_proto, event_to_proto, metered_from_proto, repeats
from tallystick.metering.v1 import metering_service_pb2, reservation_pb2
from tallystick.models import QUANTITIES, ModelUsage
from tests.unit.sdk.support import EVENT, KEY, Servers, charged, metered, servers, usd, workflows

PENDING = server.Unavailable("soon", reason="CHARGE_PENDING", retry_after=timedelta(0))
REUSED = server.AlreadyExists("other content", reason="IDEMPOTENCY_KEY_REUSED")
NO_CUSTOMER = server.NotFound("no such customer", reason="CUSTOMER_NOT_FOUND")


@pytest.fixture
def fake() -> Iterator[Servers]:
    with servers() as running:
        yield running


def refused(error: server.TallystickError) -> metering_service_pb2.MeterVerdict:
    return metering_service_pb2.MeterVerdict(error=to_item_error(error))


def event(workflow_id: str, **changes: Any) -> UsageEvent:
    return UsageEvent(**EVENT | {"workflow_id": workflow_id} | changes)


def test_meter_says_what_the_work_cost(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT, input_tokens=10, model="gpt", outcome="success"))
        request = fake.answer_meter()
        got = result.result()
    assert request.event.customer_id == "cus_1"
    assert request.event.usage.input_tokens == 10
    # The servers fill it in, so that the same call by another process is the same event.
    assert not request.event.HasField("occur_time")
    assert got == Metered(
        charge_id="ch_1",
        outcome_id="out_1",
        price_charged=Money.of("0.000007"),
        lines=(
            ChargeLine(
                component="input",
                quantity=10,
                unit_price=UnitPrice(amount=Decimal("0.60"), per_units=1_000_000),
                amount=Money("USD", 7),
            ),
        ),
        price_version_id="pv_1",
        payment=Payment(
            from_credits=Money("USD", 7), from_receivable=Money("USD", 0), unpaid=Money("USD", 0)
        ),
        available=Money("USD", 93),
        duplicate=False,
        evidence_differs=False,
    )


@pytest.mark.parametrize(
    "failure",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        server.ResourceExhausted("busy", retry_after=timedelta(milliseconds=1)),
        server.Aborted("conflict", retry_after=timedelta(milliseconds=1)),
        PENDING,
    ],
)
def test_what_may_pass_is_sent_again_as_the_same_event(fake: Servers, failure: Any) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT))
        first, second, third = (
            fake.answer_meter(failure),
            fake.answer_meter(failure),
            fake.answer_meter(),
        )
        assert result.result().price_charged == Money("USD", 7)
    assert first == second == third
    # One request id for all of them, and the key.
    assert len(set(fake.metadata)) == 1
    assert ("authorization", f"Bearer {KEY}") in fake.metadata[0]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NO_CUSTOMER, NotFound),
        (server.InvalidArgument.of("event.customer_id", "must be cus_…"), InvalidArgument),
        (server.Internal("internal error"), TallystickError),
    ],
)
def test_what_cannot_pass_is_raised_at_once(
    fake: Servers, failure: server.TallystickError, expected: type[TallystickError]
) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT))
        fake.answer_meter(failure)
        error = result.exception()
    assert isinstance(error, expected)
    assert error.reason == failure.reason
    assert error.request_id == "req-server"


def test_it_gives_up_when_the_time_is_up(fake: Servers) -> None:
    with fake.client() as client:
        # The server asks for more patience than there is: no attempt is left.
        result = fake.begin(lambda: client.meter(**EVENT, timeout=5))
        fake.answer_meter(server.Unavailable("away", retry_after=timedelta(seconds=6)))
        error = result.exception()
    assert isinstance(error, Unavailable)
    assert error.retry_after == timedelta(seconds=6)
    assert error.retryable


def test_an_event_that_was_recorded_with_another_time_is_the_same_event(fake: Servers) -> None:
    recorded = event_to_proto(event("run-1", occur_time=datetime(2030, 1, 1, tzinfo=UTC), evidence_ref="x"))
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT))
        fake.answer_meter(REUSED)
        fake.answer(
            "GetUsageEvent",
            metering_service_pb2.GetUsageEventResponse(event=recorded, metered=metered()),
        )
        got = result.result()
    assert got.duplicate
    assert got.evidence_differs


def test_other_content_under_the_same_identity_is_refused(fake: Servers) -> None:
    recorded = event_to_proto(event("run-1", input_tokens=5))
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT))
        fake.answer_meter(REUSED)
        fake.answer(
            "GetUsageEvent",
            metering_service_pb2.GetUsageEventResponse(event=recorded, metered=metered()),
        )
        assert isinstance(result.exception(), IdempotencyKeyReused)

        # With a time that the host gave, a different time is different content: nobody needs to look.
        timed = fake.begin(lambda: client.meter(**EVENT, occur_time=datetime(2030, 1, 1, tzinfo=UTC)))
        fake.answer_meter(REUSED)
        assert isinstance(timed.exception(), IdempotencyKeyReused)


def test_a_first_report_that_is_not_charged_yet(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter(**EVENT))
        fake.answer_meter(REUSED)
        fake.answer(
            "GetUsageEvent", metering_service_pb2.GetUsageEventResponse(event=event_to_proto(event("run-1")))
        )
        assert isinstance(result.exception(), ChargePending)


def test_a_batch_has_a_verdict_for_each(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter_batch([event("a"), event("b"), event("c")]))
        fake.answer_batch(charged(1), refused(NO_CUSTOMER), charged(3))
        first, second, third = result.result()
    assert isinstance(first, Metered)
    assert isinstance(third, Metered)
    assert (first.price_charged.micros, third.price_charged.micros) == (1, 3)
    assert isinstance(second, NotFound)
    assert second.reason == "CUSTOMER_NOT_FOUND"


def test_a_batch_repeats_only_what_may_pass(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter_batch([event("a"), event("b"), event("c")]))
        fake.answer_batch(charged(1), refused(PENDING), refused(NO_CUSTOMER))
        again = fake.answer_batch(charged(2))
        first, second, third = result.result()
    assert workflows(again) == ["b"]
    assert isinstance(first, Metered)
    assert isinstance(second, Metered)
    assert second.price_charged == Money("USD", 2)
    assert isinstance(third, NotFound)


def test_a_large_batch_goes_in_several_calls_and_keeps_what_is_known(fake: Servers) -> None:
    events = [event(f"run-{number}") for number in range(1_201)]
    with fake.client() as client:
        result = fake.begin(lambda: client.meter_batch(events))
        sizes = [len(fake.answer_batch(*[charged()] * 500).events)]
        fake.answer("MeterBatch", server.Internal("internal error"))
        verdicts = result.result()
    assert sizes == [500]
    assert [isinstance(verdict, Metered) for verdict in verdicts] == [True] * 500 + [False] * 701


def test_an_empty_batch_asks_nobody(fake: Servers) -> None:
    with fake.client() as client:
        assert client.meter_batch([]) == []


def test_a_server_that_forgets_an_event_is_not_believed(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.meter_batch([event("a"), event("b")]))
        fake.answer_batch(charged())
        assert [type(verdict).__name__ for verdict in result.result()] == ["Internal", "Internal"]


def test_balance(fake: Servers) -> None:
    fields = (
        "credits",
        "available",
        "reserved",
        "held",
        "receivable",
        "unpaid",
        "credit_limit",
        "credit_room",
        "chargebacks",
    )
    amounts: dict[str, Any] = {name: usd(number) for number, name in enumerate(fields)}
    answer = reservation_pb2.Balance(customer_id="cus_1", **amounts)
    with fake.client() as client:
        result = fake.begin(lambda: client.balance("cus_1"))
        request = fake.answer("GetBalance", metering_service_pb2.GetBalanceResponse(balance=answer))
        balance = result.result()
    assert (request.customer_id, request.currency_code) == ("cus_1", "USD")
    assert balance.customer == "cus_1"
    assert [getattr(balance, name).micros for name in fields] == list(range(9))


def test_a_customers_own_key_need_not_name_it(fake: Servers) -> None:
    with fake.client() as client:
        result = fake.begin(lambda: client.balance())
        request = fake.answer(
            "GetBalance",
            metering_service_pb2.GetBalanceResponse(balance=reservation_pb2.Balance(customer_id="cus_1")),
        )
        assert result.result().customer == "cus_1"
    assert request.customer_id == ""


def test_a_closed_client_says_so(fake: Servers) -> None:
    client = fake.client()
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.balance("cus_1")


def test_closing_wakes_who_waits_to_try_again(fake: Servers) -> None:
    client = fake.client(retry=RetryPolicy(timeout=3_600))
    result = fake.begin(lambda: client.meter(**EVENT))
    fake.answer_meter(server.Unavailable("away", retry_after=timedelta(seconds=1_800)))
    client.close()
    assert isinstance(result.exception(timeout=30), RuntimeError)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input_tokens": 1.0}, TypeError),
        ({"input_tokens": True}, TypeError),
        ({"ordinal": "1"}, TypeError),
        ({"outcome": "maybe"}, ValueError),
        ({"workflow_id": ""}, ValueError),
        ({"workflow_id": None}, ValueError),
        ({"occur_time": datetime(2030, 1, 1)}, ValueError),  # noqa: DTZ001 - that is the point
        ({"outcome_expire_time": datetime(2030, 1, 1, tzinfo=UTC)}, ValueError),
        ({"nonsense": 1}, TypeError),
    ],
)
def test_what_cannot_be_an_event_is_refused_here(
    fake: Servers, change: dict[str, Any], expected: type[Exception]
) -> None:
    with fake.client() as client, pytest.raises(expected):
        client.meter(**EVENT | change)


def test_an_event_survives_the_wire() -> None:
    sample: dict[str, Any] = {
        field.name: field.name for field in fields(UsageEvent) if field.type in (str, "str")
    }
    quantities: dict[str, Any] = {name: 10 + number for number, name in enumerate(QUANTITIES)}
    full = UsageEvent(
        **sample,
        ordinal=3,
        **quantities,
        meters={"pages": 3, "rows": 0},
        models=(
            ModelUsage(model="one", input_tokens=4, cached_input_tokens=3, inference_calls=2),
            ModelUsage(model="two", output_tokens=5, reasoning_tokens=1),
        ),
        result={"resolved": True, "score": 4.5, "steps": [{"name": "a", "count": 2}], "none": None},
        outcome="pending",
        occur_time=datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        outcome_expire_time=datetime(2030, 2, 3, tzinfo=UTC),
        evidence_hash=b"h" * 32,
    )
    assert event_from_proto(event_to_proto(full)) == full
    # Every field of the message is one of the event's: none was forgotten.
    message = event_to_proto(full)
    for one in (message, message.usage):
        assert {field.name for field, _ in one.ListFields()} == set(one.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"a": float("nan")}, ValueError),
        ({"a": [float("inf")]}, ValueError),
        ({"a": object()}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": "x" * 16 * 1024}, ValueError),
    ],
)
def test_a_result_that_is_not_json_is_refused_here(
    fake: Servers, result: Any, expected: type[Exception]
) -> None:
    with fake.client() as client, pytest.raises(expected):
        client.meter(**EVENT, result=result)


def test_an_event_repeats_one_that_an_older_release_reported_without_its_models() -> None:
    parts = (ModelUsage(model="one", input_tokens=4), ModelUsage(model="two"))
    ours = event_to_proto(UsageEvent(**EVENT, input_tokens=4, models=parts))
    theirs = event_to_proto(UsageEvent(**EVENT, input_tokens=4))

    assert repeats(ours, theirs)
    assert not repeats(ours, event_to_proto(UsageEvent(**EVENT, input_tokens=5)))
    assert not repeats(ours, event_to_proto(UsageEvent(**EVENT, input_tokens=4, models=parts[:1])))


def test_the_keyword_arguments_are_the_fields() -> None:
    assert list(EventFields.__annotations__) != []
    assert set(EventFields.__annotations__) == {field.name for field in fields(UsageEvent)}
    assert EventFields.__required_keys__ == {"customer", "agent", "workflow_id", "action"}


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
        ("localhost.example.org:1", False),
        ("dns:///localhost:1", False),
        ("localhost", False),
    ],
)
def test_plaintext_stays_on_this_machine(target: str, loopback: bool) -> None:
    assert is_loopback(target) is loopback
    assert (Caller.of(KEY, None, False).credentials(target) is None) is loopback
    assert Caller.of(KEY, None, True).credentials(target) is None


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_of_the_environment_hears_the_key(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        # Nobody listens at port 1.
        client = Client(KEY, metering="127.0.0.1:1", retry=RetryPolicy(timeout=0.5))
        with client, pytest.raises(TallystickError):
            client.meter(**EVENT)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_balance_that_is_not_told_is_none() -> None:
    answer = metered()
    answer.ClearField("available_balance")

    assert metered_from_proto(answer).available is None


def test_the_key_comes_from_the_environment_and_stays_out_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYSTICK_API_KEY", f"{KEY}\n")
    caller = Caller.of(None, None, False)
    assert caller.api_key == KEY
    assert KEY not in repr(caller)
    monkeypatch.delenv("TALLYSTICK_API_KEY")
    with pytest.raises(ValueError, match="TALLYSTICK_API_KEY"):
        Client()


@pytest.mark.parametrize("key", ["", " ", "tsk_\u00e9", "tsk_a\nb"])
def test_what_cannot_be_a_key(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        Client(key)


def test_tls_and_no_tls_contradict(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="choose one"):
        Client(KEY, tls_ca=tmp_path, insecure=True)
