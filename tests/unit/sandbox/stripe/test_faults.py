"""Every fault switch, as the library's caller meets it."""

from __future__ import annotations

from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import Receiver, client, key, payee


@pytest.fixture
def account(standin: StripeStandIn, stripe: StripeClient) -> str:
    standin.control.fund(1_000)
    return payee(standin, stripe)


def params(account: str) -> Any:
    return {"amount": 100, "currency": "usd", "destination": account}


def sent(stripe: StripeClient) -> int:
    return len(stripe.v1.transfers.list().data)


@pytest.mark.parametrize(("kind", "made"), [("lost_answer", 1), ("cut", 0)])
def test_the_connection_is_cut(
    standin: StripeStandIn, stripe: StripeClient, account: str, kind: str, made: int
) -> None:
    standin.control.fault(kind, "transfers.create")
    with pytest.raises(library.APIConnectionError):
        stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    assert sent(stripe) == made
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    assert sent(stripe) == 1


def test_the_library_tries_again_after_a_cut(standin: StripeStandIn, account: str) -> None:
    standin.control.fault("lost_answer", "transfers.create")
    stripe = client(standin, retries=1)
    stripe.v1.transfers.create(params(account), key())
    assert sent(stripe) == 1
    assert [seen["status"] for seen in standin.control.requests("transfers.create")] == ["cut", 200]


@pytest.mark.parametrize("effect", [True, False])
def test_a_500_may_have_had_its_effect(
    standin: StripeStandIn, stripe: StripeClient, account: str, effect: bool
) -> None:
    standin.control.fault("server_error", "transfers.create", effect=effect)
    with pytest.raises(library.APIError):
        stripe.v1.transfers.create(params(account), key())
    assert sent(stripe) == int(effect)
    stripe.v1.transfers.create(params(account), key())
    assert sent(stripe) == int(effect) + 1


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("rate_limit", 429, "rate_limit"),
        ("lock_timeout", 429, "lock_timeout"),
        ("unauthorized", 401, None),
        ("forbidden", 403, None),
        ("key_in_use", 409, "idempotency_key_in_use"),
    ],
)
def test_refusals(
    standin: StripeStandIn, stripe: StripeClient, account: str, kind: str, status: int, code: str | None
) -> None:
    standin.control.fault(kind, "transfers.create", count=2)
    for _ in range(2):
        with pytest.raises(library.StripeError) as refused:
            stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
        assert refused.value.http_status == status
        assert refused.value.error is not None
        assert getattr(refused.value.error, "code", None) == code
    assert sent(stripe) == 0
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})


@pytest.mark.parametrize(("should_retry", "calls"), [("", 1), ("false", 1), ("true", 2)])
def test_a_storm_says_whether_to_try_again(
    standin: StripeStandIn, account: str, should_retry: str, calls: int
) -> None:
    standin.control.fault("rate_limit", "transfers.create", should_retry=should_retry)
    stripe = client(standin, retries=1)
    if calls == 1:
        with pytest.raises(library.RateLimitError):
            stripe.v1.transfers.create(params(account), key())
    else:
        stripe.v1.transfers.create(params(account), key())
    assert len(standin.control.requests("transfers.create")) == calls


def test_any_error_code_can_be_asked_for(standin: StripeStandIn, stripe: StripeClient, account: str) -> None:
    standin.control.fault("refused", "transfers.create", code="anomalous_money_movement_request")
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.transfers.create(params(account), key())
    assert refused.value.code == "anomalous_money_movement_request"


@pytest.mark.parametrize("effect", [True, False])
def test_a_slow_answer_outlasts_its_caller(
    standin: StripeStandIn, stripe: StripeClient, account: str, effect: bool
) -> None:
    standin.control.fault("slow", "transfers.create", ms=400, effect=effect)
    hasty = StripeClient(
        standin.api_key,
        base_addresses={"api": standin.url},
        http_client=library.RequestsClient(timeout=0.1),
    )
    with pytest.raises(library.APIConnectionError):
        hasty.v1.transfers.create(params(account), {"idempotency_key": "k"})
    assert sent(stripe) == int(effect)


def test_webhooks_can_come_before_the_answer(
    standin: StripeStandIn, stripe: StripeClient, account: str, receiver: Receiver
) -> None:
    standin.control.fault("webhooks_first", "transfers.create")
    stripe.v1.transfers.create(params(account), key())
    assert receiver.types()[-1] == "transfer.created"


def test_faults_are_counted_skipped_and_narrowed(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    standin.control.fault("rate_limit", "transfers.*", skip=1)
    standin.control.fault("server_error", "balance.retrieve", account=account)
    stripe.v1.transfers.create(params(account), key())
    with pytest.raises(library.RateLimitError):
        stripe.v1.transfers.create(params(account), key())
    stripe.v1.balance.retrieve()
    with pytest.raises(library.APIError):
        stripe.v1.balance.retrieve(options={"stripe_account": account})
    faults = standin.control.run("faults list")["faults"]
    assert [(fault["count"], fault["hits"]) for fault in faults] == [(0, 1), (0, 1)]

    standin.control.fault("rate_limit", count=100)
    standin.control.run("faults clear")
    stripe.v1.balance.retrieve()


def test_an_unknown_fault_is_refused(standin: StripeStandIn) -> None:
    with pytest.raises(SandboxError, match="Unknown fault"):
        standin.control.fault("lightning")
    with pytest.raises(SandboxError, match="No operation is named"):
        standin.control.fault("cut", "transfer.create")
    with pytest.raises(SandboxError, match="colour"):
        standin.control.fault("cut", colour="red")


def test_a_fault_waits_for_a_call_that_it_concerns(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    made = stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    standin.control.fault("server_error", "transfers.create")
    # Neither a replay nor an invalid call is executed, so neither may use it up.
    assert stripe.v1.transfers.create(params(account), {"idempotency_key": "k"}).id == made.id
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.transfers.create(params(account) | {"amount": "ten"}, key())
    with pytest.raises(library.APIError):
        stripe.v1.transfers.create(params(account), key())
