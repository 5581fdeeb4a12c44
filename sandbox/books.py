"""The books as the services tell them: the journal added up entry by entry, and the balances they answer."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.register import CURRENCY
from tallystick.ledger.v1.account_pb2 import (
    ACCOUNT_KIND_CUSTOMER_CREDITS,
    ACCOUNT_KIND_CUSTOMER_RECEIVABLE,
    ACCOUNT_KIND_CUSTOMER_UNPAID,
    ACCOUNT_KIND_ORGANIZATION_PAYABLE,
    ACCOUNT_KIND_PAYOUTS_IN_TRANSIT,
    ACCOUNT_KIND_PLATFORM_FEES,
    ACCOUNT_KIND_PROCESSING_FEES,
    ACCOUNT_KIND_STRIPE_CLEARING,
    AccountKind,
    EarningsBalance,
)
from tallystick.ledger.v1.ledger_service_pb2 import (
    GetCustomerBalanceRequest,
    GetEarningsBalanceRequest,
    ListTransactionsRequest,
    ReadJournalRequest,
    SequencedTransaction,
)
from tallystick.ledger.v1.transaction_pb2 import (
    TRANSACTION_TYPE_CHARGE,
    TRANSACTION_TYPE_COLLECTION,
    TRANSACTION_TYPE_PAYOUT,
    TRANSACTION_TYPE_PAYOUT_COMPLETION,
    TRANSACTION_TYPE_PAYOUT_RETURN,
    TRANSACTION_TYPE_PAYOUT_REVERSAL,
    TRANSACTION_TYPE_PROMOTION_SETTLEMENT,
    TRANSACTION_TYPE_PURCHASE,
    TRANSACTION_TYPE_WRITE_OFF,
    Transaction,
)
from tallystick.metering.v1.metering_service_pb2 import GetBalanceRequest

if TYPE_CHECKING:
    from tallystick.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub
    from tallystick.metering.v1.metering_service_pb2_grpc import MeteringServiceAsyncStub

_READ_BATCH = 1_000
# The sequencer and the folder run within fractions of a second, and what is held comes back within seconds;
# what takes far longer than this does not happen at all.
CATCH_UP_SECONDS = 30.0
_POLL_SECONDS = 0.05

_CHARGED = (
    ACCOUNT_KIND_CUSTOMER_CREDITS,
    ACCOUNT_KIND_CUSTOMER_RECEIVABLE,
    ACCOUNT_KIND_CUSTOMER_UNPAID,
)
_OF_PAYOUTS = (
    TRANSACTION_TYPE_PAYOUT,
    TRANSACTION_TYPE_PAYOUT_COMPLETION,
    TRANSACTION_TYPE_PAYOUT_RETURN,
    TRANSACTION_TYPE_PAYOUT_REVERSAL,
)
# Where they name a charge they change what it earned.
_OF_CHARGES_OR_NOT = (TRANSACTION_TYPE_PROMOTION_SETTLEMENT, TRANSACTION_TYPE_WRITE_OFF)


@dataclass(frozen=True, slots=True)
class CustomerStanding:
    """What a customer has and owes, in micros."""

    credits: int
    receivable: int
    unpaid: int


@dataclass(frozen=True, slots=True)
class EarningsStanding:
    """What an organization has earned and what was kept of it, in micros."""

    payable: int
    uncollected: int
    platform_fees: int
    processing_fees: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Every balance at one moment. Equal standings mean that no money moved."""

    customers: dict[str, CustomerStanding]
    organizations: dict[str, EarningsStanding]

    @property
    def unpaid(self) -> int:
        return sum(customer.unpaid for customer in self.customers.values())


@dataclass(frozen=True, slots=True)
class Funds:
    """What a customer has of credits, in micros, as metering answers it."""

    available: int
    reserved: int
    held: int
    unpaid: int

    @property
    def at_rest(self) -> bool:
        """Whether nothing is kept for a run or an outcome, or for a lease while something is unpaid."""
        return self.reserved == self.held == 0 and (self.unpaid == 0 or self.available == 0)


