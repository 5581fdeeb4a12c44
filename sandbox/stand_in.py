"""Whom payouts takes for Stripe: the stand-in as a process, or Stripe itself when STRIPE_API_KEY is set."""

from __future__ import annotations

import http.client
import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from sandbox.process import ChildProcess, SandboxError
from sandbox.stripe.app import HEALTH
from sandbox.stripe.client import StripeControl
from sandbox.stripe.server import DEFAULT_KEY

START_TIMEOUT_SECONDS = 60.0
_ANSWER_TIMEOUT_SECONDS = 2.0


class StandIn:
    """`python -m sandbox.stripe serve` on a port of loopback; it tells payouts of every event.

    It begins with nothing: whatever an earlier one knew is forgotten.
    """

    def __init__(self, port: int, *, log_path: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self._control = StripeControl(f"http://{self.address}")
        # Ids of its own: those of an earlier one are in the database of payouts, and mean something else.
        seed = secrets.token_hex(8)
        self.process = ChildProcess(
            "the stand-in for Stripe",
            [sys.executable, "-m", "sandbox.stripe", "serve", "--address", self.address, "--seed", seed],
            log_path=log_path,
            env=env,
            cwd=cwd,
            pid_file=log_path.with_suffix(".pid"),
        )

    def settings(self) -> dict[str, str]:
        """What payouts is told of it."""
        return {
            "STRIPE_API_KEY": DEFAULT_KEY,
            "PAYOUTS_STRIPE_BASE_URL": f"http://{self.address}",
            # Who lets a week pass at the stand-in lets it pass for payouts too.
            "PAYOUTS_CLOCK_URL": f"http://{self.address}/_control/clock/get",
        }

    def wait_until_ready(self, webhook_url: str, webhook_secrets: str) -> None:
        """Return when it answers, and knows where payouts receives events. Of the two secrets, separated by a
        comma, the first signs the platform's, the second those of connected accounts.

        Raises:
            SandboxError: it ended, or did not answer in time.
        """
        self.process.wait_until(self._answers, timeout=START_TIMEOUT_SECONDS)
        # Not as its arguments, which every account of this machine may read.
        for connect, secret in zip((False, True), webhook_secrets.split(","), strict=True):
            self._control.run("webhooks add", url=webhook_url, secret=secret, connect=connect)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=_ANSWER_TIMEOUT_SECONDS)
        try:
            connection.request("GET", HEALTH)
            # Somebody else may listen there, whose answers must not be taken for ours.
            return bool(json.loads(connection.getresponse().read())["pid"] == self.process.pid)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False
        finally:
            connection.close()


def stripe_itself(environment: Mapping[str, str]) -> bool:
    """Whether these variables name a key of Stripe's, with what else payouts needs to be told then.

    Raises:
        SandboxError: the key is a live one, or the secrets of the webhooks are missing.
    """
    key = _given(environment, "STRIPE_API_KEY")
    if not key:
        return False
    if "_live_" in key:
        # Credits are granted for nothing here: nobody may be paid for them.
        raise SandboxError("STRIPE_API_KEY is a live key: the sandbox moves no real money; take a test key")
    if not _given(environment, "PAYOUTS_WEBHOOK_SECRETS"):
        raise SandboxError(
            "STRIPE_API_KEY is set, so PAYOUTS_WEBHOOK_SECRETS must be set too: the signing secrets (whsec_…)"
            " of the webhook endpoints at Stripe, separated by commas"
        )
    return True


def _given(environment: Mapping[str, str], name: str) -> str:
    """A secret as the services take it, from a variable or from the file that another one names; or empty."""
    file = environment.get(f"{name}_FILE")
    try:
        return environment.get(name) or (Path(file).read_text().strip() if file else "")
    except OSError as error:
        raise SandboxError(f"{name}_FILE: cannot read {file}: {error.strerror}") from None
