"""The facts that tests of reports share, and what reports say of them as figures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from tallystick.reporting.v1 import revenue_pb2, usage_report_pb2
from tests.support.reporting_books import Books, Payee

# Within a quarter hour, so that periods up to now read rows.
NOW: Final = datetime(2026, 11, 29, 13, 37, 11, 123456, tzinfo=UTC)
LARK: Final = "org_lark"
WREN: Final = "org_wren"
CUSTOMERS: Final = tuple(f"cus_{name}" for name in ("ada", "bob", "cyd", "dan", "eve", "fay", "gus"))
HELPER: Final = Payee(LARK, "agt_helper", 0)
SCRIBE: Final = Payee(LARK, "agt_scribe", 0)
OTHER: Final = Payee(WREN, "agt_other", 0)
# Around the end of summer time, around midnights of several zones, within the last hours, and long ago.
MOMENTS: Final = (
    datetime(2026, 11, 1, 4, tzinfo=UTC),
    datetime(2026, 10, 31, 18, 15, tzinfo=UTC),
    datetime(2026, 11, 28, 18, 30, tzinfo=UTC),
    NOW - timedelta(hours=5),
    NOW - timedelta(minutes=40),
    datetime(2026, 3, 8, 6, 30, tzinfo=UTC),
    datetime(2025, 12, 31, 22, tzinfo=UTC),
    datetime(2026, 7, 14, 9, tzinfo=UTC),
)


def made_up_books(seed: int = 7, count: int = 160) -> Books:
    """Charges of two organizations by seven customers, with what may become of them."""
    chance, books = random.Random(seed), Books()
    for customer_id in CUSTOMERS:
        books.purchase(customer_id, 10_000_000, datetime(2025, 12, 1, tzinfo=UTC))
    add_charges(books, chance, count)
    end = NOW - timedelta(minutes=20)
    add_agreements(books)
    books.payout(LARK, "po_1", 1_000, end - timedelta(days=40), "payout_completion")
    books.payout(LARK, "po_2", 2_000, end - timedelta(days=3), "payout_return")
    books.payout(LARK, "po_3", 3_000, end)
    books.payout(WREN, "po_4", 400, end)
    return books


def add_agreements(books: Books) -> None:
    """Fees of subscriptions, one for a year, and closings of periods; some of them are corrected."""
    helper = Payee(LARK, "agt_lark_helper", 0)
    november, december = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
    books.fee("cus_ada", replace(helper, gross=1_200_007), november, datetime(2027, 11, 1, tzinfo=UTC))
    fee = books.fee("cus_bob", replace(helper, gross=25_000), november, december, 1)
    # An upgrade, within the quarter hour that has begun.
    books.fee("cus_bob", replace(helper, gross=7_001), NOW - timedelta(minutes=3), december, 2)
    books.correct(fee, 5_000, NOW - timedelta(minutes=2))
    books.close("cus_ada", replace(helper, gross=333), datetime(2026, 10, 1, tzinfo=UTC), november)
    # A quarter that ended in the middle of a month.
    books.close(
        "cus_bob", replace(helper, gross=444), datetime(2026, 8, 15, tzinfo=UTC), NOW - timedelta(days=9)
    )
    books.fee("cus_cyd", replace(OTHER, gross=99), november, december)


def add_charges(
    books: Books, chance: random.Random, count: int, organization_id: str = LARK, other_id: str = WREN
) -> None:
    """Charges at some of MOMENTS, some of which are collected or corrected; few of the other organization."""
    agents = [f"agt_{organization_id.removeprefix('org_')}_{name}" for name in ("helper", "scribe")]
    for _ in range(count):
        when = chance.choice(MOMENTS) + timedelta(microseconds=chance.randrange(3_600_000_000))
        when = min(when, NOW - timedelta(minutes=chance.randrange(1, 30)))
        gross = chance.choice((0, 1, 999, 10_007, 123_456))
        own = Payee(organization_id, chance.choice(agents), gross)
        payees = chance.choice(((own,), (own,), (own,), (own, Payee(other_id, "agt_other", gross // 2))))
        if chance.random() < 0.1:
            payees = (Payee(other_id, "agt_other", gross),)
        pending = chance.random() < 0.1
        charge = books.charge(
            chance.choice(CUSTOMERS[: chance.randrange(1, len(CUSTOMERS) + 1)]),
            payees,
            when,
            posted=when + timedelta(seconds=chance.randrange(1, 7200)),
            paid=chance.choice(("credits", "credits", "credits", "receivable", "unpaid")),
            currency=chance.choice(("USD", "USD", "USD", "USD", "EUR")),
            version=chance.choice(("", "1.0.0", "2.0.0")),
            action=chance.choice(("ticket.resolve", "mail.write")),
            model=chance.choice(("", "gpt-4.1", "unheard-of")),
            tokens=(chance.randrange(10_000), chance.randrange(1_000)),
            outcome="pending" if pending else chance.choice(("success", "failure", "partial", "unknown")),
            model_cost=chance.choice((None, Decimal(0), Decimal("0.001234567"), Decimal("1.5E-9"))),
            metered=chance.random() < 0.9,
        )
        after = charge.post_time + timedelta(minutes=chance.randrange(1, 10))
        fate = chance.random()
        if pending and charge.event is not None:
            if fate < 0.5:
                books.decide(charge, "success", 5_000, after)
        elif fate < 0.4 and charge.paid != "credits" and gross:
            books.collect(charge, after)
        elif fate < 0.6 and len(payees) == 1 and charge.gross > 1:
            books.correct(charge, chance.randrange(1, charge.gross), after)
            if chance.random() < 0.5:
                books.correct(charge, charge.gross - charge.corrected, after + timedelta(minutes=1))


def revenue_figures(revenue: revenue_pb2.Revenue) -> tuple[int, ...]:
    """As `Earned.figures`."""
    return (
        revenue.gross.amount_micros,
        revenue.platform_fees.amount_micros,
        revenue.processing_fees.amount_micros,
        revenue.net.amount_micros,
        revenue.charge_count,
    )


def usage_figures(totals: usage_report_pb2.UsageTotals) -> tuple[int, ...]:
    """As `Books.usage`."""
    outcomes = totals.outcomes
    return (
        totals.execution_count,
        totals.input_tokens,
        totals.output_tokens,
        totals.cost.amount_micros,
        outcomes.success,
        outcomes.failure,
        outcomes.partial,
        outcomes.unknown,
        outcomes.pending,
    )


def ranked(groups: dict[str, tuple[int, ...]], by: int) -> list[tuple[str, tuple[int, ...]]]:
    """Groups, those with the largest figure first, in bytewise order of their keys among equals."""
    return sorted(groups.items(), key=lambda one: (-one[1][by], one[0].encode()))


def zeros(figures: Sequence[int]) -> bool:
    return not any(figures)
