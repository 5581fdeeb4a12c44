"""Who calls what, and where: the options that all commands share, and the calls made by them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from google.protobuf.message import Message

from tallystick._channel import (
    ENVIRONMENT_KEY,
    LEDGER_ADDRESS,
    METERING_ADDRESS,
    PAYOUTS_ADDRESS,
    REPORTING_ADDRESS,
    Caller,
    connect,
)
from tallystick._operations import new_request_id
from tallystick._retry import Attempts, RetryPolicy
from tallystick._status import from_rpc_error
from tallystick.cli.failures import Misuse
from tallystick.client import Client

M = TypeVar("M", bound=Message)

DEFAULT_ADDRESSES: Final = {
    "ledger": LEDGER_ADDRESS,
    "metering": METERING_ADDRESS,
    "payouts": PAYOUTS_ADDRESS,
    "reporting": REPORTING_ADDRESS,
}
SERVICES: Final = tuple(DEFAULT_ADDRESSES)
TLS_CA: Final = "TALLYSTICK_TLS_CA_FILE"
INSECURE: Final = "TALLYSTICK_INSECURE"
# Somebody waits for it.
DEFAULT_TIMEOUT: Final = 5.0


def address_variable(service: str) -> str:
    """The environment variable that says where a service is."""
    return f"TALLYSTICK_{service.upper()}_ADDRESS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that all commands share; None for those that were not given."""

    api_key: str | None = None
    api_key_file: Path | None = None
    ledger: str | None = None
    metering: str | None = None
    payouts: str | None = None
    reporting: str | None = None
    tls_ca: Path | None = None
    insecure: bool | None = None
    timeout: float | None = None
    json: bool | None = None

    def over(self, others: Options) -> Options:
        """These, and for what was not given, the others."""
        ours, theirs = self._given(), others._given()
        if "api_key" in ours or "api_key_file" in ours:
            # One way to name the key stands for both.
            theirs.pop("api_key", None)
            theirs.pop("api_key_file", None)
        return Options(**theirs | ours)

    def _given(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in given.items() if value is not None}


class Session:
    """One run of a command. Nothing is connected before it is needed."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._cleanup = ExitStack()
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def timeout(self) -> float:
        """How long a call may take, attempts and waits together, in seconds."""
        return self._options.timeout or DEFAULT_TIMEOUT

    @property
    def now(self) -> datetime:
        """The present moment, by the clock of this machine."""
        return datetime.now(UTC)

    def address(self, service: str) -> str:
        """Where a service is: as the option, the environment or the default says."""
        told: str | None = getattr(self._options, service)
        return told or self._environ.get(address_variable(service)) or DEFAULT_ADDRESSES[service]

    @cached_property
    def caller(self) -> Caller:
        """Who calls. Raises Misuse if no usable key was given."""
        try:
            return Caller.of(self._api_key(), self._trust.tls_ca, self._trust.insecure)
        except ValueError as error:
            raise Misuse(str(error)) from None

    @cached_property
    def _trust(self) -> Caller:
        """How services are reached, whoever calls: some things may be asked without a key."""
        tls_ca = self._options.tls_ca or self._environ.get(TLS_CA) or None
        insecure = self._options.insecure
        if insecure is None:
            insecure = self._environ.get(INSECURE, "").lower() in ("1", "true", "yes", "on")
        try:
            return Caller.of("none", tls_ca, insecure)
        except ValueError as error:
            raise Misuse(str(error)) from None

    @cached_property
    def client(self) -> Client:
        """The client of the SDK."""
        # The same key, and the same trust, as the stubs have.
        caller = self.caller
        client = Client(
            caller.api_key,
            metering=self.channel("metering"),
            payouts=self.channel("payouts"),
            reporting=self.channel("reporting"),
            retry=RetryPolicy(timeout=self.timeout),
        )
        self._cleanup.callback(client.close)
        return client

    def channel(self, service: str) -> grpc.Channel:
        """The channel to a service. Raises Misuse if it cannot be reached as asked for."""
        if service not in self._channels:
            try:
                channel = connect(self._trust, self.address(service))
            except OSError as error:
                raise Misuse(f"cannot read the roots of trust: {error}") from None
            self._cleanup.callback(channel.close)
            self._channels[service] = channel
        return self._channels[service]

    def call(self, method: Callable[..., M], request: Message, *, patience: float | None = None) -> M:
        """Call a method of a stub, and again after errors that may pass, as the client does.

        `patience` is how long it may take, in seconds, unless the options say. Only for what may be sent
        again: reads, and what has an idempotency key. Raises TallystickError.
        """
        timeout = self._options.timeout or patience or DEFAULT_TIMEOUT
        policy = RetryPolicy(timeout=timeout)
        if patience is not None:
            policy = RetryPolicy(timeout=timeout, attempt_timeout=timeout)
        attempts = Attempts(policy, None)
        request_id = new_request_id()
        metadata = self.caller.metadata(request_id)
        while True:
            try:
                return method(request, timeout=attempts.timeout(), metadata=metadata)
            except grpc.RpcError as error:
                raised = from_rpc_error(error, request_id=request_id)
            time.sleep(attempts.wait_after(raised))

    def stream(self, method: Callable[..., Iterable[M]], request: Message) -> Generator[M, None, None]:
        """The messages of a stream, which ends when this is closed. Raises TallystickError.

        It may take as long as it takes; a server that vanishes is noticed by its silence to pings.
        """
        request_id = new_request_id()
        call: Any = method(request, metadata=self.caller.metadata(request_id))
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error, request_id=request_id) from None
        finally:
            call.cancel()

    def _api_key(self) -> str:
        options, environ = self._options, self._environ
        if options.api_key is not None:
            return options.api_key
        if options.api_key_file is not None:
            return _read(options.api_key_file)
        if environ.get(ENVIRONMENT_KEY):
            return environ[ENVIRONMENT_KEY]
        if file := environ.get(f"{ENVIRONMENT_KEY}_FILE"):
            return _read(Path(file))
        raise Misuse(
            f"an API key is needed; do: give --api-key-file, or set {ENVIRONMENT_KEY} or"
            f" {ENVIRONMENT_KEY}_FILE"
        )


def of_environment(options: Options) -> Session:
    """The session of this process."""
    return Session(options, os.environ)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misuse(f"cannot read the API key: {error}") from None