@dataclass(slots=True)
class _Unpaid:
    charge_id: str
    unpaid: int


@dataclass(slots=True)
class Journal:
    """The journal read so far. Sums are in micros, credits positive and debits negative, as in entries."""

    log_id: str = ""
    last_position: int = 0
    entry_count: int = 0
    charge_count: int = 0
    # Gross amount of each charge.
    charges: dict[str, int] = field(default_factory=dict)
    sums: defaultdict[tuple[str, AccountKind.ValueType], int] = field(
        default_factory=lambda: defaultdict(int)
    )
    uncollected: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # What each organization earned, paid out since or not.
    earned: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    # What left for organizations and did not come back.
    paid_out: int = 0
    # What each customer bought, was charged, and paid from credits.
    granted: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    charged: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    spent: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    gap_free: bool = True
    balanced: bool = True
    collected_oldest_first: bool = True
    # What of each customer's charges is unpaid, oldest first.
    _unpaid: defaultdict[str, deque[_Unpaid]] = field(default_factory=lambda: defaultdict(deque))

    async def read(self, ledger: LedgerServiceAsyncStub) -> None:
        """Read on to the present end."""
        request = ReadJournalRequest(
            after_position=self.last_position, log_id=self.log_id, batch_size=_READ_BATCH
        )
        async for batch in ledger.ReadJournal(request):
            self.gap_free &= self.log_id in ("", batch.log_id)
            self.log_id = batch.log_id
            for sequenced in batch.transactions:
                self.add(sequenced)

    def add(self, sequenced: SequencedTransaction) -> None:
        """Add one transaction, the next in order."""
        self.gap_free &= sequenced.position == self.last_position + 1
        self.last_position = sequenced.position
        transaction = sequenced.transaction
        self._add_entries(transaction)
        customer_id, credits = transaction.partition_id, _moved(transaction, ACCOUNT_KIND_CUSTOMER_CREDITS)
        if transaction.type == TRANSACTION_TYPE_CHARGE:
            self.charge_count += 1
            self.charges[transaction.charge_id] = gross = -_moved(transaction, *_CHARGED)
            self.charged[customer_id] += gross
            unpaid = -_moved(transaction, ACCOUNT_KIND_CUSTOMER_UNPAID)
            if unpaid:
                self._unpaid[customer_id].append(_Unpaid(transaction.charge_id, unpaid))
        elif transaction.type == TRANSACTION_TYPE_COLLECTION:
            self._add_collection(transaction)
        elif transaction.type == TRANSACTION_TYPE_WRITE_OFF:
            self._add_write_off(transaction)
        if transaction.type == TRANSACTION_TYPE_PURCHASE:
            self.granted[customer_id] += credits
        elif transaction.type in (TRANSACTION_TYPE_CHARGE, TRANSACTION_TYPE_COLLECTION):
            self.spent[customer_id] -= credits
        elif transaction.type in _OF_PAYOUTS:
            self.paid_out += _moved(transaction, ACCOUNT_KIND_STRIPE_CLEARING)

    def total(self, kind: AccountKind.ValueType) -> int:
        """Balance of all accounts of a kind together."""
        return sum(amount for (_, of_kind), amount in self.sums.items() if of_kind == kind)

    @property
    def gross(self) -> int:
        return sum(self.charges.values())

    @property
    def paid_from_credits(self) -> int:
        return sum(self.spent.values())

    @property
    def net(self) -> int:
        """What all organizations earned, paid out since or not."""
        return sum(self.earned.values())

    @property
    def in_transit(self) -> int:
        """What payouts took that neither left nor came back."""
        return self.total(ACCOUNT_KIND_PAYOUTS_IN_TRANSIT)

    @property
    def platform_fee(self) -> int:
        return self.total(ACCOUNT_KIND_PLATFORM_FEES)

    @property
    def processing(self) -> int:
        return self.total(ACCOUNT_KIND_PROCESSING_FEES)

    def standing(self, customer_ids: Iterable[str], organization_ids: Iterable[str]) -> Standing:
        """The balances that follow from the entries."""
        sums = self.sums
        return Standing(
            customers={
                owner: CustomerStanding(
                    credits=sums[owner, ACCOUNT_KIND_CUSTOMER_CREDITS],
                    receivable=-sums[owner, ACCOUNT_KIND_CUSTOMER_RECEIVABLE],
                    unpaid=-sums[owner, ACCOUNT_KIND_CUSTOMER_UNPAID],
                )
                for owner in customer_ids
            },
            organizations={
                owner: EarningsStanding(
                    payable=sums[owner, ACCOUNT_KIND_ORGANIZATION_PAYABLE],
                    uncollected=self.uncollected[owner],
                    platform_fees=sums[owner, ACCOUNT_KIND_PLATFORM_FEES],
                    processing_fees=sums[owner, ACCOUNT_KIND_PROCESSING_FEES],
                )
                for owner in organization_ids
            },
        )

    def _add_entries(self, transaction: Transaction) -> None:
        balance: defaultdict[str, int] = defaultdict(int)
        for entry in transaction.entries:
            account, amount = entry.account, entry.amount.amount_micros
            balance[entry.amount.currency_code] += amount
            self.sums[account.owner_id, account.kind] += amount
            if account.kind == ACCOUNT_KIND_ORGANIZATION_PAYABLE:
                self.uncollected[account.owner_id] += 0 if entry.bucket.collected else amount
                self.earned[account.owner_id] += 0 if _is_not_of_work(transaction) else amount
        self.entry_count += len(transaction.entries)
        # There is one currency here: another one would be somebody else's money in these sums.
        self.balanced &= not any(balance.values()) and balance.keys() <= {CURRENCY}

    def _add_collection(self, transaction: Transaction) -> None:
        amount = _moved(transaction, ACCOUNT_KIND_CUSTOMER_UNPAID)
        if amount == 0:
            return
        waiting = self._unpaid[transaction.partition_id]
        if not waiting or waiting[0].charge_id != transaction.charge_id or waiting[0].unpaid < amount:
            self.collected_oldest_first = False
            return
        waiting[0].unpaid -= amount
        if waiting[0].unpaid == 0:
            waiting.popleft()

    def _add_write_off(self, transaction: Transaction) -> None:
        """Whatever waits for a collection, in whatever place, waits for that much less."""
        waiting = self._unpaid[transaction.partition_id]
        for one in waiting:
            if one.charge_id == transaction.charge_id:
                one.unpaid -= _moved(transaction, ACCOUNT_KIND_CUSTOMER_UNPAID)
        self._unpaid[transaction.partition_id] = deque(one for one in waiting if one.unpaid)


