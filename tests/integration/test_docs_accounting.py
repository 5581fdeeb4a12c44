"""docs/accounting.md tells the truth: every example in it is executed, and compared entry for entry.

An example is a heading, a fenced block `story`, and tables. The first cell of a table's header says what it
shows: a transaction type, `customer` or `organization`.
"""

import asyncio
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    credit_service_pb2,
    transaction_pb2,
    write_off_pb2,
)
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as funding
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import hold_request, of_hold, release_of
from tests.support.ledger_funding import CHARGEBACK, REFUND, Funding
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import LedgerServer, running_ledger

DOCUMENT = Path(__file__).parents[2] / "docs" / "accounting.md"
TRANSACTION_TYPES = (
    "charge",
    "collection",
    "purchase",
    "promotion",
    "adjustment",
    "payout",
    "payout_completion",
    "payout_return",
    "payout_reversal",
    "correction",
    "purchase_refund",
    "purchase_chargeback",
    "purchase_reinstatement",
    "processor_fee",
    "write_off",
    "credit_expiry",
    "promotion_settlement",
)
# What credits are granted on, where a story says it.
TERMS = r"(?: from (\S+?))?(?:, expires in (\d+) days)?(?:, priority (\d+))?"
# Work and its charge are on different days in the examples.
WORK_TO_CHARGE = timedelta(days=3)
# What the folder and the sequencer get, before something is wrong with them.
ATTEMPTS = 600
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Table:
    """A table of the document: the first cell of its header, and its rows."""

    subject: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Example:
    """One example of the document."""

    title: str
    given: tuple[str, ...]
    when: tuple[str, ...]
    tables: tuple[Table, ...]

    @property
    def transactions(self) -> list[Table]:
        return [table for table in self.tables if table.subject in TRANSACTION_TYPES]


def read_examples(text: str) -> Iterator[Example]:
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        story = re.search(r"^```story\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        if story is None:
            continue
        lines = story[1].splitlines()
        given = tuple(line.removeprefix("given ") for line in lines if line.startswith("given "))
        when = tuple(line.removeprefix("when ") for line in lines if line.startswith("when "))
        assert len(given) + len(when) == len(lines), f"{section.splitlines()[0]}: neither given nor when"
        # The chapter that follows the last example is not part of it.
        tables = tuple(read_tables(section.partition("\n## ")[0]))
        yield Example(section.splitlines()[0], given, when, tables)


def read_tables(section: str) -> Iterator[Table]:
    for block in re.findall(r"(?:^\|.*\|\n)+", section, flags=re.MULTILINE):
        rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in block.splitlines()]
        yield Table(rows[0][0], tuple(rows[2:]))


EXAMPLES = list(read_examples(DOCUMENT.read_text()))


def number(text: str) -> int:
    return int(text.replace(",", ""))


def usd(amount: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=amount)


