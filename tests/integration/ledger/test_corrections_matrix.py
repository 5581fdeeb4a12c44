"""However a charge stands, and whatever became of the payout of its earnings, corrections conserve the money.

org_x earns by the charge that is corrected, and by one of another customer, which stays.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import usd
from tests.support.ledger_server import running_ledger

DOCUMENT = Path(__file__).parents[3] / "docs" / "accounting.md"
GROSS, STAYS = 1000, 777
# What the split leaves of the other charge: 15 % and 2.9 %.
STAYS_LEGS = (STAYS - 116 - 22, 116, 22)


async def paid_by_credits(books: Corrections) -> int:
    await books.grant(GROSS)
    await books.charge(GROSS)
    return GROSS


async def receivable(books: Corrections) -> int:
    await books.limit(GROSS)
    await books.charge(GROSS)
    return 0


async def unpaid(books: Corrections) -> int:
    await books.charge(GROSS)
    return 0


async def collected_later(books: Corrections) -> int:
    await books.limit(400)
    await books.charge(GROSS)
    await books.grant(300)
    await books.grant(700, "second")
    return GROSS


async def mixed(books: Corrections) -> int:
    """Each part, and one that was collected."""
    await books.grant(200)
    await books.limit(500)
    await books.charge(GROSS)
    await books.grant(150, "second")
    return 350


async def partly_corrected(books: Corrections) -> int:
    """Of each part."""
    granted = await mixed(books)
    for number, amount in enumerate([1, 2, 330, 417]):
        await books.correct(f"before-{number}", amount)
    return granted


STANDINGS = (paid_by_credits, receivable, unpaid, collected_later, mixed, partly_corrected)
PAYOUTS = ("none", "in_transit", "completed", "returned", "reversed")
CELLS = [(standing, payout) for standing in STANDINGS for payout in PAYOUTS]


def documented() -> dict[tuple[str, str], int]:
    """What the table of docs/accounting.md says is available once all of the charge is corrected."""
    lines = DOCUMENT.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| charge \\ payout |"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    (_, *payouts), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {
        (standing, payout): int(amount)
        for standing, *amounts in rows
        for payout, amount in zip(payouts, amounts, strict=True)
    }


def test_the_document_has_every_cell() -> None:
    assert len(documented()) == len(CELLS)


async def pay_out(books: Corrections, how: str) -> int:
    """A payout of all that is available; answers how much of it has not come back."""
    available = await books.available()
    service = books.server.service.earnings
    ids = {"organization_id": "org_x", "payout_id": "po_1"}
    if how == "none":
        return 0
    await books.debit("po_1", available)
    if how == "in_transit":
        return available
    if how == "returned":
        await service.ReturnPayout(earnings.ReturnPayoutRequest(**ids))
        return 0
    await service.CompletePayout(earnings.CompletePayoutRequest(**ids))
    if how == "completed":
        return available
    await service.ReversePayout(
        earnings.ReversePayoutRequest(**ids, reversal_id="trr_1", amount=usd(available // 3))
    )
    return available - available // 3


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Corrections]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        for customer_id in ("cus_a", "cus_b"):
            await server.create_customer(customer_id)
        books = Corrections(server)
        await books.grant(STAYS, "other", "cus_b")
        await books.charge(STAYS, "run-other", "cus_b")
        yield books
        assert not await audit(database_url)


@pytest.mark.parametrize(
    ("standing", "payout"), CELLS, ids=[f"{standing.__name__}-{payout}" for standing, payout in CELLS]
)
async def test_corrections_conserve_the_money(
    books: Corrections, standing: Callable[[Corrections], Awaitable[int]], payout: str
) -> None:
    granted = await standing(books)
    gone = await pay_out(books, payout)
    left = GROSS - (await books.get()).corrected.amount_micros
    assert await conserved(books, granted, gone, left)
    # In three parts, none of which is that of a leg: the last one ends at zero.
    for number, amount in enumerate([left // 3, left // 4, left - left // 3 - left // 4]):
        before = await books.customer(), sum(await books.legs())
        answer = await books.correct(f"rf_{number}", amount)
        left -= amount
        refund = answer.correction.refund
        unpaid, owed, credits = (
            part.amount_micros for part in (refund.unpaid, refund.receivable, refund.credits)
        )
        # What the customer gets is what the correction says, and what was earned of it, somebody loses.
        (had, had_owed, had_unpaid), had_earned = before
        assert await books.customer() == (had + credits, had_owed - owed, had_unpaid - unpaid)
        assert sum(await books.legs()) == had_earned - credits - owed
        assert await conserved(books, granted, gone, left)
    # The customer is as if there had been no charge, and the organization has what the other one left it.
    assert await books.customer() == (granted, 0, 0)
    assert await books.legs() == (STAYS_LEGS[0] - gone, *STAYS_LEGS[1:])
    assert STAYS_LEGS[0] - gone == documented()[standing.__name__.replace("_", " "), payout.replace("_", " ")]
    balance = await books.earned()
    assert balance.clawed_back == usd(max(0, gone - STAYS_LEGS[0]))
    assert balance.uncollected == usd(0)
    await nothing_below_zero_is_paid_out(books, STAYS_LEGS[0] - gone)


async def conserved(books: Corrections, granted: int, gone: int, left: int) -> bool:
    """What came in is what the customer has and what somebody earned; the latter is in, or still owed."""
    available, owed, unpaid = await books.customer()
    earned = sum(await books.legs()) + gone - STAYS
    return granted - available + owed == earned == left - unpaid


async def nothing_below_zero_is_paid_out(books: Corrections, available: int) -> None:
    assert await books.available() == available
    await books.refused_debit("po_over", max(1, available + 1))
    if available > 0:
        await books.debit("po_rest", available)
        return
    # Later earnings make it up first.
    await books.grant(10_000, "later", "cus_b")
    await books.charge(10_000, "run-later", "cus_b")
    await books.refused_debit("po_later", 8210 + available + 1)
    await books.debit("po_all", 8210 + available)
    assert await books.available() == 0
