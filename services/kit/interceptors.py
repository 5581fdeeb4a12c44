"""What happens around every RPC: request id, bound on calls in flight, authentication, authorization,
deadline, errors, log line, metrics.

It is one interceptor, not one per concern, since every layer costs tens of microseconds a call; and it wraps
each method's handler once, not once per call.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge, Histogram

from services.kit import log
from services.kit.access import AccessPolicies, is_open
from services.kit.auth import Authenticator, Principal, Role, set_principal
from services.kit.clock import Clock, SystemClock
from services.kit.errors import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    TallystickError,
    Unauthenticated,
    Unavailable,
)
from services.kit.status import CODES, to_grpc_status, translate

DEFAULT_DEADLINE: Final = timedelta(seconds=30)
MAX_DEADLINE: Final = timedelta(seconds=300)

# A trailer: the time at the server, in UTC, as ISO 8601.
SERVER_TIME: Final = "x-server-time"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_BEARER = "bearer "

_RPCS = Counter("tallystick_rpcs", "RPCs served.", ["method", "code"])
_DURATION = Histogram(
    "tallystick_rpc_duration_seconds",
    "Time from the arrival of an RPC to its end.",
    ["method", "code"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_IN_FLIGHT = Gauge("tallystick_rpcs_in_flight", "RPCs being served, health checks and reflection aside.")

T = TypeVar("T")
# Strings, since only the type stubs make these generic.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class _Meters(NamedTuple):
    """What counts the calls of one method that end with one code."""

    calls: Counter
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class _Method:
    """What is known of a method before any call of it, and its meters by code: to look these up takes longer
    than to count with them.
    """

    path: str
    roles: frozenset[Role] | None
    open: bool
    streaming: bool
    meters: dict[str, _Meters] = field(default_factory=dict)

    def meters_of(self, code: str) -> _Meters:
        found = self.meters.get(code)
        if found is None:
            found = _Meters(_RPCS.labels(self.path, code), _DURATION.labels(self.path, code))
            self.meters[code] = found
        return found


@dataclass(slots=True)
class _Outcome:
    """How one call ended, for its log line and metrics."""

    code: Code = Code.OK
    reason: str = ""
    api_key_id: str = ""
    # Whether the caller got an answer; a stream may end without one.
    told: bool = True


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor of a server.

    Handlers are coroutines or async generators; they raise TallystickError.
    """

    def __init__(
        self,
        *,
        policies: AccessPolicies,
        authenticator: Authenticator,
        max_in_flight: int,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._policies = policies
        self._authenticator = authenticator
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._handlers: dict[str, Handler] = {}
        self._streams: set[asyncio.Timeout] = set()
        # Bound here, since a lazy logger would be assembled anew for every line.
        self._log = log.get_logger().bind()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        path = handler_call_details.method
        wrapped = self._handlers.get(path)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                # Not remembered: there are endless names of methods that do not exist.
                return None
            wrapped = self._handlers[path] = self._wrap(path, handler)
        return wrapped

    def end_streams(self) -> None:
        """End every stream with UNAVAILABLE; its reader resumes elsewhere.

        A stream may last for ever, so a server that stops must not wait for it.
        """
        now = asyncio.get_running_loop().time()
        while self._streams:
            self._streams.pop().reschedule(now)

    def _wrap(self, path: str, handler: Handler) -> Handler:
        method = _Method(
            path=path,
            roles=self._policies.policy_for(path),
            open=is_open(path),
            streaming=bool(handler.request_streaming or handler.response_streaming),
        )
        wrap = self._wrap_responses if handler.response_streaming else self._wrap_response
        return wrap(method, handler)

    def _wrap_response(self, method: _Method, handler: Handler) -> Handler:
        # Requests are parsed, and responses serialized, in here: a stranger's request is not parsed at all,
        # and what fails is logged and answered like any other error.
        behavior: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        parse = _parser(handler)
        serialize = handler.response_serializer or _same

        async def serve(request: Any, context: Context) -> Any:
            async def body() -> Any:
                return serialize(await behavior(parse(request), context))

            return await self._serve(method, context, body)

        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(serve, handler.request_deserializer, None)
        return grpc.unary_unary_rpc_method_handler(serve, None, None)

    def _wrap_responses(self, method: _Method, handler: Handler) -> Handler:
        behavior: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        parse = _parser(handler)

        async def serve(request: Any, context: Context) -> None:
            authorization, _ = _read_metadata(context)
            outcome = _Outcome(told=False)

            async def body() -> None:
                produced = behavior(parse(request), context)
                if not hasattr(produced, "__aiter__"):
                    # A coroutine, which writes to the context itself.
                    await produced
                    outcome.told = True
                    return
                # Closed for certain, so that what the generator holds (a transaction) ends with the call.
                async with aclosing(produced) as messages:
                    async for message in messages:
                        # Before every message, because a stream may outlive its key.
                        if not method.open:
                            await self._authorize(method, authorization)
                        await context.write(message)
                        outcome.told = True

            await self._serve(method, context, body, outcome)

        serialize = handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(serve, handler.request_deserializer, serialize)
        return grpc.unary_stream_rpc_method_handler(serve, None, serialize)

    async def _serve(
        self,
        method: _Method,
        context: Context,
        body: Callable[[], Awaitable[T]],
        outcome: _Outcome | None = None,
    ) -> T:
        """Run one call to its end. Whatever ends it leaves here as gRPC understands it."""
        started = time.perf_counter()
        authorization, request_id = _read_metadata(context)
        log.request_id.set(request_id)
        outcome = outcome or _Outcome()
        try:
            if method.open:
                if not method.streaming:
                    # With the answer of a health check comes the time, by which clocks are compared. Not with
                    # every answer: calls that move money have better to do.
                    context.set_trailing_metadata(((SERVER_TIME, self._clock.now().isoformat()),))
                return await self._run(method, context, body)
            self._enter()
            try:
                principal = await self._authorize(method, authorization)
                outcome.api_key_id = principal.api_key_id
                set_principal(principal)
                return await self._run(method, context, body)
            finally:
                self._leave()
        except asyncio.CancelledError:
            outcome.code = Code.DEADLINE_EXCEEDED if _deadline_passed(context) else Code.CANCELLED
            raise
        except grpc.aio.AbortError:
            outcome.code = CODES.get(context.code(), Code.UNKNOWN)
            raise
        except Exception as error:  # noqa: BLE001 - logged by _answer
            answer = self._answer(error)
            outcome.code, outcome.reason = answer.code, answer.reason
        finally:
            self._record(method, outcome, time.perf_counter() - started)
        # Recorded first, like a success: who has the answer finds its line in the log.
        return await context.abort_with_status(to_grpc_status(answer, request_id=request_id))

    def _enter(self) -> None:
        # Before authentication, which may ask a database: strangers are bounded too.
        if self._in_flight >= self._max_in_flight:
            raise ResourceExhausted(f"more than {self._max_in_flight} calls are in flight")
        self._in_flight += 1
        _IN_FLIGHT.inc()

    def _leave(self) -> None:
        self._in_flight -= 1
        _IN_FLIGHT.dec()

    async def _authorize(self, method: _Method, authorization: str) -> Principal:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("send `authorization: Bearer <API key>`", reason="API_KEY_MISSING")
        principal = await self._authenticator.authenticate(authorization[len(_BEARER) :].strip())
        # A method that declares nobody is nobody's: a forgotten declaration must not open a door.
        if method.roles is None or principal.role not in method.roles:
            raise PermissionDenied(
                f"a key of role {principal.role} may not call {method.path}",
                metadata={"role": principal.role, "method": method.path},
            )
        return principal

    async def _run(self, method: _Method, context: Context, body: Callable[[], Awaitable[T]]) -> T:
        if method.streaming:
            return await self._run_stream(body)
        remaining = _time_remaining(context)
        longest = DEFAULT_DEADLINE if remaining is None else MAX_DEADLINE
        seconds = longest.total_seconds()
        if remaining is not None and remaining <= seconds:
            # gRPC itself cancels the call at the caller's deadline.
            return await body()
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await body()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"not finished within {seconds:g} seconds") from None

    async def _run_stream(self, body: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(None) as stream:
                self._streams.add(stream)
                try:
                    return await body()
                finally:
                    self._streams.discard(stream)
        except TimeoutError:
            if not stream.expired():
                raise
            raise Unavailable("the server is stopping") from None

    def _answer(self, error: Exception) -> TallystickError:
        """What to tell the caller; what to tell us goes to the log."""
        answer = translate(error)
        if answer.code is Code.INTERNAL:
            self._log.error("rpc.failed", exc_info=error)
        elif answer is not error:
            self._log.warning("rpc.dependency_failed", error=type(error).__name__, detail=str(error))
        return answer

    def _record(self, method: _Method, outcome: _Outcome, seconds: float) -> None:
        code = outcome.code.name
        meters = method.meters_of(code)
        meters.calls.inc()
        meters.seconds.observe(seconds)
        # Feeds are asked twice a second whether there is something new.
        nothing_new = outcome.code is Code.OK and not outcome.told
        write = self._log.debug if method.open or nothing_new else self._log.info
        write(
            "rpc.finished",
            method=method.path,
            code=code,
            reason=outcome.reason,
            duration_ms=round(seconds * 1000, 3),
            api_key_id=outcome.api_key_id,
        )


def _read_metadata(context: Context) -> tuple[str, str]:
    """The `authorization` of a call ("" if it has none), and its request id:

    the caller's own, or a new one.
    """
    authorization = request_id = ""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            authorization = value
        elif key == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            request_id = value
    return authorization, request_id or os.urandom(16).hex()


def _time_remaining(context: Context) -> float | None:
    """Seconds to the caller's deadline; None if the caller set none, which the type of gRPC does not tell."""
    return context.time_remaining()


def _deadline_passed(context: Context) -> bool:
    """Whether the caller's deadline cancelled a cancelled call. It strikes there a little earlier."""
    remaining = _time_remaining(context)
    return remaining is not None and remaining < 0.1


def _parser(handler: Handler) -> Callable[[Any], Any]:
    """What makes a single request of its bytes. A stream of requests comes parsed, one by one."""
    deserialize = handler.request_deserializer
    if handler.request_streaming or deserialize is None:
        return _same

    def parse(request: bytes) -> Any:
        try:
            return deserialize(request)
        except DecodeError:
            raise InvalidArgument("the request is not a message of the expected type") from None

    return parse


def _same(message: Any) -> Any:
    return message
