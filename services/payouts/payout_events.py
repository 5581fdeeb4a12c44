"""What events about transfers and bank payouts come to: the payouts that they are of, as they are now."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.payouts.account_events import find_account, of_unknown_account
from services.payouts.domain import payout as rules
from services.payouts.domain.event import DONE, Handler, Outcome, ProcessorEvent, ignored, quarantined
from services.payouts.domain.payout import STRIPE, BankStatus, Change, Payout, PayoutState, Reversal, Step
from services.payouts.executor import tell_operators
from services.payouts.processor.bank_payouts import BankPayouts
from services.payouts.processor.transfers import Transfer, TransferReversal, Transfers
from services.payouts.store import payouts

Find = Callable[[AsyncConnection, str], Awaitable[Payout | None]]

_log: Final = log.get_logger()


class PayoutEvents:
    """Handles events about transfers and bank payouts.

    Each attempt reads the payout, then the object at the payment processor, and writes only if nobody changed
    the payout since: then what was read there may be older than what somebody else has written, and it begins
    again.
    """

    def __init__(
        self,
        *,
        writer: Database,
        transfers: Transfers,
        bank_payouts: BankPayouts,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is told when a payout has got something to do."""
        self._writer = writer
        self._transfers = transfers
        self._bank_payouts = bank_payouts
        self._clock = clock
        self._wake = wake

    def handlers(self) -> Mapping[str, Handler]:
        """Handlers by prefix of the type of event."""
        return {"transfer.": self.transfer, "payout.": self.bank_payout}

    async def transfer(self, event: ProcessorEvent) -> Outcome:
        """A transfer was made or changed, or a part of it came back."""
        if event.stripe_account_id:
            return ignored("of a connected account's own doing")
        payout = await self._read(payouts.find_by_transfer, event.object_id)
        while True:
            transfer = await self._transfers.get(event.object_id)
            if payout is None:
                if not transfer.payout_id:
                    return quarantined("the transfer is of no payout: somebody made it by hand")
                payout = await self._read(payouts.find, transfer.payout_id)
                if payout is None:
                    return quarantined(
                        f"the transfer names the payout {transfer.payout_id}, which is not here"
                    )
                # Only now is it known which payout to read before the transfer.
                continue
            contradiction = rules.transfer_contradiction(
                payout, transfer.transfer_id, transfer.stripe_account_id, transfer.amount
            )
            if contradiction:
                return quarantined(contradiction)
            reversals: Sequence[TransferReversal] = ()
            if transfer.reversed.amount_micros:
                reversals = await self._transfers.reversals(transfer.transfer_id)
            if await self._take_over(event, payout, transfer, reversals):
                return DONE
            payout = await self._read(payouts.find, payout.payout_id)

    async def bank_payout(self, event: ProcessorEvent) -> Outcome:
        """A payout from a connected account to its bank was made, or came further."""
        if not event.stripe_account_id:
            return ignored("of the platform's own bank account")
        if await find_account(self._writer, event.stripe_account_id) is None:
            return of_unknown_account(event, self._clock.now())
        payout = await self._read(payouts.find_by_bank_payout, event.object_id)
        while True:
            bank = await self._bank_payouts.get(event.stripe_account_id, event.object_id)
            if payout is None:
                if not bank.payout_id:
                    return ignored("not one of ours: made by hand, or by the account's own schedule")
                payout = await self._read(payouts.find, bank.payout_id)
                if payout is None:
                    return quarantined(f"it names the payout {bank.payout_id}, which is not here")
                # As above.
                continue
            if payout.stripe_account_id != event.stripe_account_id:
                return quarantined(f"it names the payout {payout.payout_id}, which is of another account")
            change = rules.at_bank(payout, bank, Step(STRIPE, event.event_id))
            if change is None or await self._save(payout, change):
                return DONE
            payout = await self._read(payouts.find, payout.payout_id)

    async def _read(self, find: Find, key: str) -> Payout | None:
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            return await find(connection, key)

    async def _take_over(
        self,
        event: ProcessorEvent,
        before: Payout,
        transfer: Transfer,
        reversals: Sequence[TransferReversal],
    ) -> bool:
        """Write what the transfer says; False, and nothing is written, if somebody else was first."""
        payout = before
        try:
            # One transaction: a reversal without its sum in the payout would never be told to the ledger.
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                if payout.state is PayoutState.PROCESSING:
                    step = Step(STRIPE, event.event_id, stripe_id=transfer.transfer_id)
                    change = rules.transferred(payout, transfer.transfer_id, step, self._clock.now())
                    payout = await self._write(connection, payout, change)
                for one in reversals:
                    new = Reversal(
                        one.reversal_id, payout.payout_id, one.amount.amount_micros, False, one.create_time
                    )
                    if await payouts.add_reversal(connection, new, payout.organization_id):
                        step = Step(STRIPE, event.event_id, "reversed", one.reversal_id)
                        change = rules.reversed_by(payout, new.amount_micros, step, self._clock.now())
                        payout = await self._write(connection, payout, change)
        except _ChangedMeanwhileError:
            return False
        tell_operators(before, payout)
        return True

    async def _save(self, before: Payout, change: Change) -> bool:
        try:
            async with self._writer.begin() as connection:
                await scope(connection, PLATFORM)
                after = await self._write(connection, before, change)
        except _ChangedMeanwhileError:
            return False
        self._wake()
        if after.bank_status is BankStatus.FAILED and before.bank_status is not BankStatus.FAILED:
            _log.warning(
                "payout.bank_failed",
                payout_id=after.payout_id,
                organization_id=after.organization_id,
                failure_code=after.bank_failure_code,
            )
        return True

    async def _write(self, connection: AsyncConnection, before: Payout, change: Change) -> Payout:
        after = await payouts.save(connection, before, change, self._clock.now())
        if after is None:
            raise _ChangedMeanwhileError
        return after


class _ChangedMeanwhileError(Exception):
    """Somebody else changed the payout: the transaction is undone."""
