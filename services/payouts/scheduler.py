"""The worker that requests payouts on the day of each organization's schedule."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from services.kit import ids, log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.money import Money
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain.minimums import minimum_of
from services.payouts.domain.payout import SCHEDULE, Origin, Owed, Payout, PayoutState
from services.payouts.domain.schedule import Run, Schedule, latest_run, next_run
from services.payouts.domain.units import Operation, round_down
from services.payouts.rpc.ledger import Ledger
from services.payouts.store import accounts, payouts, schedules

_BATCH: Final = 100
_log = log.get_logger()


class Scheduler:
    """Runs schedules that are due, in any number of processes: of a run there is one payout per currency."""

    def __init__(
        self,
        *,
        writer: Database,
        ledger: Ledger,
        minimums: Mapping[str, int],
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is told when payouts were requested."""
        self._writer = writer
        self._ledger = ledger
        self._minimums = minimums
        self._clock = clock
        self._wake = wake

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """Looks for schedules that are due, every `interval`."""
        return PeriodicWorker("payouts.scheduler", interval, self.step)

    async def step(self) -> bool:
        """Give a schedule to who has none, and run those that are due. Answers whether more may be."""
        more = await self._add_missing()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            due = await schedules.list_due(connection, self._clock.now(), _BATCH)
        failure: Exception | None = None
        for schedule in due:
            try:
                await self.run(schedule)
            except Exception as error:  # noqa: BLE001 - raised below; one must not hold up those behind it
                _log.warning("schedule.failed", organization_id=schedule.organization_id)
                failure = failure or error
        if failure is not None:
            raise failure
        return more or len(due) == _BATCH

    async def payable(self, schedule: Schedule, run: Run) -> dict[str, int]:
        """What a run would pay now, in micros by currency: at least the minimum, and what can be moved."""
        found = {}
        for earnings in await self._ledger.list_payable(schedule.organization_id, run.earned_before):
            currency = earnings.payable.currency_code
            amount = round_down(earnings.payable.amount_micros, currency, Operation.PAYOUT)
            if amount >= self.minimum(schedule, currency):
                found[currency] = amount
        return found

    def minimum(self, schedule: Schedule, currency_code: str) -> int:
        """The smallest amount that a schedule pays, in micros."""
        return max(schedule.minimums.get(currency_code, 0), minimum_of(self._minimums, currency_code))

    async def _add_missing(self) -> bool:
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            without = await schedules.list_without(connection, _BATCH)
            for organization_id in without:
                await schedules.add_missing(connection, default_schedule(organization_id, self._clock))
        if without:
            _log.info("schedules.added", count=len(without), at=now.isoformat())
        return len(without) == _BATCH

    async def run(self, schedule: Schedule) -> None:
        """Request what a schedule pays if it is due."""
        now = self._clock.now()
        run, following = latest_run(schedule, now), next_run(schedule, now)
        if run is None or following is None:
            return
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            account = await accounts.find(connection, schedule.organization_id)
        # Who cannot be paid is not: its earnings wait for the next run.
        amounts = await self.payable(schedule, run) if account is not None and account.can_be_paid else {}
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            # First: it takes the schedule's row, so that another process's run of it waits, and then finds it
            # done.
            if not await schedules.advance(connection, schedule, following.time):
                return
            for currency, amount in amounts.items():
                new = self._payout(schedule, run, Money(currency, amount))
                await payouts.create(connection, new, now)
        self._wake()
        _log.info(
            "schedule.run",
            organization_id=schedule.organization_id,
            earned_before=run.earned_before.isoformat(),
            amounts_micros=amounts,
        )

    def _payout(self, schedule: Schedule, run: Run, money: Money) -> Payout:
        now = self._clock.now()
        key = ("schedule", money.currency_code, run.time.isoformat())
        content = f"{money.currency_code}:{money.amount_micros}".encode()
        return Payout(
            payout_id=ids.derive_id(ids.PAYOUT, schedule.organization_id, *key),
            organization_id=schedule.organization_id,
            money=money,
            state=PayoutState.OPENING,
            owed=Owed.DEBIT,
            origin=Origin.SCHEDULE,
            earned_before=run.earned_before,
            request_hash=hashlib.sha256(content).digest(),
            requester=SCHEDULE,
            next_attempt_time=now,
            create_time=now,
            update_time=now,
        )


def default_schedule(organization_id: str, clock: Clock) -> Schedule:
    """What an organization has that never set a schedule."""
    schedule = Schedule(organization_id)
    run = next_run(schedule, clock.now())
    return schedule if run is None else Schedule(organization_id, next_run_time=run.time)
