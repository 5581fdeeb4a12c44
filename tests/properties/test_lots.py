"""Credit lots against an oracle: whatever is granted, spent, corrected, refunded, held, or ended by time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import namedtuple_row

from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.correction_oracle import largest_remainder, minus
from tests.support.ledger_credits import hold_request, intent, of_hold, release_of, usd
from tests.support.ledger_funding import CHARGEBACK, REFUND, Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_machine import Running, audit, numbers
from tests.support.ledger_server import running_ledger
from tests.support.lot_oracle import NEVER, Lot, LotOracle

KINDS = ("organization_payable", "platform_fees", "processing_fees")
ENTRIES = """
SELECT e.account_version AS version, e.amount, t.type::text AS type, t.transaction_id, t.charge_id,
       t.external_id
FROM ledger.entry e JOIN ledger.transaction t USING (transaction_id, partition_id)
WHERE e.owner_id = %s AND e.kind = 'customer_credits' AND e.account_version > %s ORDER BY e.account_version
"""
# What payees and fees got, settlements apart.
EARNED = """
SELECT e.owner_id, e.kind::text AS kind, sum(e.amount)::bigint AS amount
FROM ledger.entry e JOIN ledger.transaction t USING (transaction_id, partition_id)
WHERE e.owner_id = ANY (%s) AND t.type <> 'promotion_settlement' AND e.kind <> 'promotions'
GROUP BY e.owner_id, e.kind
"""
CHARGES = """
SELECT c.*, x.legs AS corrected, o.uncollected_legs, o.unearned_legs FROM ledger.charge c
LEFT JOIN ledger.corrected_charge x USING (charge_id, customer_id)
LEFT JOIN ledger.open_charge o USING (charge_id, customer_id)
WHERE c.customer_id = %s
"""
AMOUNTS = st.one_of(st.integers(1, 30), st.integers(1, 1000))
NUMBERS = st.integers(0, 5)
GRANTS = st.tuples(
    st.just("grant"),
    AMOUNTS,
    st.sampled_from(["", "", "platform", "x", "x", "z"]),
    st.sampled_from([0, 50, 50, 50, 80]),
    st.sampled_from([0, 0, 1, 2]),
)
CHARGES_ASKED = st.tuples(
    st.just("charge"), AMOUNTS, st.sampled_from([("x",), ("y",), ("x", "y"), ("y", "x", "z")])
)
OPERATIONS = st.one_of(
    GRANTS,
    CHARGES_ASKED,
    CHARGES_ASKED,
    CHARGES_ASKED,
    st.tuples(st.just("correct"), AMOUNTS, NUMBERS),
    st.tuples(st.just("correct"), st.integers(1, 30), NUMBERS),
    st.tuples(st.just("reverse"), AMOUNTS, NUMBERS, st.sampled_from([REFUND, CHARGEBACK])),
    st.tuples(st.just("reinstate"), NUMBERS, st.sampled_from([1, 2, 3, 4, 4])),
    st.tuples(st.just("hold"), AMOUNTS),
    st.tuples(st.just("release"), NUMBERS),
    st.tuples(st.just("capture"), AMOUNTS, NUMBERS),
    st.tuples(st.just("adjust"), st.integers(-300, 300).filter(bool)),
    st.tuples(st.just("limit"), st.sampled_from([0, 500])),
    st.tuples(st.just("time"), st.sampled_from([1, 2])),
    st.tuples(st.sampled_from(["settle", "allocate"])),
)
# Long enough that something can go wrong: lists of Hypothesis are short on average.
STORIES = st.tuples(
    st.lists(GRANTS, min_size=3, max_size=5), st.lists(OPERATIONS, min_size=10, max_size=20)
).map(lambda parts: [*parts[0], *parts[1]])


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        never = timedelta(hours=1)
        context = running_ledger(
            database_url, reap_interval=never, collect_interval=never, lot_interval=never
        )
        server = runner.run(context.__aenter__())
        try:
            yield Running(runner, server)
        finally:
            runner.run(context.__aexit__(None, None, None))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=STORIES)
def test_every_lot_and_balance_is_the_oracles(running: Running, operations: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        story = Story(Lots(running.server), Funding(running.server), next(numbers))
        await story.begin()
        for operation, *arguments in operations:
            try:
                await getattr(story, operation)(*arguments)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
            await story.follow()
        await story.compare()

    running.runner.run(play())
    running.runner.run(audit(running.server.database_url))


@dataclass
class Story:
    """What happens to one customer, and what the oracle makes of the entries of its credits."""

    books: Lots
    funding: Funding
    number: int
    oracle: LotOracle = field(default_factory=LotOracle)
    version: int = 0
    # What is known of what was asked for, from the answers alone.
    terms: dict[str, Lot] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    purchases: list[tuple[str, str]] = field(default_factory=list)
    charges: list[str] = field(default_factory=list)
    reversals: dict[str, str] = field(default_factory=dict)
    reversal_transactions: dict[str, str] = field(default_factory=dict)
    # What each took of expired credits, and in all: what the customer had given comes again first.
    taken_expired: dict[str, int] = field(default_factory=dict)
    reversed_amounts: dict[str, int] = field(default_factory=dict)
    reinstated: dict[str, str] = field(default_factory=dict)
    holds: list[str] = field(default_factory=list)
    asked: int = 0
    ended: int = 0

    @property
    def customer(self) -> str:
        return f"cus_{self.number}"

    @property
    def organizations(self) -> list[str]:
        return [self.organization(name) for name in "xyz"]

    def organization(self, name: str) -> str:
        return f"org_{self.number}{name}" if len(name) == 1 else name

    def next_id(self) -> str:
        self.asked += 1
        return f"ask-{self.number}-{self.asked}"

    async def begin(self) -> None:
        for organization, shares in zip(self.organizations, [(1500, 290), (3333, 6667), (0, 1)], strict=True):
            await self.books.server.create_organization(organization, *shares)
        await self.books.server.create_customer(self.customer)

    # What may happen.

    async def grant(self, amount: int, funder: str, priority: int, expires: int) -> None:
        key = self.next_id()
        funder = self.organization(funder)
        after = timedelta(days=expires, seconds=self.asked) if expires else None
        lot_id = await self.books.give(
            amount, key, funder=funder, priority=priority, expires=after, customer=self.customer
        )
        expiry = after.total_seconds() if after else NEVER
        self.terms[lot_id] = Lot(lot_id, funder, priority, expiry, amount)
        self.classes[lot_id] = expires
        if not funder:
            self.purchases.append((key, lot_id))

    async def charge(self, gross: int, payees: tuple[str, ...], hold: str = "") -> None:
        message = ledger.PostChargeRequest()
        request = message.intent
        request.CopyFrom(_intent(self.customer, self.next_id(), gross))
        for payee in payees:
            organization = self.organization(payee)
            request.payees.add(
                organization_id=organization, agent_id=organization.replace("org_", "agt_"), weight=1
            )
        if hold:
            request.reservation.CopyFrom(of_hold(hold))
        answer = await self.books.server.service.ledger.PostCharge(message)
        self.charges.append(answer.posted.charge.charge_id)

    async def correct(self, amount: int, number: int) -> None:
        if self.charges:
            charge_id = self.charges[number % len(self.charges)]
            await self.books.correct(self.next_id(), amount, charge_id=charge_id)

    async def reverse(self, amount: int, number: int, kind: Any) -> None:
        if self.purchases:
            key, lot_id = self.purchases[number % len(self.purchases)]
            reversal_id = self.next_id()
            self.reversals[reversal_id] = lot_id
            answer = await self.funding.reverse(
                reversal_id, amount, kind, purchase=key, customer=self.customer
            )
            self.reversal_transactions[reversal_id] = answer.reversal.transaction_id
            self.reversed_amounts[reversal_id] = amount
            self.taken_expired[reversal_id] = self.oracle.take_expired(lot_id, amount)
            assert answer.reversal.from_expired.amount_micros == self.taken_expired[reversal_id]

    async def reinstate(self, number: int, share: int) -> None:
        if self.reversal_transactions:
            reversal_id = list(self.reversal_transactions)[number % len(self.reversal_transactions)]
            reinstatement_id = self.next_id()
            self.reinstated[reinstatement_id] = self.reversal_transactions[reversal_id]
            amount = max(1, self.reversed_amounts[reversal_id] * share // 4)
            await self.funding.reinstate(reversal_id, reinstatement_id, amount, customer=self.customer)
            of_customer = self.reversed_amounts[reversal_id] - self.taken_expired[reversal_id]
            self.oracle.expire_again(self.reversals[reversal_id], max(0, amount - of_customer))

    async def hold(self, amount: int) -> None:
        hold_id = self.next_id()
        (verdict,) = await self.funding.hold(hold_request(hold_id, amount, customer=self.customer))
        if verdict.HasField("placed"):
            self.holds.append(hold_id)

    async def release(self, number: int) -> None:
        if self.holds:
            hold_id = self.holds.pop(number % len(self.holds))
            await self.funding.release(release_of(of_hold(hold_id), customer=self.customer))

    async def capture(self, gross: int, number: int) -> None:
        if self.holds:
            await self.charge(gross, ("x", "y"), self.holds.pop(number % len(self.holds)))

    async def adjust(self, amount: int) -> None:
        def posting(owner_id: str, kind: account_pb2.AccountKind.ValueType, moved: int) -> ledger.Posting:
            account = account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD")
            return ledger.Posting(account=account, amount=usd(moved))

        await self.books.server.operator.ledger.AdjustBalances(
            ledger.AdjustBalancesRequest(
                postings=[
                    posting(self.customer, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, amount),
                    posting("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, -amount),
                ],
                reason="because the test says so",
                idempotency_key=self.next_id(),
            )
        )

    async def limit(self, amount: int) -> None:
        await self.books.server.operator.directory.SetCreditLimit(
            directory.SetCreditLimitRequest(customer_id=self.customer, credit_limit=usd(amount))
        )

    async def time(self, upto: int) -> None:
        """It passes, until lots of this class are over."""
        over = [lot_id for lot_id, one in self.classes.items() if 0 < one <= upto]
        if not over:
            return
        self.ended += 1
        for lot_id in over:
            # The earlier it was over, the sooner it was.
            self.terms[lot_id].expires = self.ended - 10_000
            self.classes[lot_id] = -1
        await self.books.end_time(*over, customer=self.customer)
        available, _, _ = await self.books.customer(self.customer)
        expected = self.oracle.expire(0, available)
        # It answers for all customers: those of earlier stories may have something left that is free by now.
        await self.books.expire(self.customer)
        found = await self.entries()
        assert [(one.type, one.amount) for one in found] == [
            ("credit_expiry", -amount) for _, amount in expected
        ]
        self.version += len(found)

    async def settle(self) -> None:
        await self.books.settle(self.customer)

    async def allocate(self) -> None:
        await self.books.listed_lots(self.customer)

    # What the oracle makes of it.

    async def query(self, statement: str, *parameters: Any) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(
            self.books.server.database_url, row_factory=namedtuple_row
        ) as superuser:
            rows = await superuser.execute(statement.encode(), parameters)
            return await rows.fetchall()

    async def entries(self) -> list[Any]:
        return await self.query(ENTRIES, self.customer, self.version)

    async def follow(self) -> None:
        """Tell the oracle of the entries that came."""
        for entry in await self.entries():
            assert entry.version == self.version + 1
            self.version = entry.version
            debit = entry.charge_id or entry.transaction_id
            if entry.amount < 0:
                own = self.reversals.get(entry.external_id or "", "")
                self.oracle.spend(debit, -entry.amount, own)
            elif entry.type == "correction":
                assert self.oracle.give_back(debit, entry.amount) == 0
            elif entry.type == "purchase_reinstatement":
                rest = self.oracle.give_back(self.reinstated[entry.external_id], entry.amount)
                if rest:
                    self.oracle.add(Lot(entry.transaction_id, "", 50, NEVER, rest))
            else:
                known = self.terms.get(entry.transaction_id)
                self.oracle.add(known or Lot(entry.transaction_id, "", 50, NEVER, entry.amount))

    async def compare(self) -> None:
        await self.books.settle(self.customer)
        found = await self.books.listed_lots(self.customer)
        assert {
            lot_id: (lot.amount.amount_micros, lot.remaining.amount_micros, lot.expired.amount_micros)
            for lot_id, lot in found.items()
        } == {lot.lot_id: (lot.amount, lot.remaining, lot.expired) for lot in self.oracle.lots}
        expected: defaultdict[tuple[str, str], int] = defaultdict(int)
        for row in await self.query(EARNED, self.organizations):
            expected[row.owner_id, row.kind] += row.amount
        charges = {row.charge_id: row for row in await self.query(CHARGES, self.customer)}
        for debit in self.oracle.taken:
            if debit in charges:
                settle(charges[debit], self.oracle.funded(debit), expected)
            else:
                for funder, amount in self.oracle.funded(debit).items():
                    expected[funder, "organization_payable"] -= amount
        for lot in self.oracle.lots:
            expected[lot.funder, "promotions"] -= lot.remaining
        for organization in self.organizations:
            balances = await self.books.balances_of(organization)
            wanted = {kind: expected[organization, kind] for kind in (*KINDS, "promotions")}
            assert balances == {kind: amount for kind, amount in wanted.items() if amount}


def settle(charge: Any, funded: dict[str, int], expected: defaultdict[tuple[str, str], int]) -> None:
    """Take what funders pay of a charge: each from what is collected of it, one after the other."""
    rest: list[int] = []
    for gross, platform, processing in zip(
        charge.payee_gross, charge.platform_fees, charge.processing_fees, strict=True
    ):
        rest += [gross - platform - processing, platform, processing]
    for part in (charge.corrected, charge.uncollected_legs, charge.unearned_legs):
        if part is not None:
            rest = minus(rest, part)
    for funder, amount in sorted(funded.items()):
        parts = largest_remainder(amount, rest)
        rest = minus(rest, parts)
        for number, part in enumerate(parts):
            payee = charge.organization_ids[number // 3]
            kind = KINDS[number % 3] if payee == funder else "organization_payable"
            expected[funder, kind] -= part


def _intent(customer: str, workflow: str, gross: int) -> Any:
    message = intent(workflow, gross, customer=customer)
    del message.payees[:]
    return message
