"""Credit lots: in which order grants are spent, what expires, and who pays for promotions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256

import grpc
import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import credit_service_pb2 as credit
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.append_only import nobody_changes
from tests.support.ledger_credits import Credits, allocation, in_future, intent, usd
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_lots import ORGANIZATION, PLATFORM, Lot, Lots
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import refusal

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


async def test_what_is_held_expires_when_it_is_free(books: Lots) -> None:
    lot = await books.give(100, "first", funder="platform", expires=DAY)
    credits = Credits(books.server)
    opened = await credits.open(60)
    assert opened.granted.lease.remaining.amount_micros == 100
    await credits.give_back(1, 1, 40)
    await books.end_time()
    assert await books.expire() == 40
    assert await books.lot(lot) == Lot(100, 60, 40, "expire_due")
    # Whoever allocates in the lease is asked for it; what it returns goes at once, before a lease can get it.
    renewed = await credits.renew(1, 0)
    assert renewed.granted.lease.recall
    await credits.post(intent("run-1", 25, allocation("rsv-1", 1, 25)))
    returned = await credits.give_back(1, 2, 35)
    assert returned.available.amount_micros == 0
    assert await books.lot(lot) == Lot(100, 0, 75, "expired")


async def test_what_a_correction_gives_back_to_a_lot_that_is_over_expires(books: Lots) -> None:
    lot = await books.give(100, "first", funder="org_x", expires=DAY)
    await books.charge(70)
    await books.settle()
    await books.end_time()
    assert await books.expire() == 30
    await books.correct("rf_1", 70)
    assert await books.expire() == 70
    assert await books.lot(lot) == Lot(100, 0, 100, "expired")
    await books.settle()
    assert await books.balances_of("org_x") == {}


async def test_a_refund_takes_from_its_own_purchase_first(books: Lots) -> None:
    given = await books.give(100, "given", funder="org_x", priority=0)
    first = await books.give(100, "first")
    second = await books.give(100, "second")
    funding = Funding(books.server)
    await funding.reverse("re_1", 70, purchase="second")
    assert await books.left(given, first, second) == [100, 100, 30]
    await funding.reverse("re_2", 30, purchase="second")
    await funding.reverse("re_3", 100, purchase="first")
    assert await books.left(given, first, second) == [100, 0, 0]
    await funding.reinstate("re_1", "won_1")
    assert await books.left(given, first, second) == [100, 0, 70]


async def reversed_parts(funding: Funding, reversal_id: str, amount: int) -> tuple[int, int]:
    """What a chargeback of the purchase 'bought' took of what had expired, and of the customer's credits."""
    answer = await funding.reverse(reversal_id, amount, CHARGEBACK, purchase="bought")
    return answer.reversal.from_expired.amount_micros, answer.reversal.from_credits.amount_micros


async def refused_available(books: Lots, payout_id: str, amount: int) -> int:
    """What is available instead, of a payout that is refused."""
    refused = await refusal(books.debit(payout_id, amount))
    assert refused.reason == "INSUFFICIENT_EARNINGS"
    return int(refused.metadata["available_micros"])


async def test_a_payout_takes_nothing_that_the_organizations_own_promotion_bought(books: Lots) -> None:
    await books.give(1000, "promo", funder="org_x")
    await books.charge(600, "run-1")
    # Nobody has looked which lots paid, nor whether there is a lot.
    assert await refused_available(books, "po_1", 1) == 0
    # Nor of what was spent after it was looked.
    await books.charge(300, "run-2")
    assert await refused_available(books, "po_2", 1) == 0
    # Beyond its promotion it earns.
    await books.give(500, "bought")
    await books.charge(600, "run-3")
    assert await refused_available(books, "po_3", 412) == 411
    await books.debit("po_4", 411)
    await books.settle()
    assert (await books.earned()).clawed_back.amount_micros == 0


async def test_a_payout_leaves_what_promotions_bought_from_others(books: Lots) -> None:
    await books.server.create_customer("cus_b")
    await books.give(500, "bought", customer="cus_b")
    await books.charge(500, "run-1", "cus_b")
    await books.give(300, "promo", funder="org_x")
    others = Lots(books.server, payee="org_y")
    first = await others.charge(100, "run-2")
    # 500 earn it 411: 75 and 14 are fees.
    assert await refused_available(books, "po_1", 312) == 311
    await others.charge(200, "run-3")
    await books.correct("rf_1", 100, charge_id=first)
    # Both sides of what happened since count: a payout is not refused for what was given back.
    await books.debit("po_2", 211)
    await books.settle()
    assert await books.balances_of("org_x") == {
        "payouts_in_transit": 211,
        "platform_fees": 75,
        "processing_fees": 14,
        "promotions": -100,
    }


