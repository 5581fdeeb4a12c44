"""Random reservations over gRPC, each answer compared with an oracle's, while stores and services fail."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tallystick.metering.v1 import budget_pb2, budget_service_pb2, reservation_pb2, usage_pb2
from tallystick.metering.v1 import metering_service_pb2 as pb
from tests.faults.caches import FaultyValkey
from tests.faults.clients import AGENT_ID, BONUS, UNIT, Balance, Clients, answered, granted, usd
from tests.faults.services import GRACE, REAP, ServiceName, Services
from tests.support.reservation_oracle import MARGIN_SECONDS, Account, Promise, may_capture
from tests.support.rpc_errors import Refusal
from tests.support.waiting import eventually

T = TypeVar("T")
numbers = itertools.count()

SHORT, LONG, DAY = 1.0, 5.0, 86_400.0
# What is on its way back waits for workers that failed while a service was restarted, and pause longer each
# time: seconds. What nobody brings back stays for a day, with the reservations that are made for one.
MOMENT_SECONDS = 10.0
SETTLED = reservation_pb2.RESERVATION_STATE_SETTLED


class Deferred(NamedTuple):
    """A pending outcome, and the charge that it belongs to."""

    outcome_id: str
    account: Account
    charge_key: str
    max_bonus: int
    expire_time: float


@dataclass
class Running:
    """The services of a test, and everything that its machines left to be checked at its end."""

    runner: asyncio.Runner
    services: Services
    valkey: FaultyValkey
    clients: Clients
    accounts: list[Account] = field(default_factory=list)


class How(NamedTuple):
    """How a call goes: what happens to it after so many milliseconds."""

    disturbance: str
    milliseconds: int = 0


CALM_CALL = How("")
# What callers do to their own calls: nobody else has to notice.
CALLER_FAULTS = ["twice", "lost", "cancelled"]
FAULTS = ["metering", "ledger", "valkey", "flush"]
CALM = st.one_of(
    st.just(CALM_CALL), st.builds(How, st.sampled_from(["", *CALLER_FAULTS]), st.integers(0, 12))
)
STORMY = st.one_of(
    st.just(CALM_CALL),
    st.just(CALM_CALL),
    st.builds(How, st.sampled_from([*CALLER_FAULTS, *FAULTS]), st.integers(0, 12)),
)
UNITS = st.integers(1, 40)
WHICH = st.integers(0, 20)
OUTCOMES = [usage_pb2.OUTCOME_UNKNOWN, usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_PENDING]
DECIDED = [usage_pb2.OUTCOME_SUCCESS, usage_pb2.OUTCOME_FAILURE]
TTLS = st.sampled_from([SHORT, LONG, LONG, LONG, DAY])


class ReservationMachine(RuleBasedStateMachine):
    """One thing after the other, on customers of its own, each answered as the oracle expects."""

    running: Running

    def __init__(self) -> None:
        super().__init__()
        self.accounts: list[Account] = []

    @initialize(
        stormy=st.booleans(),
        limits=st.lists(st.sampled_from([0, 0, 20]), min_size=2, max_size=2),
        caps=st.lists(st.sampled_from([None, None, 60]), min_size=2, max_size=2),
        grants=st.lists(st.integers(1, 300), min_size=2, max_size=2),
    )
    def begin(self, stormy: bool, limits: list[int], caps: list[int | None], grants: list[int]) -> None:
        self.stormy = stormy
        self.promises: list[tuple[Account, Promise]] = []
        self.requests: dict[int, pb.AuthorizeRequest] = {}
        self.events: dict[str, usage_pb2.UsageEvent] = {}
        self.deferred: list[Deferred] = []
        self.waited = False
        grace = (GRACE + REAP).total_seconds()
        # The last one can always pay.
        for limit, cap, units in zip([*limits, 0], [*caps, None], [*grants, 1_000], strict=True):
            account = Account(
                f"cus_{next(numbers)}", grace, limit * UNIT, None if cap is None else cap * UNIT
            )
            self.accounts.append(account)
            self._run(self._create(account))
            self.grant(self.accounts.index(account), units, CALM_CALL)
        self.running.accounts += self.accounts
        if not stormy:
            self._run(eventually(self._redis_is_used))

    # Steps

    @rule(who=st.integers(0, 1), units=UNITS, ttl=TTLS, data=st.data())
    def authorize(self, who: int, units: int, ttl: float, data: st.DataObject) -> None:
        self._authorize_now(who, units, ttl, self._draw(data))

    # What is there depends on what was answered. So rules are told which, and not chosen by it: else an
    # example could not be repeated.

    @rule(which=WHICH)
    def authorize_again(self, which: int) -> None:
        self._run(self._authorize_again(*self._promise(which)))

    @rule(which=WHICH, data=st.data(), units=st.integers(1, 60), ttl=st.sampled_from([None, LONG]))
    def extend(self, which: int, data: st.DataObject, units: int, ttl: float | None) -> None:
        how = self._draw(data)
        account, promise = self._promise(which)
        request = pb.ExtendRequest(token=promise.token, amount=usd(units * UNIT))
        if ttl is not None:
            request.ttl.CopyFrom(_duration(ttl))
        self._run(self._extend(account, promise, request, how))

    @rule(
        which=WHICH,
        data=st.data(),
        units=st.integers(0, 60),
        outcome=st.sampled_from(OUTCOMES),
        seconds=st.sampled_from([1, 60]),
    )
    def settle(
        self,
        which: int,
        data: st.DataObject,
        units: int,
        outcome: usage_pb2.Outcome.ValueType,
        seconds: int,
    ) -> None:
        how = self._draw(data)
        account, promise = self._promise(which)
        event = self.events.get(promise.workflow_id)
        if event is None:
            event = self.events[promise.workflow_id] = _event(units, outcome, seconds)
        self._run(self._settle(account, promise, event, how))

    @rule(which=WHICH, data=st.data())
    def release(self, which: int, data: st.DataObject) -> None:
        how = self._draw(data)
        self._run(self._release(*self._promise(which), how))

    @rule(who=st.integers(0, 1), units=st.integers(0, 30), data=st.data())
    def meter(self, who: int, units: int, data: st.DataObject) -> None:
        """Work that nobody asked for before."""
        self._run(self._meter(self.accounts[who], units, self._draw(data)))

    @rule(which=WHICH, data=st.data(), outcome=st.sampled_from(DECIDED))
    def resolve(self, which: int, data: st.DataObject, outcome: usage_pb2.Outcome.ValueType) -> None:
        how = self._draw(data)
        if not self.deferred:
            account, promise = self._new_promise()
            event = self.events[promise.workflow_id] = _event(2, usage_pb2.OUTCOME_PENDING, 60)
            self._run(self._settle(account, promise, event, CALM_CALL))
        self._run(self._resolve(_pick(self.deferred, which), outcome, how))

    @rule(who=st.integers(0, 1), units=st.integers(1, 100), how=CALM)
    def grant(self, who: int, units: int, how: How) -> None:
        account, key = self.accounts[who], f"grant-{next(numbers)}"

        async def give() -> None:
            answer = await self._call(
                lambda: self.running.clients.grant(account.customer_id, units * UNIT, key), how
            )
            assert not isinstance(answer, Refusal), answer
            account.granted += units * UNIT

        self._run(give())

    @rule(who=st.integers(0, 1), units=st.integers(1, 100), data=st.data())
    def debit(self, who: int, units: int, data: st.DataObject) -> None:
        """An operator takes credits away."""
        self._run(self._debit(self.accounts[who], units * UNIT, self._draw(data)))

    @precondition(lambda self: not self.waited)
    @rule()
    def let_expire(self) -> None:
        """Wait for the first, if it comes soon. Once, because tests have no time."""
        self.waited = True
        due = min((one.expire_time for _, one in self.promises if not one.state), default=0.0)
        seconds = due - time.time()
        if 0 < seconds <= SHORT:
            self._run(asyncio.sleep(seconds + 1.5 * MARGIN_SECONDS))

    @rule(which=st.sampled_from(["metering", "ledger"]))
    def restart(self, which: str) -> None:
        """Kill a service while it does nothing: then nothing is lost but what it remembered."""
        self._fail(which)

    # Steps of a storm

    @precondition(lambda self: self.stormy)
    @rule(which=st.sampled_from(["flush", "valkey", "copy", "restore", "restore"]))
    def lose_memory(self, which: str) -> None:
        self._fail(which)

    @precondition(lambda self: self.stormy)
    @rule(who=st.integers(0, 1), forgotten=UNITS, units=UNITS)
    def authorize_around_a_restore(self, who: int, forgotten: int, units: int) -> None:
        """Valkey forgets the first of two reservations, and remembers the lease."""
        self._authorize_now(who, 1, LONG, CALM_CALL)
        self._fail("copy")
        self._authorize_now(who, forgotten, LONG, CALM_CALL)
        self._fail("restore")
        self._authorize_now(who, units, LONG, CALM_CALL)

    @precondition(lambda self: self.stormy)
    @rule(who=st.integers(0, 1), units=UNITS, data=st.data())
    def authorize_without_valkey(self, who: int, units: int, data: st.DataObject) -> None:
        self.running.valkey.kill()
        try:
            self._authorize_now(who, units, LONG, self._draw(data))
        finally:
            self.running.valkey.start()

    @invariant()
    def nothing_is_overdrawn(self) -> None:
        for account in self.accounts:
            self._run(self._check(account))

    def teardown(self) -> None:
        """End most of what is under way; the rest ends by itself."""
        for number, (account, promise) in enumerate(getattr(self, "promises", [])):
            # What is kept for a day would be, after the end of the test.
            if not promise.state and (number % 2 or promise.expire_time > time.time() + 2 * LONG):
                self._run(self._release(account, promise, CALM_CALL))
        for deferred in getattr(self, "deferred", []):
            self._run(self._resolve(deferred, usage_pb2.OUTCOME_FAILURE, CALM_CALL))

    # How each is done, and what may be answered

    def _promise(self, which: int) -> tuple[Account, Promise]:
        return _pick(self.promises, which) if self.promises else self._new_promise()

    def _new_promise(self) -> tuple[Account, Promise]:
        """A new reservation of the customer that can always pay."""
        known = len(self.promises)
        self.grant(2, 10, CALM_CALL)
        self._authorize_now(2, 10, LONG, CALM_CALL)
        assert len(self.promises) > known
        return self.promises[-1]

    def _authorize_now(self, who: int, units: int, ttl: float, how: How) -> None:
        account = self.accounts[who]
        request = pb.AuthorizeRequest(
            customer_id=account.customer_id,
            workflow_id=f"run-{next(numbers)}",
            agent_id=AGENT_ID,
            action_type="run",
            max_cost=usd(units * UNIT),
            ttl=_duration(ttl),
        )
        self._run(self._authorize(account, request, how))

    async def _create(self, account: Account) -> None:
        await self.running.clients.create_customer(account.customer_id, account.credit_limit)
        if account.cap is not None:
            budget = budget_pb2.Budget(
                budget_id=account.customer_id.replace("cus_", "bud_"),
                customer_id=account.customer_id,
                period=budget_pb2.BUDGET_PERIOD_TOTAL,
                limit=usd(account.cap),
                hard=True,
            )
            await granted(
                lambda: self.running.clients.operator.budgets.CreateBudget(
                    budget_service_pb2.CreateBudgetRequest(budget=budget)
                )
            )

    async def _redis_is_used(self) -> bool:
        """Whether metering has found Redis again after the storms of other examples: what it keeps in
        PostgreSQL until then, Redis does not remember.
        """
        probe = f"cus_{next(numbers)}"
        await self.running.clients.create_customer(probe, 0)
        await self.running.clients.grant(probe, UNIT, f"grant-{probe}")
        request = pb.AuthorizeRequest(
            customer_id=probe,
            workflow_id=f"run-{next(numbers)}",
            agent_id=AGENT_ID,
            action_type="run",
            max_cost=usd(UNIT),
            ttl=_duration(SHORT),
        )
        reservation = (await granted(lambda: self._host.Authorize(request))).reservation
        await granted(lambda: self._host.Release(pb.ReleaseRequest(token=reservation.token)))
        return bool(reservation.kind == reservation_pb2.RESERVATION_KIND_LEASED)

    async def _authorize(self, account: Account, request: pb.AuthorizeRequest, how: How) -> None:
        amount = request.max_cost.amount_micros
        earlier = await self._balance(account)
        asked_at = time.time()
        answer = await self._call(lambda: self._host.Authorize(request), how)
        now = time.time()
        if isinstance(answer, Refusal):
            self._judge_refusal(account, answer, amount, earlier, await self._balance(account), asked_at)
            return
        self._judge_promise(account, amount, earlier, now)
        promise = Promise(
            answer.reservation.reservation_id,
            account.customer_id,
            request.workflow_id,
            answer.reservation.token,
            answer.reservation.amount.amount_micros,
            _seconds(answer.reservation.expire_time),
            may_be_owed=account.credit_limit > 0,
        )
        assert promise.amount == amount
        account.promises.append(promise)
        self.requests[id(promise)] = request
        self.promises.append((account, promise))

    async def _authorize_again(self, account: Account, promise: Promise) -> None:
        answer = await answered(lambda: self._host.Authorize(self.requests[id(promise)]))
        now = time.time()
        if isinstance(answer, Refusal):
            if answer.reason == "RESERVATION_ENDED":
                assert not promise.stands(now)
            else:
                # Redis has forgotten the attempt, and there is less now.
                assert self.stormy, answer
            return
        assert answer.reservation.reservation_id == promise.reservation_id
        if promise.state:
            assert self.stormy, "what has ended came back"
            promise.revived, promise.state = True, ""
        if promise.stands(now):
            assert answer.reservation.amount.amount_micros >= (0 if self.stormy else promise.amount)
        if answer.reservation.token != promise.token:
            account.left_behind.append((promise.amount, promise.expire_time))
            promise.amount = answer.reservation.amount.amount_micros
        promise.token = answer.reservation.token
        promise.expire_time = max(promise.expire_time, _seconds(answer.reservation.expire_time))

    async def _extend(self, account: Account, promise: Promise, request: pb.ExtendRequest, how: How) -> None:
        earlier = await self._balance(account)
        asked_at = time.time()
        promise.counted = max(promise.counted, promise.amount, request.amount.amount_micros)
        answer = await self._call(lambda: self._host.Extend(request), how)
        now = time.time()
        if isinstance(answer, Refusal):
            if answer.reason == "RESERVATION_ENDED":
                assert not promise.stands(now)
            else:
                self._judge_refusal(
                    account,
                    answer,
                    request.amount.amount_micros,
                    earlier,
                    await self._balance(account),
                    asked_at,
                    promise,
                )
                assert answer.reason in ("INSUFFICIENT_CREDITS", "BUDGET_EXCEEDED"), answer
            return
        if promise.state:
            assert self.stormy, f"a reservation was extended that is {promise.state}"
            promise.revived, promise.state = True, ""
        after = answer.reservation
        if promise.stands(asked_at):
            self._judge_promise(account, after.amount.amount_micros, earlier, now, promise)
            assert after.amount.amount_micros == max(promise.amount, request.amount.amount_micros)
        # One that became a hold left as much behind in the lease.
        account.left_behind.append((promise.amount, promise.expire_time))
        promise.token, promise.amount = after.token, after.amount.amount_micros
        promise.expire_time = _seconds(after.expire_time)

    async def _settle(
        self, account: Account, promise: Promise, event: usage_pb2.UsageEvent, how: How
    ) -> None:
        request = pb.SettleRequest(token=promise.token, event=event)
        gross = event.usage.input_tokens * UNIT
        gross += BONUS if event.outcome == usage_pb2.OUTCOME_SUCCESS else 0
        answer = await self._call(lambda: self._host.Settle(request), how)
        now = time.time()
        assert not isinstance(answer, Refusal), answer
        found = answer.settlement
        captured = found.captured.amount_micros
        from_credits = found.excess_from_credits.amount_micros
        assert may_capture(promise, gross, captured, from_credits, now), (promise, found)
        assert found.reserved.amount_micros == captured + found.returned.amount_micros
        assert gross == captured + found.excess.amount_micros
        assert found.excess.amount_micros == sum(
            part.amount_micros
            for part in (found.excess_from_credits, found.excess_from_receivable, found.excess_unpaid)
        )
        assert answer.metered.price_charged.amount_micros == gross
        account.charge(promise.workflow_id, gross)
        if not promise.state:
            promise.state = reservation_pb2.ReservationState.Name(found.state)[18:].lower()
            promise.captured = captured
        self._note_deferred(account, promise.workflow_id, answer.metered)

    async def _release(self, account: Account, promise: Promise, how: How) -> None:
        answer = await self._call(lambda: self._host.Release(pb.ReleaseRequest(token=promise.token)), how)
        now = time.time()
        assert not isinstance(answer, Refusal), answer
        found = answer.settlement
        state = reservation_pb2.ReservationState.Name(found.state)[18:].lower()
        if promise.stands(now):
            assert state == "released"
        if promise.state and not promise.revived:
            assert state == promise.state, (promise, found)
            assert found.captured.amount_micros == promise.captured
        promise.state = promise.state or state

    async def _meter(self, account: Account, units: int, how: How) -> None:
        workflow_id = f"work-{next(numbers)}"
        event = usage_pb2.UsageEvent(
            customer_id=account.customer_id,
            workflow_id=workflow_id,
            agent_id=AGENT_ID,
            action_type="run",
            usage=usage_pb2.Usage(model="m", input_tokens=units),
            outcome=usage_pb2.OUTCOME_FAILURE,
        )
        answer = await self._call(lambda: self._host.Meter(pb.MeterRequest(event=event)), how)
        assert not isinstance(answer, Refusal), answer
        assert answer.metered.price_charged.amount_micros == units * UNIT
        account.charge(workflow_id, units * UNIT)

    async def _resolve(self, deferred: Deferred, outcome: usage_pb2.Outcome.ValueType, how: How) -> None:
        request = pb.ResolveOutcomeRequest(outcome_id=deferred.outcome_id, outcome=outcome)
        answer = await self._call(lambda: self._host.ResolveOutcome(request), how)
        now = time.time()
        key = f"{deferred.charge_key}/outcome"
        if isinstance(answer, Refusal):
            if answer.reason == "OUTCOME_EXPIRED":
                assert now > deferred.expire_time - MARGIN_SECONDS
            else:
                assert answer.reason == "OUTCOME_ALREADY_RESOLVED"
                was_success = outcome != usage_pb2.OUTCOME_SUCCESS
                assert (key in deferred.account.charges) == was_success
            return
        bonus = answer.outcome.bonus.amount_micros
        assert bonus == (BONUS if outcome == usage_pb2.OUTCOME_SUCCESS else 0)
        if bonus:
            deferred.account.charge(key, bonus)

    async def _debit(self, account: Account, amount: int, how: How) -> None:
        earlier, key = await self._balance(account), f"debit-{next(numbers)}"
        asked_at = time.time()
        answer = await self._call(lambda: self.running.clients.debit(account.customer_id, amount, key), how)
        now = time.time()
        if not isinstance(answer, Refusal):
            room = max(account.credit_limit - earlier.receivable, 0)
            assert amount <= earlier.credits - earlier.held - account.promised(now) + room
            account.debited += amount
            return
        later = await self._balance(account)
        kept = account.at_most_kept(asked_at)
        if self.stormy or min(earlier.available, later.available) - kept < amount or later.unpaid:
            return

        # It was in the way of a lease alone, which gives it back.
        async def succeeds() -> bool:
            again = await answered(lambda: self.running.clients.debit(account.customer_id, amount, key))
            return not isinstance(again, Refusal)

        await eventually(succeeds)
        account.debited += amount

    def _judge_promise(
        self, account: Account, amount: int, earlier: Balance, now: float, but: Promise | None = None
    ) -> None:
        """More than there is was not promised."""
        others = account.promised(now, but)
        room = max(account.credit_limit - earlier.receivable, 0)
        assert others + amount <= earlier.credits - earlier.held + room, "promised twice"
        if account.cap is not None and not self.stormy:
            assert account.spent + others + amount <= account.cap, "beyond the cap"

    def _judge_refusal(
        self,
        account: Account,
        refusal: Refusal,
        amount: int,
        earlier: Balance,
        later: Balance,
        asked_at: float,
        but: Promise | None = None,
    ) -> None:
        """What was refused is not there, unless a fault keeps it away for a while."""
        kept = account.at_most_kept(asked_at, but)
        if self.stormy:
            return
        if refusal.reason == "BUDGET_EXCEEDED":
            assert account.cap is not None
            assert account.spent + kept + amount > account.cap, "refused within the cap"
            return
        assert refusal.reason == "INSUFFICIENT_CREDITS", refusal
        if earlier.unpaid or later.unpaid:
            # What comes back pays for that first.
            return
        held = len([one for one in self.deferred if one.account is account]) * BONUS
        free = min(one.credits + max(account.credit_limit - one.receivable, 0) for one in (earlier, later))
        assert amount > free - held - kept, f"refused though there is {free} − {held} − {kept}"

    async def _check(self, account: Account) -> None:
        balance = await self._balance(account)
        now = time.time()
        assert balance.kept >= account.promised(now), "promised, and not kept"
        if self.stormy:
            return

        held = sum(one.max_bonus for one in self.deferred if one.account is account)
        # What is on its way back counts as reserved for a moment.
        until = now + MOMENT_SECONDS
        while balance.kept > account.at_most_kept(time.time()) + held:
            assert time.time() < until, "kept for nobody"
            await asyncio.sleep(0.02)
            balance = await self._balance(account)

    async def _balance(self, account: Account) -> Balance:
        balance = await self.running.clients.balance(account.customer_id)
        assert balance.credits - balance.receivable - balance.unpaid == account.worth, (
            balance,
            account,
        )
        assert balance.receivable <= account.credit_limit
        return balance

    async def _call(self, call: Callable[[], Awaitable[T]], how: How) -> T | Refusal:
        """The answer that counts: the first that the caller has got hold of."""
        if not how.disturbance:
            return await answered(call)
        if how.disturbance == "twice":
            first, second = await asyncio.gather(answered(call), answered(call))
            # Both were answered: both answers count.
            assert isinstance(first, Refusal) == isinstance(second, Refusal), (first, second)
            return first
        if how.disturbance == "lost":
            await answered(call)
            return await answered(call)
        task = asyncio.ensure_future(call())
        await asyncio.sleep(how.milliseconds / 1000)
        if how.disturbance == "cancelled":
            task.cancel()
        else:
            await asyncio.to_thread(self._fail, how.disturbance)
        (heard,) = await asyncio.gather(task, return_exceptions=True)
        return await answered(call) if isinstance(heard, BaseException) else heard

    def _fail(self, which: str) -> None:
        valkey = self.running.valkey
        match which:
            case "flush" if valkey.running:
                valkey.flush()
            case "valkey":
                valkey.kill()
                valkey.start()
            case "metering" | "ledger":
                name: ServiceName = "metering" if which == "metering" else "ledger"
                self.running.services.restart(name)
            case "copy" if valkey.running:
                valkey.keep_copy()
            case "restore" if valkey.has_copy:
                valkey.restore_copy()

    def _draw(self, data: st.DataObject) -> How:
        how = data.draw(STORMY if self.stormy else CALM, label="how")
        note(f"how: {how}")
        return how

    def _note_deferred(self, account: Account, key: str, metered: pb.MeteredEvent) -> None:
        if metered.HasField("deferred_outcome"):
            found = metered.deferred_outcome
            deferred = Deferred(
                found.outcome_id, account, key, found.max_bonus.amount_micros, _seconds(found.expire_time)
            )
            if deferred.outcome_id not in {one.outcome_id for one in self.deferred}:
                self.deferred.append(deferred)

    def _run(self, step: Any) -> None:
        self.running.runner.run(step)

    @property
    def _host(self) -> Any:
        return self.running.clients.host.metering


def _pick(among: Sequence[T], which: int) -> T:
    return among[which % len(among)]


def _event(units: int, outcome: usage_pb2.Outcome.ValueType, seconds: int) -> usage_pb2.UsageEvent:
    event = usage_pb2.UsageEvent(usage=usage_pb2.Usage(model="m", input_tokens=units), outcome=outcome)
    if outcome == usage_pb2.OUTCOME_PENDING:
        event.outcome_expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return event


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def _seconds(moment: Timestamp) -> float:
    return moment.ToNanoseconds() / 1e9
