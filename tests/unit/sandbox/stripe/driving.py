"""How the tests drive the stand-in: with the real library, and with a receiver that keeps webhooks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn

START = 1_793_000_000
SECRET, CONNECT_SECRET = "whsec_platform", "whsec_connect"


@dataclass
class Received:
    path: str
    body: bytes
    signature: str

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


@dataclass
class Receiver:
    """Keeps what it is sent; answers with the next of `statuses`, then with 200."""

    url: str
    received: list[Received] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    def types(self) -> list[str]:
        return [received.event["type"] for received in self.received]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [received.event for received in self.received if received.event["type"] == kind]


def client(standin: StripeStandIn, key: str = "", retries: int = 0) -> StripeClient:
    return StripeClient(
        key or standin.api_key, base_addresses={"api": standin.url}, max_network_retries=retries
    )


_keys = count(1)


def key(account: str = "") -> Any:
    """Request options with a fresh idempotency key."""
    options: dict[str, str] = {"idempotency_key": f"key-{next(_keys)}"}
    return options | {"stripe_account": account} if account else options


def payee(standin: StripeStandIn, stripe: StripeClient, **more: Any) -> str:
    """An account that has completed onboarding."""
    params: Any = {
        "country": "US",
        "controller": {
            "stripe_dashboard": {"type": "express"},
            "fees": {"payer": "application"},
            "losses": {"payments": "application"},
        },
        "capabilities": {"transfers": {"requested": True}},
        **more,
    }
    account = stripe.v1.accounts.create(params, key())
    standin.control.onboard(account.id)
    return account.id


def pay(stripe: StripeClient, account: str, amount: int, **more: Any) -> Any:
    params: Any = {"amount": amount, "currency": "usd", "destination": account, **more}
    return stripe.v1.transfers.create(params, key())
