"""What reporting makes of a real ledger and a real metering agrees with both of them, to the micro."""

import csv
import io
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal

import pytest

from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import ledger_service_pb2 as ledger_pb
from tallystick.ledger.v1.transaction_pb2 import TRANSACTION_TYPE_PROMOTION_SETTLEMENT
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tallystick.reporting.v1 import period_pb2, statement_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.metering.world import BONUS_MICROS, RUN_MICROS, World, run
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_lots import Lots
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.metering_server import AGENT_RUN, running_metering
from tests.support.reporting_server import ReportingServer, running_reporting
from tests.support.waiting import eventually

ORGANIZATIONS, CUSTOMERS = ("org_x", "org_y"), ("cus_a", "cus_b")


@dataclass
class Suite:
    """A ledger, a metering, and the reporting that follows them."""

    ledger: LedgerServer
    books: Corrections
    world: World
    reporting: ReportingServer

    async def catch_up(self) -> None:
        """Everything that was posted and recorded is in the projection."""

        async def known() -> bool:
            await self.reporting.catch_up()
            left = self.reporting.query(
                "SELECT (SELECT count(*) FROM ledger.transaction) = j.position"
                " AND (SELECT count(*) FROM metering.usage_position) = u.position"
                " AND NOT EXISTS (SELECT FROM metering.unsequenced_usage)"
                " FROM reporting.feed j, reporting.feed u WHERE j.feed = 'journal' AND u.feed = 'usage'"
            )
            return left == [(True,)]

        await eventually(known)


@pytest.fixture
async def suite(database_url: str) -> AsyncIterator[Suite]:
    async with running_ledger(database_url) as ledger:
        await ledger.create_organization("org_x")
        await ledger.create_organization("org_y", platform_fee_bps=1000, processing_fee_bps=0, hold_days=3)
        for customer_id in CUSTOMERS:
            await ledger.create_customer(customer_id)
        host = await ledger.create_caller(access_pb2.ROLE_HOST, "host")
        async with (
            running_metering(database_url, ledger) as metering,
            running_reporting(
                database_url, ledger, metering_address=metering.address, workers=False
            ) as reporting,
        ):
            await metering.publish(AGENT_RUN)
            world = World(metering, metering.caller(host.key))
            yield Suite(ledger, Corrections(ledger), world, reporting)


async def work(suite: Suite) -> None:
    """Runs, an outcome that is decided later, a charge that is shared and partly unpaid, and what follows."""
    books, world = suite.books, suite.world
    await books.grant(2_000_000)
    await books.limit(1_000)
    await world.meter_batch(
        *(run(f"run-{number}", "cus_a", agent_id="agt_x") for number in range(3)),
        run("of-b", "cus_b", agent_id="agt_y", outcome=usage_pb2.OUTCOME_FAILURE),
    )
    pending = await world.meter(run("later", "cus_a", agent_id="agt_x", outcome=usage_pb2.OUTCOME_PENDING))
    await world.host.metering.ResolveOutcome(
        metering_service_pb2.ResolveOutcomeRequest(
            outcome_id=pending.outcome_id,
            outcome=usage_pb2.OUTCOME_SUCCESS,
            evidence_ref="where",
            evidence_hash=b"d" * 32,
        )
    )
    await books.debit("po_left", 100_001)
    await suite.ledger.service.earnings.CompletePayout(
        earnings.CompletePayoutRequest(organization_id="org_x", payout_id="po_left")
    )
    await books.debit("po_stayed", 777)
    await suite.ledger.service.earnings.ReturnPayout(
        earnings.ReturnPayoutRequest(organization_id="org_x", payout_id="po_stayed", reason="no")
    )
    await books.debit("po_on_its_way", 3)
    # Two payees, credits, the limit, and a rest that nobody pays, until somebody does.
    await books.charge(2_000_001, "shared", "cus_a", "org_y")
    await books.correct("first", 333_333)
    await books.grant(100_000, "second")
    await books.correct("second", 1_000_000)
    await books.charge(99, "free-of-usage", "cus_b")


