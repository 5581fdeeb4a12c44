"""How services, and tests, call each other."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from services.kit import log
from services.kit.net import is_loopback

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
DEFAULT_TIMEOUT: Final = timedelta(seconds=30)

_OPTIONS: Final = (
    # A proxy that the environment names would be sent the API key, even for this machine.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Error details travel in trailers, which are larger than the default leaves room for.
    ("grpc.max_metadata_size", 32 * 1024),
    # A peer that vanished without a word is noticed within 40 seconds, also while a stream is idle.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that comes back is found again within seconds; the default backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
)


def connect(
    target: str,
    api_key: str | None,
    *,
    tls_ca: Path | None = None,
    insecure: bool = False,
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> grpc.aio.Channel:
    """A channel that sends `api_key`, and the id of the current request, with every call.

    Without a key of its own each call has to bring one: `metadata=authorization(key)`.

    With `tls_ca` (PEM roots) the channel is encrypted. In plaintext a key is sent over loopback only, unless
    `insecure` says that something else encrypts the traffic; otherwise raises ValueError. Unary calls get
    `timeout` unless they bring their own. Calls fail at once while the service is away.
    """
    if tls_ca is not None:
        credentials = grpc.ssl_channel_credentials(tls_ca.read_bytes())
        return _Channel(grpc.aio.secure_channel(target, credentials, options=_OPTIONS), api_key, timeout)
    if not insecure and not is_loopback(target):
        raise ValueError(f"{target} is not on this machine: an API key is not sent there in plaintext")
    return _Channel(grpc.aio.insecure_channel(target, options=_OPTIONS), api_key, timeout)


def authorization(api_key: str) -> tuple[tuple[str, str]]:
    """The metadata that says who is calling."""
    return (("authorization", f"Bearer {api_key}"),)


class _Channel(grpc.aio.Channel):
    """Adds metadata to every call of another channel. (An interceptor would cost a task per call.)"""

    def __init__(self, inner: grpc.aio.Channel, api_key: str | None, timeout: timedelta) -> None:
        self._inner = inner
        self._authorization: tuple[()] | tuple[tuple[str, str]] = (
            () if api_key is None else authorization(api_key)
        )
        self._timeout = timeout.total_seconds()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner.unary_unary(*args, **kwargs), self._timeout)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner.unary_stream(*args, **kwargs), None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner.stream_unary(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._inner.stream_stream(*args, **kwargs), None)

    def _call(self, inner: Callable[..., Any], default_timeout: float | None) -> Callable[..., Any]:
        def call(
            request: Any = None,
            *,
            timeout: float | None = None,
            metadata: Sequence[tuple[str, str | bytes]] | None = None,
            **kwargs: Any,
        ) -> Any:
            sent = [*(metadata or ()), *self._authorization]
            if request_id := log.request_id.get():
                sent.append(("x-request-id", request_id))
            return inner(
                request,
                timeout=default_timeout if timeout is None else timeout,
                metadata=sent,
                **{"wait_for_ready": False} | kwargs,
            )

        return call

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self._inner.__aexit__(exc_type, exc_val, exc_tb)
