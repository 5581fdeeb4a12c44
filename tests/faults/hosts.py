"""Agent hosts that work for a customer, and write down what they were answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple, TypeVar

from google.protobuf.duration_pb2 import Duration

from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2, usage_pb2
from tests.faults.clients import AGENT_ID, BONUS, UNIT, Clients, answered, granted, usd
from tests.faults.services import LONGEST_TTL
from tests.support.reservation_oracle import Account, Promise, may_capture
from tests.support.rpc_errors import Refusal

T = TypeVar("T")
Kind = Literal["overdraft", "leaked", "doubled", "lost", "stuck"]
KINDS: Final[tuple[Kind, ...]] = ("overdraft", "leaked", "doubled", "lost", "stuck")
_DAY_SECONDS: Final = 86_400.0


class Finding(NamedTuple):
    """What must not be, and when it was noticed."""

    time: datetime
    kind: Kind
    what: str


@dataclass
class Record:
    """What all hosts have seen: how often, and what must not have been."""

    calls: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def found(self, kind: Kind, what: str) -> None:
        self.findings.append(Finding(datetime.now(UTC), kind, what))


class Host:
    """Authorizes, works and settles, one run after the other, as a random number generator says."""

    def __init__(
        self, name: str, account: Account, clients: Clients, record: Record, choices: random.Random
    ) -> None:
        self._name = name
        self._account = account
        self._clients = clients
        self._record = record
        self._random = choices
        self._runs = 0

    async def work(self, until: Callable[[], bool]) -> None:
        """Run after run `until` it is time to stop; the last one is finished."""
        while not until():
            self._runs += 1
            try:
                await self._run(f"{self._name}-{self._runs}")
            except TimeoutError:
                self._record.found("stuck", f"{self._name}-{self._runs} was not answered for a minute")
            except AssertionError as error:
                self._record.found("overdraft", f"{self._name}-{self._runs}: {error}")

    async def _run(self, workflow_id: str) -> None:
        promise = await self._authorize(workflow_id)
        if promise is None:
            await self._find_money(workflow_id)
            return
        await asyncio.sleep(self._random.uniform(0, 0.3))
        if self._random.random() < 0.2:
            await self._extend(promise)
        ending = self._random.random()
        # What is kept for a day must be ended: the test does not last so long.
        if ending < 0.75 or (ending > 0.9 and promise.expire_time - time.time() > 60):
            await self._settle(promise)
        elif ending < 0.9:
            await self._release(promise)
        else:
            self._record.calls["abandoned"] += 1

    async def _authorize(self, workflow_id: str) -> Promise | None:
        ttl = _DAY_SECONDS
        if self._random.random() < 0.9:
            ttl = self._random.uniform(1.0, LONGEST_TTL.total_seconds())
        units = self._random.randint(1, 20)
        request = pb.AuthorizeRequest(
            customer_id=self._account.customer_id,
            workflow_id=workflow_id,
            agent_id=AGENT_ID,
            action_type="run",
            max_cost=usd(units * UNIT),
            ttl=_duration(ttl),
        )
        answer = await self._call(lambda: self._clients.host.metering.Authorize(request))
        if isinstance(answer, Refusal):
            self._record.calls["refused"] += 1
            return None
        self._record.calls[
            "leased" if answer.reservation.kind == reservation_pb2.RESERVATION_KIND_LEASED else "durable"
        ] += 1
        promise = Promise(
            answer.reservation.reservation_id,
            self._account.customer_id,
            workflow_id,
            answer.reservation.token,
            answer.reservation.amount.amount_micros,
            answer.reservation.expire_time.ToNanoseconds() / 1e9,
            may_be_owed=self._account.credit_limit > 0,
        )
        self._account.promises.append(promise)
        return promise

    async def _extend(self, promise: Promise) -> None:
        request = pb.ExtendRequest(token=promise.token, amount=usd(self._random.randint(1, 40) * UNIT))
        promise.counted = max(promise.counted, request.amount.amount_micros)
        answer = await self._call(lambda: self._clients.host.metering.Extend(request))
        if isinstance(answer, Refusal):
            if answer.reason == "RESERVATION_ENDED" and promise.stands(time.time()):
                self._record.found("overdraft", f"{promise} had ended when it was to be extended")
            elif answer.reason not in ("RESERVATION_ENDED", "INSUFFICIENT_CREDITS"):
                self._record.found("lost", f"{promise} could not be extended: {answer}")
            return
        self._record.calls["extended"] += 1
        promise.token = answer.reservation.token
        promise.amount = answer.reservation.amount.amount_micros
        promise.expire_time = answer.reservation.expire_time.ToNanoseconds() / 1e9

    async def _settle(self, promise: Promise) -> None:
        units = self._random.choice([0, 1, promise.amount // UNIT, self._random.randint(1, 30)])
        outcome = self._random.choice(
            [usage_pb2.OUTCOME_UNKNOWN, usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_PENDING]
        )
        event = usage_pb2.UsageEvent(usage=usage_pb2.Usage(model="m", input_tokens=units), outcome=outcome)
        if outcome == usage_pb2.OUTCOME_PENDING:
            event.outcome_expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
        gross = units * UNIT + (BONUS if outcome == usage_pb2.OUTCOME_SUCCESS else 0)
        request = pb.SettleRequest(token=promise.token, event=event)
        answer = await self._call(lambda: self._clients.host.metering.Settle(request))
        if isinstance(answer, Refusal):
            self._record.found("lost", f"{promise} could not be settled: {answer}")
            return
        captured = answer.settlement.captured.amount_micros
        from_credits = answer.settlement.excess_from_credits.amount_micros
        # An extension that was refused may take effect later: by a try of it that was cut off.
        if not any(
            may_capture(replace(promise, amount=amount), gross, captured, from_credits, time.time())
            for amount in {promise.amount, promise.counted or promise.amount}
        ):
            self._record.found(
                "overdraft",
                f"{promise} captured {captured} of {gross} ({from_credits} came from credits): "
                f"{reservation_pb2.ReservationState.Name(answer.settlement.state)}",
            )
        self._account.charge(promise.workflow_id, gross)
        self._record.calls["settled"] += 1
        promise.state = "settled"
        if outcome == usage_pb2.OUTCOME_PENDING and self._random.random() < 0.5:
            await self._resolve(promise.workflow_id, answer.metered.outcome_id)

    async def _resolve(self, workflow_id: str, outcome_id: str) -> None:
        request = pb.ResolveOutcomeRequest(outcome_id=outcome_id, outcome=usage_pb2.OUTCOME_SUCCESS)
        answer = await self._call(lambda: self._clients.host.metering.ResolveOutcome(request))
        # Too late, it has fallen to its default, which adds nothing.
        if not isinstance(answer, Refusal):
            self._account.charge(f"{workflow_id}/outcome", BONUS)
            self._record.calls["resolved"] += 1

    async def _release(self, promise: Promise) -> None:
        request = pb.ReleaseRequest(token=promise.token)
        answer = await self._call(lambda: self._clients.host.metering.Release(request))
        if isinstance(answer, Refusal):
            self._record.found("leaked", f"{promise} could not be released: {answer}")
            return
        promise.state = "released"
        self._record.calls["released"] += 1

    async def _find_money(self, key: str) -> None:
        """There is not enough: sometimes more is bought, and sometimes some is taken back."""
        micros, lot = self._random.randint(20, 200) * UNIT, self._random.random()
        if lot < 0.3:
            await granted(lambda: self._clients.grant(self._account.customer_id, micros, key))
            self._account.granted += micros
        elif lot < 0.4:
            answer = await answered(lambda: self._clients.debit(self._account.customer_id, micros // 20, key))
            if not isinstance(answer, Refusal):
                self._account.debited += micros // 20
        else:
            await asyncio.sleep(self._random.uniform(0, 0.3))

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T | Refusal:
        """Call until there is an answer. Sometimes it is not heard, or comes to two who ask at once."""
        lot = self._random.random()
        if lot < 0.05:
            first, _ = await asyncio.gather(answered(call), answered(call))
            return first
        if lot < 0.15:
            task = asyncio.ensure_future(call())
            await asyncio.sleep(self._random.uniform(0, 0.02))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return await answered(call)


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
