"""Reservations and outcomes call by call, and what their refusals say."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit import errors as server
from services.kit.status import to_item_error
from tallystick import (
    Access,
    BudgetExceeded,
    Client,
    DeferredOutcome,
    InsufficientCredits,
    Money,
    OutcomeAlreadyResolved,
    OutcomeExpired,
    OutcomeNotFound,
    Reservation,
    ReservationEnded,
    ReservationTokenInvalid,
    Settlement,
    TallystickError,
    Usage,
    evidence_hash,
)
from tallystick._convert import metered_from_proto, result_to_proto
from tallystick._status import from_item_error
from tallystick.metering.v1 import metering_service_pb2, outcome_pb2, reservation_pb2, usage_pb2
from tests.unit.sdk.support import (
    EVENT,
    Servers,
    authorized,
    extended,
    metered,
    released,
    reservation,
    servers,
    settled,
    usd,
)

RESERVATION = Reservation(
    reservation_id="rsv_1",
    token="rst_1",
    customer="cus_1",
    workflow_id="run-1",
    ordinal=0,
    agent="agt_a",
    amount=Money.of("0.50"),
    price_version_id="pv_1",
    expire_time=datetime(1970, 1, 1, 0, 33, 20, tzinfo=UTC),
    kind="leased",
    available=Money.of("0.50"),
)


@pytest.fixture
def fake() -> Iterator[Servers]:
    with servers() as running:
        yield running


@pytest.fixture
def client(fake: Servers) -> Iterator[Client]:
    with fake.client() as made:
        yield made


def test_authorize(fake: Servers, client: Client) -> None:
    result = fake.begin(
        lambda: client.authorize(
            **EVENT, expected=Usage(input_tokens=7), currency="USD", idempotency_key="second"
        )
    )
    asked = fake.answer("Authorize", authorized())
    assert result.result() == RESERVATION
    assert asked == metering_service_pb2.AuthorizeRequest(
        customer_id="cus_1",
        workflow_id="run-1",
        agent_id="agt_a",
        action_type="run",
        usage=usage_pb2.Usage(input_tokens=7),
        idempotency_key="second",
        currency_code="USD",
    )
    # Whoever reads it may settle with it.
    assert "rst_1" not in repr(result.result())


def test_an_organization_does_not_learn_what_is_available(fake: Servers, client: Client) -> None:
    result = fake.begin(lambda: client.authorize(**EVENT, max_cost="1"))
    answer = metering_service_pb2.AuthorizeResponse(reservation=reservation(), duplicate=True)
    answer.reservation.kind = reservation_pb2.RESERVATION_KIND_DURABLE
    fake.answer("Authorize", answer)
    got = result.result()
    assert (got.available, got.duplicate, got.kind) == (None, True, "durable")


@pytest.mark.parametrize("given", [RESERVATION, "rst_1"])
def test_extend(fake: Servers, client: Client, given: Reservation | str) -> None:
    result = fake.begin(lambda: client.extend(given, max_cost="2", ttl=timedelta(minutes=1)))
    asked = fake.answer("Extend", extended(number=2, micros=2_000_000))
    got = result.result()
    assert asked == metering_service_pb2.ExtendRequest(
        token="rst_1", amount=usd(2_000_000), ttl=Duration(seconds=60)
    )
    assert (got.token, got.amount, got.duplicate) == ("rst_2", Money.of("2"), False)


@pytest.mark.parametrize("given", [RESERVATION, "rst_1"])
def test_settle(fake: Servers, client: Client, given: Reservation | str) -> None:
    result = fake.begin(lambda: client.settle(given, **EVENT, input_tokens=10, outcome="success"))
    asked = fake.answer("Settle", settled(7))
    got = result.result()
    assert (asked.token, asked.event.workflow_id, asked.event.usage.input_tokens) == ("rst_1", "run-1", 10)
    assert got.metered == metered_from_proto(metered(7))
    assert got.settlement == Settlement(
        reservation_id="rsv_1",
        state="settled",
        reserved=Money.of("0.50"),
        captured=Money("USD", 7),
        returned=Money("USD", 499_993),
        excess=Money("USD", 0),
        excess_from_credits=Money("USD", 0),
        excess_from_receivable=Money("USD", 0),
        excess_unpaid=Money("USD", 0),
        available=Money("USD", 93),
    )


def test_an_amount_that_is_left_out_is_zero(fake: Servers, client: Client) -> None:
    """A newer or an older server may say less; the work is finished, and nobody's run fails for that."""
    answer = settled()
    answer.settlement.Clear()
    result = fake.begin(lambda: client.settle("rst_1", **EVENT))
    fake.answer("Settle", answer)
    settlement = result.result().settlement
    assert (settlement.state, settlement.captured.micros, settlement.captured.currency) == (
        "expired",
        0,
        "XXX",
    )


