"""Requests to authorize a run, checked and priced: what is to be reserved."""

from datetime import datetime, timedelta
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from services.kit import ids
from services.kit.auth import Principal
from services.kit.errors import InvalidArgument
from services.kit.money import check_amount, check_currency
from services.kit.runs import ChargeKind, kind_of
from services.metering.domain import reservation as rules
from services.metering.domain.compiled_price import Execution
from services.metering.domain.rating import highest
from services.metering.domain.reservation import Reservation
from services.metering.domain.usage_event import MAX_ORDINAL, RESERVED_RUN, Outcome, Usage, usage_violations
from services.metering.rpc.convert import usage_from_proto
from services.metering.rpc.counter_reader import CounterReader
from services.metering.rpc.terms import Terms, TermsFinder, Work
from tallystick.metering.v1 import metering_service_pb2, usage_pb2

_MAX_VERSION_LENGTH = 64
_MICROSECOND = timedelta(microseconds=1)


class Attempt(NamedTuple):
    """What to reserve, and the hash of the request, which a repeated attempt must equal.

    The reservation is complete but for the lease that it will be allocated in.
    """

    reservation: Reservation
    content_hash: bytes


async def read_attempt(
    request: metering_service_pb2.AuthorizeRequest,
    principal: Principal,
    finder: TermsFinder,
    counters: CounterReader,
    now: datetime,
) -> Attempt:
    """The attempt in a request. Expected usage is rated by what the customer used before, as it stands now.

    Raises InvalidArgument for what is malformed, and NotFound naming the party or price that is missing.
    """
    _check_identity(request)
    ttl = read_ttl(request.ttl) if request.HasField("ttl") else rules.DEFAULT_TTL
    estimate = request.WhichOneof("estimate")
    if estimate is None:
        raise InvalidArgument.of("estimate", "is required: max_cost, or the usage that is expected")
    work = Work(
        customer_id=request.customer_id,
        agent_id=request.agent_id,
        agent_version=request.agent_version,
        action_type=request.action_type,
        currency_code=_currency(request),
        time=None,
        principal=principal,
    )
    (terms,) = await finder.find([work], now)
    if not isinstance(terms, Terms):
        raise terms
    if estimate == "max_cost":
        amount = check_amount(request.max_cost.amount_micros, field="max_cost.amount_micros")
    else:
        opening = await counters.current(request.customer_id, terms)
        # With the outcome and the result that cost most.
        amount = highest(terms.price, _expected(request, now), terms.agreed.compiled, opening)
    reservation = Reservation(
        reservation_id=rules.reservation_id(
            request.customer_id, request.workflow_id, request.ordinal, request.idempotency_key
        ),
        customer_id=request.customer_id,
        workflow_id=request.workflow_id,
        ordinal=request.ordinal,
        organization_id=terms.organization_id,
        agent_id=request.agent_id,
        agent_version=request.agent_version,
        action_type=request.action_type,
        currency_code=terms.currency_code,
        amount_micros=amount,
        lease_epoch=rules.DURABLE,
        expire_time=now + ttl,
        price_version_id=terms.price_version_id,
        counters=(),
    )
    return Attempt(reservation, rules.content_hash(request.SerializeToString(deterministic=True)))


def read_ttl(message: Duration) -> timedelta:
    """A time to live. Raises InvalidArgument for one that no reservation may have."""
    # Compared as integers: no timedelta holds all that a message can say.
    microseconds = message.seconds * 1_000_000 + message.nanos // 1000
    if not rules.MIN_TTL // _MICROSECOND <= microseconds <= rules.MAX_TTL // _MICROSECOND:
        raise InvalidArgument.of("ttl", "must be a second to 24 hours")
    return microseconds * _MICROSECOND


def read_usage(message: usage_pb2.Usage) -> Usage:
    """The usage that is expected."""
    usage = usage_from_proto(message)
    malformed = usage_violations(usage)
    if malformed:
        raise InvalidArgument("usage: is out of range", field_violations=malformed)
    return usage


def _expected(request: metering_service_pb2.AuthorizeRequest, now: datetime) -> Execution:
    return Execution(
        read_usage(request.usage),
        Outcome.UNKNOWN,
        now,
        action_type=request.action_type,
        agent_id=request.agent_id,
        agent_version=request.agent_version,
    )


def _check_identity(request: metering_service_pb2.AuthorizeRequest) -> None:
    ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
    ids.check_workflow_id(request.workflow_id)
    if (kind := kind_of(request.workflow_id)) is not ChargeKind.USAGE:
        # Its event would be refused once the work is done.
        raise InvalidArgument.of("workflow_id", RESERVED_RUN.format(kind.value))
    # By the same rule.
    ids.check_workflow_id(request.action_type, field="action_type")
    ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
    if not 0 <= request.ordinal <= MAX_ORDINAL:
        raise InvalidArgument.of("ordinal", "must not be negative")
    for name, limit in (
        ("idempotency_key", rules.MAX_KEY_LENGTH),
        ("agent_version", _MAX_VERSION_LENGTH),
    ):
        text: str = getattr(request, name)
        if len(text) > limit or not text.isprintable():
            raise InvalidArgument.of(name, f"must be at most {limit} printable characters")


def _currency(request: metering_service_pb2.AuthorizeRequest) -> str:
    """The currency that is asked for, or empty."""
    if request.WhichOneof("estimate") == "max_cost":
        of_amount = check_currency(request.max_cost.currency_code, field="max_cost.currency_code")
        if request.currency_code not in ("", of_amount):
            raise InvalidArgument.of("currency_code", "must be that of max_cost")
        return of_amount
    return check_currency(request.currency_code) if request.currency_code else ""
