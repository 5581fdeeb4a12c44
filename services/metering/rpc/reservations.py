"""The life of a reservation: authorized, extended, settled or released."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from prometheus_client import Counter

from services.kit.auth import Principal, current_principal
from services.kit.clock import Clock
from services.kit.errors import FailedPrecondition, InvalidArgument, TallystickError
from services.kit.money import check_amount
from services.metering.domain import reservation as rules
from services.metering.domain.claim import Claim
from services.metering.domain.reservation import Reservation
from services.metering.domain.reservation_token import TokenSigner, invalid_token
from services.metering.rpc.attempts import read_attempt, read_ttl
from services.metering.rpc.budget_gate import BudgetGate
from services.metering.rpc.convert import event_from_proto, money_to_proto, time_to_proto, within
from services.metering.rpc.counter_reader import CounterReader
from services.metering.rpc.credits import Credits
from services.metering.rpc.kept import Kept, reservation_ended
from services.metering.rpc.pipeline import Metered, may_see_balance
from services.metering.rpc.report import Report
from services.metering.rpc.settlements import settlement_of_charge, settlement_of_release
from services.metering.rpc.terms import TermsFinder
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import metering_service_pb2, reservation_pb2, usage_pb2

_AUTHORIZED = Counter("tallystick_authorized_runs", "Reservations made, by how they are kept.", ["kind"])
_REFUSED = Counter("tallystick_refused_runs", "Runs that were refused before they started.", ["reason"])
_ENDED = Counter("tallystick_ended_reservations", "Reservations by how they ended.", ["state"])
_REFUSALS: Final = frozenset({"INSUFFICIENT_CREDITS", "BUDGET_EXCEEDED", "CUSTOMER_FROZEN"})
# What the event of a run may leave out, because its reservation says it.
_OF_RESERVATION: Final = ("customer_id", "workflow_id", "ordinal", "agent_id", "agent_version", "action_type")


class Reservations:
    """Authorize, Extend, Settle and Release.

    `meter` records and charges one event. `watch` is told what a customer has left: customer, currency,
    micros.
    """

    def __init__(
        self,
        *,
        credits: Credits,
        gate: BudgetGate,
        terms: TermsFinder,
        counters: CounterReader,
        signer: TokenSigner,
        clock: Clock,
        meter: Callable[[Report], Awaitable[Metered]],
        watch: Callable[[str, str, int], None],
    ) -> None:
        self._credits = credits
        self._gate = gate
        self._terms = terms
        self._counters = counters
        self._signer = signer
        self._clock = clock
        self._meter = meter
        self._watch = watch

    async def authorize(
        self, request: metering_service_pb2.AuthorizeRequest
    ) -> metering_service_pb2.AuthorizeResponse:
        """Reserve, or refuse."""
        principal, now = current_principal(), self._clock.now()
        attempt = await read_attempt(request, principal, self._terms, self._counters, now)
        gates = await self._gate.find(
            customer_id=request.customer_id,
            agent_id=request.agent_id,
            api_key_id=principal.api_key_id,
            currency_code=attempt.reservation.currency_code,
            workflow_id=request.workflow_id,
            at=now,
        )
        reservation = attempt.reservation._replace(counters=tuple(gate.key for gate in gates))
        try:
            # Budgets first: what they refuse needs no credits. Of a run that is refused by the credits the
            # budgets know nothing afterwards.
            await self._gate.reserve(reservation, gates, attempt.content_hash, principal)
            kept = await self._keep(reservation, attempt.content_hash, now)
        except FailedPrecondition as error:
            if error.reason in _REFUSALS:
                _REFUSED.labels(error.reason).inc()
            if error.reason == "INSUFFICIENT_CREDITS":
                self._watched(reservation, int(error.metadata.get("available_micros", 0)))
            raise _for_caller(error, principal) from error
        _AUTHORIZED.labels("durable" if kept.reservation.is_durable else "leased").inc()
        self._watched(kept.reservation, kept.available_micros)
        return metering_service_pb2.AuthorizeResponse(
            reservation=reservation_to_proto(kept.reservation, kept.token),
            available_balance=_available(kept.reservation, kept.available_micros, principal),
            duplicate=kept.duplicate,
        )

    async def extend(
        self, request: metering_service_pb2.ExtendRequest
    ) -> metering_service_pb2.ExtendResponse:
        """Raise or prolong a reservation."""
        principal, now = current_principal(), self._clock.now()
        before = self._read(request.token, principal)
        if not before.is_durable and before.expire_time <= now:
            # Redis forgets it some time after, and then could not tell it from one that Redis has lost.
            raise reservation_ended(before.reservation_id, "expired")
        wanted = _extended(before, request, now)
        try:
            # Nothing is lowered before the run ends, so what one refuses must not be raised in the other: the
            # budgets are only looked at before the credits have agreed.
            await self._gate.check(wanted, wanted.amount_micros - before.amount_micros, principal)
            kept = await self._extend(before, wanted, now)
            await self._gate.extend(wanted, principal)
        except FailedPrecondition as error:
            raise _for_caller(error, principal) from error
        return metering_service_pb2.ExtendResponse(
            reservation=reservation_to_proto(kept.reservation, kept.token),
            available_balance=_available(kept.reservation, kept.available_micros, principal),
        )

    async def settle(
        self, request: metering_service_pb2.SettleRequest
    ) -> metering_service_pb2.SettleResponse:
        """Charge the run, and end its reservation in the same transaction of the ledger."""
        principal = current_principal()
        reservation = self._read(request.token, principal)
        event = _completed(request.event, reservation)
        try:
            report = Report(event_from_proto(event, self._clock.now()), principal, _claim(reservation))
            metered = await self._meter(report)
        except InvalidArgument as error:
            raise within("event", error) from None
        ended = metered.posted.reservation
        if reservation.amount_micros and not metered.record.is_settled_with(reservation.reservation_id):
            # The run had been charged before, by another attempt or without any: this one still stands.
            released = await self._credits.release(reservation, request.token)
            ended, available = released.ended, released.available_micros
        else:
            available = await self._credits.ended(reservation, request.token, ended, metered.posted.balance)
        await self._gate.end(reservation, metered.spent)
        # Those that count the run only since it was authorized.
        others = metered.spent.keys() - set(reservation.counters)
        await self._gate.spent({key: metered.spent[key] for key in others})
        settlement = settlement_of_charge(reservation, ended, metered.posted.charge)
        _count_end(settlement)
        self._watched(reservation, available)
        answer = metered.event
        if may_see_balance(principal):
            answer.available_balance.CopyFrom(money_to_proto(reservation.currency_code, available))
        return metering_service_pb2.SettleResponse(metered=answer, settlement=settlement)

    async def release(
        self, request: metering_service_pb2.ReleaseRequest
    ) -> metering_service_pb2.ReleaseResponse:
        """End a reservation without a charge."""
        principal = current_principal()
        reservation = self._read(request.token, principal)
        released = await self._credits.release(reservation, request.token)
        await self._gate.end(reservation, {})
        settlement = settlement_of_release(reservation, released.ended)
        _count_end(settlement)
        return metering_service_pb2.ReleaseResponse(
            settlement=settlement,
            available_balance=_available(reservation, released.available_micros, principal),
        )

    def _watched(self, reservation: Reservation, available_micros: int) -> None:
        self._watch(reservation.customer_id, reservation.currency_code, available_micros)

    async def _extend(self, before: Reservation, wanted: Reservation, now: datetime) -> Kept:
        if wanted.amount_micros:
            return await self._credits.extend(before, wanted, now)
        available = await self._credits.available(wanted.customer_id, wanted.currency_code)
        return Kept(wanted, self._signer.sign(wanted), False, available)

    async def _keep(self, reservation: Reservation, content_hash: bytes, now: datetime) -> Kept:
        try:
            if reservation.amount_micros == 0:
                # What costs nothing needs nothing, and pins its price like any other.
                available = await self._credits.reserve_nothing(reservation)
                return Kept(reservation, self._signer.sign(reservation), False, available)
            return await self._credits.reserve(reservation, content_hash, now)
        except FailedPrecondition:
            await self._gate.end(reservation, {}, cancelled=True)
            raise

    def _read(self, token: str, principal: Principal) -> Reservation:
        """The reservation of a token, if this caller could have been the one who authorized it."""
        reservation = self._signer.read(token)
        if (
            principal.organization_id not in (None, reservation.organization_id)
            or not principal.may_use_agent(reservation.agent_id)
            or not principal.may_use_customer(reservation.customer_id)
        ):
            raise invalid_token("was issued for work that this API key has no part in")
        return reservation


def reservation_to_proto(reservation: Reservation, token: str) -> reservation_pb2.Reservation:
    """A reservation as it travels."""
    return reservation_pb2.Reservation(
        reservation_id=reservation.reservation_id,
        token=token,
        customer_id=reservation.customer_id,
        workflow_id=reservation.workflow_id,
        ordinal=reservation.ordinal,
        agent_id=reservation.agent_id,
        amount=money_to_proto(reservation.currency_code, reservation.amount_micros),
        price_version_id=reservation.price_version_id,
        expire_time=time_to_proto(reservation.expire_time),
        kind=(
            reservation_pb2.RESERVATION_KIND_DURABLE
            if reservation.is_durable
            else reservation_pb2.RESERVATION_KIND_LEASED
        ),
    )


def _extended(before: Reservation, request: metering_service_pb2.ExtendRequest, now: datetime) -> Reservation:
    """The reservation that is wanted; nothing of it is less than before."""
    wanted = before
    if request.HasField("amount"):
        if request.amount.currency_code != before.currency_code:
            raise InvalidArgument.of("amount.currency_code", f"must be {before.currency_code}")
        amount = check_amount(request.amount.amount_micros, field="amount.amount_micros")
        wanted = wanted._replace(amount_micros=max(amount, before.amount_micros))
    if request.HasField("ttl"):
        ttl = read_ttl(request.ttl)
        if not before.is_durable:
            # As long as its lease may be without being asked for again.
            ttl = min(ttl, rules.MAX_LEASED_TTL)
        wanted = wanted._replace(expire_time=max(now + ttl, before.expire_time))
    return wanted


def _completed(event: usage_pb2.UsageEvent, reservation: Reservation) -> usage_pb2.UsageEvent:
    """The event of a run, with what its reservation says of it. Raises InvalidArgument if they differ."""
    for name in _OF_RESERVATION:
        given, reserved = getattr(event, name), getattr(reservation, name)
        if not given:
            setattr(event, name, reserved)
        elif given != reserved:
            raise invalid_token(f"was issued for another {name}", f"event.{name}")
    if event.currency_code not in ("", reservation.currency_code):
        raise invalid_token("was issued for another currency", "event.currency_code")
    return event


def _claim(reservation: Reservation) -> Claim:
    return Claim(
        reservation_id=reservation.reservation_id,
        lease_epoch=reservation.lease_epoch,
        amount_micros=reservation.amount_micros,
        currency_code=reservation.currency_code,
        expire_time=reservation.expire_time,
        price_version_id=reservation.price_version_id,
    )


def _available(
    reservation: Reservation, available_micros: int, principal: Principal
) -> money_pb2.Money | None:
    if not may_see_balance(principal):
        return None
    return money_to_proto(reservation.currency_code, available_micros)


def _for_caller(error: FailedPrecondition, principal: Principal) -> TallystickError:
    """The error without what this caller may not know."""
    shown = error.fresh()
    if not may_see_balance(principal) and error.reason == "INSUFFICIENT_CREDITS":
        shown.metadata.pop("available_micros", None)
    return shown


def _count_end(settlement: reservation_pb2.Settlement) -> None:
    name = reservation_pb2.ReservationState.Name(settlement.state)
    _ENDED.labels(name.removeprefix("RESERVATION_STATE_").lower()).inc()
