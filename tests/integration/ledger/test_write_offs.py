"""WriteOff and ListWriteOffs over real gRPC and PostgreSQL, and what age writes off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1.write_off_pb2 import (
    WRITE_OFF_KIND_CHARGEBACKS,
    WRITE_OFF_KIND_CLAWBACK,
    WRITE_OFF_KIND_RECEIVABLE,
    WRITE_OFF_KIND_UNPAID,
)
from tests.support.append_only import nobody_changes
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_funding import CHARGEBACK, Funding
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import Refusal, refusal
from tests.support.waiting import eventually


async def populated(server: LedgerServer) -> Corrections:
    await server.create_organization("org_x")
    await server.create_organization("org_y", 1000, 0)
    for customer_id in ("cus_a", "cus_b"):
        await server.create_customer(customer_id)
    return Corrections(server)


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Corrections]:
    async with running_ledger(database_url) as server:
        yield await populated(server)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


async def platform(books: Corrections) -> dict[str, int]:
    return await Funding(books.server).accounts("platform")


async def test_what_is_unpaid_ends_and_nobody_loses_anything(books: Corrections) -> None:
    await books.grant(400)
    await books.charge(1000)
    legs = await books.legs()
    answer = await books.write_off(WRITE_OFF_KIND_UNPAID, 250)
    assert not answer.duplicate
    assert (answer.write_off.owner_id, answer.write_off.charge_id) == ("cus_a", books.charge_id)
    assert answer.write_off.reason == "will not be paid any more"
    assert await books.entries(answer.write_off.transaction_id) == [
        ("cus_a", "customer_unpaid", 250),
        ("cus_a", "unpaid_offset", -250),
    ]
    assert await books.customer() == (0, 0, 350)
    assert await books.legs() == legs
    charge = await books.get()
    assert (charge.written_off, charge.payment.unpaid) == (usd(250), usd(350))
    # What comes in pays what is left, and not what was given up.
    await books.grant(1000, "later")
    assert await books.customer() == (650, 0, 0)
    assert sum(await books.legs()) == 750


async def test_a_receivable_ends_with_its_earnings_and_leaves_room(books: Corrections) -> None:
    await books.limit(600)
    await books.grant(400)
    await books.charge(1000, "run-1", "", "org_y")
    before = [await books.legs(one) for one in ("org_x", "org_y")]
    assert sum(map(sum, before)) == 1000
    answer = await books.write_off(WRITE_OFF_KIND_RECEIVABLE)
    assert answer.write_off.amount == usd(600)
    assert sum([sum(await books.legs(one)) for one in ("org_x", "org_y")]) == 400
    for organization_id in ("org_x", "org_y"):
        assert (await books.earned(organization_id)).uncollected == usd(0)
    assert await books.customer() == (0, 0, 0)
    # All of the room is there again.
    await books.charge(600, "run-2")
    assert await books.customer() == (0, 600, 0)
    assert (await platform(books)).get("write_offs", 0) == 0


async def test_a_chargeback_debt_becomes_the_platforms_loss(books: Corrections) -> None:
    await books.grant(1000)
    await books.charge(800)
    legs = await books.legs()
    funding = Funding(books.server)
    await funding.reverse("dp_1", 1000, CHARGEBACK)
    answer = await books.write_off(WRITE_OFF_KIND_CHARGEBACKS, 300, owner="cus_a")
    assert (answer.write_off.amount, answer.write_off.charge_id) == (usd(300), "")
    assert (await funding.standing())[:2] == (0, 500)
    assert (await platform(books))["write_offs"] == -300
    assert await books.legs() == legs
    await books.write_off(WRITE_OFF_KIND_CHARGEBACKS, key="rest", owner="cus_a")
    assert (await platform(books))["write_offs"] == -800
    # What comes in does not pay it: it is credits.
    await books.grant(50, "later")
    assert (await funding.standing())[:2] == (50, 0)
    # A dispute that is won afterwards gives credits: the debt that it would pay is no more.
    await funding.reinstate("dp_1", "adj_1")
    assert (await funding.standing())[:2] == (1050, 0)


async def clawed_back(books: Corrections) -> None:
    """Earned by two charges, paid out, and both corrected: 1,642 below zero."""
    await books.grant(2000)
    for number in (1, 2):
        await books.charge(1000, f"run-{number}", now=number == 2)
    await books.debit("po_1", await books.available())
    await books.server.service.earnings.CompletePayout(
        earnings.CompletePayoutRequest(organization_id="org_x", payout_id="po_1")
    )
    for number, charge in enumerate(await charges_of(books)):
        await books.correct(f"rf_{number}", 1000, charge_id=charge)


async def charges_of(books: Corrections) -> list[str]:
    answer = await books.server.operator.ledger.ListTransactions(
        ledger.ListTransactionsRequest(owner_id="cus_a")
    )
    return sorted({one.charge_id for one in answer.transactions if one.charge_id})


async def test_earnings_below_zero_are_lifted_to_zero_at_most(books: Corrections) -> None:
    await clawed_back(books)
    assert await books.available() == -1642
    too_much = await refused(books.write_off(WRITE_OFF_KIND_CLAWBACK, 1643, owner="org_x"))
    assert too_much.reason == "WRITE_OFF_EXCEEDS_DEBT"
    assert too_much.metadata == {
        "owner_id": "org_x",
        "kind": "clawback",
        "owed_micros": "1642",
        "requested_micros": "1643",
    }
    # Over both buckets that are below zero, the first one first.
    await books.write_off(WRITE_OFF_KIND_CLAWBACK, 1000, owner="org_x")
    assert (await books.earned()).clawed_back == usd(642)
    await books.write_off(WRITE_OFF_KIND_CLAWBACK, key="rest", owner="org_x")
    assert await books.available() == 0
    assert (await platform(books))["clawback_losses"] == -1642
    nothing = await refused(books.write_off(WRITE_OFF_KIND_CLAWBACK, key="again", owner="org_x"))
    assert (nothing.reason, nothing.metadata["owed_micros"]) == ("WRITE_OFF_EXCEEDS_DEBT", "0")
    # It starts again from zero: all of what it earns next is its own.
    await books.grant(1000, "later", "cus_b")
    await books.charge(1000, "run-later", "cus_b")
    assert await books.available() == 821


async def test_what_is_not_folded_yet_makes_up_before_it_is_given_up(books: Corrections) -> None:
    await clawed_back(books)
    await books.grant(1000, "later", "cus_b")
    await books.charge(1000, "run-later", "cus_b")
    answer = await books.write_off(WRITE_OFF_KIND_CLAWBACK, owner="org_x")
    assert answer.write_off.amount == usd(821)
    assert await books.available() == 0


async def test_the_same_key_writes_off_once(books: Corrections) -> None:
    await books.charge(1000)
    first = await books.write_off(WRITE_OFF_KIND_UNPAID, 100)
    again = await books.write_off(WRITE_OFF_KIND_UNPAID, 100)
    assert again.duplicate
    assert again.write_off == first.write_off
    reused = await refused(books.write_off(WRITE_OFF_KIND_UNPAID, 101))
    assert (reused.reason, reused.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"key": "given up"})
    answers = await asyncio.gather(*[books.write_off(WRITE_OFF_KIND_UNPAID, 10, "at once") for _ in range(8)])
    assert sum(not answer.duplicate for answer in answers) == 1
    assert await books.customer() == (0, 0, 890)


async def test_never_more_than_is_owed_however_many_ask_at_once(books: Corrections) -> None:
    await books.limit(500)
    await books.charge(1000)
    calls = [
        books.write_off(kind, 100, f"{kind}-{number}")
        for kind in (WRITE_OFF_KIND_UNPAID, WRITE_OFF_KIND_RECEIVABLE)
        for number in range(8)
    ]
    answers = await asyncio.gather(*calls, books.grant(150), return_exceptions=True)
    written = sum(100 for answer in answers if isinstance(answer, pb.WriteOffResponse))
    left = await books.customer()
    assert written + sum(left[1:]) + 150 == 1000
    assert (await books.get()).written_off == usd(written)
    assert sum(await books.legs()) == 150 + left[1]


async def test_what_credits_could_pay_is_not_given_up(books: Corrections) -> None:
    """Also what the last collection has not come to: there are more charges than one collection takes."""
    await books.server.service.ledger.PostCharges(
        ledger.PostChargesRequest(intents=[intent(f"run-{number}", 1) for number in range(600)])
    )
    first = (await charges_of(books))[0]
    await books.grant(600)
    nothing = await refused(books.write_off(WRITE_OFF_KIND_UNPAID, charge_id=first))
    assert nothing.metadata == {
        "owner_id": "cus_a",
        "kind": "unpaid",
        "charge_id": first,
        "owed_micros": "0",
        "requested_micros": "0",
    }


async def test_a_correction_takes_what_write_offs_left(books: Corrections) -> None:
    await books.limit(300)
    await books.grant(500)
    await books.charge(1000)
    await books.write_off(WRITE_OFF_KIND_UNPAID, key="one")
    await books.write_off(WRITE_OFF_KIND_RECEIVABLE, 100, key="two")
    too_much = await refused(books.correct("rf_1", 701))
    assert too_much.reason == "CORRECTION_EXCEEDS_CHARGE"
    assert too_much.metadata["written_off_micros"] == "300"
    refund = (await books.correct("rf_1", 250)).correction.refund
    assert (refund.unpaid, refund.receivable, refund.credits) == (usd(0), usd(200), usd(50))
    # What stands is a charge of 450, to the micro.
    assert await books.legs() == (450 - 67 - 13, 67, 13)
    await books.correct("rf_2", 450)
    assert await books.legs() == (0, 0, 0)
    assert await books.customer() == (500, 0, 0)
    nothing = await refused(books.write_off(WRITE_OFF_KIND_RECEIVABLE, key="three"))
    assert nothing.reason == "WRITE_OFF_EXCEEDS_DEBT"


async def test_a_charge_that_comes_again_says_what_was_written_off(books: Corrections) -> None:
    await books.grant(400)
    await books.charge(1000)
    await books.write_off(WRITE_OFF_KIND_UNPAID, 250)
    again = await books.server.service.ledger.PostCharge(
        ledger.PostChargeRequest(intent=intent("run-1", 1000))
    )
    assert again.posted.duplicate
    assert again.posted.charge.written_off == usd(250)
    assert again.posted.charge.payment.from_credits == usd(400)
    assert again.posted.charge.payment.unpaid == usd(350)


async def test_who_sees_what(books: Corrections) -> None:
    server = books.server
    await books.charge(1000)
    await books.write_off(WRITE_OFF_KIND_UNPAID, 250)
    customer = await server.create_caller(access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_a")
    owner = await server.create_caller(access_pb2.ROLE_OWNER, "owner", organization_id="org_x")
    assert (await books.get(customer)).written_off == usd(250)
    assert not (await books.get(owner)).HasField("written_off")
    for caller in (customer, owner):
        denied = await refused(caller.funding.ListWriteOffs(pb.ListWriteOffsRequest()))
        assert denied.reason == "ROLE_NOT_ALLOWED"
    request = pb.WriteOffRequest(
        kind=WRITE_OFF_KIND_UNPAID, charge_id=books.charge_id, reason="by a service", idempotency_key="s"
    )
    assert (await refused(server.service.funding.WriteOff(request))).reason == "ROLE_NOT_ALLOWED"


async def test_the_list_is_newest_first_in_pages(books: Corrections) -> None:
    await books.limit(500)
    await books.charge(1000)
    first = books.charge_id
    for number in range(3):
        await books.write_off(WRITE_OFF_KIND_UNPAID, 10 + number, f"{number}")
    await books.charge(1000, "run-b", "cus_b")
    await books.write_off(WRITE_OFF_KIND_UNPAID, 20, "b")
    operator = books.server.operator.funding

    async def listed(**filters: str) -> list[int]:
        found: list[int] = []
        token = ""
        while True:
            page = await operator.ListWriteOffs(
                pb.ListWriteOffsRequest(page_size=2, page_token=token, **filters)
            )
            found += [one.amount.amount_micros for one in page.write_offs]
            token = page.next_page_token
            if not token:
                return found

    assert await listed() == [20, 12, 11, 10]
    assert await listed(owner_id="cus_a") == [12, 11, 10]
    assert await listed(charge_id=first) == [12, 11, 10]
    assert await listed(owner_id="org_x") == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.WriteOffRequest(), "kind"),
        (pb.WriteOffRequest(kind=WRITE_OFF_KIND_UNPAID), "charge_id"),
        (pb.WriteOffRequest(kind=WRITE_OFF_KIND_UNPAID, charge_id="ch_1", owner_id="cus_a"), "owner_id"),
        (pb.WriteOffRequest(kind=WRITE_OFF_KIND_CHARGEBACKS, owner_id="org_x"), "owner_id"),
        (pb.WriteOffRequest(kind=WRITE_OFF_KIND_CLAWBACK, owner_id="cus_a"), "owner_id"),
        (pb.WriteOffRequest(kind=WRITE_OFF_KIND_CLAWBACK, owner_id="org_x", charge_id="ch_1"), "charge_id"),
        (
            pb.WriteOffRequest(kind=WRITE_OFF_KIND_CLAWBACK, owner_id="org_x", amount=usd(0)),
            "amount.amount_micros",
        ),
        (
            pb.WriteOffRequest(
                kind=WRITE_OFF_KIND_CLAWBACK, owner_id="org_x", amount=usd(1), currency_code="EUR"
            ),
            "amount.currency_code",
        ),
    ],
)
async def test_what_is_malformed_is_refused(
    books: Corrections, request_: pb.WriteOffRequest, field: str
) -> None:
    request_.reason, request_.idempotency_key = "a good reason", "k"
    invalid = await refused(books.server.operator.funding.WriteOff(request_))
    assert invalid.reason == "INVALID_FIELD"
    assert invalid.fields == [field]


@pytest.mark.parametrize(
    ("kind", "named", "reason"),
    [
        (WRITE_OFF_KIND_UNPAID, {"charge_id": "ch_nowhere"}, "CHARGE_NOT_FOUND"),
        (WRITE_OFF_KIND_CHARGEBACKS, {"owner": "cus_nobody"}, "CUSTOMER_NOT_FOUND"),
        (WRITE_OFF_KIND_CLAWBACK, {"owner": "org_nobody"}, "ORGANIZATION_NOT_FOUND"),
    ],
)
async def test_what_is_not_there_is_not_found(
    books: Corrections, kind: Any, named: dict[str, Any], reason: str
) -> None:
    assert (await refused(books.write_off(kind, **named))).reason == reason


async def test_records_never_change(books: Corrections) -> None:
    await books.charge(1000)
    await books.write_off(WRITE_OFF_KIND_UNPAID, 250)
    async with await psycopg.AsyncConnection.connect(books.server.database_url, autocommit=True) as database:
        await nobody_changes(database, [("ledger", "write_off")])


async def test_age_writes_off_what_is_open_and_only_that(database_url: str) -> None:
    aging = {"write_off_after_days": 3, "write_off_interval": timedelta(milliseconds=100)}
    async with running_ledger(database_url, **aging) as server:
        books = await populated(server)
        await books.limit(300)
        old = await books.charge(1000)
        await books.grant(250)
        paid = await books.charge(100, "run-b", "cus_b")
        await books.grant(100, "paid", "cus_b")
        for _ in range(3):
            await books.let_a_day_pass()
        young = await books.charge(500, "young")

        async def written() -> bool:
            return (await books.get(charge_id=old)).written_off == usd(750)

        await eventually(written)
        assert (await books.get(charge_id=paid)).written_off == usd(0)
        assert (await books.get(charge_id=young)).written_off == usd(0)
        # The limit had 50 left of 300 once 250 of them were paid; the other 450 of the young one are unpaid.
        listed = await server.operator.funding.ListWriteOffs(pb.ListWriteOffsRequest())
        assert {(one.kind, one.actor_api_key_id, one.reason) for one in listed.write_offs} == {
            (WRITE_OFF_KIND_RECEIVABLE, "ledger", "open for 3 days"),
            (WRITE_OFF_KIND_UNPAID, "ledger", "open for 3 days"),
        }
        # Nobody earns what comes in later, but by what stands.
        await books.grant(10_000, "later")
        assert sum(await books.legs()) == 250 + 100 + 500
    assert not await audit(database_url)


async def test_age_writes_off_nothing_unless_it_is_told_to(books: Corrections) -> None:
    await books.charge(1000)
    for _ in range(3):
        await books.let_a_day_pass()
    await asyncio.sleep(0.5)
    assert (await books.get()).written_off == usd(0)
