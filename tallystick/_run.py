"""A run from its authorization to its settlement, written once for both clients.

What needs a server is an operation (see `_operations`), which the client drives.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

from google.protobuf.json_format import MessageToDict

from tallystick._convert import reservation_from_proto, result_to_proto
from tallystick._evidence import evidence_hash
from tallystick._operations import Call, Operation, Wait, authorize, extend, new_request_id, release, settle
from tallystick._outbox import EVENT_AT_FAULT
from tallystick._requests import Amount, authorize_request, extend_request, planned
from tallystick._retry import RetryPolicy
from tallystick.errors import ChargePending, Internal, ReservationTokenInvalid, TallystickError
from tallystick.metering.v1 import metering_service_pb2
from tallystick.models import (
    QUANTITIES,
    ModelUsage,
    Outcome,
    Reservation,
    RunFields,
    Settled,
    Settlement,
    Usage,
    UsageEvent,
    require_int,
)

logger = logging.getLogger("tallystick")

WhenUnavailable: TypeAlias = Literal["raise", "run"]
OnError: TypeAlias = Literal["release", "settle"]

# As the servers have it.
DEFAULT_TTL: Final = timedelta(minutes=5)
# How long an agent waits at most for its bill, where there is something else to be done than to wait.
PATIENCE_SECONDS: Final = 5.0
_MAX_NAME: Final = 128
_MAX_MODELS: Final = 32
# What `count` counts besides meters of the host's own.
_COUNTABLE: Final = ("cpu_milliseconds", "memory_megabyte_seconds", "network_bytes")
_MAX_EVIDENCE_REF: Final = 1_024
_MAX_PENDING: Final = timedelta(days=90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a client was asked to run."""

    request: metering_service_pb2.AuthorizeRequest
    event: UsageEvent
    ttl: timedelta
    when_unavailable: WhenUnavailable
    on_error: OnError
    keep_alive: bool
    timeout: float | None

    @classmethod
    def of(
        cls,
        work: RunFields,
        *,
        max_cost: Amount | None,
        expected: Usage | None,
        ttl: timedelta | None,
        idempotency_key: str | None,
        when_unavailable: WhenUnavailable,
        on_error: OnError,
        keep_alive: bool,
        timeout: float | None,
    ) -> Plan:
        """Raises TypeError or ValueError for what cannot be asked."""
        if when_unavailable not in ("raise", "run"):
            raise ValueError(f"when_unavailable is 'raise' or 'run', not {when_unavailable!r}")
        if on_error not in ("release", "settle"):
            raise ValueError(f"on_error is 'release' or 'settle', not {on_error!r}")
        event = planned(work, RunFields)
        ttl = DEFAULT_TTL if ttl is None else ttl
        # Each is a new attempt: else a job that is tried again after a failure would find its reservation
        # released, and one after a top-up its refusal. The charge is the same in any case.
        key = new_request_id() if idempotency_key is None else idempotency_key
        request = authorize_request(max_cost, expected, ttl, key, event)
        return cls(
            request=request,
            # The currency that is authorized is the one that is charged.
            event=replace(event, currency=event.currency or request.max_cost.currency_code),
            ttl=ttl,
            when_unavailable=when_unavailable,
            on_error=on_error,
            keep_alive=keep_alive,
            timeout=timeout,
        )


