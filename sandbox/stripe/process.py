"""The stand-in as a process of its own, for who runs the suite."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from sandbox.process import ChildProcess
from sandbox.stripe.app import HEALTH
from sandbox.stripe.client import StripeControl
from sandbox.stripe.server import DEFAULT_KEY

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_SECONDS = 30.0
_ANSWER_TIMEOUT_SECONDS = 2.0


class StripeProcess:
    """`python -m sandbox.stripe serve` as our own child, its log in `directory`/stripe.log.

    `url` stays the same over restarts. What Stripe knew does not: it is in memory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        api_key: str = DEFAULT_KEY,
        webhooks: Iterable[tuple[str, str]] = (),
        connect_webhooks: Iterable[tuple[str, str]] = (),
        latency_ms: int = 0,
    ) -> None:
        """Pairs of URL and secret: `webhooks` of the platform, `connect_webhooks` of connected accounts.

        A `port` of 0 is replaced by one that is free now; every answer of the API takes `latency_ms`.
        """
        self.api_key = api_key
        self._endpoints = [(False, *pair) for pair in webhooks] + [(True, *pair) for pair in connect_webhooks]
        # Chosen here, since it has to come back to it after a restart.
        self._address = f"127.0.0.1:{port or _free_port()}"
        self.url = f"http://{self._address}"
        self.control = StripeControl(self.url)
        arguments = ["--address", self._address, "--api-key", api_key, "--latency-ms", str(latency_ms)]
        self._process = ChildProcess(
            "the stand-in for Stripe",
            [sys.executable, "-m", "sandbox.stripe", "serve", *arguments],
            log_path=directory.resolve() / "stripe.log",
            cwd=ROOT,
            pid_file=directory.resolve() / "stripe.pid",
        )

    @property
    def running(self) -> bool:
        return self._process.running

    def check(self) -> None:
        """SandboxError with the end of the log when it is not running."""
        self._process.check()

    def start(self) -> None:
        """Start and return when it answers and knows where webhooks go.

        Raises:
            SandboxError: it did not start; the end of its log says why.
        """
        if self.running:
            return
        self._process.start()
        try:
            self._process.wait_until(self._answers, timeout=START_TIMEOUT_SECONDS)
            # Told to it and not on its command line, which everybody on the machine can read.
            for connect, url, secret in self._endpoints:
                self.control.run("webhooks add", url=url, secret=secret, connect=connect)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop; start() brings it back at the same URL, with nothing in it."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_TIMEOUT_SECONDS)
        try:
            connection.request("GET", HEALTH)
            # Somebody else may listen there, whose answers must not be taken for ours.
            return bool(json.loads(connection.getresponse().read())["pid"] == self._process.pid)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