async def test_what_expired_of_a_purchase_goes_back_from_where_it_went(books: Lots) -> None:
    bought = await books.give(100, "bought", expires=DAY)
    other = await books.give(25, "other")
    await books.charge(60, "run-1")
    await books.end_time()
    assert await books.expire() == 40
    funding = Funding(books.server)
    # What expired, first; then other credits; and what it has used and was paid back the customer owes.
    assert await reversed_parts(funding, "dp_1", 30) == (30, 0)
    assert await books.lot(bought) == Lot(100, 0, 10, "expired")
    assert await funding.standing() == (25, 0, 0, 0)
    assert await reversed_parts(funding, "dp_2", 70) == (10, 25)
    assert await books.lot(bought) == Lot(100, 0, 0, "spent")
    assert await books.left(other) == [0]
    assert await funding.standing() == (0, 35, 0, 0)
    assert "expired_credits" not in await books.balances_of("platform")


async def test_only_what_expired_of_that_purchase_goes_back_so(books: Lots) -> None:
    await books.give(100, "bought")
    other = await books.give(50, "other", expires=DAY)
    await books.charge(20, "run-1")
    await books.end_time()
    assert await books.expire() == 30
    funding = Funding(books.server)
    assert await reversed_parts(funding, "dp_1", 100) == (0, 100)
    assert await books.lot(other) == Lot(50, 0, 30, "expired")
    answer = await funding.reverse("re_1", 50, purchase="other")
    assert (answer.reversal.from_expired, answer.reversal.from_credits) == (usd(30), usd(0))
    assert await funding.standing() == (0, 20, 0, 0)


async def test_what_comes_again_of_an_expired_purchase_is_expired_again_and_last(books: Lots) -> None:
    bought = await books.give(100, "bought", expires=DAY)
    await books.charge(50, "run-1")
    await books.end_time()
    assert await books.expire() == 50
    await books.give(20, "other")
    funding = Funding(books.server)
    assert await reversed_parts(funding, "dp_1", 100) == (50, 20)
    assert await funding.standing() == (0, 30, 0, 0)
    # What the customer had given comes first: 30 of debt, 20 of credits.
    await funding.reinstate("dp_1", "won_1", 60)
    assert await funding.standing() == (20, 0, 0, 0)
    assert await books.lot(bought) == Lot(100, 0, 10, "expired")
    assert (await books.balances_of("platform"))["expired_credits"] == 10
    # What is there again may go back again: just that.
    assert await reversed_parts(funding, "dp_2", 60) == (10, 20)
    await funding.reinstate("dp_2", "won_2")
    assert await funding.standing() == (20, 0, 0, 0)
    assert await books.lot(bought) == Lot(100, 0, 10, "expired")


async def test_what_a_lease_keeps_of_a_purchase_that_is_over_is_the_customers_still(books: Lots) -> None:
    bought = await books.give(100, "bought", expires=DAY)
    credits = Credits(books.server)
    await credits.open(60)
    await credits.give_back(1, 1, 40)
    await books.end_time()
    assert await books.expire() == 40
    funding = Funding(books.server)
    assert await reversed_parts(funding, "dp_1", 100) == (40, 0)
    assert await funding.standing() == (0, 60, 0, 0)
    # What it returns pays the debt, and does not expire.
    await credits.give_back(1, 2, 60)
    assert await funding.standing() == (0, 0, 0, 0)
    assert await books.lot(bought) == Lot(100, 0, 0, "spent")


async def test_who_gives_credits_away_pays_what_they_save_the_platform(books: Lots) -> None:
    await books.give(100, "bought", priority=0)
    given = await books.give(40, "given", funder="org_x")
    await books.charge(100, "run-1", "cus_a")
    funding = Funding(books.server)
    await funding.reverse("re_1", 100, CHARGEBACK, purchase="bought")
    assert await books.left(given) == [0]
    assert (await funding.balance()).chargebacks.amount_micros == 60
    await books.settle()
    assert await books.legs("org_x") == (100 - 15 - 2 - 40, 15, 2)
    # The dispute is won: what its credits had covered is theirs again, and nobody pays for it.
    await funding.reinstate("re_1", "won_1")
    assert await books.left(given) == [40]
    await books.settle()
    assert await books.legs("org_x") == (83, 15, 2)


async def test_the_terms_of_a_grant_are_checked(books: Lots) -> None:
    for terms in (
        {"source": PLATFORM, "funder": "org_x"},
        {"source": ORGANIZATION},
        {"priority": 101},
        {"priority": -1},
        {"expires": -DAY},
    ):
        refused = await refusal(books.give(1, "bad", **terms))
        assert refused.code == grpc.StatusCode.INVALID_ARGUMENT, terms
    unknown = await refusal(books.give(1, "bad", funder="org_nobody"))
    assert unknown.reason == "ORGANIZATION_NOT_FOUND"
    assert await books.customer() == (0, 0, 0)


