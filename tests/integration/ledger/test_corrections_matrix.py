"""However a charge stands, and whatever became of its payout, what happens next conserves the money.

That is a correction of all of it or of a part, a chargeback of what paid it, or a write-off of what is open.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.ledger.audit import audit
from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.ledger.v1.write_off_pb2 import WRITE_OFF_KIND_RECEIVABLE, WRITE_OFF_KIND_UNPAID
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import usd
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.ledger_standings import (
    GROSS,
    PAYOUTS,
    STANDINGS,
    STAYS_LEGS,
    Standing,
    begin,
    conserved,
    left_of,
    pay_out,
    shown,
)
from tests.support.rpc_errors import refusal

DOCUMENT = Path(__file__).parents[3] / "docs" / "accounting.md"
CELLS = [(standing, payout) for standing in STANDINGS for payout in PAYOUTS]
# The effects, as the first cell of each table of the document names them.
IN_FULL, IN_PART, CHARGED_BACK, WRITTEN_OFF = "all corrected", "part corrected", "charged back", "written off"


def documented() -> dict[tuple[str, str, str], str]:
    """What the tables of docs/accounting.md say is available afterwards: by effect, standing and payout."""
    lines = DOCUMENT.read_text().splitlines()
    found: dict[tuple[str, str, str], str] = {}
    for start, line in enumerate(lines):
        if not (line.startswith("| ") and line.split("|")[1].strip().endswith("\\ payout")):
            continue
        table = itertools.takewhile(lambda row: row.startswith("|"), lines[start:])
        (corner, *payouts), _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in table)
        effect = corner.removesuffix("\\ payout").strip()
        for standing, *amounts in rows:
            found |= {
                (effect, standing, payout): amount for payout, amount in zip(payouts, amounts, strict=True)
            }
    return found


DOCUMENTED = documented()


def test_the_document_has_every_cell() -> None:
    assert set(DOCUMENTED) == {
        (effect, shown(standing.__name__), shown(payout))
        for effect in (IN_FULL, IN_PART, CHARGED_BACK, WRITTEN_OFF)
        for standing, payout in CELLS
    }


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Corrections]:
    async with running_ledger(database_url) as server:
        books = Corrections(server)
        await begin(books, "cus_b")
        yield books
        assert not await audit(database_url)


@pytest.mark.parametrize(
    ("standing", "payout"), CELLS, ids=[f"{standing.__name__}-{payout}" for standing, payout in CELLS]
)
async def test_corrections_conserve_the_money(books: Corrections, standing: Standing, payout: str) -> None:
    granted = await standing(books)
    gone = await pay_out(books, payout)
    left = await left_of(books)
    assert await conserved(books, granted, gone, left)
    # In three parts, none of which is that of a leg: the last one ends at zero.
    for number, amount in enumerate([left // 3, left // 4, left - left // 3 - left // 4]):
        left = await correct(books, f"rf_{number}", amount, left)
        assert await conserved(books, granted, gone, left)
    # The customer is as if there had been no charge, and the organization has what the other one left it.
    assert await books.customer() == (granted, 0, 0)
    assert await books.legs() == (STAYS_LEGS[0] - gone, *STAYS_LEGS[1:])
    assert f"{STAYS_LEGS[0] - gone}" == DOCUMENTED[IN_FULL, shown(standing.__name__), shown(payout)]
    balance = await books.earned()
    assert balance.clawed_back == usd(max(0, gone - STAYS_LEGS[0]))
    assert balance.uncollected == usd(0)
    await nothing_below_zero_is_paid_out(books, STAYS_LEGS[0] - gone)


async def correct(books: Corrections, correction_id: str, amount: int, left: int) -> int:
    """Take back an amount, and answer what that leaves of the charge."""
    (had, had_owed, had_unpaid), had_earned = await books.customer(), sum(await books.legs())
    refund = (await books.correct(correction_id, amount)).correction.refund
    unpaid, owed, credits = (
        part.amount_micros for part in (refund.unpaid, refund.receivable, refund.credits)
    )
    assert unpaid + owed + credits == amount
    # What the customer gets is what the correction says, and what was earned of it, somebody loses.
    assert await books.customer() == (had + credits, had_owed - owed, had_unpaid - unpaid)
    assert sum(await books.legs()) == had_earned - credits - owed
    return left - amount


async def nothing_below_zero_is_paid_out(books: Corrections, available: int) -> None:
    assert await books.available() == available
    await books.refused_debit("po_over", max(1, available + 1))
    if available > 0:
        await books.debit("po_rest", available)
        return
    # Later earnings make it up first.
    await books.grant(10_000, "later", "cus_b")
    await books.charge(10_000, "run-later", "cus_b")
    later = await books.available() - available
    await books.refused_debit("po_later", later + available + 1)
    await books.debit("po_all", later + available)
    assert await books.available() == 0


# Each says by itself what it does to customer and payee, and answers whether there was anything to do it to.
Effect = Callable[[Corrections, int], Awaitable[bool]]


async def correct_a_part(books: Corrections, left: int) -> bool:
    """Two fifths of what is left."""
    await correct(books, "rf_1", left * 2 // 5, left)
    return True


async def charge_back(books: Corrections, left: int) -> bool:
    """All of the customer's first purchase, most of which was spent: nobody who earned it loses anything."""
    before, legs = await books.customer(), await books.legs()
    funding = Funding(books.server)
    purchase = await _purchase(books)
    if purchase == 0:
        answer = await refusal(funding.reverse("dp_1", 1, CHARGEBACK, customer=books.payer))
        assert answer.reason == "PURCHASE_NOT_FOUND"
        return False
    await funding.reverse("dp_1", purchase, CHARGEBACK, customer=books.payer)
    covered = min(before[0], purchase)
    assert await books.customer() == (before[0] - covered, *before[1:])
    assert (await funding.standing(books.payer))[1] == purchase - covered
    assert await books.legs() == legs
    return True