@pytest.mark.parametrize("given", [RESERVATION, "rst_1"])
def test_release(fake: Servers, client: Client, given: Reservation | str) -> None:
    result = fake.begin(lambda: client.release(given))
    asked = fake.answer("Release", released())
    got = result.result()
    assert asked.token == "rst_1"
    assert (got.state, got.returned, got.available) == ("released", Money.of("0.50"), Money.of("1"))


def test_access_that_is_granted(fake: Servers, client: Client) -> None:
    result = fake.begin(
        lambda: client.check_access("cus_1", "agt_a", "run", cost=Money.of("2", "EUR"), workflow_id="run-1")
    )
    asked = fake.answer(
        "CheckAccess",
        metering_service_pb2.CheckAccessResponse(allowed=True, up_to=usd(5), price_version_id="pv_1"),
    )
    assert result.result() == Access(
        allowed=True, up_to=Money("USD", 5), refusal=None, price_version_id="pv_1"
    )
    assert (asked.customer_id, asked.agent_id, asked.action_type) == ("cus_1", "agt_a", "run")
    assert (asked.workflow_id, asked.cost.currency_code, asked.cost.amount_micros) == (
        "run-1",
        "EUR",
        2_000_000,
    )


def test_access_that_is_refused_says_why(fake: Servers, client: Client) -> None:
    result = fake.begin(lambda: client.check_access("cus_1", "agt_a", "run"))
    refusal = to_item_error(BUDGET)
    asked = fake.answer("CheckAccess", metering_service_pb2.CheckAccessResponse(refusal=refusal))
    got = result.result()
    assert not asked.HasField("cost")
    assert (got.allowed, got.up_to) == (False, None)
    assert isinstance(got.refusal, BudgetExceeded)
    assert got.refusal.limit == Money.of("10")


def deferred(**changes: Any) -> outcome_pb2.DeferredOutcome:
    fields: dict[str, Any] = {
        "outcome_id": "out_1",
        "customer_id": "cus_1",
        "workflow_id": "run-1",
        "ordinal": 2,
        "agent_id": "agt_a",
        "state": outcome_pb2.DEFERRED_OUTCOME_STATE_PENDING,
        "outcome": usage_pb2.OUTCOME_PENDING,
        "expired_outcome": usage_pb2.OUTCOME_UNKNOWN,
        "expire_time": Timestamp(seconds=2_000),
        "max_bonus": usd(200_000),
    }
    return outcome_pb2.DeferredOutcome(**fields | changes)


PENDING = DeferredOutcome(
    outcome_id="out_1",
    customer="cus_1",
    workflow_id="run-1",
    ordinal=2,
    agent="agt_a",
    state="pending",
    outcome="pending",
    expired_outcome="unknown",
    expire_time=datetime(1970, 1, 1, 0, 33, 20, tzinfo=UTC),
    resolve_time=None,
    max_bonus=Money.of("0.20"),
    bonus=None,
    charge_id="",
    evidence_ref="",
    evidence_hash=b"",
)


def test_an_event_that_is_pending_names_its_outcome(fake: Servers, client: Client) -> None:
    answer = metered()
    answer.deferred_outcome.CopyFrom(deferred())
    until = datetime(2030, 1, 1, tzinfo=UTC)
    result = fake.begin(lambda: client.meter(**EVENT, outcome="pending", outcome_expire_time=until))
    asked = fake.answer("Meter", metering_service_pb2.MeterResponse(metered=answer))
    assert result.result().deferred_outcome == PENDING
    assert asked.event.outcome == usage_pb2.OUTCOME_PENDING
    assert asked.event.outcome_expire_time.ToDatetime(UTC) == until


def test_an_outcome_as_it_stands(fake: Servers, client: Client) -> None:
    result = fake.begin(lambda: client.outcome("out_1"))
    asked = fake.answer("GetOutcome", metering_service_pb2.GetOutcomeResponse(outcome=deferred()))
    assert asked.outcome_id == "out_1"
    assert result.result() == PENDING


def test_an_outcome_is_resolved(fake: Servers, client: Client) -> None:
    result = fake.begin(
        lambda: client.resolve_outcome(
            "out_1", "success", evidence={"stars": 5}, evidence_ref="s3://x", result={"stars": 5}
        )
    )
    resolved = deferred(
        state=outcome_pb2.DEFERRED_OUTCOME_STATE_RESOLVED,
        outcome=usage_pb2.OUTCOME_SUCCESS,
        resolve_time=Timestamp(seconds=1_000),
        bonus=usd(200_000),
        charge_id="ch_2",
    )
    asked = fake.answer(
        "ResolveOutcome",
        metering_service_pb2.ResolveOutcomeResponse(
            outcome=resolved, available_balance=usd(9), duplicate=True
        ),
    )
    got = result.result()
    assert asked == metering_service_pb2.ResolveOutcomeRequest(
        outcome_id="out_1",
        outcome=usage_pb2.OUTCOME_SUCCESS,
        evidence_ref="s3://x",
        evidence_hash=evidence_hash({"stars": 5}),
        result=result_to_proto({"stars": 5}),
    )
    assert (got.state, got.outcome, got.bonus, got.charge_id) == (
        "resolved",
        "success",
        Money.of("0.20"),
        "ch_2",
    )
    assert got.resolve_time == datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)
    assert (got.available, got.duplicate) == (Money("USD", 9), True)


