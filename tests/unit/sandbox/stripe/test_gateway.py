"""Who may call, what is a valid call, and what is on record."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe as library
from stripe import StripeClient
from stripe._api_version import _ApiVersion

from sandbox.process import SandboxError
from sandbox.stripe import handlers, spec
from sandbox.stripe.server import StripeStandIn
from sandbox.stripe.world import Operation
from tests.unit.sandbox.stripe.driving import client, key, pay, payee


def raw(standin: StripeStandIn, method: str, path: str, body: str = "", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(standin.url).netloc)
    given = {"Authorization": f"Bearer {standin.api_key}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def test_the_library_and_the_document_are_of_one_version() -> None:
    assert spec.load().version == _ApiVersion.CURRENT


def test_an_unknown_or_revoked_key_is_unauthorized(standin: StripeStandIn) -> None:
    with pytest.raises(library.AuthenticationError):
        client(standin, "sk_test_other").v1.balance.retrieve()
    standin.control.run("keys revoke", key=standin.api_key)
    with pytest.raises(library.AuthenticationError):
        client(standin).v1.balance.retrieve()
    standin.control.run("keys add", key=standin.api_key)
    client(standin).v1.balance.retrieve()


def test_a_restricted_key_may_do_what_it_may(standin: StripeStandIn) -> None:
    standin.control.run("keys add", key="rk_test_1", allowed="balance.*,transfers.list")
    restricted = client(standin, "rk_test_1")
    restricted.v1.balance.retrieve()
    restricted.v1.transfers.list()
    with pytest.raises(library.PermissionError) as refused:
        restricted.v1.customers.create({}, key())
    assert refused.value.http_status == 403


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ("amount=1&currency=usd", "parameter_missing", "destination"),
        ("currency=usd&destination=a&colour=red", "parameter_unknown", "colour"),
        ("currency=usd&destination=a&amount=1.5", "parameter_invalid_integer", "amount"),
    ],
)
def test_parameters_are_checked_against_the_document(
    standin: StripeStandIn, body: str, code: str, param: str
) -> None:
    status, answer = raw(standin, "POST", "/v1/transfers", body, Idempotency_Key="k")
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, code, param)
    assert [item["kind"] for item in standin.control.complaints] == ["invalid_request"]


def test_what_is_not_built_says_so(standin: StripeStandIn, stripe: StripeClient) -> None:
    with pytest.raises(library.APIError, match="does not implement GetInvoices") as refused:
        stripe.v1.invoices.list()
    assert refused.value.http_status == 501
    assert raw(standin, "GET", "/v1/nothing")[0] == 404
    assert [item["kind"] for item in standin.control.complaints] == ["not_built", "unknown_url"]


def test_a_post_without_a_key_and_another_version_are_on_record(standin: StripeStandIn) -> None:
    raw(standin, "POST", "/v1/customers", "name=A")
    raw(standin, "GET", "/v1/balance", Stripe_Version="2020-08-27")
    kinds = [(item["kind"], item["detail"]) for item in standin.control.complaints]
    assert kinds == [("no_idempotency_key", "customers.create"), ("other_version", "2020-08-27")]
    standin.control.run("record clear")
    assert standin.control.complaints == []


def test_every_answer_names_its_request(standin: StripeStandIn, stripe: StripeClient) -> None:
    balance = stripe.v1.balance.retrieve()
    assert balance.last_response is not None
    assert balance.last_response.request_id == standin.control.requests()[-1]["id"]


def test_ids_are_the_same_in_every_run() -> None:
    def one(seed: str) -> str:
        with StripeStandIn(seed=seed) as it:
            return client(it).v1.customers.create({}, key()).id

    assert one("a") == one("a") != one("b")


def test_lists_are_paged_both_ways(standin: StripeStandIn, stripe: StripeClient) -> None:
    ids = [stripe.v1.customers.create({"name": str(n)}, key()).id for n in range(5)]
    newest_first = ids[::-1]
    first = stripe.v1.customers.list({"limit": 2})
    assert ([item.id for item in first.data], first.has_more) == (newest_first[:2], True)
    after = stripe.v1.customers.list({"limit": 2, "starting_after": newest_first[1]})
    assert [item.id for item in after.data] == newest_first[2:4]
    before = stripe.v1.customers.list({"limit": 2, "ending_before": newest_first[4]})
    assert ([item.id for item in before.data], before.has_more) == (newest_first[2:4], True)
    assert [item.id for item in stripe.v1.customers.list({"limit": 2}).auto_paging_iter()] == newest_first
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.customers.list({"limit": 101})


def test_ids_are_expanded_on_demand(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(100)
    transfer = pay(stripe, account, 1, expand=["destination", "balance_transaction.source"])
    assert transfer.destination.id == account
    assert transfer.balance_transaction.source.id == transfer.id
    listed = stripe.v1.transfers.list({"expand": ["data.destination"]})
    assert getattr(listed.data[0].destination, "id", None) == account
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.transfers.list({"expand": ["data.amount"]})


@pytest.mark.parametrize("broken", [{"object": "balance"}, None])
def test_a_mistake_of_ours_is_loud(
    standin: StripeStandIn, stripe: StripeClient, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    def retrieve(_: object) -> Any:
        return broken if broken else broken["missing"]

    monkeypatch.setitem(handlers.OPERATIONS, "GetBalance", Operation("balance.retrieve", retrieve))
    with pytest.raises(library.APIError, match="The stand-in") as failed:
        stripe.v1.balance.retrieve()
    assert failed.value.http_status == 500
    assert [item["where"] for item in standin.control.violations] == ["GetBalance"]
    standin.control.run("record clear")


def test_an_invalid_event_is_a_mistake_of_ours(standin: StripeStandIn) -> None:
    standin.control.run("events send", type="customer.created", object={"object": "customer", "id": 1})
    assert "customer.created" in standin.control.violations[0]["where"]
    standin.control.run("record clear")


def test_the_platform_is_an_account_too(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    assert stripe.v1.accounts.retrieve_current().id == "acct_platform"
    assert stripe.v1.accounts.retrieve_current(options={"stripe_account": account}).id == account


def test_the_control_api_refuses_what_it_does_not_know(standin: StripeStandIn) -> None:
    for words, arguments in (("clock stop", {}), ("clock advance", {}), ("clock advance", {"seconds": "1"})):
        with pytest.raises(SandboxError):
            standin.control.run(words, **arguments)
    assert raw(standin, "POST", "/_control/clock/get", "[]")[0] == 400
    assert raw(standin, "POST", "/_control/clock/get", "{")[0] == 400
    with pytest.raises(SandboxError, match="forward"):
        standin.control.run("clock set", at=1)
