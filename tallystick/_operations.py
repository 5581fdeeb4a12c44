"""What the clients do, written once for both.

An operation is a generator: it yields what it wants done (a call, a wait), is sent what came of it, and
returns the result or raises. Neither threads nor event loops appear here; the clients drive it, each in its
own way.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

from google.protobuf.message import Message

from tallystick._convert import (
    access_from_proto,
    balance_from_proto,
    event_to_proto,
    metered_from_proto,
    outcome_from_proto,
    outcome_to_proto,
    purchase_from_proto,
    released_from_proto,
    repeats,
    reservation_from_proto,
    resolved_from_proto,
    result_to_proto,
    settled_from_proto,
    verdict_from_proto,
)
from tallystick._evidence import evidence_hash
from tallystick._report_convert import (
    charge_from_proto,
    earnings_from_proto,
    payout_from_proto,
    usage_from_proto,
)
from tallystick._requests import token_of
from tallystick._retry import Attempts, RetryPolicy
from tallystick.errors import ChargePending, IdempotencyKeyReused, Internal, TallystickError
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.models import (
    Access,
    Balance,
    DeferredOutcome,
    FinalOutcome,
    Metered,
    Purchase,
    Reservation,
    Settled,
    Settlement,
    UsageEvent,
)
from tallystick.payouts.v1 import payment_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2
from tallystick.reports import Earnings, Payout, ReportedCharge, UsageReport

# Half of what a server accepts in one call; larger batches gain nothing, and hold up those behind them.
BATCH_SIZE = 500

Method = Literal[
    "Meter",
    "MeterBatch",
    "GetUsageEvent",
    "Authorize",
    "Extend",
    "Settle",
    "Release",
    "CheckAccess",
    "GetBalance",
    "ResolveOutcome",
    "GetOutcome",
]
METHODS: tuple[Method, ...] = get_args(Method)
PaymentMethod = Literal["PurchaseCredits"]
PAYMENT_METHODS: tuple[PaymentMethod, ...] = get_args(PaymentMethod)
ReportMethod = Literal["GetUsage", "GetRevenueSummary", "ListPayoutHistory", "GetCharge"]
REPORT_METHODS: tuple[ReportMethod, ...] = get_args(ReportMethod)
# What the server answers on one page at most.
_PAYOUT_PAGE = 100
# Between two questions how a purchase went on.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Call:
    """Call a method once. Answered with its response, or with the error that it ended with."""

    method: Method | PaymentMethod | ReportMethod
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


def authorize(
    request: metering_service_pb2.AuthorizeRequest, policy: RetryPolicy, timeout: float | None
) -> Operation[Reservation]:
    """Reserve money for a run."""
    response = yield from _call("Authorize", request, policy, timeout)
    return reservation_from_proto(cast(metering_service_pb2.AuthorizeResponse, response))


def extend(
    request: metering_service_pb2.ExtendRequest, policy: RetryPolicy, timeout: float | None
) -> Operation[Reservation]:
    """Raise a reservation, or keep it for longer."""
    response = yield from _call("Extend", request, policy, timeout)
    return reservation_from_proto(cast(metering_service_pb2.ExtendResponse, response))


def settle(
    reservation: Reservation | str, event: UsageEvent, policy: RetryPolicy, timeout: float | None
) -> Operation[Settled]:
    """Charge a finished run and end its reservation."""
    request = metering_service_pb2.SettleRequest(token=token_of(reservation), event=event_to_proto(event))
    try:
        response = yield from _call("Settle", request, policy, timeout)
    except IdempotencyKeyReused:
        if event.occur_time is not None:
            raise
        # As in `first_report`: what was delivered from a buffer has the time at which it was recorded.
        recorded = (yield from _recorded(request.event, policy, timeout)).event
        if not repeats(request.event, recorded):
            raise
        request.event.occur_time.CopyFrom(recorded.occur_time)
        response = yield from _call("Settle", request, policy, timeout)
    return settled_from_proto(cast(metering_service_pb2.SettleResponse, response))


def release(
    reservation: Reservation | str, policy: RetryPolicy, timeout: float | None
) -> Operation[Settlement]:
    """End a reservation without a charge."""
    request = metering_service_pb2.ReleaseRequest(token=token_of(reservation))
    response = yield from _call("Release", request, policy, timeout)
    return released_from_proto(cast(metering_service_pb2.ReleaseResponse, response))


def check_access(
    request: metering_service_pb2.CheckAccessRequest, policy: RetryPolicy, timeout: float | None
) -> Operation[Access]:
    """Whether a customer may run an agent."""
    response = yield from _call("CheckAccess", request, policy, timeout)
    return access_from_proto(cast(metering_service_pb2.CheckAccessResponse, response))


def balance(customer: str, currency: str, policy: RetryPolicy, timeout: float | None) -> Operation[Balance]:
    """What a customer has and owes."""
    request = metering_service_pb2.GetBalanceRequest(customer_id=customer, currency_code=currency)
    response = yield from _call("GetBalance", request, policy, timeout)
    return balance_from_proto(cast(metering_service_pb2.GetBalanceResponse, response).balance)


def purchase(
    request: payment_service_pb2.PurchaseCreditsRequest, policy: RetryPolicy, timeout: float | None
) -> Operation[Purchase]:
    """Buy credits, and ask again, under the same key, until it is known what became of it, or time is up."""
    attempts = Attempts(policy, timeout)
    pause = _SHORTEST_LOOK
    bought: Purchase | None = None
    while True:
        try:
            response = yield from _call("PurchaseCredits", request, policy, attempts.left())
        except TallystickError as error:
            if bought is None or not error.retryable:
                raise
            return bought
        bought = purchase_from_proto(cast(payment_service_pb2.PurchaseCreditsResponse, response))
        if bought.state != "processing" or pause >= attempts.left():
            return bought
        yield Wait(pause)
        pause = min(2 * pause, _LONGEST_LOOK)


def usage(
    request: reporting_service_pb2.GetUsageRequest, policy: RetryPolicy, timeout: float | None
) -> Operation[UsageReport]:
    """What agents did and what it cost."""
    response = yield from _call("GetUsage", request, policy, timeout)
    return usage_from_proto(cast(reporting_service_pb2.GetUsageResponse, response))


def earnings(
    organization: str, currency: str, time_zone: str, months: int, policy: RetryPolicy, timeout: float | None
) -> Operation[Earnings]:
    """What an organization earned."""
    request = reporting_service_pb2.GetRevenueSummaryRequest(
        organization_id=organization, currency_code=currency, time_zone=time_zone, month_count=months
    )
    response = yield from _call("GetRevenueSummary", request, policy, timeout)
    return earnings_from_proto(cast(reporting_service_pb2.GetRevenueSummaryResponse, response))


def payouts(
    organization: str, limit: int, policy: RetryPolicy, timeout: float | None
) -> Operation[list[Payout]]:
    """The newest payouts of an organization, page by page, within one budget of time."""
    if limit < 1:
        raise ValueError(f"limit is above zero, not {limit}")
    attempts = Attempts(policy, timeout)
    found: list[Payout] = []
    # It stays the same on all pages, as the server asks for.
    request = reporting_service_pb2.ListPayoutHistoryRequest(
        organization_id=organization, page_size=min(limit, _PAYOUT_PAGE)
    )
    while True:
        answer = yield from _call("ListPayoutHistory", request, policy, attempts.left())
        page = cast(reporting_service_pb2.ListPayoutHistoryResponse, answer)
        found += map(payout_from_proto, page.payouts)
        if len(found) >= limit or not page.next_page_token:
            return found[:limit]
        request.page_token = page.next_page_token


def charge(charge_id: str, policy: RetryPolicy, timeout: float | None) -> Operation[ReportedCharge]:
    """One charge with what it was for."""
    request = reporting_service_pb2.GetChargeRequest(charge_id=charge_id)
    response = yield from _call("GetCharge", request, policy, timeout)
    return charge_from_proto(cast(reporting_service_pb2.GetChargeResponse, response))


def resolve_outcome(
    outcome_id: str,
    outcome: FinalOutcome,
    evidence: Mapping[str, object] | None,
    evidence_ref: str,
    result: Mapping[str, object] | None,
    policy: RetryPolicy,
    timeout: float | None,
) -> Operation[DeferredOutcome]:
    """Say how work ended whose outcome was pending."""
    if outcome not in get_args(FinalOutcome):
        raise ValueError(f"an outcome is resolved to one of {', '.join(get_args(FinalOutcome))}")
    request = metering_service_pb2.ResolveOutcomeRequest(
        outcome_id=outcome_id,
        outcome=outcome_to_proto(outcome),
        evidence_ref=evidence_ref,
        evidence_hash=b"" if evidence is None else evidence_hash(evidence),
        result=None if result is None else result_to_proto(result),
    )
    response = yield from _call("ResolveOutcome", request, policy, timeout)
    return resolved_from_proto(cast(metering_service_pb2.ResolveOutcomeResponse, response))


def outcome(outcome_id: str, policy: RetryPolicy, timeout: float | None) -> Operation[DeferredOutcome]:
    """The outcome of an event that was reported as pending."""
    request = metering_service_pb2.GetOutcomeRequest(outcome_id=outcome_id)
    response = yield from _call("GetOutcome", request, policy, timeout)
    return outcome_from_proto(cast(metering_service_pb2.GetOutcomeResponse, response).outcome)


def first_report(
    event: usage_pb2.UsageEvent, error: IdempotencyKeyReused, policy: RetryPolicy, timeout: float | None
) -> Operation[Verdict]:
    """What became of the first report of an event whose time is ours; `error` if that was another one.

    The time of such an event is when it was reported: by `meter` at one moment, by `record` after a crash at
    another. To the servers these are two contents, but to the host it is the same event, and it is.
    """
    response = yield from _recorded(event, policy, timeout)
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


def _recorded(
    event: usage_pb2.UsageEvent, policy: RetryPolicy, timeout: float | None
) -> Operation[metering_service_pb2.GetUsageEventResponse]:
    """What the servers have recorded under the identity of this event."""
    request = metering_service_pb2.GetUsageEventRequest(
        customer_id=event.customer_id, workflow_id=event.workflow_id, ordinal=event.ordinal
    )
    response = yield from _call("GetUsageEvent", request, policy, timeout)
    return cast(metering_service_pb2.GetUsageEventResponse, response)


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
    method: Method | PaymentMethod | ReportMethod,
    request: Message,
    policy: RetryPolicy,
    timeout: float | None,
) -> Operation[Message]:
    """Call, and call again after errors that may pass, until it succeeds or the time is up."""
    attempts = Attempts(policy, timeout)
    request_id = new_request_id()
    while True:
        answer = yield Call(method, request, attempts.timeout(), request_id)
        if not isinstance(answer, TallystickError):
            return cast(Message, answer)
        yield Wait(attempts.wait_after(answer))
