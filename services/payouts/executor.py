"""The worker that pays: it takes payouts one step further, whatever was interrupted before.

Each step is one call to the ledger or to Stripe between two transactions, and may be repeated: what is to be
asked is written down before it is asked, and the answer is written down only if nobody else changed the
payout meanwhile. So it does not matter where a process is killed, nor how many of them run.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from prometheus_client import Counter

from services.kit import ids, log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.errors import TallystickError
from services.kit.money import Money
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.payouts.domain import payout as rules
from services.payouts.domain.backoff import backoff
from services.payouts.domain.payout import (
    NEEDS_DECISION,
    WORKER,
    BankPayout,
    BankStatus,
    Call,
    Change,
    Hold,
    Owed,
    Payout,
    PayoutState,
    Step,
)
from services.payouts.processor.bank_payouts import BankPayouts
from services.payouts.processor.errors import InDoubt, KeyConflict, KeyRefused, Refused, Throttled
from services.payouts.processor.transfers import Transfers
from services.payouts.rpc.ledger import Ledger, is_final, is_in_transit
from services.payouts.store import accounts, payouts, work

LEASE: Final = timedelta(seconds=90)
# How long until something that only others can mend is looked at again.
_HELD_PAUSE: Final = timedelta(minutes=5)
# Payouts of one organization that are read at once, and organizations that a runner takes in one step.
_BATCH: Final = 100
_TURNS: Final = 25

_HELD: Final = Counter("tallystick_payouts_held", "Payouts that came to stand still.", ["hold"])
_ENDED: Final = Counter("tallystick_payouts_ended", "Payouts that came to an end.", ["state"])
_log = log.get_logger()


class Executor:
    """Takes payouts further: in the worker, and for an RPC whose caller waits.

    At most `concurrency` organizations are worked on at once in this process; the payouts of one organization
    one after another.
    """

    def __init__(
        self,
        *,
        writer: Database,
        ledger: Ledger,
        transfers: Transfers,
        bank_payouts: BankPayouts,
        clock: Clock,
        concurrency: int,
    ) -> None:
        self._writer = writer
        self._ledger = ledger
        self._transfers = transfers
        self._bank_payouts = bank_payouts
        self._clock = clock
        self._concurrency = concurrency
        self._leased: deque[str] = deque()
        self._leasing = asyncio.Lock()
        self._none_due = False
        self._lease_id = ids.new_id("lease")
        self._worker: PeriodicWorker | None = None

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """Works on what is due, every `interval`, and when woken."""
        self._worker = PeriodicWorker("payouts.executor", interval, self.step)
        return self._worker

    def wake(self) -> None:
        """A payout has just got something to do."""
        if self._worker is not None:
            self._worker.wake()

    async def step(self) -> bool:
        """Work on organizations that are due. Answers whether there may be more."""
        self._none_due = False
        turns = await asyncio.gather(*(self._run() for _ in range(self._concurrency)))
        return any(turns)

    async def open(self, payout: Payout) -> Payout:
        """Ask the ledger once whether the earnings cover a payout; the payout as it is then."""
        return await self._act(payout)

    async def take_further(self, payout: Payout) -> Payout:
        """Do what is due for one payout, until nothing is; the payout as it is then."""
        while payout.next_attempt_time is not None and payout.next_attempt_time <= self._clock.now():
            payout = await self._act(payout)
        return payout

    # Leases.

    async def _run(self) -> bool:
        """Work on one organization after another. Answers whether it ended with work left."""
        for _ in range(_TURNS):
            organization_id = await self._next()
            if organization_id is None:
                return False
            await self._work_on(organization_id)
        return True

    async def _next(self) -> str | None:
        """An organization that this process has leased."""
        async with self._leasing:
            if not self._leased and not self._none_due:
                now = self._clock.now()
                async with self._writer.begin() as connection:
                    await scope(connection, PLATFORM)
                    self._leased.extend(
                        await work.lease(connection, self._lease_id, now, now + LEASE, self._concurrency)
                    )
                # One look is enough for all who run in this step.
                self._none_due = not self._leased
            return self._leased.popleft() if self._leased else None

    async def _work_on(self, organization_id: str) -> None:
        try:
            while await self._keep(organization_id):
                async with self._writer.begin() as connection:
                    await scope(connection, PLATFORM)
                    due = await payouts.list_due(connection, organization_id, self._clock.now(), _BATCH)
                for payout in due:
                    # One that takes long must not outlive the lease of those behind it.
                    if not await self._keep(organization_id):
                        return
                    await self.take_further(payout)
                if len(due) < _BATCH:
                    break
        finally:
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await work.give_back(connection, organization_id, self._lease_id)

    async def _keep(self, organization_id: str) -> bool:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            until = self._clock.now() + LEASE
            return await work.extend(connection, organization_id, self._lease_id, until)

    # Steps.

    async def _act(self, payout: Payout) -> Payout:
        """One step. Every way out of it changes the payout, or reads it anew."""
        step = self._step_of(payout)
        try:
            return await step(payout)
        except TallystickError as error:
            # The ledger. What it will not do is a contradiction, which no repetition mends.
            if is_final(error):
                return await self._save(
                    payout, rules.held_for_decision(payout, Hold.UNRESOLVED, f"ledger: {error.reason}")
                )
            return await self._later(payout, f"ledger: {error.reason}")
        except Throttled as error:
            # Certainly not done, so it says nothing of this payout: it waits as long as everybody does.
            return await self._save(
                payout, rules.again_later(payout, error.code or "throttled", self._clock.now() + error.pause)
            )
        except KeyRefused as error:
            # Of an account that is gone Stripe says so, too: no other key helps.
            hold = Hold.ACCOUNT_NOT_READY if error.is_account_gone else Hold.KEY_REFUSED
            return await self._later(payout, error.message, hold)
        except KeyConflict as error:
            return await self._save(payout, rules.held_for_decision(payout, Hold.KEY_CONFLICT, error.message))
        except InDoubt as error:
            return await self._later(payout, error.code or error.message)

    def _step_of(self, payout: Payout) -> Callable[[Payout], Awaitable[Payout]]:
        match payout.owed, payout.state, payout.bank_status:
            case Owed.DEBIT, _, _:
                return self._debit
            # The ledger first: it refuses to reverse what it has not heard to be completed.
            case Owed(), _, _:
                return self._tell
            case _, PayoutState.REQUESTED, _:
                return self._send
            case _, PayoutState.PROCESSING, _:
                return self._transfer
            case _, PayoutState.COMPLETED, BankStatus.WAITING:
                return self._wind_up
        return self._post_reversals

    async def _debit(self, payout: Payout) -> Payout:
        """Ask the ledger whether the earnings cover it: the gate."""
        try:
            await self._ledger.debit_payout(payout.organization_id, payout.payout_id, payout.money)
        except TallystickError as error:
            if not is_final(error):
                raise
            refusal = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
            return await self._save(payout, rules.refused(payout, refusal))
        return await self._save(payout, rules.opened(payout, self._clock.now()))

    async def _tell(self, payout: Payout) -> Payout:
        """Tell the ledger how it ended."""
        if payout.owed is Owed.COMPLETE:
            await self._ledger.complete_payout(payout.organization_id, payout.payout_id)
        else:
            reason = payout.failure_reason or payout.failure_code
            await self._ledger.return_payout(payout.organization_id, payout.payout_id, reason)
        await self._post_unposted(payout)
        return await self._save(payout, rules.told(payout, self._clock.now()))

    async def _send(self, payout: Payout) -> Payout:
        """Ask the ledger once more, and freeze what will be asked of Stripe."""
        standing = await self._ledger.get_payout_debit(payout.organization_id, payout.payout_id)
        if not is_in_transit(standing.debit):
            return await self._save(
                payout,
                rules.held_for_decision(payout, Hold.UNRESOLVED, "the ledger has ended this payout already"),
            )
        if standing.payouts_frozen:
            return await self._later(payout, standing.payouts_freeze_reason, Hold.FROZEN)
        if standing.balance.available.amount_micros < 0:
            return await self._later(payout, "available earnings are below zero", Hold.NEGATIVE_EARNINGS)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            account = await accounts.find(connection, payout.organization_id)
        if account is None or account.stripe_account_id is None:
            return await self._later(payout, "there is no connected account", Hold.ACCOUNT_NOT_READY)
        change = rules.sending(payout, account.stripe_account_id, self._clock.now())
        return await self._save(payout, change)

    async def _transfer(self, payout: Payout) -> Payout:
        """Ask for the transfer, with the key while it is good; then only look for it."""
        call = _frozen(payout, payout.transfer)
        if not call.may_be_repeated(self._clock.now()):
            return await self._look_up(payout)
        step = Step(WORKER, "transfers.create")
        try:
            transfer = await self._transfers.create(call, self._clock)
        except Refused as error:
            change = rules.transfer_refused(
                payout, error.code or "refused", error.message, step, self._clock.now()
            )
            return await self._save(payout, change)
        step = Step(WORKER, "transfers.create", stripe_id=transfer.transfer_id)
        return await self._save(
            payout, rules.transferred(payout, transfer.transfer_id, step, self._clock.now())
        )

    async def _look_up(self, payout: Payout) -> Payout:
        """The key may be forgotten, so asking again could pay twice: find what was made, or leave it."""
        found = await self._transfers.find(payout.payout_id)
        if found is None:
            change = rules.held_for_decision(
                payout, Hold.UNRESOLVED, "no transfer of this payout is to be found, and its key is too old"
            )
            return await self._save(payout, change)
        step = Step(WORKER, "lookup", stripe_id=found.transfer_id)
        change = rules.transferred(payout, found.transfer_id, step, self._clock.now())
        return await self._save(payout, change)

    async def _wind_up(self, payout: Payout) -> Payout:
        """Post what came back already, then send the rest to the bank."""
        await self._post_unposted(payout)
        if not rules.left_for_bank(payout).amount_micros:
            step = Step(WORKER, "worker", "all of it came back")
            return await self._save(payout, rules.nothing_for_bank(payout, step))
        if payout.bank_call is None:
            return await self._prepare_bank(payout)
        return await self._send_to_bank(payout)

    async def _prepare_bank(self, payout: Payout) -> Payout:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            account = await accounts.find(connection, payout.organization_id)
        if account is None or not account.bank_payouts_enabled:
            return await self._later(
                payout, "the connected account may not send to a bank now", Hold.ACCOUNT_NOT_READY
            )
        return await self._save(payout, rules.sending_to_bank(payout, self._clock.now()))

    async def _send_to_bank(self, payout: Payout) -> Payout:
        call = _frozen(payout, payout.bank_call)
        account_id = payout.stripe_account_id or ""
        step = Step(WORKER, "payouts.create")
        bank: BankPayout | None
        if call.may_be_repeated(self._clock.now()):
            try:
                bank = await self._bank_payouts.create(account_id, call, self._clock)
            except Refused as error:
                change = rules.bank_refused(payout, error.code or "refused", error.message, step)
                return await self._save(payout, change)
        else:
            bank = await self._bank_payouts.find(account_id, payout.payout_id, payout.bank_number, call.time)
        known = None if bank is None else rules.at_bank(payout, bank, step)
        return await self._save(
            payout,
            known
            or rules.held_for_decision(
                payout, Hold.UNRESOLVED, "no bank payout is to be found, and its key is too old"
            ),
        )

    async def _post_reversals(self, payout: Payout) -> Payout:
        """What is left to do for a payout that has come to its end."""
        await self._post_unposted(payout)
        return await self._save(payout, rules.told(payout, self._clock.now()))

    async def _post_unposted(self, payout: Payout) -> None:
        """Tell the ledger what came back."""
        if payout.reversed_micros == 0:
            return
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            unposted = await payouts.list_reversals(connection, payout.payout_id, unposted=True)
        for reversal in unposted:
            amount = Money(payout.money.currency_code, reversal.amount_micros)
            await self._ledger.reverse_payout(
                payout.organization_id, payout.payout_id, reversal.reversal_id, amount
            )
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                await payouts.mark_posted(connection, reversal.reversal_id)

    # What a step ends in.

    async def _later(self, payout: Payout, error: str, hold: Hold | None = None) -> Payout:
        pause = backoff(payout.attempt_count) if hold is None else _HELD_PAUSE
        return await self._save(payout, rules.again_later(payout, error, self._clock.now() + pause, hold))

    async def _save(self, payout: Payout, change: Change) -> Payout:
        """The payout with the change; or, if somebody else was first, as it is now."""
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            saved = await payouts.save(connection, payout, change, now)
            if saved is None:
                found = await payouts.find(connection, payout.payout_id)
                if found is None:
                    raise LookupError(f"payout {payout.payout_id} is gone")
                return found
        tell_operators(payout, saved)
        return saved


def tell_operators(before: Payout, after: Payout) -> None:
    """Log and count what is news."""
    about = {
        "payout_id": after.payout_id,
        "organization_id": after.organization_id,
        "amount_micros": after.money.amount_micros,
        "currency_code": after.money.currency_code,
    }
    if after.state is not before.state:
        _log.info(f"payout.{after.state}", **about, failure_code=after.failure_code)
        if after.state in (PayoutState.COMPLETED, PayoutState.FAILED, PayoutState.CANCELLED):
            _ENDED.labels(after.state).inc()
    if after.hold is not None and after.hold is not before.hold:
        _HELD.labels(after.hold).inc()
        say = _log.error if after.hold in NEEDS_DECISION else _log.warning
        say("payout.held", **about, hold=after.hold, error=after.last_error)
    elif after.attempt_count > before.attempt_count:
        _log.warning("payout.in_doubt", **about, attempts=after.attempt_count, error=after.last_error)


def _frozen(payout: Payout, call: Call | None) -> Call:
    if call is None:
        raise LookupError(f"payout {payout.payout_id} is {payout.state}, and nothing was frozen to be asked")
    return call