@dataclass
class Play:
    """Carries out the lines of a story, and remembers what they were about."""

    server: LedgerServer
    owners: list[str] = field(default_factory=lambda: ["platform"])
    charges: dict[str, charge_pb2.Charge] = field(default_factory=dict)
    # By the name that the story gives them.
    adjustments: dict[str, str] = field(default_factory=dict)
    _keys: Iterator[int] = field(default_factory=itertools.count)

    async def carry_out(self, line: str) -> None:
        for pattern, step in (
            (
                r"organization (\S+): platform (\d+) bps, processing (\d+) bps, hold (\d+) days(, .+)?",
                self._organization,
            ),
            (r"customer (\S+?)(?:, may owe ([\d,]+))?", self._customer),
            (rf"(purchase)(?: (\S+))? of ([\d,]+) by (\S+?){TERMS}", self._grant),
            (rf"(promotion)(?: (\S+))? of ([\d,]+) to (\S+?){TERMS}", self._grant),
            (r"credits of (\S+) expire", self._expire),
            (r"promotions settle", self._settle),
            (r"release (\S+) of (\S+)", self._release),
            (r"(refund|chargeback) (\S+) of ([\d,]+) from purchase (\S+) of (\S+)", self._reverse_purchase),
            (r"reinstatement (\S+) of (\S+) of (\S+)", self._reinstate),
            (r"processor fee (\S+) of (-?[\d,]+)", self._fee),
            (r"hold (\S+) of ([\d,]+) for (\S+)", self._hold),
            (r"(outcome )?charge (\S+) of ([\d,]+) to (\S+)(?: from (\S+))? for (.+)", self._charge),
            (r"adjustment (\S+) proposed of (.+)", self._propose),
            (r"adjustment (\S+) approved", self._approve),
            (r"write-off (\S+) of (all|[\d,]+) (unpaid|receivable) of (\S+)", self._write_off_charge),
            (r"write-off (\S+) of (all|[\d,]+) (chargebacks|clawback) of (\S+)", self._write_off),
            (r"(\d+) days? pass(?:es)?", self._pass),
            (r"payout (\S+) of ([\d,]+) to (\S+)", self._pay_out),
            (r"payout (\S+) (completed|returned) to (\S+)", self._end_payout),
            (r"reversal (\S+) of ([\d,]+) from payout (\S+) to (\S+)", self._reverse),
            (r"correction (\S+) of ([\d,]+) from (\S+)", self._correct),
        ):
            if match := re.fullmatch(pattern, line):
                await step(*match.groups())
                return
        pytest.fail(f"the story says nothing that can be done: {line}")

    async def _organization(
        self, owner_id: str, platform: str, processing: str, hold: str, window: str | None
    ) -> None:
        await self.server.create_organization(
            owner_id, int(platform), int(processing), int(hold), int((window or "0").split()[-1])
        )
        self.owners.append(owner_id)

    async def _customer(self, owner_id: str, limit: str | None) -> None:
        limits = [usd(number(limit))] if limit else []
        await self.server.operator.directory.CreateCustomer(
            directory.CreateCustomerRequest(customer_id=owner_id, credit_limits=limits)
        )
        self.owners.append(owner_id)

    async def _grant(
        self,
        what: str,
        key: str | None,
        amount: str,
        customer_id: str,
        funder: str | None,
        days: str | None,
        priority: str | None,
    ) -> None:
        await Lots(self.server).give(
            number(amount),
            key or f"story-{next(self._keys)}",
            funder=funder or ("platform" if what == "promotion" else ""),
            expires=timedelta(days=int(days)) if days else None,
            priority=int(priority) if priority else None,
            customer=customer_id,
        )

    async def _expire(self, customer_id: str) -> None:
        await Lots(self.server).end_time(customer=customer_id)
        await Lots(self.server).expire(customer_id)

    async def _settle(self) -> None:
        for owner_id in self.owners:
            if owner_id.startswith("cus_"):
                await Lots(self.server).settle(owner_id)

    async def _release(self, hold_id: str, customer_id: str) -> None:
        await self.server.service.credits.ReleaseReservations(
            credit_service_pb2.ReleaseReservationsRequest(
                releases=[release_of(of_hold(hold_id), customer=customer_id)]
            )
        )

    async def _reverse_purchase(
        self, kind: str, reversal_id: str, amount: str, key: str, customer_id: str
    ) -> None:
        await Funding(self.server).reverse(
            reversal_id,
            number(amount),
            {"refund": REFUND, "chargeback": CHARGEBACK}[kind],
            purchase=key,
            customer=customer_id,
        )

    async def _reinstate(self, reinstatement_id: str, reversal_id: str, customer_id: str) -> None:
        await Funding(self.server).reinstate(reversal_id, reinstatement_id, customer=customer_id)

    async def _fee(self, fee_id: str, amount: str) -> None:
        await Funding(self.server).fee(fee_id, number(amount))

    async def _hold(self, hold_id: str, amount: str, customer_id: str) -> None:
        request = hold_request(hold_id, number(amount), customer=customer_id)
        answer = await self.server.service.credits.PlaceHolds(
            credit_service_pb2.PlaceHoldsRequest(holds=[request])
        )
        assert answer.verdicts[0].HasField("placed")

    async def _charge(
        self,
        outcome: str | None,
        workflow_id: str,
        gross: str,
        customer_id: str,
        hold_id: str | None,
        payees: str,
    ) -> None:
        occur_time = Timestamp()
        occur_time.FromDatetime(datetime.now(UTC) - WORK_TO_CHARGE)
        intent = charge_pb2.ChargeIntent(
            customer_id=customer_id,
            workflow_id=workflow_id,
            component=charge_pb2.CHARGE_COMPONENT_OUTCOME if outcome else charge_pb2.CHARGE_COMPONENT_BASE,
            gross=usd(number(gross)),
            payees=[payee(text) for text in payees.split(", ")],
            occur_time=occur_time,
            price_version_id="pv_story",
            reservation=of_hold(hold_id) if hold_id else None,
        )
        posted = await self.server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=intent))
        self.charges[posted.posted.charge.charge_id] = posted.posted.charge

    async def _propose(self, name: str, postings: str) -> None:
        answer = await self.server.operator.ledger.AdjustBalances(
            ledger.AdjustBalancesRequest(
                postings=[posting(*text.split()) for text in postings.split("; ")],
                reason="as docs/accounting.md tells it",
                idempotency_key=name,
            )
        )
        assert answer.adjustment.state == ledger.ADJUSTMENT_STATE_PROPOSED
        self.adjustments[name] = answer.adjustment.adjustment_id

    async def _approve(self, name: str) -> None:
        another = await self.server.create_caller(access_pb2.ROLE_OPERATOR, "another")
        answer = await another.ledger.ApproveAdjustment(
            ledger.ApproveAdjustmentRequest(adjustment_id=self.adjustments[name])
        )
        assert answer.adjustment.state == ledger.ADJUSTMENT_STATE_POSTED

    async def _write_off_charge(self, key: str, amount: str, kind: str, workflow_id: str) -> None:
        (charge_id,) = (one for one, charge in self.charges.items() if charge.workflow_id == workflow_id)
        await self._write_off(key, amount, kind, "", charge_id)

    async def _write_off(self, key: str, amount: str, kind: str, owner_id: str, charge_id: str = "") -> None:
        await self.server.operator.funding.WriteOff(
            funding.WriteOffRequest(
                kind=write_off_pb2.WriteOffKind.Value(f"WRITE_OFF_KIND_{kind.upper()}"),
                charge_id=charge_id,
                owner_id=owner_id,
                amount=None if amount == "all" else usd(number(amount)),
                reason="as docs/accounting.md tells it",
                idempotency_key=key,
            )
        )

    async def _pass(self, days: str) -> None:
        """What has been posted was posted so many days earlier."""
        books = Corrections(self.server)
        for _ in range(int(days)):
            await books.let_a_day_pass()
        self.charges = {charge_id: await books.get(charge_id=charge_id) for charge_id in self.charges}

    async def _pay_out(self, payout_id: str, amount: str, organization_id: str) -> None:
        await self.server.service.earnings.DebitPayout(
            earnings.DebitPayoutRequest(
                organization_id=organization_id, payout_id=payout_id, amount=usd(number(amount))
            )
        )

    async def _end_payout(self, payout_id: str, how: str, organization_id: str) -> None:
        service = self.server.service.earnings
        if how == "completed":
            await service.CompletePayout(
                earnings.CompletePayoutRequest(organization_id=organization_id, payout_id=payout_id)
            )
        else:
            await service.ReturnPayout(
                earnings.ReturnPayoutRequest(organization_id=organization_id, payout_id=payout_id)
            )

    async def _reverse(self, reversal_id: str, amount: str, payout_id: str, organization_id: str) -> None:
        await self.server.service.earnings.ReversePayout(
            earnings.ReversePayoutRequest(
                organization_id=organization_id,
                payout_id=payout_id,
                reversal_id=reversal_id,
                amount=usd(number(amount)),
            )
        )

    async def _correct(self, correction_id: str, amount: str, workflow_id: str) -> None:
        (charge_id,) = (key for key, one in self.charges.items() if one.workflow_id == workflow_id)
        await self.server.operator.ledger.CorrectCharge(
            ledger.CorrectChargeRequest(
                charge_id=charge_id,
                correction_id=correction_id,
                amount=usd(number(amount)),
                reason="as docs/accounting.md tells it",
            )
        )

    def charge_of(self, transaction: transaction_pb2.Transaction) -> charge_pb2.Charge | None:
        """The charge whose money a transaction moves: where it does not say, the only one of the story."""
        of_only_one = (
            transaction.type == transaction_pb2.TRANSACTION_TYPE_PROMOTION_SETTLEMENT
            and not transaction.charge_id
        )
        if transaction.payout_id or of_only_one or is_of_clawback(transaction):
            (charge,) = self.charges.values()
            return charge
        return self.charges.get(transaction.charge_id)

    async def posted(self) -> list[transaction_pb2.Transaction]:
        """Everything posted so far, in the order of the journal."""
        wanted: set[str] = set()
        for owner_id in self.owners:
            request = ledger.ListTransactionsRequest(owner_id=owner_id, page_size=1000)
            answer = await self.server.operator.ledger.ListTransactions(request)
            wanted |= {transaction.transaction_id for transaction in answer.transactions}
        for _ in range(ATTEMPTS):
            journal = [
                item.transaction
                async for batch in self.server.operator.ledger.ReadJournal(ledger.ReadJournalRequest())
                for item in batch.transactions
            ]
            if {transaction.transaction_id for transaction in journal} == wanted:
                return journal
            await asyncio.sleep(PAUSE_SECONDS)
        pytest.fail("what was posted did not come into the journal")