class BaseRun:
    """What a run consumed and how it ended, gathered until it is settled. Safe for several threads."""

    def __init__(self, plan: Plan, policy: RetryPolicy, keep: Callable[[UsageEvent, str], None]) -> None:
        self._plan = plan
        self._policy = policy
        # Keeps finished work, and the token that it settles, until it is delivered.
        self._keep = keep
        # Agents call models and tools from several threads, and the reservation is extended by another one.
        self._lock = threading.Lock()
        self._entered = self._running = False
        self._reservation: Reservation | None = None
        # By model; "" where none was named.
        self._consumed: dict[str, Counter[str]] = {}
        self._counted: Counter[str] = Counter()
        self._tools: set[str] = set()
        # What is known of the event that the run ends as.
        self._event = plan.event
        self._result: Settled | None = None
        self._settlement: Settlement | None = None
        self._recorded = False

    @property
    def reservation(self) -> Reservation | None:
        """What is reserved, as extended last. None where `when_unavailable="run"` let it run without."""
        return self._reservation

    @property
    def result(self) -> Settled | None:
        """What the run cost and how that was paid, once it was settled.

        None before, after a release, and when its usage is charged later (`recorded`).
        """
        return self._result

    @property
    def settlement(self) -> Settlement | None:
        """What became of the reservation, once the run was settled or released. None if nobody could say."""
        return self._settlement

    @property
    def recorded(self) -> bool:
        """Whether the run is over and its usage is safe, but charged later: its cost is not known yet."""
        return self._recorded

    def tokens(
        self,
        *,
        input: int = 0,
        output: int = 0,
        model: str = "",
        cached: int = 0,
        reasoning: int = 0,
        calls: int = 0,
    ) -> None:
        """Add the tokens of one call of a model: `input` sent to it, `output` produced.

        `cached` are those of the input that the provider had cached, `reasoning` those of the output that are
        reasoning. For prices by the call, say that it was one: `calls=1`. The run is reported with the sums,
        and with the model; if there were several, with the part of each.
        """
        counts = {"input": input, "output": output, "cached": cached, "reasoning": reasoning, "calls": calls}
        for name, count in counts.items():
            _check_count(name, count)
        if cached > input or reasoning > output:
            raise ValueError("cached tokens are among the input, those of reasoning among the output")
        _check_text("model", model, _MAX_NAME)
        with self._lock:
            self._require_running()
            self._consumed.setdefault(model, Counter()).update(
                input_tokens=input,
                output_tokens=output,
                cached_input_tokens=cached,
                reasoning_tokens=reasoning,
                inference_calls=calls,
            )

    def tool(self, name: str, *, calls: int = 0) -> None:
        """Note the use of a tool. The run is reported with the tool if it was always the same.

        For prices by the call, say how many there were.
        """
        _check_text("name", name, _MAX_NAME)
        _check_count("calls", calls)
        with self._lock:
            self._require_running()
            self._tools.add(name)
            self._counted["tool_calls"] += calls

    def count(self, **quantities: int) -> None:
        """Add to other quantities: `cpu_milliseconds`, `memory_megabyte_seconds`, `network_bytes`, or meters
        of your own, such as `count(pages=3)`.
        """
        for name, quantity in quantities.items():
            if name in QUANTITIES and name not in _COUNTABLE:
                raise ValueError(f"{name} is counted by `tokens` and `tool`")
            _check_count(name, quantity)
        with self._lock:
            self._require_running()
            self._counted.update(quantities)

    def succeed(
        self,
        evidence: Mapping[str, object] | None = None,
        *,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
    ) -> None:
        """The run delivered what the customer wanted.

        `evidence` stays here: its SHA-256 (`tallystick.evidence_hash`) is reported, so that you can show
        later that it was this. `evidence_ref` says where you keep it. `result` is reported as it is: what
        came of the work, as JSON without personal data, for prices with conditions. What is said last counts;
        who says nothing ends with the outcome "unknown".
        """
        self._say("success", evidence, evidence_ref, result)

    def fail(
        self,
        evidence: Mapping[str, object] | None = None,
        *,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
    ) -> None:
        """The run did not deliver what the customer wanted. Arguments as of `succeed`."""
        self._say("failure", evidence, evidence_ref, result)

    def partial(
        self,
        evidence: Mapping[str, object] | None = None,
        *,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
    ) -> None:
        """The run delivered a part of it. Arguments as of `succeed`."""
        self._say("partial", evidence, evidence_ref, result)

    def pending(
        self,
        expires: timedelta | datetime | None = None,
        evidence: Mapping[str, object] | None = None,
        *,
        evidence_ref: str = "",
        result: Mapping[str, object] | None = None,
    ) -> None:
        """It is not decided yet: `resolve_outcome` says it later, by `result.metered.outcome_id`.

        What does not depend on it is charged when the run ends; what it may add is held until it is resolved,
        or falls to its default: after `expires`, within 90 days, or as the price says.
        """
        now = datetime.now(UTC)
        expire_time = now + expires if isinstance(expires, timedelta) else expires
        if expire_time is not None and expire_time.utcoffset() is None:
            raise ValueError("expires needs a time zone, for example datetime.now(timezone.utc)")
        if expire_time is not None and not timedelta() < expire_time - now <= _MAX_PENDING:
            raise ValueError(f"a pending outcome expires within {_MAX_PENDING.days} days from now")
        self._say("pending", evidence, evidence_ref, result, expire_time)

    def _say(
        self,
        outcome: Outcome,
        evidence: Mapping[str, object] | None,
        evidence_ref: str,
        result: Mapping[str, object] | None,
        expire_time: datetime | None = None,
    ) -> None:
        _check_text("evidence_ref", evidence_ref, _MAX_EVIDENCE_REF)
        said = replace(
            self._plan.event,
            outcome=outcome,
            outcome_expire_time=expire_time,
            evidence_ref=evidence_ref,
            evidence_hash=b"" if evidence is None else evidence_hash(evidence),
            result=_as_json(result),
        )
        with self._lock:
            self._require_running()
            self._event = said

    def _require_running(self) -> None:
        if not self._running:
            raise RuntimeError("the run is over" if self._entered else "the run has not begun: use `with`")

    def _begin(self) -> Operation[None]:
        """Authorize. Raises what that raises, and RuntimeError for a second time."""
        with self._lock:
            if self._entered:
                raise RuntimeError("a run is used once: make another one")
            self._entered = True
        plan = self._plan
        timeout = plan.timeout
        if timeout is None and plan.when_unavailable == "run":
            timeout = min(PATIENCE_SECONDS, self._policy.timeout)
        try:
            self._reservation = yield from authorize(plan.request, self._policy, timeout)
        except TallystickError as error:
            if plan.when_unavailable == "raise" or not _is_away(error):
                raise
            logger.warning("%s runs without a reservation: %s", self._name, error)
        self._running = True

    def _extend(
        self, max_cost: Amount | None, ttl: timedelta | None, timeout: float | None
    ) -> Operation[None]:
        with self._lock:
            self._require_running()
            reservation = self._reservation
        if reservation is None:
            return
        request = extend_request(reservation, max_cost, ttl)
        try:
            extended = yield from extend(request, self._policy, timeout)
        except TallystickError as error:
            if self._plan.when_unavailable == "raise" or not _is_away(error):
                raise
            logger.warning("the reservation of %s is not extended: %s", self._name, error)
        else:
            self._adopt(extended)

    def _is_to_be_kept_alive(self) -> bool:
        return self._plan.keep_alive and self._reservation is not None

    def _keep_alive(self) -> Operation[None]:
        """Extend the reservation for as long as the run goes on. Raises nothing that concerns the run."""
        reservation = self._reservation
        if reservation is None:
            return
        # Twice before it ends: the second time is for when the first one fails. One that was made by an
        # earlier process has less time left.
        interval = self._plan.ttl.total_seconds() / 3
        wait, failures = (0.0 if reservation.duplicate else interval), 0
        while True:
            yield Wait(wait)
            with self._lock:
                if not self._running or self._reservation is None:
                    return
                request = extend_request(self._reservation, None, self._plan.ttl)
            timeout = min(self._policy.attempt_timeout, interval)
            answer = yield Call("Extend", request, timeout, new_request_id())
            if not isinstance(answer, TallystickError):
                self._adopt(reservation_from_proto(answer))
                wait, failures = interval, 0
            elif answer.retryable:
                failures += 1
                wait = self._policy.wait_after(answer, failures)
            else:
                if self._running:
                    logger.warning("the reservation of %s is not kept alive: %s", self._name, answer)
                return

    def _adopt(self, extended: Reservation) -> None:
        """Use the newer token. Two extensions may cross; a larger amount is never given up for more time."""
        with self._lock:
            known = self._reservation
            if not self._running or known is None:
                return
            if (extended.amount.micros, extended.expire_time) >= (known.amount.micros, known.expire_time):
                self._reservation = extended

    def _end(self, error: BaseException | None) -> Operation[None]:
        """Settle or release. What it raises must not replace `error`."""
        with self._lock:
            self._require_running()
            self._running = False
        if error is None:
            yield from self._settle(self._event)
        elif self._plan.on_error == "settle" and self._has_begun_work():
            # What the host said before it failed stands.
            said_nothing = self._event is self._plan.event
            yield from self._settle(replace(self._event, outcome="failure") if said_nothing else self._event)
        else:
            yield from self._release()

    def _has_begun_work(self) -> bool:
        return bool(self._consumed or self._counted or self._tools) or self._event is not self._plan.event

    def _settle(self, event: UsageEvent) -> Operation[None]:
        """Charge the run; if that does not succeed soon, keep its usage until it does."""
        event = self._with_usage(event)
        if self._reservation is None:
            self._record(event, "")
            return
        token = self._reservation.token
        timeout = min(PATIENCE_SECONDS, self._policy.timeout)
        try:
            self._result = yield from settle(token, event, self._policy, timeout)
            self._settlement = self._result.settlement
        except ChargePending:
            self._recorded = True
        except TallystickError as error:
            # Also what is refused for good: there it is refused again, and then kept for whoever repairs it.
            self._record(event, token)
            if isinstance(error, EVENT_AT_FAULT) and not isinstance(error, ReservationTokenInvalid):
                # No charge will come for it.
                yield from self._release()
                raise
            logger.warning("the usage of %s is recorded, and settled later: %s", self._name, error)
        except GeneratorExit:
            # Whoever drives this was interrupted. The work is finished all the same.
            with suppress(TallystickError, OSError, RuntimeError):
                self._record(event, token)
            raise

    def _with_usage(self, event: UsageEvent) -> UsageEvent:
        total = sum(self._consumed.values(), Counter(self._counted))
        models = {name for name in self._consumed if name}
        # Parts must add up to the whole, so each of them needs a name.
        is_split = len(models) > 1 and "" not in self._consumed and len(models) <= _MAX_MODELS
        quantities: dict[str, Any] = {name: total[name] for name in QUANTITIES}
        return replace(
            event,
            model=_only(models),
            tool=_only(self._tools),
            models=(
                tuple(ModelUsage(model=name, **self._consumed[name]) for name in sorted(models))
                if is_split
                else ()
            ),
            meters={name: total[name] for name in sorted(total.keys() - set(QUANTITIES))} or None,
            **quantities,
        )

    def _release(self) -> Operation[None]:
        if self._reservation is None:
            return
        timeout = min(PATIENCE_SECONDS, self._policy.timeout)
        try:
            self._settlement = yield from release(self._reservation, self._policy, timeout)
        except TallystickError as error:
            # It ends by itself.
            logger.warning("the reservation of %s is not released: %s", self._name, error)

    def _record(self, event: UsageEvent, token: str) -> None:
        try:
            self._keep(event, token)
        except Exception:
            # A full buffer or disk, or a client that is closed. Nobody else will know of this event.
            logger.exception("the usage of a run is not recorded: %r", event)
            raise
        self._recorded = True

    @property
    def _name(self) -> str:
        event = self._plan.event
        return f"{event.customer}/{event.workflow_id}/{event.ordinal}"


def _is_away(error: TallystickError) -> bool:
    """Whether it says nothing of this run: the servers are away, too busy, or broken."""
    return error.retryable or isinstance(error, Internal)


def _only(names: set[str]) -> str:
    """The one name; empty if there is none, or several."""
    return next(iter(names)) if len(names) == 1 else ""


def _check_count(name: str, count: int) -> None:
    require_int(name, count)
    if count < 0:
        raise ValueError(f"{name} is not negative: {count}")


def _as_json(result: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """The result as it is now: what becomes of the host's objects later is not reported."""
    return None if result is None else MessageToDict(result_to_proto(result))


def _check_text(name: str, text: str, limit: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} is a str, not {type(text).__name__}")
    # As the servers judge it: here it is an error in a line of the host's, there one of the whole run.
    if len(text) > limit or not text.isprintable():
        raise ValueError(f"{name} has at most {limit} printable characters: {text[:200]!r}")