async def test_sums_are_the_ledgers_and_meterings(suite: Suite) -> None:
    await work(suite)
    await suite.catch_up()
    query = suite.reporting.query

    for organization_id in ORGANIZATIONS:
        answer = await suite.ledger.operator.ledger.GetEarningsBalance(
            ledger_pb.GetEarningsBalanceRequest(organization_id=organization_id)
        )
        balance = answer.balance
        of = f"organization_id = '{organization_id}' AND currency_code = 'USD'"
        payable = balance.available.amount_micros + balance.pending.amount_micros
        assert query(
            "SELECT sum(amount_micros), coalesce(sum(amount_micros) FILTER (WHERE NOT collected), 0)"
            f" FROM reporting.payable_bucket WHERE {of}"
        ) == [(payable, balance.uncollected.amount_micros)]
        fees = (balance.platform_fees.amount_micros, balance.processing_fees.amount_micros)
        for table in ("revenue", "revenue_rollup"):
            of_table = of + (" AND grain = 'month'" if table == "revenue_rollup" else "")
            [(platform_fees, processing_fees, net)] = query(
                "SELECT sum(platform_fee_micros), sum(processing_fee_micros), sum(net_micros)"
                f" FROM reporting.{table} WHERE {of_table}"
            )
            assert (platform_fees, processing_fees) == fees
            # What was earned is what can be paid out, with what went.
            [(went,)] = query(
                "SELECT coalesce(sum(amount_micros), 0) FROM reporting.movement"
                f" WHERE owner_id = '{organization_id}' AND kind = 'organization_payable' AND payout_id <> ''"
            )
            assert net + went == payable

    for owner_id in (*ORGANIZATIONS, *CUSTOMERS):
        accounts = await suite.ledger.operator.ledger.ListAccounts(
            ledger_pb.ListAccountsRequest(owner_id=owner_id)
        )
        expected = {
            account_pb2.AccountKind.Name(one.account.kind).removeprefix("ACCOUNT_KIND_").lower(): (
                one.credits.amount_micros - one.debits.amount_micros
            )
            for one in accounts.accounts
        }
        for table in ("movement", "movement_day"):
            found = query(
                f"SELECT kind, sum(amount_micros) FROM reporting.{table} WHERE owner_id = '{owner_id}'"
                " GROUP BY kind"
            )
            shown = {kind: amount for kind, amount in expected.items() if not kind.endswith("_fees")}
            assert {kind: int(amount) for kind, amount in found if amount} == {
                kind: amount for kind, amount in shown.items() if amount
            }

    # The unpaid part of the correction is in what the payees billed, though in no entry of theirs.
    assert query("SELECT corrected_micros FROM reporting.charge WHERE workflow_id = 'shared'") == [
        (1_333_333,)
    ]
    assert query(
        "SELECT type, sum(billed_micros) FROM reporting.revenue r JOIN reporting.charge c USING (charge_id)"
        " WHERE c.workflow_id = 'shared' GROUP BY type ORDER BY type"
    ) == [("charge", 2_000_001), ("collection", 0), ("correction", -1_333_333)]


async def test_what_an_own_promotion_paid_is_no_revenue(suite: Suite) -> None:
    """What an organization pays for others by its promotion is no revenue either, but an expense."""
    lots = Lots(suite.ledger)
    await lots.give(1_000, "promo", funder="org_x", customer="cus_b")
    charge_id = await lots.charge(600, "shared", "cus_b", "org_y")
    await lots.charge(400, "alone", "cus_b")
    await lots.settle("cus_b")
    await lots.correct("a-part", 200, charge_id=charge_id)
    await lots.settle("cus_b")
    await suite.catch_up()
    # Nothing of the shared charge, of which 200 each are left, nor of the other is earned.
    query = suite.reporting.query
    for table, grain in (("revenue", ""), ("revenue_rollup", " AND grain = 'month'")):
        assert query(
            "SELECT sum(platform_fee_micros), sum(processing_fee_micros), sum(net_micros)"
            f" FROM reporting.{table} WHERE organization_id = 'org_x'{grain}"
        ) == [(0, 0, 0)]
    assert query(
        "SELECT sum(net_micros) FROM reporting.revenue"
        " WHERE organization_id = 'org_x' AND type = 'promotion_settlement'"
    ) == [(-(200 - 30 - 5) - (400 - 60 - 11),)]
    accounts, movements = await _statement(suite, {"organization_id": "org_x"}, period_pb2.Period(name="12m"))
    closing = {one.account.kind: one.closing.amount_micros for one in accounts}
    assert closing == {
        account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE: -200,
        account_pb2.ACCOUNT_KIND_PROMOTIONS: -200,
    }
    settled = [one for one in movements if one.type == TRANSACTION_TYPE_PROMOTION_SETTLEMENT]
    assert {one.charge_id or one.reason for one in settled} >= {
        charge_id,
        f"promotional credits paid {charge_id}",
    }
    stream = suite.reporting.operator.reporting.ExportTransactions(
        pb.ExportTransactionsRequest(organization_id="org_x", period=period_pb2.Period(name="12m"))
    )
    content = b"".join([message.content async for message in stream]).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert sum(Decimal(row["net"]) for row in rows) == 0
    assert "promotion_settlement" in {row["type"] for row in rows}


