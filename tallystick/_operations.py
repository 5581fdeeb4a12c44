"""What the clients do, written once for both.

An operation is a generator: it yields what it wants done (a call, a wait), is sent what came of it, and
returns the result or raises. Neither threads nor event loops appear here; the clients drive it, each in its
own way.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, cast

from google.protobuf.message import Message

from tallystick._convert import (
    balance_from_proto,
    event_to_proto,
    metered_from_proto,
    repeats,
    verdict_from_proto,
)
from tallystick._retry import Attempts, RetryPolicy
from tallystick.errors import ChargePending, IdempotencyKeyReused, Internal, TallystickError
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.models import Balance, Metered, UsageEvent

# Half of what a server accepts in one call; larger batches gain nothing, and hold up those behind them.
BATCH_SIZE = 500

MeteringMethod = Literal["Meter", "MeterBatch", "GetUsageEvent"]
LedgerMethod = Literal["GetCustomerBalance"]
METERING_METHODS: tuple[MeteringMethod, ...] = ("Meter", "MeterBatch", "GetUsageEvent")
LEDGER_METHODS: tuple[LedgerMethod, ...] = ("GetCustomerBalance",)


@dataclass(frozen=True, slots=True)
class Call:
    """Call a method once. Answered with its response, or with the error that it ended with."""

    method: MeteringMethod | LedgerMethod
    request: Message
    timeout: float
    request_id: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for so many seconds. Answered with None."""

    seconds: float


T = TypeVar("T")
Operation: TypeAlias = Generator[Call | Wait, Any, T]
Verdict: TypeAlias = Metered | TallystickError


def meter(event: UsageEvent, policy: RetryPolicy, timeout: float | None) -> Operation[Metered]:
    """Report one event and learn what it cost."""
    message = event_to_proto(event)
    request = metering_service_pb2.MeterRequest(event=message)
    try:
        response = yield from _call("Meter", request, policy, timeout)
    except IdempotencyKeyReused as error:
        if event.occur_time is not None:
            raise
        first = yield from first_report(message, error, policy, timeout)
        if isinstance(first, TallystickError):
            raise first from None
        return first
    return metered_from_proto(cast(metering_service_pb2.MeterResponse, response).metered)


def meter_batch(
    events: Sequence[UsageEvent], policy: RetryPolicy, timeout: float | None
) -> Operation[list[Verdict]]:
    """Report many events; a verdict for each. Gives up on the rest when no call succeeds in time."""
    messages = [event_to_proto(event) for event in events]
    verdicts: list[Verdict] = []
    for start in range(0, len(messages), BATCH_SIZE):
        chunk = messages[start : start + BATCH_SIZE]
        try:
            verdicts += yield from _meter_chunk(chunk, policy, timeout)
        except TallystickError as error:
            # Raising it would hide what became of the chunks before.
            verdicts += [error] * (len(messages) - start)
            break
    return verdicts


def balance(customer: str, currency: str, policy: RetryPolicy, timeout: float | None) -> Operation[Balance]:
    """What a customer has and owes."""
    request = ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer, currency_code=currency)
    response = yield from _call("GetCustomerBalance", request, policy, timeout)
    return balance_from_proto(cast(ledger_service_pb2.GetCustomerBalanceResponse, response).balance)


def first_report(
    event: usage_pb2.UsageEvent, error: IdempotencyKeyReused, policy: RetryPolicy, timeout: float | None
) -> Operation[Verdict]:
    """What became of the first report of an event whose time is ours; `error` if that was another one.

    The time of such an event is when it was reported: by `meter` at one moment, by `record` after a crash at
    another. To the servers these are two contents, but to the host it is the same event, and it is.
    """
    request = metering_service_pb2.GetUsageEventRequest(
        customer_id=event.customer_id, workflow_id=event.workflow_id, ordinal=event.ordinal
    )
    answer = yield from _call("GetUsageEvent", request, policy, timeout)
    response = cast(metering_service_pb2.GetUsageEventResponse, answer)
    recorded = response.event
    if not repeats(event, recorded):
        return error
    if not response.HasField("metered"):
        return ChargePending("the usage is recorded and will be charged", reason="CHARGE_PENDING")
    evidence_differs = (event.evidence_ref, event.evidence_hash) != (
        recorded.evidence_ref,
        recorded.evidence_hash,
    )
    return replace(metered_from_proto(response.metered), duplicate=True, evidence_differs=evidence_differs)


def verdicts_of(response: Message, count: int) -> list[Verdict]:
    """The verdicts of a batch. Raises Internal unless there is one for each of `count` events."""
    verdicts = cast(metering_service_pb2.MeterBatchResponse, response).verdicts
    if len(verdicts) != count:
        raise Internal(f"the server answered {len(verdicts)} verdicts on {count} events")
    return [verdict_from_proto(verdict) for verdict in verdicts]


def new_request_id() -> str:
    """An id for one call and its retries, by which the servers' logs know it."""
    return os.urandom(16).hex()


def _meter_chunk(
    events: Sequence[usage_pb2.UsageEvent], policy: RetryPolicy, timeout: float | None
) -> Operation[list[Verdict]]:
    """One batch, and again those of its events that may succeed later, within one budget of time."""
    attempts = Attempts(policy, timeout)
    verdicts: dict[int, Verdict] = {}
    left = list(range(len(events)))
    while True:
        chunk = [events[index] for index in left]
        try:
            verdicts |= zip(left, (yield from _ask(chunk, policy, attempts.left())), strict=True)
            again = [index for index in left if _may_succeed_later(verdicts[index])]
            if not again:
                break
            error = verdicts[again[0]]
            assert isinstance(error, TallystickError)  # noqa: S101 - for type checkers
            yield Wait(attempts.wait_after(error))
        except TallystickError:
            if not verdicts:
                raise
            break  # no time left: each keeps the verdict that it has
        left = again
    return [verdicts[index] for index in range(len(events))]


def _ask(
    events: Sequence[usage_pb2.UsageEvent], policy: RetryPolicy, timeout: float
) -> Operation[list[Verdict]]:
    request = metering_service_pb2.MeterBatchRequest(events=events)
    response = yield from _call("MeterBatch", request, policy, timeout)
    verdicts = verdicts_of(response, len(events))
    for index, verdict in enumerate(verdicts):
        if isinstance(verdict, IdempotencyKeyReused) and not events[index].HasField("occur_time"):
            try:
                verdicts[index] = yield from first_report(events[index], verdict, policy, timeout)
            except TallystickError as error:
                verdicts[index] = error
    return verdicts


def _may_succeed_later(verdict: Verdict) -> bool:
    return isinstance(verdict, TallystickError) and verdict.retryable


def _call(
    method: MeteringMethod | LedgerMethod, request: Message, policy: RetryPolicy, timeout: float | None
) -> Operation[Message]:
    """Call, and call again after errors that may pass, until it succeeds or the time is up."""
    attempts = Attempts(policy, timeout)
    request_id = new_request_id()
    while True:
        answer = yield Call(method, request, attempts.timeout(), request_id)
        if not isinstance(answer, TallystickError):
            return cast(Message, answer)
        yield Wait(attempts.wait_after(answer))
