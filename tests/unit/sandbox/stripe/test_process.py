"""The stand-in as a process of its own, and what keeps it a good neighbour."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stripe import StripeClient

from sandbox.process import SandboxError
from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import Receiver, key, pay, payee

ROOT = Path(__file__).resolve().parents[4]


def test_serve_says_where_it_listens_and_ends_on_sigterm() -> None:
    argv = [sys.executable, "-m", "sandbox.stripe", "serve", "--address", "127.0.0.1:0", "--latency-ms", "40"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.fullmatch(r"Stripe stands in at http://(127\.0\.0\.1:\d+) for the key (\S+)\n", line)
        assert found is not None
        connection = http.client.HTTPConnection(found[1])
        # The line is true: who reads it may connect at once.
        connection.request("GET", "/_health")
        assert json.loads(connection.getresponse().read()) == {"status": "serving", "pid": child.pid}
        began = time.monotonic()
        connection.request("GET", "/v1/balance", headers={"Authorization": f"Bearer {found[2]}"})
        assert connection.getresponse().read()
        assert time.monotonic() - began >= 0.04
        # A connection that is kept open holds nothing up.
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
        assert child.stdout.read() == ""


def test_every_answer_can_take_a_while(standin: StripeStandIn, stripe: StripeClient) -> None:
    standin.control.run("latency set", ms=50)
    for look in (lambda: stripe.v1.balance.retrieve(), lambda: stripe.v1.customers.list()):
        began = time.monotonic()
        look()
        assert time.monotonic() - began >= 0.05
    with pytest.raises(SandboxError):
        standin.control.run("latency set", ms=-1)
    standin.control.run("latency set", ms=0)


def test_all_accounts_are_onboarded_at_once(standin: StripeStandIn, stripe: StripeClient) -> None:
    wanted: Any = {"type": "express", "capabilities": {"transfers": {"requested": True}}}
    accounts = [stripe.v1.accounts.create(wanted, key()).id for _ in range(3)]
    standin.control.onboard(accounts[0])
    gone = stripe.v1.accounts.create(wanted, key()).id
    standin.control.run("account deauthorize", account=gone)
    assert sorted(standin.control.run("account onboard-all")["onboarded"]) == sorted(accounts[1:])
    assert all(account.payouts_enabled for account in stripe.v1.accounts.list().data)


def test_an_account_is_given_a_bank_that_fails(standin: StripeStandIn, stripe: StripeClient) -> None:
    account = payee(standin, stripe)
    standin.control.fund(100, account=account)
    made = standin.control.run("account bank-number", account=account, number="000111111113")
    assert (made["last4"], made["default_for_currency"]) == ("1113", True)
    payout = stripe.v1.payouts.create({"amount": 1, "currency": "usd"}, key(account))
    standin.control.run("payout arrive", payout=payout.id)
    found = stripe.v1.payouts.retrieve(payout.id, options={"stripe_account": account})
    assert (found.status, found.failure_code) == ("failed", "account_closed")
    with pytest.raises(SandboxError, match="Unknown test number"):
        standin.control.run("account bank-number", account=account, number="1")


def test_what_gathered_while_paused_is_sent_in_order(
    standin: StripeStandIn, stripe: StripeClient, receiver: Receiver
) -> None:
    standin.control.run("webhooks pause")
    account = payee(standin, stripe)
    standin.control.fund(100)
    made = [pay(stripe, account, 1).id for _ in range(20)]
    standin.control.run("webhooks resume")
    sent = [event["data"]["object"]["id"] for event in receiver.of("transfer.created")]
    assert sent == made
