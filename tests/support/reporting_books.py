"""Facts that a test makes up, applied to a projection as feeds would bring them, and what they add up to.

Money is split as the ledger does it, in the simplest cases: one share of 15 % and one of 2.9 %, rounded down,
and a charge that is paid, owed or unpaid as a whole. What is asked of it is plain sums over lists: the oracle
of reporting, which knows neither rollups nor SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from services.kit import ids
from services.kit.db import Database
from services.kit.runs import period_run, subscription_run
from services.reporting.domain.facts import (
    DecidedOutcome,
    JournalBatch,
    Movement,
    PostedCharge,
    PostedTransaction,
    RecordedEvent,
    Revenue,
    UsageBatch,
)
from services.reporting.store import projections
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import charge_line_pb2
from tallystick.reporting.v1 import charge_report_pb2

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Payee:
    organization_id: str
    agent_id: str
    gross: int


@dataclass(frozen=True)
class Earned:
    """What one transaction made a payee earn, or give back."""

    organization_id: str
    type: str
    charge: Charge
    agent_id: str
    billed: int
    platform_fee: int
    processing_fee: int
    net: int
    position: int
    occur_time: datetime
    correction_id: str = ""

    @property
    def gross(self) -> int:
        return self.platform_fee + self.processing_fee + self.net

    @property
    def figures(self) -> tuple[int, int, int, int, int]:
        """Gross, platform fee, processing fee, net, number of charges."""
        return (self.gross, self.platform_fee, self.processing_fee, self.net, int(self.type == "charge"))


@dataclass(frozen=True)
class Moved:
    """One entry of an account."""

    owner_id: str
    kind: str
    currency: str
    amount: int
    type: str
    position: int
    entry_number: int
    transaction_id: str
    create_time: datetime


@dataclass
class Charge:
    """A charge, and how it stands."""

    charge_id: str
    customer_id: str
    workflow_id: str
    component: str
    ordinal: int
    currency: str
    payees: tuple[Payee, ...]
    # "credits", "receivable" or "unpaid".
    paid: str
    occur_time: datetime
    post_time: datetime
    event: Event | None = None
    corrected: int = 0

    @property
    def gross(self) -> int:
        return sum(payee.gross for payee in self.payees)


@dataclass
class Event:
    """A metered event."""

    customer_id: str
    workflow_id: str
    ordinal: int
    organization_id: str
    agent_id: str
    agent_version: str
    action: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str
    currency: str
    price: int
    model_cost: Decimal | None
    occur_time: datetime
    bonus: int = 0

    @property
    def cost(self) -> int:
        return self.price + self.bonus


def split(gross: int) -> tuple[int, int, int]:
    """Platform fee, processing fee, net."""
    platform, processing = gross * 1500 // 10_000, gross * 290 // 10_000
    return platform, processing, gross - platform - processing


@dataclass
class Books:
    """All facts so far, and those of them that are not applied yet."""

    earned: list[Earned] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    buckets: dict[tuple[str, str, bool, date], int] = field(default_factory=dict)
    position: int = 0
    usage_position: int = 0
    projection_id: int | None = None
    _journal: JournalBatch = field(default_factory=lambda: JournalBatch("log_j", 0, 0))
    _usage: UsageBatch = field(default_factory=lambda: UsageBatch("log_u", 0, 0))

    def charge(
        self,
        customer_id: str,
        payees: Sequence[Payee] | Payee,
        when: datetime,
        *,
        posted: datetime | None = None,
        paid: str = "credits",
        currency: str = "USD",
        workflow_id: str = "",
        version: str = "",
        action: str = "ticket.resolve",
        model: str = "",
        tokens: tuple[int, int] = (0, 0),
        outcome: str = "success",
        model_cost: Decimal | None = Decimal(0),
        metered: bool = True,
    ) -> Charge:
        """A charge for an event, with the event unless it was not metered."""
        payees = (payees,) if isinstance(payees, Payee) else tuple(payees)
        workflow_id = workflow_id or f"run-{len(self.charges)}"
        charge = Charge(
            charge_id=ids.charge_id(customer_id, workflow_id, "base", 0),
            customer_id=customer_id,
            workflow_id=workflow_id,
            component="base",
            ordinal=0,
            currency=currency,
            payees=payees,
            paid=paid,
            occur_time=when,
            post_time=posted or when + timedelta(seconds=1),
        )
        if metered:
            first = payees[0]
            charge.event = Event(
                customer_id,
                workflow_id,
                0,
                first.organization_id,
                first.agent_id,
                version,
                action,
                model,
                *tokens,
                outcome,
                currency,
                charge.gross,
                model_cost,
                when,
            )
            self._record(charge.event)
        self._post_charge(charge)
        return charge

    def fee(
        self, customer_id: str, payee: Payee, start: datetime, end: datetime, number: int = 0, **more: Any
    ) -> Charge:
        """The fee of a subscription for the time from `start` to `end`."""
        run = subscription_run(f"sub_{payee.organization_id}.{number}", start, end)
        return self.charge(customer_id, payee, start, workflow_id=run, metered=False, **more)

    def close(self, customer_id: str, payee: Payee, start: datetime, end: datetime, **more: Any) -> Charge:
        """What closing the billing period from `start` to `end` charges, two days later."""
        last = end - timedelta(microseconds=1)
        run = period_run(payee.organization_id, "USD", start)
        posted = end + timedelta(days=2)
        return self.charge(customer_id, payee, last, posted=posted, workflow_id=run, metered=False, **more)

    def decide(self, charge: Charge, outcome: str, bonus: int, posted: datetime) -> Charge:
        """The pending outcome of a charge's event is decided; the charge for what that adds."""
        event = charge.event
        assert event is not None
        assert event.outcome == "pending"
        event.outcome, event.bonus = outcome, bonus
        self.usage_position += 1
        self._usage.follow(self.usage_position)
        self._usage.apply_time = micros(posted)
        self._usage.outcomes.append(
            DecidedOutcome(
                event.customer_id,
                event.workflow_id,
                event.ordinal,
                outcome,
                bonus,
                _lines("bonus", bonus, event),
            )
        )
        first = charge.payees[0]
        added = Charge(
            charge_id=ids.charge_id(charge.customer_id, charge.workflow_id, "outcome", 0),
            customer_id=charge.customer_id,
            workflow_id=charge.workflow_id,
            component="outcome",
            ordinal=0,
            currency=charge.currency,
            payees=(Payee(first.organization_id, first.agent_id, bonus),),
            paid="credits",
            occur_time=posted,
            post_time=posted,
            event=event,
        )
        self._post_charge(added)
        return added

    def collect(self, charge: Charge, when: datetime) -> None:
        """Credits pay what was owed or unpaid of a charge, all of it; it was not corrected before."""
        assert charge.corrected == 0
        gross, was = charge.gross, charge.paid
        charge.paid = "credits"
        entries: list[Entry] = [(charge.customer_id, "customer_credits", -gross, None)]
        if was == "unpaid":
            entries += [
                (charge.customer_id, "customer_unpaid", gross, None),
                (charge.customer_id, "unpaid_offset", -gross, None),
            ]
        else:
            entries.append((charge.customer_id, "customer_receivable", gross, None))
        legs = []
        for payee in charge.payees:
            platform, processing, net = split(payee.gross)
            if was == "unpaid":
                # As in the feed: what is nothing is not told.
                legs += [(payee, 0, platform, processing, net)] if payee.gross else []
            else:
                entries.append((payee.organization_id, "organization_payable", -net, False))
            entries.append((payee.organization_id, "organization_payable", net, True))
        self._post("collection", when, when, charge, entries, legs)

    def correct(self, charge: Charge, amount: int, when: datetime) -> None:
        """Take back a part of a charge of one payee that was paid or is unpaid as a whole."""
        (payee,) = charge.payees
        correction_id = f"cor-{len(self.earned)}"
        left = charge.gross - charge.corrected
        charge.corrected += amount
        platform, processing, net = (
            new - old for new, old in zip(split(left - amount), split(left), strict=True)
        )
        entries: list[Entry]
        if charge.paid == "unpaid":
            platform = processing = net = 0
            entries = [
                (charge.customer_id, "customer_unpaid", amount, None),
                (charge.customer_id, "unpaid_offset", -amount, None),
            ]
        else:
            kind = "customer_credits" if charge.paid == "credits" else "customer_receivable"
            entries = [
                (charge.customer_id, kind, amount, None),
                (payee.organization_id, "organization_payable", net, charge.paid == "credits"),
            ]
        self._journal.corrected[charge.charge_id] = self._journal.corrected.get(charge.charge_id, 0) + amount
        legs = [(payee, -amount, platform, processing, net)]
        self._post("correction", when, when, charge, entries, legs, correction_id=correction_id)

    def purchase(self, customer_id: str, amount: int, when: datetime, currency: str = "USD") -> None:
        """A customer buys credits."""
        self._post(
            "purchase", when, when, None, [(customer_id, "customer_credits", amount, None)], currency=currency
        )

    def payout(
        self,
        organization_id: str,
        payout_id: str,
        amount: int,
        when: datetime,
        end: str = "",
        currency: str = "USD",
    ) -> list[str]:
        """A payout takes earnings, and ends if `end` is a type of transaction; the transactions."""
        payable, transit = "organization_payable", "payouts_in_transit"
        transactions = [
            self._post(
                "payout",
                when,
                when,
                None,
                [(organization_id, payable, -amount, True), (organization_id, transit, amount, None)],
                payout_id=payout_id,
                currency=currency,
            )
        ]
        if end:
            entries: list[Entry] = [(organization_id, transit, -amount, None)]
            if end == "payout_return":
                entries.append((organization_id, payable, amount, True))
            transactions.append(
                self._post(end, when, when, None, entries, payout_id=payout_id, currency=currency)
            )
        return transactions

    async def apply(self, writer: Database, *, usage_first: bool = True) -> None:
        """Bring what is new to the projection that answers, which is begun by the first call."""
        now = datetime.now(UTC)
        if self.projection_id is None:
            async with writer.begin() as connection:
                self.projection_id = await projections.begin(connection)
        projection_id = self.projection_id
        journal, usage = self._journal, self._usage
        journal.head, usage.head = journal.last, usage.last
        self._journal = JournalBatch("log_j", journal.last, journal.last)
        self._usage = UsageBatch("log_u", usage.last, usage.last)

        async def apply_usage() -> None:
            if usage.count:
                async with writer.hot() as connection:
                    assert await projections.apply_usage(connection, projection_id, usage, now)

        if usage_first:
            await apply_usage()
        if journal.count:
            async with writer.hot() as hot:
                assert await projections.apply_journal(hot, projection_id, journal, now)
        if not usage_first:
            await apply_usage()

    # What it adds up to.

    def revenue(
        self,
        organization_id: str,
        start: datetime,
        end: datetime,
        key: Callable[[Earned], str] = lambda earned: "",
        currency: str = "USD",
    ) -> dict[str, tuple[int, ...]]:
        """Figures by key of what was earned in a time."""
        return _summed(
            (key(one), one.figures)
            for one in self.earned
            if one.organization_id == organization_id
            and one.charge.currency == currency
            and start <= one.occur_time < end
        )

    def usage(
        self,
        owner_id: str,
        start: datetime,
        end: datetime,
        key: Callable[[Event], str] = lambda event: "",
        currency: str = "USD",
    ) -> dict[str, tuple[int, ...]]:
        """Executions, tokens in and out, cost, and outcomes by key."""
        outcomes = ("success", "failure", "partial", "unknown", "pending")
        return _summed(
            (
                key(one),
                (
                    *(1, one.input_tokens, one.output_tokens, one.cost),
                    *(int(one.outcome == outcome) for outcome in outcomes),
                ),
            )
            for one in self.events
            if owner_id in (one.organization_id, one.customer_id)
            and one.currency == currency
            and start <= one.occur_time < end
        )

    def movements(self, owner_id: str, currency: str = "USD") -> list[Moved]:
        """All entries of accounts that statements show, in their order."""
        return sorted(
            (
                one
                for one in self.moved
                if one.owner_id == owner_id and one.currency == currency and one.kind != "unpaid_offset"
            ),
            key=lambda one: (one.create_time, one.position, one.entry_number),
        )

    def _record(self, event: Event) -> None:
        self.events.append(event)
        self.usage_position += 1
        self._usage.follow(self.usage_position)
        self._usage.apply_time = micros(event.occur_time)
        self._usage.events.append(
            RecordedEvent(
                event.customer_id,
                event.workflow_id,
                event.ordinal,
                event.organization_id,
                event.agent_id,
                event.agent_version,
                event.action,
                event.model,
                event.input_tokens,
                event.output_tokens,
                event.outcome,
                event.currency,
                event.price,
                _lines("price", event.price, event),
                event.model_cost,
                micros(event.occur_time),
            )
        )

    def _post_charge(self, charge: Charge) -> None:
        self.charges.append(charge)
        gross, paid = charge.gross, charge.paid
        entries: list[Entry] = []
        legs = []
        if gross:
            entries.append((charge.customer_id, f"customer_{paid}", -gross, None))
            if paid == "unpaid":
                entries.append((charge.customer_id, "unpaid_offset", gross, None))
        for payee in charge.payees:
            platform, processing, net = (0, 0, 0) if paid == "unpaid" else split(payee.gross)
            legs.append((payee, payee.gross, platform, processing, net))
            if net:
                entries.append((payee.organization_id, "organization_payable", net, paid == "credits"))
        self._post("charge", charge.occur_time, charge.post_time, charge, entries, legs)
        self._journal.charges.append(
            PostedCharge(
                self.position,
                charge.customer_id,
                charge.workflow_id,
                charge.component,
                charge.ordinal,
                charge.currency,
                gross,
                "pv_1",
            )
        )

    def _post(
        self,
        type: str,
        occur_time: datetime,
        create_time: datetime,
        charge: Charge | None,
        entries: Iterable[Entry],
        legs: Iterable[Leg] = (),
        *,
        correction_id: str = "",
        payout_id: str = "",
        currency: str = "USD",
    ) -> str:
        self.position += 1
        self._journal.follow(self.position)
        self._journal.apply_time = micros(create_time)
        position, transaction_id = self.position, f"txn_{self.position}"
        charge_id = charge.charge_id if charge else ""
        currency = charge.currency if charge else currency
        self._journal.transactions.append(
            PostedTransaction(
                position,
                transaction_id,
                type,
                charge_id,
                correction_id,
                payout_id,
                f"a {type}",
                micros(occur_time),
                micros(create_time),
            )
        )
        for number, (owner_id, kind, amount, collected) in enumerate(entries, start=1):
            available_on = None
            if collected is not None:
                available_on = create_time.date()
                bucket = (owner_id, currency, collected, available_on)
                self.buckets[bucket] = self.buckets.get(bucket, 0) + amount
            self.moved.append(
                Moved(owner_id, kind, currency, amount, type, position, number, transaction_id, create_time)
            )
            self._journal.movements.append(
                Movement(
                    position,
                    number,
                    owner_id,
                    currency,
                    kind,
                    amount,
                    collected,
                    None if available_on is None else available_on.isoformat(),
                )
            )
        for payee, billed, platform, processing, net in legs:
            assert charge is not None
            self.earned.append(
                Earned(
                    payee.organization_id,
                    type,
                    charge,
                    payee.agent_id,
                    billed,
                    platform,
                    processing,
                    net,
                    position,
                    occur_time,
                    correction_id,
                )
            )
            self._journal.revenue.append(
                Revenue(
                    position,
                    payee.organization_id,
                    payee.agent_id if type == "charge" else "",
                    currency,
                    billed,
                    platform,
                    processing,
                    net,
                )
            )
        return transaction_id


# Owner, kind of account, amount, and of earnings whether they are collected.
Entry = tuple[str, str, int, bool | None]
# Payee, billed, platform fee, processing fee, net.
Leg = tuple[Payee, int, int, int, int]


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _summed(pairs: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    sums: dict[str, tuple[int, ...]] = {}
    for key, figures in pairs:
        before = sums.get(key, (0,) * len(figures))
        sums[key] = tuple(a + b for a, b in zip(before, figures, strict=True))
    return sums


def _lines(name: str, amount: int, event: Event) -> bytes:
    """What a tier came to, and what a discount took off it."""
    lines = [
        charge_line_pb2.ChargeLine(
            component_name=line_name,
            quantity=1,
            amount=money_pb2.Money(currency_code=event.currency, amount_micros=micros_of_line),
            kind=kind,
            tier=tier,
        )
        for line_name, micros_of_line, kind, tier in (
            (name, amount + 7, charge_line_pb2.CHARGE_LINE_KIND_UNSPECIFIED, 2),
            ("loyal", -7, charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT, 0),
        )
    ]
    return charge_report_pb2.ReportedCharge(lines=lines).SerializeToString()
