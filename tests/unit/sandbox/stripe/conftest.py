"""A stand-in with a frozen clock for each test, and a receiver for its webhooks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from stripe import StripeClient

from sandbox.stripe.server import StripeStandIn
from tests.unit.sandbox.stripe.driving import (
    CONNECT_SECRET,
    SECRET,
    START,
    Received,
    Receiver,
    client,
)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            # The header may be missing on purpose.
            found.received.append(Received(self.path, body, self.headers.get("Stripe-Signature", "")))
            self.send_response(found.statuses.pop(0) if found.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def standin(receiver: Receiver) -> Iterator[StripeStandIn]:
    """Its answers are all valid, or the test fails."""
    with StripeStandIn(
        start=START,
        frozen=True,
        webhooks=[(receiver.url + "/platform", SECRET)],
        connect_webhooks=[(receiver.url + "/connect", CONNECT_SECRET)],
    ) as it:
        yield it
        assert it.control.violations == []


@pytest.fixture
def stripe(standin: StripeStandIn) -> StripeClient:
    return client(standin)