def is_of_clawback(transaction: transaction_pb2.Transaction) -> bool:
    """Whether it writes off what was taken back of earnings."""
    kinds = {entry.account.kind for entry in transaction.entries}
    return account_pb2.ACCOUNT_KIND_CLAWBACK_LOSSES in kinds


def payee(text: str) -> charge_pb2.Payee:
    """`org_lark`, or with a weight `org_lark (2)`."""
    organization_id, _, weight = text.removesuffix(")").partition(" (")
    return charge_pb2.Payee(
        organization_id=organization_id,
        agent_id=organization_id.replace("org_", "agt_"),
        weight=int(weight or 1),
    )


def posting(owner_id: str, kind: str, amount: str) -> ledger.Posting:
    account = account_pb2.AccountRef(
        owner_id=owner_id,
        kind=account_pb2.AccountKind.Value(f"ACCOUNT_KIND_{kind.upper()}"),
        currency_code="USD",
    )
    return ledger.Posting(account=account, amount=usd(number(amount)))


def shown(transaction: transaction_pb2.Transaction, charge: charge_pb2.Charge | None) -> Table:
    """A transaction as the document would show it."""
    return Table(
        subject=transaction_pb2.TransactionType.Name(transaction.type)
        .removeprefix("TRANSACTION_TYPE_")
        .lower(),
        rows=tuple(
            (
                str(entry.entry_number),
                entry.account.owner_id,
                account_pb2.AccountKind.Name(entry.account.kind).removeprefix("ACCOUNT_KIND_").lower(),
                f"{entry.amount.amount_micros:,}",
                shown_bucket(entry.bucket, transaction, charge) if entry.HasField("bucket") else "",
            )
            for entry in transaction.entries
        ),
    )