async def test_a_grant_that_comes_again_is_the_same_even_when_its_time_is_over(books: Lots) -> None:
    request = pb.GrantCreditsRequest(
        customer_id="cus_a",
        amount=usd(100),
        source=ORGANIZATION,
        funder_organization_id="org_x",
        idempotency_key="first",
        expire_time=in_future(1.5),
    )
    ledger = books.server.operator.ledger
    first = await ledger.GrantCredits(request)
    await asyncio.sleep(1.6)
    assert (await ledger.GrantCredits(request)).transaction_id == first.transaction_id
    request.priority = 1
    assert (await refusal(ledger.GrantCredits(request))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await books.expire() == 100


async def test_a_grant_from_before_there_were_terms_is_still_the_same_request(books: Lots) -> None:
    # As the version before hashed it: a request without the new fields.
    old = sha256(b"\n\x05cus_a\x12\x07\n\x03USD\x10d\x18\x01*\x05first").digest()
    async with await psycopg.AsyncConnection.connect(books.server.database_url) as before:
        await before.execute(
            "SELECT ledger.grant_credits('cus_a', 'USD', 100, 'purchase', '', 'key_x', 'grant/first', %s)",
            [old],
        )
    lot = await books.give(100, "first")
    assert await books.customer() == (100, 0, 0)
    assert await books.lot(lot) == Lot(100, 100, 0, "open")


async def test_lots_are_shown_to_their_customer_and_nobody_else(books: Lots) -> None:
    await books.server.create_customer("cus_b")
    lot = await books.give(100, "first", funder="org_x", expires=DAY, priority=7)
    await books.give(50, "second", customer="cus_b")
    customer = await books.server.create_caller(access_pb2.ROLE_CUSTOMER, "c", customer_id="cus_a")
    owner = await books.server.create_caller(access_pb2.ROLE_OWNER, "o", organization_id="org_x")
    (shown,) = (await books.listed_lots("cus_a", customer)).values()
    assert (shown.lot_id, shown.funder_organization_id, shown.priority) == (lot, "org_x", 7)
    assert shown.HasField("expire_time")
    assert list(await books.listed_lots("", customer)) == [lot]
    assert (await refusal(books.listed_lots("cus_b", customer))).reason == "CUSTOMER_NOT_FOUND"
    assert (await refusal(books.listed_lots("cus_a", owner))).code == grpc.StatusCode.PERMISSION_DENIED
    await books.listed_lots("cus_b")
    everybody = await books.server.operator.credits.ListCreditLots(credit.ListCreditLotsRequest(page_size=1))
    assert len(everybody.lots) == 1
    rest = credit.ListCreditLotsRequest(page_size=1, page_token=everybody.next_page_token)
    (second,) = (await books.server.operator.credits.ListCreditLots(rest)).lots
    assert [everybody.lots[0].customer_id, second.customer_id] == ["cus_a", "cus_b"]


async def test_nobody_changes_what_lots_paid(books: Lots) -> None:
    await books.give(100, "first", funder="org_x")
    await books.charge(70)
    await books.settle()
    async with await psycopg.AsyncConnection.connect(books.server.database_url, autocommit=True) as database:
        await nobody_changes(
            database,
            [("ledger", table) for table in ("credit_grant", "lot_allocation", "promotion_settlement")],
        )


async def test_charges_know_no_lots(books: Lots) -> None:
    """No function that a charge runs names a table of lots, and posting leaves them as they are."""
    await books.give(100, "first", funder="org_x")
    await books.listed_lots()
    tables = ("credit_lot", "credit_grant", "lot_allocation", "lot_cursor", "lot_feed", "promotion_due")
    async with await psycopg.AsyncConnection.connect(books.server.database_url) as superuser:
        names = "|".join(tables)
        rows = await superuser.execute(
            "SELECT count(*), count(*) FILTER (WHERE prosrc ~ %s) FROM pg_proc"
            " WHERE pronamespace = 'ledger'::regnamespace AND proname IN ('post_charges', 'insert_charges',"
            " 'lock_customers', 'judge_claims', 'end_claims', 'place_outcome_holds', 'allocate', 'legs')",
            [names],
        )
        assert await rows.fetchone() == (8, 0)

        async def contents() -> list[object]:
            return [
                await (await superuser.execute(f"SELECT * FROM ledger.{table}".encode())).fetchall()
                for table in tables
                if table != "lot_feed"
            ]

        before = await contents()
        await books.charge(70)
        assert await contents() == before