@pytest.mark.parametrize("outcome", ["pending", "maybe", ""])
def test_what_an_outcome_cannot_be_resolved_to(client: Client, outcome: Any) -> None:
    with pytest.raises(ValueError, match="resolved to one of"):
        client.resolve_outcome("out_1", outcome)


def test_only_what_is_known_before_is_authorized(client: Client) -> None:
    with pytest.raises(TypeError, match="not known before the work is done: input_tokens"):
        client.authorize(**EVENT, max_cost="1", input_tokens=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="customer"):
        client.authorize(max_cost="1", agent="agt_a")  # type: ignore[call-arg]


BUDGET = server.FailedPrecondition(
    "no room",
    reason="BUDGET_EXCEEDED",
    metadata={
        "budget_id": "bud_1",
        "currency_code": "USD",
        "requested_micros": "500000",
        "limit_micros": "10000000",
        "spent_micros": "9000000",
        "reserved_micros": "600000",
        "reset_time": "2030-01-01T00:00:00+00:00",
    },
)


def arrived(sent: server.TallystickError) -> Any:
    return from_item_error(to_item_error(sent))


def test_a_refusal_says_what_is_missing() -> None:
    metadata = {"customer_id": "cus_1", "currency_code": "USD", "requested_micros": "5"}
    refused = server.FailedPrecondition("no", reason="INSUFFICIENT_CREDITS", metadata=metadata)
    assert (arrived(refused).requested, arrived(refused).available) == (Money("USD", 5), None)
    told = server.FailedPrecondition(
        "no", reason="INSUFFICIENT_CREDITS", metadata=metadata | {"available_micros": "3"}
    )
    assert arrived(told).available == Money("USD", 3)
    # Nothing was done, and the same request would be answered the same.
    assert not arrived(told).retryable


def test_a_refusal_names_the_budget_and_when_it_starts_again() -> None:
    error = arrived(BUDGET)
    assert error.budget_id == "bud_1"
    assert [str(one) for one in (error.requested, error.limit, error.spent, error.reserved)] == [
        "0.50 USD",
        "10.00 USD",
        "9.00 USD",
        "0.60 USD",
    ]
    assert error.reset_time == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("reason", "code", "kind", "metadata", "attributes"),
    [
        (
            "RESERVATION_ENDED",
            server.FailedPrecondition,
            ReservationEnded,
            {"reservation_id": "rsv_1", "state": "RESERVATION_STATE_EXPIRED"},
            {"reservation_id": "rsv_1", "state": "expired"},
        ),
        ("RESERVATION_TOKEN_INVALID", server.InvalidArgument, ReservationTokenInvalid, {}, {}),
        ("OUTCOME_NOT_FOUND", server.NotFound, OutcomeNotFound, {}, {}),
        (
            "OUTCOME_ALREADY_RESOLVED",
            server.FailedPrecondition,
            OutcomeAlreadyResolved,
            {"outcome_id": "out_1", "outcome": "success", "resolve_time": "2030-01-01T00:00:00Z"},
            {
                "outcome_id": "out_1",
                "outcome": "success",
                "resolve_time": datetime(2030, 1, 1, tzinfo=UTC),
            },
        ),
        (
            "OUTCOME_EXPIRED",
            server.FailedPrecondition,
            OutcomeExpired,
            {"outcome_id": "out_1", "outcome": "OUTCOME_UNKNOWN", "expire_time": "2030-01-01T00:00:00"},
            {"outcome_id": "out_1", "outcome": "unknown", "expire_time": datetime(2030, 1, 1, tzinfo=UTC)},
        ),
    ],
)
def test_reasons_have_classes_of_their_own(
    reason: str,
    code: type[server.TallystickError],
    kind: type[TallystickError],
    metadata: dict[str, str],
    attributes: dict[str, object],
) -> None:
    error = arrived(code("no", reason=reason, metadata=metadata))
    assert type(error) is kind
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"currency_code": "USD"},
        {"currency_code": "?", "limit_micros": "1", "requested_micros": "1", "reset_time": "soon"},
        {"currency_code": "USD", "limit_micros": "many", "requested_micros": "9" * 30, "reset_time": ""},
    ],
)
def test_a_refusal_that_says_less_is_no_other_error(metadata: dict[str, str]) -> None:
    budget = BudgetExceeded("no", reason="BUDGET_EXCEEDED", metadata=metadata)
    assert (budget.budget_id, budget.limit, budget.requested, budget.reset_time) == ("", None, None, None)
    assert InsufficientCredits("no", metadata=metadata).requested is None