def shown_bucket(
    bucket: transaction_pb2.EarningsBucket,
    transaction: transaction_pb2.Transaction,
    charge: charge_pb2.Charge | None,
) -> str:
    """The bucket with its dates told from the days that the document names."""
    days = {"T": day(transaction.create_time.ToDatetime(tzinfo=UTC))}
    if charge is not None:
        days |= {
            "W": day(charge.occur_time.ToDatetime(tzinfo=UTC)),
            "P": day(charge.create_time.ToDatetime(tzinfo=UTC)),
        }
    # A posting of a charge is on the day of its charge; a receivable goes out of the bucket it went into, and
    # into one that counts from now.
    # What a payout, a correction or a settlement takes, and what comes back, is of the bucket that the charge
    # went into.
    of_charge = (
        transaction.type
        in (
            transaction_pb2.TRANSACTION_TYPE_CHARGE,
            transaction_pb2.TRANSACTION_TYPE_PROMOTION_SETTLEMENT,
        )
        or transaction.payout_id
        or transaction.correction_id
        or is_of_clawback(transaction)
    )
    posted_on = "P" if of_charge or not bucket.collected else "T"
    earned_on = "W" if charge is not None else "T"
    assert date.fromisoformat(bucket.earned_on) == days[earned_on]
    held = (date.fromisoformat(bucket.available_on) - days[posted_on]).days
    state = "collected" if bucket.collected else "uncollected"
    return f"{state}, earned {earned_on}, available {posted_on}+{held}"


