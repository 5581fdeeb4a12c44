"""Statements: opening + movements = closing, to the micro, whatever the period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.kit.clock import FixedClock
from services.kit.runs import service_period
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.reporting.v1 import charge_report_pb2, period_pb2, statement_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.conftest import FreshDatabase
from tests.integration.reporting.reports.facts import HELPER, LARK, NOW, WREN
from tests.support.reporting_books import Books, Moved, Payee
from tests.support.reports_server import ReportingServer, opened_database, running_reporting

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPANS = [
    (datetime(2026, 11, 1, tzinfo=UTC), NOW),
    (datetime(2026, 10, 31, 18, 17, 5, 7, tzinfo=UTC), datetime(2026, 11, 1, 5, 2, tzinfo=UTC)),
    (datetime(2020, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 2, 2, tzinfo=UTC)),
]


async def _read(
    reporting: ReportingServer, key: str, request: pb.GetStatementRequest
) -> tuple[pb.GetStatementResponse, list[list[statement_pb2.Movement]]]:
    stream = (await reporting.caller(key)).GetStatement(request)
    first, *others = [message async for message in stream]
    assert not first.movements
    assert not any(message.accounts or message.HasField("as_of") for message in others)
    return first, [list(message.movements) for message in others]


def _check(
    first: pb.GetStatementResponse,
    movements: list[statement_pb2.Movement],
    facts: list[Moved],
    start: datetime,
    end: datetime,
) -> None:
    within = [one for one in facts if start <= one.create_time < end]
    openings: dict[str, int] = {}
    for one in facts:
        if one.create_time < start:
            openings[one.kind] = openings.get(one.kind, 0) + one.amount
    balances = dict(openings)
    assert len(movements) == len(within)
    for found, fact in zip(movements, within, strict=True):
        balances[fact.kind] = balances.get(fact.kind, 0) + fact.amount
        assert (found.position, found.entry_number, found.transaction_id) == (
            fact.position,
            fact.entry_number,
            fact.transaction_id,
        )
        assert _kind(found.account) == fact.kind
        assert found.account.owner_id == fact.owner_id
        assert (found.amount.amount_micros, found.balance.amount_micros) == (
            fact.amount,
            balances[fact.kind],
        )
        assert transaction_pb2.TransactionType.Name(found.type) == f"TRANSACTION_TYPE_{fact.type.upper()}"
        assert found.create_time.ToDatetime(UTC) == fact.create_time
    kinds = {one.kind for one in within} | {kind for kind, amount in openings.items() if amount}
    assert {_kind(account.account) for account in first.accounts} == kinds
    for account in first.accounts:
        kind = _kind(account.account)
        assert account.opening.amount_micros == openings.get(kind, 0)
        assert account.closing.amount_micros == balances.get(kind, 0)
        of_kind = [one for one in within if one.kind == kind]
        assert sum(total.movement_count for total in account.totals) == len(of_kind)
        assert sum(total.amount.amount_micros for total in account.totals) == sum(
            one.amount for one in of_kind
        )


def _kind(account: account_pb2.AccountRef) -> str:
    return account_pb2.AccountKind.Name(account.kind).removeprefix("ACCOUNT_KIND_").lower()


@pytest.mark.parametrize("owner_id", [LARK, WREN, "cus_ada", "cus_gus"])
@pytest.mark.parametrize(("start", "end"), SPANS)
async def test_statements_are_those_of_the_facts(
    reporting: ReportingServer, books: Books, owner_id: str, start: datetime, end: datetime
) -> None:
    period = period_pb2.Period()
    period.start_time.FromDatetime(start)
    period.end_time.FromDatetime(end)
    key = f"owner/{owner_id}" if owner_id.startswith("org_") else f"customer/{owner_id}"
    for currency in ("USD", "EUR"):
        first, batches = await _read(
            reporting, key, pb.GetStatementRequest(period=period, currency_code=currency)
        )
        assert first.as_of.journal_position == books.position
        movements = [one for batch in batches for one in batch]
        _check(first, movements, books.movements(owner_id, currency), start, end)


@pytest.mark.parametrize("key", [f"owner/{LARK}", "customer/cus_bob", "operator"])
async def test_movements_of_fees_and_closings_say_their_service_periods(
    reporting: ReportingServer, books: Books, key: str
) -> None:
    request = pb.GetStatementRequest(period=period_pb2.Period(name="12m"))
    if key == "operator":
        request.organization_id = LARK
    _, batches = await _read(reporting, key, request)
    facts = {one.charge_id: one for one in books.charges}
    kinds = set()
    for movement in (one for batch in batches for one in batch):
        kinds.add((movement.charge_kind, movement.type))
        if not movement.charge_id:
            assert movement.charge_kind == charge_report_pb2.CHARGE_KIND_UNSPECIFIED
            continue
        charge = facts[movement.charge_id]
        service = service_period(charge.workflow_id, charge.occur_time)
        assert movement.HasField("service_end_time") == (service is not None)
        if service is not None:
            assert movement.service_start_time.ToDatetime(UTC) == service.start
            assert movement.service_end_time.ToDatetime(UTC) == service.end
    assert kinds >= {
        (charge_report_pb2.CHARGE_KIND_USAGE, transaction_pb2.TRANSACTION_TYPE_CHARGE),
        (charge_report_pb2.CHARGE_KIND_SUBSCRIPTION, transaction_pb2.TRANSACTION_TYPE_CHARGE),
        (charge_report_pb2.CHARGE_KIND_SUBSCRIPTION, transaction_pb2.TRANSACTION_TYPE_CORRECTION),
        (charge_report_pb2.CHARGE_KIND_PERIOD_CLOSE, transaction_pb2.TRANSACTION_TYPE_CHARGE),
    }


async def test_a_statement_is_of_the_month_to_date_unless_a_period_is_named(
    reporting: ReportingServer, books: Books
) -> None:
    first, batches = await _read(reporting, "service", pb.GetStatementRequest(customer_id="cus_ada"))
    movements = [one for batch in batches for one in batch]
    _check(first, movements, books.movements("cus_ada"), datetime(2026, 11, 1, tzinfo=UTC), NOW)


async def test_long_statements_come_in_parts_and_end_with_what_was_known_at_the_first(
    fresh_database: FreshDatabase,
) -> None:
    books, start = Books(), datetime(2026, 11, 28, tzinfo=UTC)
    payee = Payee(LARK, HELPER.agent_id, 1000)
    for number in range(1100):
        # Several at the same moment.
        books.charge("cus_ada", payee, start + timedelta(seconds=number // 7), metered=False)
    with fresh_database() as url:
        async with (
            opened_database(url, "reporting_writer") as writer,
            running_reporting(url, FixedClock(NOW)) as reporting,
        ):
            await books.apply(writer)
            stream = aiter((await reporting.caller(f"owner/{LARK}")).GetStatement(pb.GetStatementRequest()))
            first = await anext(stream)
            assert len((await anext(stream)).movements) == 500
            facts = books.movements(LARK)
            # Meanwhile something is posted that belongs between what has not been sent yet.
            books.charge("cus_ada", payee, start, posted=start + timedelta(seconds=150), metered=False)
            await books.apply(writer)
            rest = [len(message.movements) async for message in stream]
            assert rest == [500, 100]
            assert first.accounts[0].closing.amount_micros == sum(one.amount for one in facts)
