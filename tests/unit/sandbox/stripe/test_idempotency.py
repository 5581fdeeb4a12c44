"""Idempotency keys: one effect a day, and the first answer again whatever it was."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import client, key, payee

DAY = 86_400


@pytest.fixture
def account(standin: StripeStandIn, stripe: StripeClient) -> str:
    standin.control.fund(1_000)
    return payee(standin, stripe)


def params(account: str, amount: int = 100) -> Any:
    return {"amount": amount, "currency": "usd", "destination": account}


def test_the_same_call_is_answered_again(stripe: StripeClient, account: str) -> None:
    first = stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    again = stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert first.last_response is not None
    assert "Idempotent-Replayed" not in first.last_response.headers
    assert again.last_response.body == first.last_response.body
    assert again.last_response.headers["Original-Request"] == first.last_response.headers["Request-Id"]
    assert len(stripe.v1.transfers.list().data) == 1


def test_other_parameters_or_another_path_are_refused(stripe: StripeClient, account: str) -> None:
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    with pytest.raises(library.IdempotencyError) as refused:
        stripe.v1.transfers.create(params(account, 101), {"idempotency_key": "k"})
    assert refused.value.http_status == 400
    with pytest.raises(library.IdempotencyError):
        stripe.v1.customers.create({}, {"idempotency_key": "k"})


def test_a_key_in_use_is_a_conflict(standin: StripeStandIn, stripe: StripeClient, account: str) -> None:
    standin.control.fault("slow", "transfers.create", ms=300)
    started = threading.Event()

    def first() -> str:
        started.set()
        return stripe.v1.transfers.create(params(account), {"idempotency_key": "k"}).id

    with ThreadPoolExecutor() as pool:
        made = pool.submit(first)
        started.wait()
        deadline = time.monotonic() + 10
        while not standin.control.requests("transfers.create"):
            assert time.monotonic() < deadline
        with pytest.raises(library.StripeError) as refused:
            client(standin).v1.transfers.create(params(account), {"idempotency_key": "k"})
        assert refused.value.http_status == 409
        assert refused.value.error is not None
        assert refused.value.error.code == "idempotency_key_in_use"
        made_id = made.result()
        assert stripe.v1.transfers.create(params(account), {"idempotency_key": "k"}).id == made_id


def test_a_refusal_after_validation_is_kept(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    for _ in range(2):
        with pytest.raises(library.InvalidRequestError) as refused:
            stripe.v1.transfers.create(params(account, 5_000), {"idempotency_key": "k"})
        assert refused.value.code == "balance_insufficient"
        standin.control.fund(10_000)
    assert refused.value.headers is not None
    assert refused.value.headers["idempotent-replayed"] == "true"


def test_a_refusal_by_validation_is_not_kept(stripe: StripeClient, account: str) -> None:
    wrong: Any = {"currency": "usd", "destination": account, "amount": "ten"}
    with pytest.raises(library.InvalidRequestError) as refused:
        stripe.v1.transfers.create(wrong, {"idempotency_key": "k"})
    assert refused.value.code == "parameter_invalid_integer"
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})


@pytest.mark.parametrize("kind", ["unauthorized", "rate_limit", "forbidden", "key_in_use"])
def test_refusals_before_execution_are_not_kept(
    standin: StripeStandIn, stripe: StripeClient, account: str, kind: str
) -> None:
    standin.control.fault(kind, "transfers.create")
    with pytest.raises(library.StripeError):
        stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})


@pytest.mark.parametrize("effect", [True, False])
def test_a_500_is_kept(standin: StripeStandIn, stripe: StripeClient, account: str, effect: bool) -> None:
    standin.control.fault("server_error", "transfers.create", effect=effect)
    for _ in range(2):
        with pytest.raises(library.APIError) as failed:
            stripe.v1.transfers.create(params(account), {"idempotency_key": "k"})
        assert failed.value.http_status == 500
    assert len(stripe.v1.transfers.list().data) == int(effect)


def test_after_a_day_a_key_executes_again(standin: StripeStandIn, stripe: StripeClient, account: str) -> None:
    options: Any = {"idempotency_key": "k"}
    first = stripe.v1.transfers.create(params(account), options)
    standin.control.advance(DAY - 1)
    assert stripe.v1.transfers.create(params(account), options).id == first.id
    standin.control.advance(1)
    assert stripe.v1.transfers.create(params(account), options).id != first.id


def test_keys_are_apart_for_connected_accounts(
    standin: StripeStandIn, stripe: StripeClient, account: str
) -> None:
    standin.control.fund(500, account=account)
    made = stripe.v1.customers.create({}, {"idempotency_key": "k"})
    other = stripe.v1.customers.create({}, {"idempotency_key": "k", "stripe_account": account})
    assert made.id != other.id


def test_a_key_has_at_most_255_characters(stripe: StripeClient, account: str) -> None:
    stripe.v1.transfers.create(params(account), {"idempotency_key": "k" * 255})
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.transfers.create(params(account), {"idempotency_key": "k" * 256})


def test_what_a_key_was_used_for_is_on_record(standin: StripeStandIn, account: str) -> None:
    client(standin).v1.transfers.create(params(account), key())
    seen = standin.control.requests("transfers.create")[-1]
    assert (seen["params"]["amount"], seen["status"], seen["replayed"]) == (100, 200, False)
