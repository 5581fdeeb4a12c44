"""The control API from Python: what tests and the command line drive the stand-in with."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from sandbox.process import SandboxError
from sandbox.stripe.values import Json

TIMEOUT_SECONDS = 120


class StripeControl:
    """Commands over HTTP; usable from any thread or process."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc

    def run(self, words: str, **arguments: object) -> Json:
        """One command, such as `run("clock advance", seconds=60)`.

        Raises:
            SandboxError: it was refused, or there is no stand-in at that address.
        """
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", f"/_control/{words.replace(' ', '/')}", json.dumps(arguments))
            response = connection.getresponse()
            answered: Json = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SandboxError(f"no stand-in for Stripe answers at {self._address}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise SandboxError(f"{words}: {answered['error']['message']}")
        return answered

    def advance(self, seconds: int) -> int:
        """Move the clock forward; the new time."""
        return int(self.run("clock advance", seconds=seconds)["now"])

    def fault(self, kind: str, operation: str = "*", **more: object) -> None:
        """Let the next call fail; see `faults kinds`, and `count`, `skip`, `ms`, `effect` of `faults add`."""
        self.run("faults add", kind=kind, operation=operation, **more)

    def onboard(self, account: str) -> Json:
        return self.run("account onboard", account=account)

    def fund(self, amount: int, currency: str = "usd", account: str = "") -> Json:
        return self.run("balance fund", amount=amount, currency=currency, account=account)

    def deliver(self, event: str = "") -> list[Json]:
        """Send every webhook that waits, whatever holds it; returns once they were answered."""
        sent: list[Json] = self.run("webhooks deliver", event=event)["sent"]
        return sent

    def settle_webhooks(self) -> list[Json]:
        """Send what is due, and return once it was answered."""
        sent: list[Json] = self.run("webhooks settle")["sent"]
        return sent

    def state(self) -> Json:
        return self.run("state get")

    def requests(self, operation: str = "") -> list[Json]:
        found: list[Json] = self.run("record requests", operation=operation, limit=20_000)["requests"]
        return found

    @property
    def violations(self) -> list[Json]:
        """The stand-in's own mistakes: a test asserts that there are none."""
        found: list[Json] = self.run("record problems")["violations"]
        return found

    @property
    def complaints(self) -> list[Json]:
        """What callers should not have done."""
        found: list[Json] = self.run("record problems")["complaints"]
        return found
