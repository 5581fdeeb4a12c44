"""CorrectCharge and ListCorrections over real gRPC and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import psycopg
import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import account_pb2, correction_pb2, credit_service_pb2, transaction_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import hold_request, intent, of_hold, usd
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import Refusal, refusal


@pytest.fixture
async def books(database_url: str) -> AsyncIterator[Corrections]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x")
        await server.create_organization("org_y", 1000, 0)
        for customer_id in ("cus_a", "cus_b"):
            await server.create_customer(customer_id)
        yield Corrections(server)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


def refund(unpaid: int, receivable: int, credits: int) -> correction_pb2.CorrectionRefund:
    return correction_pb2.CorrectionRefund(
        unpaid=usd(unpaid), receivable=usd(receivable), credits=usd(credits)
    )


async def test_a_refund_gives_credits_back_and_takes_every_leg(books: Corrections) -> None:
    await books.grant(1000)
    await books.charge(1000)
    assert await books.legs() == (821, 150, 29)
    answer = await books.correct("rf_1", 1000)
    assert not answer.duplicate
    assert answer.correction.refund == correction_pb2.CorrectionRefund(
        unpaid=usd(0), receivable=usd(0), credits=usd(1000)
    )
    assert answer.charge.corrected == usd(1000)
    assert answer.charge.payment.from_credits == usd(0)
    assert answer.balance.available == usd(1000)
    assert await books.legs() == (0, 0, 0)
    assert await books.entries(answer.correction.transaction_id) == [
        ("cus_a", "customer_credits", 1000),
        ("org_x", "organization_payable", -821),
        ("org_x", "platform_fees", -150),
        ("org_x", "processing_fees", -29),
    ]


async def test_what_is_unpaid_shrinks_first_then_the_receivable_then_credits_come(books: Corrections) -> None:
    await books.grant(300)
    await books.limit(400)
    await books.charge(1000)
    assert await books.customer() == (0, 400, 300)
    first = await books.correct("rf_1", 200)
    assert first.correction.refund == refund(200, 0, 0)
    # Nobody had earned that: only the memorandum moves.
    assert await books.entries(first.correction.transaction_id) == [
        ("cus_a", "customer_unpaid", 200),
        ("cus_a", "unpaid_offset", -200),
    ]
    second = await books.correct("rf_2", 300)
    assert second.correction.refund == refund(100, 200, 0)
    assert await books.customer() == (0, 200, 0)
    # The room is there again.
    await books.charge(200, "run-2")
    assert await books.customer() == (0, 400, 0)
    third = await books.correct("rf_3", 500, charge_id=first.charge.charge_id)
    assert third.correction.refund == refund(0, 200, 300)
    # What came back as credits has paid the other charge.
    assert (third.balance.available, third.balance.receivable) == (usd(100), usd(0))
    assert third.charge.payment.from_credits == usd(0)
    assert await books.legs() == (200 - 30 - 5, 30, 5)


async def test_partial_corrections_follow_the_split_and_end_at_zero(books: Corrections) -> None:
    await books.grant(214_987)
    await books.charge(214_987, "run-1", "cus_a", "org_y")
    for number, (amount, left) in enumerate([(100_000, 114_987), (1, 114_986), (4_986, 110_000)]):
        answer = await books.correct(f"rf_{number}", amount)
        # As if it had cost that much: halves, the odd micro to the first, 15 % and 2.9 %, and 10 %.
        x, y = left - left // 2, left // 2
        assert await books.legs() == (x - x * 15 // 100 - x * 29 // 1000, x * 15 // 100, x * 29 // 1000)
        assert await books.legs("org_y") == (y - y // 10, y // 10, 0)
        assert answer.charge.corrected.amount_micros == 214_987 - left
    await books.correct("rf_last", 110_000)
    assert await books.legs() == await books.legs("org_y") == (0, 0, 0)
    assert await books.customer() == (214_987, 0, 0)


async def test_more_than_is_left_is_refused_and_leaves_nothing(books: Corrections) -> None:
    await books.grant(1000)
    charge_id = await books.charge(1000)
    answer = await refused(books.correct("rf_1", 1001))
    assert (answer.reason, answer.metadata) == (
        "CORRECTION_EXCEEDS_CHARGE",
        {"charge_id": charge_id, "gross_micros": "1000", "corrected_micros": "0", "requested_micros": "1001"},
    )
    assert await books.listed() == []
    # Its name can still be used.
    await books.correct("rf_1", 400)
    assert (await refused(books.correct("rf_2", 601))).metadata["corrected_micros"] == "400"
    assert (await books.correct("rf_2", 600)).charge.corrected == usd(1000)
    assert (await refused(books.correct("rf_3", 1))).reason == "CORRECTION_EXCEEDS_CHARGE"


async def test_a_correction_id_is_for_one_correction_of_its_charge(books: Corrections) -> None:
    await books.grant(1000)
    await books.charge(600)
    first = await books.correct("rf_1", 100)
    again = await books.correct("rf_1", 100)
    assert (again.duplicate, again.correction, again.charge) == (True, first.correction, first.charge)
    for other in (books.correct("rf_1", 101), books.correct("rf_1", 100, reason="another reason")):
        answer = await refused(other)
        assert (answer.reason, answer.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"key": "rf_1"})
    await books.charge(400, "run-2")
    assert not (await books.correct("rf_1", 100)).duplicate
    assert await books.customer() == (200, 0, 0)


async def test_what_was_collected_last_goes_back_first(books: Corrections) -> None:
    await books.server.create_organization("org_z", 0, 0, 7)
    await books.limit(1000)
    message = intent("run-1", 1000, organization="org_z")
    posted = await books.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=message))
    books.charge_id = posted.posted.charge.charge_id
    await books.let_a_day_pass()
    await books.grant(500)
    await books.let_a_day_pass()
    await books.grant(300, "second")
    buckets = []
    for correction_id, amount in (("rf_1", 300), ("rf_2", 200), ("rf_3", 500)):
        answer = await books.correct(correction_id, amount)
        found = await books.server.operator.ledger.GetTransaction(
            pb.GetTransactionRequest(transaction_id=answer.correction.transaction_id)
        )
        posted_on = found.transaction.create_time.ToDatetime().date()
        buckets.append(
            [
                (
                    entry.bucket.collected,
                    (date.fromisoformat(entry.bucket.available_on) - posted_on).days,
                    entry.amount.amount_micros,
                )
                for entry in found.transaction.entries
                if entry.HasField("bucket")
            ]
        )
    assert buckets == [
        # First what is still owed, in the bucket of the charge; then what was collected today, and a day ago.
        [(True, 7, -100), (False, 5, -200)],
        [(True, 7, -200)],
        [(True, 6, -500)],
    ]
    assert await books.legs("org_z") == (0, 0, 0)


async def test_money_that_was_paid_out_is_clawed_back(books: Corrections) -> None:
    await books.grant(3000)
    await books.charge(1000)
    await books.debit("po_1", 821)
    await books.correct("rf_1", 600)
    balance = await books.earned()
    assert (balance.available, balance.clawed_back) == (usd(-492), usd(492))
    answer = await refused(books.debit("po_2", 1))
    assert (answer.reason, answer.metadata["available_micros"]) == ("INSUFFICIENT_EARNINGS", "-492")
    # Later earnings make it up before anything is paid out.
    await books.charge(1000, "run-2")
    assert (await refused(books.debit("po_3", 330))).metadata["available_micros"] == "329"
    await books.debit("po_4", 329)
    balance = await books.earned()
    assert (balance.available, balance.clawed_back) == (usd(0), usd(0))


async def test_the_organization_sees_what_it_lost_and_why(books: Corrections) -> None:
    owner = await books.server.create_caller(access_pb2.ROLE_OWNER, "owner", organization_id="org_x")
    customer = await books.server.create_caller(access_pb2.ROLE_CUSTOMER, "customer", customer_id="cus_a")
    stranger = await books.server.create_caller(access_pb2.ROLE_CUSTOMER, "stranger", customer_id="cus_b")
    await books.grant(1000)
    charge_id = await books.charge(1000, "run-1", "cus_a", "org_y")
    posted = (await books.correct("rf_1", 400, reason="the answer was wrong")).correction

    (seen,) = await books.listed(owner)
    assert (seen.amount, seen.reason, seen.HasField("refund")) == (usd(200), "the answer was wrong", False)
    assert [(one.organization_id, one.net) for one in seen.earnings] == [("org_x", usd(164))]
    charge = await books.get(owner)
    assert (charge.gross, charge.corrected) == (usd(500), usd(200))
    assert (charge.earnings[0].corrected, charge.earnings[0].corrected_net) == (usd(200), usd(164))
    history = await owner.ledger.ListTransactions(
        pb.ListTransactionsRequest(type=transaction_pb2.TRANSACTION_TYPE_CORRECTION)
    )
    (transaction,) = history.transactions
    assert (transaction.charge_id, transaction.correction_id, transaction.reason) == (
        charge_id,
        "rf_1",
        "the answer was wrong",
    )
    entries = await owner.ledger.ListEntries(
        pb.ListEntriesRequest(kind=account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE)
    )
    assert [(one.correction_id, one.entry.amount) for one in entries.entries] == [
        ("rf_1", usd(-164)),
        ("", usd(411)),
    ]

    (paid,) = await books.listed(customer)
    assert (paid.amount, paid.refund, len(paid.earnings)) == (usd(400), refund(0, 0, 400), 0)
    assert (await books.get(customer)).corrected == usd(400)
    (both,) = await books.listed()
    assert both == posted
    assert [one.organization_id for one in both.earnings] == ["org_x", "org_y"]
    for call in (books.listed(stranger), books.get(stranger)):
        assert (await refused(call)).reason == "CHARGE_NOT_FOUND"


async def test_a_charge_that_comes_again_says_what_is_corrected(books: Corrections) -> None:
    await books.grant(400)
    await books.charge(1000)
    await books.correct("rf_1", 700)
    answer = await books.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=intent("run-1", 1000)))
    assert answer.posted.duplicate
    assert answer.posted.charge == await books.get()
    charge = answer.posted.charge
    assert (charge.corrected, charge.payment.from_credits, charge.payment.unpaid) == (
        usd(700),
        usd(300),
        usd(0),
    )
    # What the split leaves of 300 micros: 247, 45 and 8.
    earning = charge.earnings[0]
    assert (earning.corrected, earning.corrected_net) == (usd(700), usd(821 - 247))


async def test_what_a_reservation_paid_of_a_gift_comes_back_as_credits(
    books: Corrections,
) -> None:
    await books.server.operator.ledger.GrantCredits(
        pb.GrantCreditsRequest(
            customer_id="cus_a",
            amount=usd(1000),
            source=pb.CREDIT_SOURCE_PLATFORM_PROMOTION,
            idempotency_key="gift",
        )
    )
    await books.server.service.credits.PlaceHolds(
        credit_service_pb2.PlaceHoldsRequest(holds=[hold_request("hold-1", 600)])
    )
    posted = await books.server.service.ledger.PostCharge(
        pb.PostChargeRequest(intent=intent("run-1", 600, of_hold("hold-1")))
    )
    books.charge_id = posted.posted.charge.charge_id
    await books.correct("rf_1", 600)
    assert await books.customer() == (1000, 0, 0)
    assert (await books.get()).captured == usd(600)
    assert await books.legs() == (0, 0, 0)


async def test_simultaneous_corrections_never_exceed_the_charge(books: Corrections) -> None:
    await books.grant(500)
    await books.limit(300)
    await books.charge(1000, "run-1", "cus_a", "org_y")

    async def try_one(number: int) -> int:
        amount = 30 + number
        answer = await asyncio.gather(books.correct(f"rf_{number}", amount), return_exceptions=True)
        return 0 if isinstance(answer[0], BaseException) else amount

    taken = sum(await asyncio.gather(*(try_one(number) for number in range(40))))
    # Greedy in any order: what is left is less than the largest of them.
    assert 1000 - 69 < taken <= 1000
    assert (await books.get()).corrected == usd(taken)


async def test_corrections_charges_top_ups_and_payouts_at_once_add_up(books: Corrections) -> None:
    """Payees in both orders, and two customers: nobody waits for somebody who waits for it."""
    await books.limit(500)
    charge_ids = []
    for number in range(8):
        customer_id = "cus_a" if number % 2 else "cus_b"
        message = intent(f"run-{number}", 400, customer=customer_id)
        names = ("org_x", "org_y") if number % 4 < 2 else ("org_y", "org_x")
        del message.payees[:]
        for name in names:
            message.payees.add(organization_id=name, agent_id=name.replace("org_", "agt_"), weight=1)
        posted = await books.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=message))
        charge_ids.append(posted.posted.charge.charge_id)

    async def pay(number: int) -> int:
        answer = await asyncio.gather(
            books.debit(f"po_{number}", 40, "org_x" if number % 2 else "org_y"), return_exceptions=True
        )
        return 0 if isinstance(answer[0], BaseException) else 40

    answers = await asyncio.gather(
        *(books.correct(f"rf_{part}", 100, charge_id=one) for one in charge_ids for part in range(4)),
        *(books.grant(150, f"top-{number}", "cus_a" if number % 2 else "cus_b") for number in range(12)),
        *(books.charge(70, f"more-{number}", "cus_b") for number in range(10)),
        *(pay(number) for number in range(12)),
    )
    paid = sum(answer for answer in answers if isinstance(answer, int))
    # All that is left are the ten other charges, as far as they are paid or owed.
    unpaid = (await books.customer("cus_b"))[2]
    assert sum(await books.legs()) + sum(await books.legs("org_y")) + paid == 10 * 70 - unpaid


async def test_malformed_requests(books: Corrections) -> None:
    await books.grant(100)
    charge_id = await books.charge(100)
    ledger = books.server.operator.ledger
    euro = money_pb2.Money(currency_code="EUR", amount_micros=1)
    for call in (
        books.correct("", 5),
        books.correct("x" * 129, 5),
        books.correct("rf_1", 0),
        books.correct("rf_1", -5),
        books.correct("rf_1", 10**14 + 1),
        books.correct("rf_1", 5, charge_id="1"),
        books.correct("rf_1", 5, reason=""),
        books.correct("rf_1", 5, reason="x" * 501),
        ledger.CorrectCharge(
            pb.CorrectChargeRequest(charge_id=charge_id, correction_id="rf_1", amount=euro, reason="euros")
        ),
        ledger.ListCorrections(pb.ListCorrectionsRequest(charge_id="1")),
    ):
        assert (await refused(call)).reason == "INVALID_FIELD"
    nothing = await books.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=intent("run-0", 0)))
    free = nothing.posted.charge.charge_id
    assert (await refused(books.correct("rf_1", 1, charge_id=free))).reason == "CORRECTION_EXCEEDS_CHARGE"
    unknown = "ch_" + "0" * 32
    assert (await refused(books.correct("rf_1", 5, charge_id=unknown))).reason == "CHARGE_NOT_FOUND"
    listing = ledger.ListCorrections(pb.ListCorrectionsRequest(charge_id=unknown))
    assert (await refused(listing)).reason == "CHARGE_NOT_FOUND"


async def test_the_database_itself_keeps_what_was_posted_and_checks_what_is_asked(books: Corrections) -> None:
    await books.grant(100)
    charge_id = await books.charge(100)
    await books.correct("rf_1", 40)

    async def try_as(role: str, statement: str, *values: object) -> type[BaseException] | None:
        async with await psycopg.AsyncConnection.connect(books.server.database_url) as superuser:
            await superuser.execute(f"SET ROLE {role}".encode())
            try:
                await superuser.execute(statement.encode(), values)
            except psycopg.Error as error:
                return type(error)
        return None

    # Whoever has the owner's rights does not rewrite a correction, or take back more than the charge.
    assert await try_as("ledger_owner", "UPDATE ledger.correction SET amount = 1, credits = 1")
    assert await try_as("ledger_owner", "DELETE FROM ledger.correction")
    over = "UPDATE ledger.corrected_charge SET amount = 101"
    assert await try_as("ledger_owner", over) is psycopg.errors.CheckViolation
    call = "SELECT ledger.correct_charge(%s, 'rf_2', %s, %s, 'because', 'key_1', '')"
    for currency, amount in (("USD", -5), ("USD", 0), ("EUR", 5)):
        refusal = await try_as("ledger_writer", call, charge_id, currency, amount)
        assert refusal is psycopg.errors.InvalidParameterValue


async def test_corrections_are_listed_page_by_page(books: Corrections) -> None:
    await books.grant(1000)
    charge_id = await books.charge(1000, "run-1", "cus_a", "org_y")
    for name in "edcba":
        await books.correct(name, 10)
    found, token = "", ""
    while True:
        answer = await books.server.operator.ledger.ListCorrections(
            pb.ListCorrectionsRequest(charge_id=charge_id, page_size=2, page_token=token)
        )
        found += "".join(one.correction_id for one in answer.corrections)
        assert all(len(one.earnings) == 2 for one in answer.corrections)
        token = answer.next_page_token
        if not token:
            break
    # In the order in which they were posted.
    assert found == "edcba"
