"""FundingService over real gRPC and PostgreSQL: purchases that come back, and fees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.ledger.audit import audit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import earnings_service_pb2 as earnings
from tallystick.ledger.v1 import funding_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1 import transaction_pb2
from tests.support.ledger_credits import hold_request, intent, of_hold, release_of, usd
from tests.support.ledger_funding import CHARGEBACK, REFUND, Funding
from tests.support.ledger_server import running_ledger
from tests.support.rpc_errors import Refusal, refusal
from tests.support.waiting import eventually

EUR = money_pb2.Money(currency_code="EUR", amount_micros=1)
# Nothing is collected or reaped but by calls.
NEVER = timedelta(hours=1)


@pytest.fixture
async def funding(database_url: str) -> AsyncIterator[Funding]:
    async with running_ledger(database_url, collect_interval=NEVER, reap_interval=NEVER) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        yield Funding(server)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


async def test_a_refund_takes_available_credits(funding: Funding) -> None:
    await funding.grant(1000)
    answer = await funding.reverse("re_1", 300, reason="asked for it")
    reversal = answer.reversal
    assert (reversal.amount, reversal.from_credits, reversal.reinstated) == (usd(300), usd(300), usd(0))
    assert (reversal.purchase_key, reversal.kind, answer.duplicate) == ("first", REFUND, False)
    assert answer.balance.available == usd(700)
    assert await funding.standing() == (700, 0, 0, 0)
    transaction = (
        await funding.server.operator.ledger.GetTransaction(
            ledger.GetTransactionRequest(transaction_id=reversal.transaction_id)
        )
    ).transaction
    assert (transaction.external_id, transaction.reason) == ("re_1", "asked for it")
    assert transaction.type == transaction_pb2.TRANSACTION_TYPE_PURCHASE_REFUND
    # Once per id, and for one content.
    again = await funding.reverse("re_1", 300)
    assert (again.duplicate, again.reversal) == (True, reversal)
    for other in (funding.reverse("re_1", 299), funding.reverse("re_1", 300, CHARGEBACK)):
        assert (await refused(other)).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await funding.standing() == (700, 0, 0, 0)
    # A refund freezes nobody.
    assert not (await funding.balance()).frozen


async def test_what_credits_do_not_cover_is_owed_and_paid_first(funding: Funding) -> None:
    await funding.server.operator.directory.SetCreditLimit(
        directory.SetCreditLimitRequest(customer_id="cus_a", credit_limit=usd(50))
    )
    await funding.grant(1000)
    await funding.post(intent("run-1", 900))
    answer = await funding.reverse("re_1", 600)
    assert (answer.reversal.from_credits, answer.balance.chargebacks) == (usd(100), usd(500))
    # Work goes on: it is receivable, then unpaid. The debt has no limit and takes no room.
    await funding.post(intent("run-2", 80))
    assert await funding.standing() == (0, 500, 50, 30)
    assert (await funding.accounts("cus_a"))["customer_chargebacks"] == -500
    # The debt first, then the receivable, then what is unpaid.
    for key, amount, left in (
        ("a", 499, (0, 1, 50, 30)),
        ("b", 2, (0, 0, 49, 30)),
        ("c", 60, (0, 0, 0, 19)),
        ("d", 100, (81, 0, 0, 0)),
    ):
        granted = await funding.server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id="cus_a",
                amount=usd(amount),
                source=ledger.CREDIT_SOURCE_PLATFORM_PROMOTION,
                idempotency_key=key,
            )
        )
        assert await funding.standing() == left
        assert granted.balance.chargebacks == usd(left[1])
        assert granted.collected.amount_micros == amount - left[0]


async def test_reversals_never_exceed_the_purchase(funding: Funding) -> None:
    await funding.grant(1000)
    await funding.grant(1000, key="second")
    await funding.reverse("re_1", 400)
    answer = await refused(funding.reverse("re_2", 601))
    assert (answer.reason, answer.metadata) == (
        "REVERSAL_EXCEEDS_PURCHASE",
        {
            "purchase_key": "first",
            "amount_micros": "1000",
            "reversed_micros": "400",
            "requested_micros": "601",
        },
    )
    # What was refused has left nothing, not even its key. (Nor is the customer frozen.)
    assert (await refused(funding.reverse("re_2", 601, CHARGEBACK))).reason == "REVERSAL_EXCEEDS_PURCHASE"
    assert not (await funding.balance()).frozen
    await funding.reverse("re_2", 600)
    assert (await refused(funding.reverse("re_3", 1))).metadata["reversed_micros"] == "1000"
    assert await funding.standing() == (1000, 0, 0, 0)
    # What came again may go back again.
    await funding.reinstate("re_2", "adj_1")
    await funding.reverse("re_4", 600)


async def test_simultaneous_reversals_never_exceed_the_purchase(funding: Funding) -> None:
    await funding.grant(1000)

    async def try_one(number: int) -> int:
        answer: Sequence[Any] = await asyncio.gather(
            funding.reverse(f"re_{number}", 30 + number), return_exceptions=True
        )
        return 0 if isinstance(answer[0], BaseException) else 30 + number

    gone = sum([*await asyncio.gather(*(try_one(number) for number in range(50)))])
    assert 1000 - 79 < gone <= 1000
    assert await funding.standing() == (1000 - gone, 0, 0, 0)


async def test_one_reversal_sent_many_times_at_once_is_posted_once(funding: Funding) -> None:
    await funding.grant(1000)
    answers = await asyncio.gather(*(funding.reverse("dp_1", 700, CHARGEBACK) for _ in range(10)))
    assert sum(not answer.duplicate for answer in answers) == 1
    assert len({answer.reversal.transaction_id for answer in answers}) == 1
    assert await funding.standing() == (300, 0, 0, 0)


async def test_charges_reversals_and_grants_at_once_add_up(funding: Funding) -> None:
    await funding.grant(1000)
    await asyncio.gather(
        *(funding.post(intent(f"run-{number}", 70)) for number in range(20)),
        *(funding.reverse(f"re_{number}", 40) for number in range(20)),
        *(funding.grant(30, key=f"more-{number}") for number in range(20)),
    )
    available, chargebacks, receivable, unpaid = await funding.standing()
    assert available - chargebacks - receivable - unpaid == 1000 + 600 - 1400 - 800
    assert available == 0 or chargebacks == 0


async def test_what_is_held_is_not_taken_and_pays_when_it_is_back(funding: Funding) -> None:
    await funding.grant(1_500_000)
    opened = await funding.open(700_000)
    leased = opened.granted.lease.remaining.amount_micros
    await funding.hold(hold_request("hold-1", 500_000))
    free = 1_500_000 - leased - 500_000
    answer = await funding.reverse("re_1", 1_500_000)
    assert answer.reversal.from_credits == usd(free)
    assert await funding.standing() == (0, 1_500_000 - free, 0, 0)
    # The lease is asked back, and what comes back pays.
    assert (await funding.renew(1, 0)).granted.lease.recall
    await funding.give_back(1, 1, 200_000)
    assert await funding.standing() == (0, 1_500_000 - free - 200_000, 0, 0)
    renewed = (await funding.renew(1, 10)).granted.lease
    assert renewed.recall, "as long as anything is owed and the lease holds something"
    await funding.give_back(1, 2, leased)
    assert await funding.standing() == (0, 500_000, 0, 0)


async def test_the_collector_finds_who_owes_for_chargebacks(database_url: str) -> None:
    async with running_ledger(database_url, collect_interval=timedelta(milliseconds=20)) as server:
        funding = Funding(server)
        await server.create_customer("cus_a")
        await funding.grant(1000)
        await funding.hold(hold_request("hold-1", 800))
        await funding.reverse("re_1", 1000)
        assert await funding.standing() == (0, 800, 0, 0)
        await funding.release(release_of(of_hold("hold-1")))

        async def is_paid() -> bool:
            return await funding.standing() == (0, 0, 0, 0)

        await eventually(is_paid)
        assert not await audit(database_url)


async def test_a_chargeback_freezes_the_customer_and_winning_it_does_not_unfreeze(funding: Funding) -> None:
    await funding.grant(1000)
    await funding.post(intent("run-1", 800))
    answer = await funding.reverse("dp_1", 1000, CHARGEBACK, reason="fraudulent")
    assert (answer.balance.frozen, answer.balance.chargebacks) == (True, usd(800))
    found = await funding.server.operator.directory.GetCustomer(
        directory.GetCustomerRequest(customer_id="cus_a")
    )
    assert (found.customer.frozen, found.customer.freeze_reason) == (True, "chargeback dp_1: fraudulent")
    # It pays the debt first.
    won = await funding.reinstate("dp_1", "adj_1")
    assert (won.reversal.reinstated, won.reversal.reinstatement_id) == (usd(1000), "adj_1")
    assert (won.balance.available, won.balance.chargebacks, won.balance.frozen) == (usd(200), usd(0), True)
    again = await funding.reinstate("dp_1", "adj_1")
    assert (again.duplicate, again.reversal) == (True, won.reversal)
    assert (await refused(funding.reinstate("dp_1", "adj_1", 999))).reason == "IDEMPOTENCY_KEY_REUSED"
    other = await refused(funding.reinstate("dp_1", "adj_2"))
    assert (other.reason, other.metadata) == (
        "PURCHASE_ALREADY_REINSTATED",
        {"reversal_id": "dp_1", "reinstatement_id": "adj_1"},
    )
    assert await funding.standing() == (200, 0, 0, 0)


async def test_what_comes_again_in_part_pays_other_debts_too(funding: Funding) -> None:
    await funding.grant(1000)
    await funding.post(intent("run-1", 1030))
    await funding.reverse("dp_1", 500, CHARGEBACK)
    assert await funding.standing() == (0, 500, 0, 30)
    await funding.grant(495, key="second")
    await funding.reinstate("dp_1", "adj_1", 20)
    # 5 of the debt, then 15 of what is unpaid.
    assert await funding.standing() == (0, 0, 0, 15)


async def test_fees_are_recorded_once_and_signed(funding: Funding) -> None:
    await funding.grant(10_000)
    first = await funding.fee("txn_fee_1", 320)
    assert await funding.accounts("platform") == {"stripe_clearing": -9680, "stripe_fees": -320}
    again = await funding.fee("txn_fee_1", 320)
    assert (again.transaction_id, again.duplicate) == (first.transaction_id, True)
    assert (await refused(funding.fee("txn_fee_1", 321))).reason == "IDEMPOTENCY_KEY_REUSED"
    await funding.fee("txn_fee_2", -20)
    assert await funding.accounts("platform") == {"stripe_clearing": -9700, "stripe_fees": -300}


async def test_malformed_and_unknown(funding: Funding) -> None:
    await funding.grant(100)
    await funding.reverse("re_1", 50)
    service = funding.service.funding
    for call in (
        funding.reverse("", 5),
        funding.reverse("x" * 129, 5),
        funding.reverse("re_2", 0),
        funding.reverse("re_2", -5),
        funding.reverse("re_2", 5, 0),  # type: ignore[arg-type]
        funding.reverse("re_2", 5, 99),  # type: ignore[arg-type]
        funding.reverse("re_2", 5, purchase=""),
        funding.reverse("re_2", 5, customer="org_x"),
        funding.reverse("re_2", 5, reason="x" * 501),
        service.ReversePurchase(
            pb.ReversePurchaseRequest(
                customer_id="cus_a", purchase_key="first", reversal_id="re_2", amount=EUR, kind=REFUND
            )
        ),
        funding.reinstate("re_1", ""),
        funding.reinstate("re_1", "adj_1", 0),
        funding.reinstate("re_1", "adj_1", 51),
        service.ReinstatePurchase(
            pb.ReinstatePurchaseRequest(
                customer_id="cus_a", reversal_id="re_1", reinstatement_id="adj_1", amount=EUR
            )
        ),
        funding.fee("fee_1", 0),
        funding.fee("", 1),
    ):
        assert (await refused(call)).reason == "INVALID_FIELD"
    promotion = ledger.GrantCreditsRequest(
        customer_id="cus_a",
        amount=usd(10),
        source=ledger.CREDIT_SOURCE_PLATFORM_PROMOTION,
        idempotency_key="gift",
    )
    await funding.server.operator.ledger.GrantCredits(promotion)
    for purchase in ("unheard-of", "gift"):
        unknown = await refused(funding.reverse("re_2", 5, purchase=purchase))
        assert (unknown.reason, unknown.metadata) == ("PURCHASE_NOT_FOUND", {"purchase_key": purchase})
    unknown = await refused(funding.reinstate("re_9", "adj_1"))
    assert (unknown.reason, unknown.metadata) == ("PURCHASE_NOT_FOUND", {"reversal_id": "re_9"})
    await funding.server.create_customer("cus_b")
    assert (await refused(funding.reverse("re_1", 5, customer="cus_b"))).reason == "PURCHASE_NOT_FOUND"
    assert (await refused(funding.reverse("re_1", 5, customer="cus_c"))).reason == "CUSTOMER_NOT_FOUND"
    assert await funding.standing() == (60, 0, 0, 0)


async def test_every_movement_of_the_clearing_account_is_listed_in_order(funding: Funding) -> None:
    await funding.grant(1000)
    await funding.post(intent("run-1", 500))
    service = funding.service.earnings
    await service.DebitPayout(
        earnings.DebitPayoutRequest(organization_id="org_x", payout_id="po_1", amount=usd(400))
    )
    await service.CompletePayout(earnings.CompletePayoutRequest(organization_id="org_x", payout_id="po_1"))
    await service.ReversePayout(
        earnings.ReversePayoutRequest(
            organization_id="org_x", payout_id="po_1", reversal_id="trr_1", amount=usd(100)
        )
    )
    await funding.reverse("dp_1", 900, CHARGEBACK)
    await funding.reinstate("dp_1", "adj_1", 450)
    await funding.fee("fee_1", 30)
    wanted = [
        ("PURCHASE", "cus_a", "first", "", -1000),
        ("PAYOUT_COMPLETION", "org_x", "", "po_1", 400),
        ("PAYOUT_REVERSAL", "org_x", "trr_1", "po_1", -100),
        ("PURCHASE_CHARGEBACK", "cus_a", "dp_1", "", 900),
        ("PURCHASE_REINSTATEMENT", "cus_a", "adj_1", "", -450),
        ("PROCESSOR_FEE", "platform", "fee_1", "", 30),
    ]
    found = await _movements(funding)
    assert [_told(one) for one in found] == wanted
    assert (
        sum(one.amount.amount_micros for one in found)
        == (await funding.accounts("platform"))["stripe_clearing"]
    )
    # From one time to another, which is not in it.
    window = await _movements(
        funding, create_time_from=found[1].create_time, create_time_until=found[4].create_time
    )
    assert [_told(one) for one in window] == wanted[1:4]
    past = Timestamp()
    past.FromDatetime(datetime(2020, 1, 1, tzinfo=UTC))
    assert await _movements(funding, create_time_until=past) == []
    forged = await refused(
        funding.server.operator.funding.ListClearingMovements(pb.ListClearingMovementsRequest(page_token="x"))
    )
    assert forged.reason == "INVALID_PAGE_TOKEN"


async def _movements(funding: Funding, **filter: Any) -> list[pb.ClearingMovement]:
    found: list[pb.ClearingMovement] = []
    request = pb.ListClearingMovementsRequest(page_size=2, **filter)
    while True:
        answer = await funding.server.operator.funding.ListClearingMovements(request)
        found += answer.movements
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


def _told(movement: pb.ClearingMovement) -> tuple[str, str, str, str, int]:
    return (
        transaction_pb2.TransactionType.Name(movement.type).removeprefix("TRANSACTION_TYPE_"),
        movement.owner_id,
        movement.external_id,
        movement.payout_id,
        movement.amount.amount_micros,
    )
