"""Accounts: from a link to an active capability, and back."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe as library
from stripe import StripeClient

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import Receiver, key, payee

CONTROLLER: Any = {
    "stripe_dashboard": {"type": "express"},
    "fees": {"payer": "application"},
    "losses": {"payments": "application"},
}


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def visit(url: str, **form: str) -> tuple[int, str]:
    """Status and Location of a page that a browser would open."""
    data = urlencode(form).encode() if form else None
    try:
        with urllib.request.build_opener(_Stay).open(url, data) as page:
            return int(page.status), ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Location", "")


def link(stripe: StripeClient, account: str) -> str:
    made = stripe.v1.account_links.create(
        {
            "account": account,
            "type": "account_onboarding",
            "return_url": "http://127.0.0.1/return",
            "refresh_url": "http://127.0.0.1/refresh",
        },
        key(),
    )
    return made.url


def test_onboarding_by_link_makes_transfers_active(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    made = stripe.v1.accounts.create(
        {
            "country": "US",
            "email": "payee@example.com",
            "controller": CONTROLLER,
            "capabilities": {"transfers": {"requested": True}},
            "metadata": {"organization": "o1"},
        },
        key(),
    )
    assert made.capabilities is not None
    assert made.capabilities.transfers == "inactive"
    assert made.requirements is not None
    assert made.requirements.currently_due
    assert made.type == "express"

    url = link(stripe, made.id)
    assert visit(url) == (200, "")
    assert visit(url, outcome="complete", code="111-111")[0] == 400
    assert visit(url, outcome="complete", code="000-000") == (303, "http://127.0.0.1/return")

    account = stripe.v1.accounts.retrieve(made.id)
    assert account.capabilities is not None
    assert account.capabilities.transfers == "active"
    assert (account.payouts_enabled, account.details_submitted) == (True, True)
    assert account.requirements is not None
    assert account.requirements.currently_due == []
    standin.control.settle_webhooks()
    updates = receiver.of("account.updated")
    assert updates[-1]["account"] == made.id
    assert updates[-1]["data"]["object"]["capabilities"] == {"transfers": "active"}
    assert updates[-1]["data"]["previous_attributes"]["details_submitted"] is False


def test_a_link_serves_once_and_for_five_minutes(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = stripe.v1.accounts.create({"controller": CONTROLLER}, key()).id
    used, late = link(stripe, account), link(stripe, account)
    assert visit(used) == (200, "")
    assert visit(used) == (302, "http://127.0.0.1/refresh")
    standin.control.advance(300)
    assert visit(late) == (302, "http://127.0.0.1/refresh")


def test_leaving_a_link_changes_nothing(stripe: StripeClient) -> None:
    account = stripe.v1.accounts.create({"type": "express"}, key()).id
    url = link(stripe, account)
    visit(url)
    assert visit(url, outcome="leave") == (303, "http://127.0.0.1/return")
    assert stripe.v1.accounts.retrieve(account).details_submitted is False


def test_a_disabled_capability_says_why(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    account = payee(standin, stripe)
    standin.control.run("account capability", account=account, reason="platform_paused")
    capability = stripe.v1.accounts.capabilities.retrieve(account, "transfers")
    assert capability.status == "inactive"
    assert capability.requirements is not None
    assert capability.requirements.disabled_reason == "platform_paused"
    standin.control.settle_webhooks()
    assert receiver.of("capability.updated")[-1]["data"]["object"]["status"] == "inactive"
    standin.control.onboard(account)
    assert stripe.v1.accounts.capabilities.retrieve(account, "transfers").status == "active"


def test_a_disabled_account_says_why(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    for command in ("disable", "capability"):
        with pytest.raises(SandboxError, match="Unknown reason"):
            standin.control.run(f"account {command}", account=account, reason="mood")
    standin.control.run("account disable", account=account, reason="under_review")
    found = stripe.v1.accounts.retrieve(account)
    assert found.requirements is not None
    assert found.requirements.disabled_reason == "under_review"
    assert found.payouts_enabled is False

    rejected = stripe.v1.accounts.reject(account, {"reason": "fraud_other"}, key())
    assert rejected.requirements is not None
    assert rejected.requirements.disabled_reason == "rejected.fraud"


def test_a_custom_account_becomes_active_once_nothing_is_due(stripe: StripeClient) -> None:
    account = stripe.v1.accounts.create(
        {
            "controller": {"stripe_dashboard": {"type": "none"}, "requirement_collection": "application"},
            "capabilities": {"transfers": {"requested": True}},
            "tos_acceptance": {"date": 1, "ip": "127.0.0.1"},
        },
        key(),
    )
    bank = stripe.v1.accounts.external_accounts.create(
        account.id,
        {
            "external_account": {
                "object": "bank_account",
                "country": "US",
                "currency": "usd",
                "routing_number": "110000000",
                "account_number": "000123456789",
            }
        },
        key(),
    )
    assert bank.last4 == "6789"
    found = stripe.v1.accounts.retrieve(account.id)
    assert found.capabilities is not None
    assert found.capabilities.transfers == "active"


def test_external_accounts_are_kept(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    first = stripe.v1.accounts.external_accounts.list(account).data[0]
    card = stripe.v1.accounts.external_accounts.create(
        account,
        {"external_account": "tok_visa_debit_us_transferSuccess", "default_for_currency": True},
        key(),
    )
    listed = stripe.v1.accounts.external_accounts.list(account, {"object": "card"})
    assert [item.id for item in listed.data] == [card.id]
    stripe.v1.accounts.external_accounts.update(account, first.id, {"metadata": {"a": "b"}}, key())
    stripe.v1.accounts.external_accounts.delete(account, first.id)
    kept = stripe.v1.accounts.retrieve(account).external_accounts
    assert kept is not None
    assert [item.id for item in kept.data] == [card.id]
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.accounts.external_accounts.create(account, {"external_account": "tok_unknown"}, key())


def test_who_deauthorized_is_unknown_from_then_on(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    account = payee(standin, stripe)
    standin.control.run("account deauthorize", account=account)
    standin.control.settle_webhooks()
    assert receiver.of("account.application.deauthorized")[0]["account"] == account
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.accounts.retrieve(account)
    with pytest.raises(library.PermissionError) as refused:
        stripe.v1.balance.retrieve(options={"stripe_account": account})
    assert refused.value.http_status == 403
    assert stripe.v1.accounts.list().data == []


def test_accounts_are_changed_listed_and_deleted(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    changed = stripe.v1.accounts.update(account, {"metadata": {"a": "1"}, "email": "new@example.com"}, key())
    assert changed.email == "new@example.com"
    assert changed.metadata is not None
    assert changed.metadata["a"] == "1"
    assert [item.id for item in stripe.v1.accounts.list().data] == [account]
    assert stripe.v1.accounts.login_links.create(account, options=key()).url.startswith(standin.url)
    assert stripe.v1.accounts.delete(account).id == account
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.accounts.retrieve(account)


def test_losses_on_stripe_do_not_go_with_transfers(stripe: StripeClient) -> None:
    with pytest.raises(library.InvalidRequestError):
        stripe.v1.accounts.create(
            {
                "controller": {"losses": {"payments": "stripe"}, "stripe_dashboard": {"type": "express"}},
                "capabilities": {"transfers": {"requested": True}},
            },
            key(),
        )