def _is_not_of_work(transaction: Transaction) -> bool:
    """Whether it moves earnings that were earned before: to a payout or back, up from below zero, or away for
    what a promotion bought of others.
    """
    of_no_charge = transaction.type in _OF_CHARGES_OR_NOT and not transaction.charge_id
    return of_no_charge or transaction.type in _OF_PAYOUTS


class Books:
    """What the services answer about money, compared with the journal."""

    def __init__(
        self,
        ledger: LedgerServiceAsyncStub,
        metering: MeteringServiceAsyncStub,
        customer_ids: Iterable[str],
        organization_ids: Iterable[str],
    ) -> None:
        self.journal = Journal()
        self._ledger = ledger
        self._metering = metering
        self.customer_ids = sorted(customer_ids)
        self.organization_ids = sorted(organization_ids)

    async def standing(self) -> Standing:
        """Every balance as GetCustomerBalance and GetEarningsBalance answer it now."""
        return Standing(
            customers={owner: await self.customer(owner) for owner in self.customer_ids},
            organizations={owner: _earnings(await self.earnings(owner)) for owner in self.organization_ids},
        )

    async def catch_up(self, complete: Callable[[Journal], bool]) -> None:
        """Read the journal until it is `complete`: transactions get their positions just after being posted.

        Gives up when nothing comes for CATCH_UP_SECONDS; whoever compares then finds what is missing.
        """
        loop = asyncio.get_running_loop()
        await self.journal.read(self._ledger)
        last_position, last_time = self.journal.last_position, loop.time()
        while not complete(self.journal) and loop.time() < last_time + CATCH_UP_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            await self.journal.read(self._ledger)
            if self.journal.last_position > last_position:
                last_position, last_time = self.journal.last_position, loop.time()

    async def funds(self) -> dict[str, Funds]:
        """What every customer has of credits now, as GetBalance answers it."""
        return {owner: await self._funds(owner) for owner in self.customer_ids}

    async def at_rest(self) -> dict[str, Funds]:
        """What every customer has of credits when nothing is kept any more that nobody waits for.

        Gives up when nothing changes for CATCH_UP_SECONDS; whoever looks then finds what is still kept.
        """
        loop = asyncio.get_running_loop()
        funds, last_time = await self.funds(), loop.time()
        while not all(each.at_rest for each in funds.values()) and loop.time() < last_time + CATCH_UP_SECONDS:
            await asyncio.sleep(_POLL_SECONDS)
            before, funds = funds, await self.funds()
            if funds != before:
                last_time = loop.time()
        return funds

    def of_journal(self) -> Standing:
        """Every balance as the journal read so far has it."""
        return self.journal.standing(self.customer_ids, self.organization_ids)

    async def newest_transactions(self) -> dict[str, str]:
        """The newest transaction of each customer: it is there before it has a position in the journal."""
        newest = {}
        for owner in self.customer_ids:
            listed = await self._ledger.ListTransactions(ListTransactionsRequest(owner_id=owner, page_size=1))
            newest[owner] = next((one.transaction_id for one in listed.transactions), "")
        return newest

    async def earnings(self, organization_id: str) -> EarningsBalance:
        """The balance of an organization as the ledger answers it."""
        request = GetEarningsBalanceRequest(organization_id=organization_id, currency_code=CURRENCY)
        return (await self._ledger.GetEarningsBalance(request)).balance

    async def _funds(self, customer_id: str) -> Funds:
        request = GetBalanceRequest(customer_id=customer_id, currency_code=CURRENCY)
        balance = (await self._metering.GetBalance(request)).balance
        return Funds(
            available=balance.available.amount_micros,
            reserved=balance.reserved.amount_micros,
            held=balance.held.amount_micros,
            unpaid=balance.unpaid.amount_micros,
        )

    async def customer(self, customer_id: str) -> CustomerStanding:
        """What a customer has and owes as the ledger answers it."""
        request = GetCustomerBalanceRequest(customer_id=customer_id, currency_code=CURRENCY)
        balance = (await self._ledger.GetCustomerBalance(request)).balance
        return CustomerStanding(
            credits=balance.available.amount_micros + balance.held.amount_micros,
            receivable=balance.receivable.amount_micros,
            unpaid=balance.unpaid.amount_micros,
        )


def _earnings(balance: EarningsBalance) -> EarningsStanding:
    # Together, because what is pending becomes available by itself: no money moves.
    return EarningsStanding(
        payable=balance.available.amount_micros + balance.pending.amount_micros,
        uncollected=balance.uncollected.amount_micros,
        platform_fees=balance.platform_fees.amount_micros,
        processing_fees=balance.processing_fees.amount_micros,
    )


def _moved(transaction: Transaction, *kinds: AccountKind.ValueType) -> int:
    """What a transaction adds to the accounts of these kinds."""
    return sum(entry.amount.amount_micros for entry in transaction.entries if entry.account.kind in kinds)
