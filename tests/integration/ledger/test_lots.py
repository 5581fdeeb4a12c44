"""Credit lots: in which order grants are spent, what expires, and who pays for promotions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from services.ledger.audit import audit
from tests.support.ledger_lots import Lot, Lots
from tests.support.ledger_server import running_ledger

NEVER = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Lots]:
    """A ledger in which nothing is allocated, settled or expired by itself, and which is sound in the end."""
    async with running_ledger(
        database_url, lot_interval=NEVER, reap_interval=NEVER, collect_interval=NEVER
    ) as server:
        await server.create_organization("org_x", 1500, 290)
        await server.create_organization("org_y", 1000, 0)
        await server.create_customer("cus_a")
        yield Lots(server)
        assert await audit(database_url) == 0


async def test_what_a_charge_spends_comes_out_of_the_lots_in_their_order(books: Lots) -> None:
    late = await books.give(100, "late", funder="platform", priority=60)
    bought = await books.give(100, "bought")
    given = await books.give(100, "given", funder="platform")
    soon = await books.give(100, "soon", expires=DAY)
    sooner = await books.give(100, "sooner", expires=DAY / 2)
    first = await books.give(100, "first", priority=0)
    order = [first, sooner, soon, given, bought, late]
    for number in range(6):
        assert await books.left(*order) == [0] * number + [100] * (6 - number)
        await books.charge(100, f"run-{number}")
    assert await books.left(*order) == [0] * 6


async def test_a_charge_may_take_from_several_lots(books: Lots) -> None:
    lots = [await books.give(amount, f"grant-{amount}") for amount in (10, 20, 40)]
    await books.charge(5, "run-1")
    await books.charge(40, "run-2")
    assert await books.left(*lots) == [0, 0, 25]
    await books.correct("rf_1", 30)
    assert await books.left(*lots) == [0, 15, 40]
    await books.correct("rf_2", 10)
    assert await books.left(*lots) == [5, 20, 40]


async def test_an_organizations_promotion_earns_it_nothing(books: Lots) -> None:
    lot = await books.give(1000, "promo", funder="org_x")
    assert await books.balances_of("org_x") == {"promotions": -1000}
    await books.charge(600)
    assert await books.lot(lot) == Lot(1000, 400, 0, "open")
    await books.settle()
    assert await books.balances_of("org_x") == {"promotions": -400}


async def test_what_others_earn_of_it_the_organization_pays(books: Lots) -> None:
    await books.give(1000, "promo", funder="org_x")
    await books.charge(1000, "run-1", "cus_a", "org_y")
    await books.settle()
    # 500 each: its own share is taken back, the other's is paid.
    assert await books.legs("org_y") == (450, 50, 0)
    assert await books.balances_of("org_x") == {"organization_payable": -500}


async def test_credits_expire_and_go_back_to_who_funds_them(books: Lots) -> None:
    given = await books.give(200, "given", funder="platform", expires=DAY)
    promoted = await books.give(300, "promoted", funder="org_x", expires=DAY)
    bought = await books.give(100, "bought", expires=DAY)
    kept = await books.give(50, "kept")
    await books.charge(250, "run-1")
    assert await books.expire() == 0
    await books.end_time()
    assert await books.expire() == 350
    assert await books.expire() == 0
    assert await books.customer() == (50, 0, 0)
    assert await books.lot(given) == Lot(200, 0, 0, "spent")
    assert await books.lot(promoted) == Lot(300, 0, 250, "expired")
    assert await books.lot(bought) == Lot(100, 0, 100, "expired")
    assert await books.lot(kept) == Lot(50, 50, 0, "open")
    await books.settle()
    # It pays for the 50 that were spent: its part of the 250 is not earned.
    assert (await books.balances_of("org_x"))["organization_payable"] == 165
    assert (await books.balances_of("platform"))["expired_credits"] == 100