def day(moment: datetime) -> date:
    return moment.date()


async def balances(server: LedgerServer, table: Table) -> tuple[tuple[str, ...], ...]:
    """The rows of a table of balances, as the ledger says now."""
    read = customer_row if table.subject == "customer" else organization_row
    # A table may leave out the last columns.
    return tuple([(await read(server, row[0]))[: len(row)] for row in table.rows])


async def customer_row(server: LedgerServer, customer_id: str) -> tuple[str, ...]:
    request = ledger.GetCustomerBalanceRequest(customer_id=customer_id)
    balance = (await server.operator.ledger.GetCustomerBalance(request)).balance
    return row(customer_id, balance.available, balance.receivable, balance.unpaid, balance.chargebacks)


async def organization_row(server: LedgerServer, organization_id: str) -> tuple[str, ...]:
    request = ledger.GetEarningsBalanceRequest(organization_id=organization_id)
    balance = (await server.operator.ledger.GetEarningsBalance(request)).balance
    return row(
        organization_id,
        balance.available,
        balance.pending,
        balance.uncollected,
        balance.platform_fees,
        balance.processing_fees,
    )


def row(owner_id: str, *amounts: money_pb2.Money) -> tuple[str, ...]:
    return (owner_id, *(f"{amount.amount_micros:,}" for amount in amounts))


async def play(server: LedgerServer, lines: Sequence[str], stage: Play) -> list[transaction_pb2.Transaction]:
    for line in lines:
        await stage.carry_out(line)
    return await stage.posted()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
async def test_the_ledger_posts_what_the_document_shows(example: Example, database_url: str) -> None:
    async with running_ledger(database_url, adjustment_approval="required") as server:
        stage = Play(server)
        before = await play(server, example.given, stage)
        after = await play(server, example.when, stage)
        told = [shown(transaction, stage.charge_of(transaction)) for transaction in after[len(before) :]]
        assert told == example.transactions
        for table in example.tables:
            if table.subject in ("customer", "organization"):
                await agree(server, table)
        assert not await audit(database_url)


async def agree(server: LedgerServer, table: Table) -> None:
    """The balances come to be those of the table: what was posted an instant ago has yet to be folded."""
    for _ in range(ATTEMPTS):
        if await balances(server, table) == table.rows:
            return
        await asyncio.sleep(PAUSE_SECONDS)
    assert await balances(server, table) == table.rows


def names(enum: EnumDescriptor, prefix: str) -> set[str]:
    """The values of an enum as the document writes them."""
    return {value.name.removeprefix(prefix).lower() for value in enum.values if value.number}


def test_every_transaction_type_has_an_example() -> None:
    types = names(transaction_pb2.TransactionType.DESCRIPTOR, "TRANSACTION_TYPE_")
    assert types == set(TRANSACTION_TYPES)
    assert types == {table.subject for example in EXAMPLES for table in example.transactions}


def test_everything_that_happens_to_money_has_an_example() -> None:
    """Also what is no type of its own: parts of charges, dates that come, and what follows from others."""
    assert {
        "Charge of an outcome",
        "Charge paid from credits",
        "Charge partly receivable",
        "Charge partly unpaid",
        "Clawback that later earnings make up",
        "Collection of a receivable, for two payees in two payments",
        "Collection of an unpaid charge",
        "Collection within the dispute window",
        "Correction in two parts",
        "Correction of a part",
        "Correction of a paid charge",
        "Correction of what a write-off left",
        "Maturity, the day before",
        "Maturity",
        "Write-off of a chargeback",
        "Write-off of a clawback",
        "Write-off of a receivable",
        "Write-off of an unpaid charge",
    } <= {example.title for example in EXAMPLES}


def test_the_chart_of_accounts_is_complete() -> None:
    kinds = names(account_pb2.AccountKind.DESCRIPTOR, "ACCOUNT_KIND_")
    charts = [table for table in read_tables(DOCUMENT.read_text()) if table.subject == "Account"]
    assert [{row[0].strip("`") for row in chart.rows} for chart in charts] == [kinds]
