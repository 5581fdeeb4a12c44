"""Where the service is, and how it is reached."""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

ENVIRONMENT_KEY: Final = "TALLYSTICK_API_KEY"
LEDGER_ADDRESS: Final = "127.0.0.1:50051"
METERING_ADDRESS: Final = "127.0.0.1:50052"
PAYOUTS_ADDRESS: Final = "127.0.0.1:50053"
REPORTING_ADDRESS: Final = "127.0.0.1:50054"

OPTIONS: Final = (
    # A server that vanished without a word is noticed within 40 seconds, not after the system's many minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # One that comes back is found again within seconds; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # Error details travel in trailers, which are larger than the default leaves room for.
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)
# Without TLS, whoever relays a call reads the API key. gRPC would send it through a proxy that the
# environment names, even on the way to this machine.
PLAINTEXT_OPTIONS: Final = (*OPTIONS, ("grpc.enable_http_proxy", 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls, and what is trusted."""

    # Not in repr: it would end up in logs.
    api_key: str = field(repr=False)
    tls_ca: Path | None
    insecure: bool

    @classmethod
    def of(cls, api_key: str | None, tls_ca: str | os.PathLike[str] | None, insecure: bool) -> "Caller":
        """The caller that a client was told to be. Raises ValueError if there is no usable API key."""
        key = (os.environ.get(ENVIRONMENT_KEY, "") if api_key is None else api_key).strip()
        if not key:
            raise ValueError(f"an API key is needed: pass api_key, or set {ENVIRONMENT_KEY}")
        if not (key.isascii() and key.isprintable()):
            raise ValueError("the API key holds characters that no key has")
        if tls_ca is not None and insecure:
            raise ValueError("tls_ca asks for TLS and insecure for none: choose one")
        return cls(api_key=key, tls_ca=None if tls_ca is None else Path(tls_ca), insecure=insecure)

    def credentials(self, target: str) -> grpc.ChannelCredentials | None:
        """How to reach `target`: with TLS, or, if None, in plaintext.

        Plaintext is for this machine, and for elsewhere only if asked for: the API key would travel readable.
        """
        if self.tls_ca is not None:
            return grpc.ssl_channel_credentials(self.tls_ca.read_bytes())
        if self.insecure or is_loopback(target):
            return None
        return grpc.ssl_channel_credentials()

    def metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """What is sent with every call."""
        return (("authorization", f"Bearer {self.api_key}"), ("x-request-id", request_id))


def connect(caller: Caller, target: str) -> grpc.Channel:
    """A channel to `target`, as the caller wants to reach it."""
    credentials = caller.credentials(target)
    if credentials is None:
        return grpc.insecure_channel(target, options=PLAINTEXT_OPTIONS)
    return grpc.secure_channel(target, credentials, options=OPTIONS)


def is_loopback(target: str) -> bool:
    """Whether only this machine can be reached by this address. Anything doubtful is not."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