async def _purchase(books: Corrections) -> int:
    """How much the customer's first purchase was of."""
    answer = await books.server.operator.ledger.ListTransactions(
        pb.ListTransactionsRequest(owner_id=books.payer)
    )
    return sum(
        entry.amount.amount_micros
        for transaction in answer.transactions
        if transaction.external_id == "first"
        for entry in transaction.entries
        if entry.account.kind == account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS
    )


async def write_off(books: Corrections, left: int) -> bool:
    """All that is open: what was owed somebody had earned, and loses; what was unpaid nobody had."""
    (available, owed, unpaid), legs = await books.customer(), sum(await books.legs())
    for kind, amount in ((WRITE_OFF_KIND_RECEIVABLE, owed), (WRITE_OFF_KIND_UNPAID, unpaid)):
        call = books.write_off(kind, key=f"all {kind}")
        if amount == 0:
            assert (await refusal(call)).reason == "WRITE_OFF_EXCEEDS_DEBT"
        else:
            assert (await call).write_off.amount == usd(amount)
    assert await books.customer() == (available, 0, 0)
    assert sum(await books.legs()) == legs - owed
    assert (await books.earned()).uncollected == usd(0)
    assert await left_of(books) == left - owed - unpaid
    return owed + unpaid > 0


EFFECTS: dict[str, Effect] = {IN_PART: correct_a_part, CHARGED_BACK: charge_back, WRITTEN_OFF: write_off}


@pytest.mark.parametrize("payout", PAYOUTS)
@pytest.mark.parametrize("effect", EFFECTS)
async def test_effects_conserve_the_money(database_url: str, effect: str, payout: str) -> None:
    async with running_ledger(database_url) as server:
        for standing in STANDINGS:
            cell = await _cell(server, standing, payout, EFFECTS[effect])
            assert cell == DOCUMENTED[effect, shown(standing.__name__), shown(payout)], standing.__name__
        assert not await audit(database_url)


async def _cell(server: LedgerServer, standing: Standing, payout: str, effect: Effect) -> str:
    """What is available afterwards to an organization of its own; "-" if nothing could happen."""
    name = standing.__name__
    books = Corrections(server, payer=f"cus_{name}", payee=f"org_{name}")
    await begin(books, f"cus_{name}-other")
    granted = await standing(books)
    gone = await pay_out(books, payout)
    left = await left_of(books)
    assert await conserved(books, granted, gone, left)
    happened = await effect(books, left)
    available = await books.available()
    if effect is charge_back:
        # The debt is what the customer has had of it and paid nothing for.
        _, debt, owed, unpaid = await Funding(server).standing(books.payer)
        credits = (await books.customer())[0]
        back = await _purchase(books) if happened else 0
        assert granted - back - credits + debt + owed == left - unpaid
    else:
        assert await conserved(books, granted, gone, await left_of(books))
    # Whatever happened: what is left can still be taken back, and then nothing of the charge is anywhere.
    rest = await left_of(books)
    if rest:
        await books.correct("rf_rest", rest)
    assert await books.legs() == (STAYS_LEGS[0] - gone, *STAYS_LEGS[1:])
    assert (await books.customer())[1:] == (0, 0)
    assert await left_of(books) == 0
    charge = await books.get()
    assert charge.corrected.amount_micros + charge.written_off.amount_micros == GROSS
    return f"{available}" if happened else "-"