async def test_usage_and_what_it_earned_know_of_each_other(suite: Suite) -> None:
    await work(suite)
    await suite.catch_up()
    query = suite.reporting.query

    actions = query("SELECT action_type, count(*) FROM reporting.revenue WHERE type = 'charge' GROUP BY 1")
    # Six of runs, one of them of an outcome; three of what nobody metered: one charge has two payees.
    assert Counter(dict(actions)) == {"run": 6, "": 3}
    assert query(
        "SELECT sum(execution_count), sum(success_count), sum(failure_count), sum(pending_count),"
        " sum(cost_micros) FROM reporting.usage_rollup WHERE grain = 'day'"
    ) == [(5, 4, 1, 0, 5 * RUN_MICROS - BONUS_MICROS)]
    assert query(
        "SELECT outcome, bonus_micros, length(bonus_lines) > 0 FROM reporting.usage"
        " WHERE workflow_id = 'later'"
    ) == [("success", BONUS_MICROS, True)]


async def _statement(
    suite: Suite, owner: dict[str, str], period: period_pb2.Period
) -> tuple[list[statement_pb2.StatementAccount], list[statement_pb2.Movement]]:
    stream = suite.reporting.operator.reporting.GetStatement(pb.GetStatementRequest(period=period, **owner))
    messages: list[pb.GetStatementResponse] = [message async for message in stream]
    return list(messages[0].accounts), [one for message in messages for one in message.movements]


async def test_reports_are_the_ledgers_to_the_micro(suite: Suite) -> None:
    await work(suite)
    await suite.catch_up()
    reports, ledger = suite.reporting.operator.reporting, suite.ledger.operator.ledger
    year = period_pb2.Period(name="12m")

    for organization_id in ORGANIZATIONS:
        answer = await ledger.GetEarningsBalance(
            ledger_pb.GetEarningsBalanceRequest(organization_id=organization_id)
        )
        balance = answer.balance
        summary = await reports.GetRevenueSummary(
            pb.GetRevenueSummaryRequest(organization_id=organization_id)
        )
        standing, lifetime = summary.standing, summary.lifetime
        assert (standing.available, standing.pending, standing.uncollected) == (
            balance.available,
            balance.pending,
            balance.uncollected,
        )
        assert (lifetime.platform_fees, lifetime.processing_fees) == (
            balance.platform_fees,
            balance.processing_fees,
        )
        top = await reports.ListTopCustomers(
            pb.ListTopCustomersRequest(organization_id=organization_id, period=year)
        )
        assert top.total == lifetime
        stream = reports.ExportTransactions(
            pb.ExportTransactionsRequest(organization_id=organization_id, period=year)
        )
        content = b"".join([message.content async for message in stream]).decode()
        rows = list(csv.DictReader(io.StringIO(content)))
        for column, money in (
            ("net", lifetime.net),
            ("platform_fee", lifetime.platform_fees),
            ("processing_fee", lifetime.processing_fees),
        ):
            assert sum(Decimal(row[column]) for row in rows) == Decimal(money.amount_micros).scaleb(-6)

    # What began with nothing ends with what the ledger has.
    for owner_id in (*ORGANIZATIONS, *CUSTOMERS):
        owner = {"organization_id" if owner_id in ORGANIZATIONS else "customer_id": owner_id}
        accounts, movements = await _statement(suite, owner, year)
        listed = await ledger.ListAccounts(ledger_pb.ListAccountsRequest(owner_id=owner_id))
        balances = {one.account.kind: one.balance for one in listed.accounts}
        for account in accounts:
            kind = account.account.kind
            assert account.closing == balances[kind]
            of_kind = [one for one in movements if one.account.kind == kind]
            assert of_kind[-1].balance == account.closing
            entries = await ledger.ListEntries(
                ledger_pb.ListEntriesRequest(owner_id=owner_id, kind=kind, page_size=1000)
            )
            assert {(one.transaction_id, one.entry_number, one.amount.amount_micros) for one in of_kind} == {
                (one.transaction_id, one.entry.entry_number, one.entry.amount.amount_micros)
                for one in entries.entries
            }

    for customer_id in CUSTOMERS:
        charges = await reports.ListCharges(pb.ListChargesRequest(customer_id=customer_id))
        assert charges.charges
        for charge in charges.charges:
            known = await ledger.GetCharge(ledger_pb.GetChargeRequest(charge_id=charge.charge_id))
            assert (charge.gross, charge.corrected) == (known.charge.gross, known.charge.corrected)
            assert charge.workflow_id == known.charge.workflow_id
            if charge.lines:
                assert sum(line.amount.amount_micros for line in charge.lines) == charge.gross.amount_micros
