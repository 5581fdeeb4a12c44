"""EarningsService over real gRPC and PostgreSQL: what payouts take, and how it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from services.ledger.audit import audit
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, transaction_pb2
from tallystick.ledger.v1 import earnings_service_pb2 as pb
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.ledger.v1.payout_debit_pb2 import (
    PAYOUT_DEBIT_STATE_COMPLETED as COMPLETED,
)
from tallystick.ledger.v1.payout_debit_pb2 import (
    PAYOUT_DEBIT_STATE_IN_TRANSIT as IN_TRANSIT,
)
from tallystick.ledger.v1.payout_debit_pb2 import (
    PAYOUT_DEBIT_STATE_REFUSED as REFUSED,
)
from tallystick.ledger.v1.payout_debit_pb2 import (
    PAYOUT_DEBIT_STATE_RETURNED as RETURNED,
)
from tallystick.ledger.v1.payout_debit_pb2 import PayoutDebit
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import Refusal, refusal

EUR = money_pb2.Money(currency_code="EUR", amount_micros=1)


@dataclass(frozen=True)
class Payouts:
    """What a test does with the payouts of org_x, which keeps all that it earns."""

    server: LedgerServer

    async def earn(
        self, amount: int, workflow: str = "run-1", organization: str = "org_x", *, day: int = 1
    ) -> None:
        """Work of one day in January, paid at once. Each day is a bucket."""
        await self.server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id="cus_a",
                amount=usd(amount),
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key=workflow,
            )
        )
        charge = intent(workflow, amount, organization=organization)
        charge.occur_time.FromDatetime(datetime(2026, 1, day, tzinfo=UTC))
        await self.server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=charge))

    async def debit(
        self, payout_id: str, amount: int, organization_id: str = "org_x"
    ) -> pb.DebitPayoutResponse:
        return await self.server.service.earnings.DebitPayout(
            pb.DebitPayoutRequest(organization_id=organization_id, payout_id=payout_id, amount=usd(amount))
        )

    async def complete(self, payout_id: str) -> PayoutDebit:
        answer = await self.server.service.earnings.CompletePayout(
            pb.CompletePayoutRequest(organization_id="org_x", payout_id=payout_id)
        )
        return answer.debit

    async def put_back(self, payout_id: str) -> PayoutDebit:
        answer = await self.server.service.earnings.ReturnPayout(
            pb.ReturnPayoutRequest(organization_id="org_x", payout_id=payout_id, reason="transfer failed")
        )
        return answer.debit

    async def reverse(self, payout_id: str, reversal_id: str, amount: int) -> pb.ReversePayoutResponse:
        return await self.server.service.earnings.ReversePayout(
            pb.ReversePayoutRequest(
                organization_id="org_x",
                payout_id=payout_id,
                reversal_id=reversal_id,
                amount=usd(amount),
                reason="sent back",
            )
        )

    async def available(self) -> int:
        answer = await self.server.operator.ledger.GetEarningsBalance(
            ledger.GetEarningsBalanceRequest(organization_id="org_x")
        )
        return answer.balance.available.amount_micros + answer.balance.pending.amount_micros

    async def accounts(self, owner_id: str) -> dict[str, int]:
        answer = await self.server.operator.ledger.ListAccounts(ledger.ListAccountsRequest(owner_id=owner_id))
        return {
            account_pb2.AccountKind.Name(one.account.kind)
            .removeprefix("ACCOUNT_KIND_")
            .lower(): one.balance.amount_micros
            for one in answer.accounts
        }

    async def bucket_entries(self, transaction_id: str) -> list[int]:
        answer = await self.server.operator.ledger.GetTransaction(
            ledger.GetTransactionRequest(transaction_id=transaction_id)
        )
        return [one.amount.amount_micros for one in answer.transaction.entries if one.HasField("bucket")]


@pytest.fixture
async def payouts(database_url: str) -> AsyncIterator[Payouts]:
    async with running_ledger(database_url) as server:
        await server.create_organization("org_x", 0, 0)
        await server.create_customer("cus_a")
        yield Payouts(server)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


async def test_a_payout_takes_available_earnings_and_completes(payouts: Payouts) -> None:
    await payouts.earn(1000)
    answer = await payouts.debit("po_1", 600)
    assert (answer.debit.state, answer.duplicate) == (IN_TRANSIT, False)
    assert answer.balance.available.amount_micros == 400
    assert (await payouts.accounts("org_x"))["payouts_in_transit"] == 600
    before = (await payouts.accounts("platform"))["stripe_clearing"]
    debit = await payouts.complete("po_1")
    assert (debit.state, debit.amount, debit.reversed) == (COMPLETED, usd(600), usd(0))
    assert debit.HasField("end_time")
    assert (await payouts.accounts("org_x"))["payouts_in_transit"] == 0
    assert (await payouts.accounts("platform"))["stripe_clearing"] == before + 600
    # Once more changes nothing.
    assert await payouts.complete("po_1") == debit
    assert (await payouts.debit("po_1", 600)).duplicate
    assert await payouts.available() == 400


async def test_what_was_earned_an_instant_ago_can_be_paid_out(payouts: Payouts) -> None:
    for number in range(5):
        await payouts.earn(100, f"run-{number}")
        assert (await payouts.debit(f"po_{number}", 100)).debit.state == IN_TRANSIT
    assert await payouts.available() == 0


async def test_a_refusal_says_why_and_is_final(payouts: Payouts) -> None:
    await payouts.earn(1000)
    answer = await refused(payouts.debit("po_1", 1001))
    assert answer.reason == "INSUFFICIENT_EARNINGS"
    assert answer.metadata == {
        "organization_id": "org_x",
        "payout_id": "po_1",
        "currency_code": "USD",
        "available_micros": "1000",
        "requested_micros": "1001",
    }
    await payouts.earn(500, "run-2")
    # A retry of what was refused must not pay later: whoever asked may have asked anew since.
    assert (await refused(payouts.debit("po_1", 1001))).reason == "INSUFFICIENT_EARNINGS"
    assert (await payouts.debit("po_2", 1001)).debit.state == IN_TRANSIT
    listed = await payouts.server.operator.earnings.ListPayoutDebits(
        pb.ListPayoutDebitsRequest(organization_id="org_x", state=REFUSED)
    )
    assert [one.payout_id for one in listed.debits] == ["po_1"]
    for end in (payouts.complete("po_1"), payouts.put_back("po_1"), payouts.reverse("po_1", "trr_1", 1)):
        conflict = await refused(end)
        assert (conflict.reason, conflict.metadata) == (
            "PAYOUT_STATE_CONFLICT",
            {"payout_id": "po_1", "state": "refused"},
        )


async def test_a_payout_id_is_for_one_amount(payouts: Payouts) -> None:
    await payouts.earn(1000)
    await payouts.debit("po_1", 600)
    answer = await refused(payouts.debit("po_1", 601))
    assert (answer.reason, answer.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"key": "po_1"})
    # Each organization has ids of its own.
    await payouts.server.create_organization("org_y", 0, 0)
    await payouts.earn(50, "run-y", "org_y")
    assert (await payouts.debit("po_1", 50, "org_y")).debit.state == IN_TRANSIT


async def test_what_did_not_leave_goes_back_to_its_buckets(payouts: Payouts) -> None:
    for day, amount in ((2, 700), (1, 300), (3, 500)):
        await payouts.earn(amount, f"run-{day}", day=day)
    debit = (await payouts.debit("po_1", 1100)).debit
    # The oldest first.
    assert await payouts.bucket_entries(debit.transaction_id) == [-300, -700, -100]
    returned = await payouts.put_back("po_1")
    assert returned.state == RETURNED
    assert await payouts.bucket_entries(returned.end_transaction_id) == [300, 700, 100]
    assert await payouts.available() == 1500
    assert await payouts.put_back("po_1") == returned
    assert (await refused(payouts.complete("po_1"))).metadata["state"] == "returned"
    assert (await payouts.debit("po_2", 1500)).debit.state == IN_TRANSIT


async def test_reversals_add_up_and_never_exceed_the_payout(payouts: Payouts) -> None:
    await payouts.earn(300)
    await payouts.earn(700, "run-2", day=2)
    await payouts.debit("po_1", 1000)
    assert (await refused(payouts.reverse("po_1", "trr_1", 1))).metadata["state"] == "in_transit"
    await payouts.complete("po_1")
    first = await payouts.reverse("po_1", "trr_1", 200)
    assert (first.debit.reversed, first.duplicate, first.balance.available) == (usd(200), False, usd(200))
    again = await payouts.reverse("po_1", "trr_1", 200)
    assert (again.debit.reversed, again.duplicate) == (usd(200), True)
    assert (await refused(payouts.reverse("po_1", "trr_1", 201))).reason == "IDEMPOTENCY_KEY_REUSED"
    await payouts.reverse("po_1", "trr_2", 500)
    answer = await refused(payouts.reverse("po_1", "trr_3", 301))
    assert (answer.reason, answer.metadata) == (
        "REVERSAL_EXCEEDS_PAYOUT",
        {"payout_id": "po_1", "amount_micros": "1000", "reversed_micros": "700", "requested_micros": "301"},
    )
    # What was refused has left nothing, not even its key.
    last = await payouts.reverse("po_1", "trr_3", 300)
    assert (last.debit.reversed, last.debit.state) == (usd(1000), COMPLETED)
    assert await payouts.available() == 1000
    journal = await payouts.server.operator.ledger.ListTransactions(
        ledger.ListTransactionsRequest(
            owner_id="org_x", type=transaction_pb2.TRANSACTION_TYPE_PAYOUT_REVERSAL
        )
    )
    parts = [await payouts.bucket_entries(one.transaction_id) for one in reversed(journal.transactions)]
    assert parts == [[200], [100, 400], [300]]
    assert {one.payout_id for one in journal.transactions} == {"po_1"}


async def test_simultaneous_payouts_never_exceed_the_balance(payouts: Payouts) -> None:
    await payouts.earn(1000)

    async def try_one(number: int) -> int:
        answer = await asyncio.gather(payouts.debit(f"po_{number}", 30 + number), return_exceptions=True)
        return 0 if isinstance(answer[0], BaseException) else 30 + number

    taken = sum([*await asyncio.gather(*(try_one(number) for number in range(50)))])
    # Greedy in any order: what is left is less than the largest of them.
    assert 1000 - 79 < taken <= 1000
    assert await payouts.available() == 1000 - taken


async def test_of_complete_and_return_exactly_one_wins(payouts: Payouts) -> None:
    await payouts.earn(10_000)
    for number in range(10):
        await payouts.debit(f"po_{number}", 100)
        answers: Sequence[Any] = await asyncio.gather(
            *(payouts.complete(f"po_{number}") for _ in range(3)),
            *(payouts.put_back(f"po_{number}") for _ in range(3)),
            return_exceptions=True,
        )
        ended = {answer.state for answer in answers if not isinstance(answer, BaseException)}
        assert len(ended) == 1
        assert sum(isinstance(answer, BaseException) for answer in answers) == 3


async def test_charges_payouts_and_folds_at_once_add_up(payouts: Payouts) -> None:
    await payouts.earn(1000, "first")

    async def pay(number: int) -> int:
        try:
            await payouts.debit(f"po_{number}", 70)
        except Exception:  # noqa: BLE001 - refused, which the sum below accounts for
            return 0
        await (payouts.complete if number % 2 else payouts.put_back)(f"po_{number}")
        return 70 if number % 2 else 0

    paying = [asyncio.create_task(pay(number)) for number in range(20)]
    await asyncio.gather(*(payouts.earn(50, f"run-{number}") for number in range(20)))
    paid = await asyncio.gather(*paying)
    assert await payouts.available() == 1000 + 20 * 50 - sum(paid)


async def test_money_that_must_wait_is_not_paid_out(payouts: Payouts) -> None:
    await payouts.server.create_organization("org_later", 0, 0, 1)
    await payouts.earn(1000, organization="org_later")
    # The hold of the agreement ends tomorrow.
    answer = await refused(payouts.debit("po_1", 1, "org_later"))
    assert (answer.reason, answer.metadata["available_micros"]) == ("INSUFFICIENT_EARNINGS", "0")


async def test_malformed_requests(payouts: Payouts) -> None:
    await payouts.earn(100)
    await payouts.debit("po_1", 100)
    await payouts.complete("po_1")
    earnings = payouts.server.service.earnings
    for call in (
        payouts.debit("1", 5),
        payouts.debit("po_2", 0),
        payouts.debit("po_2", -5),
        payouts.debit("po_2", 5, "cus_a"),
        payouts.reverse("po_1", "", 5),
        payouts.reverse("po_1", "x" * 129, 5),
        earnings.ReversePayout(
            pb.ReversePayoutRequest(organization_id="org_x", payout_id="po_1", reversal_id="1", amount=EUR)
        ),
        earnings.ListPayoutDebits(pb.ListPayoutDebitsRequest(state=99)),  # type: ignore[arg-type]
    ):
        assert (await refused(call)).reason == "INVALID_FIELD"
    for unknown in (payouts.complete("po_9"), payouts.put_back("po_9"), payouts.reverse("po_9", "1", 5)):
        assert (await refused(unknown)).reason == "PAYOUT_NOT_FOUND"
    assert (await refused(payouts.debit("po_2", 5, "org_nobody"))).reason == "ORGANIZATION_NOT_FOUND"


async def test_debits_are_listed_page_by_page(payouts: Payouts) -> None:
    await payouts.earn(1000)
    for number in range(5):
        await payouts.debit(f"po_{number}", 10)
    found, token = [], ""
    while True:
        answer = await payouts.server.operator.earnings.ListPayoutDebits(
            pb.ListPayoutDebitsRequest(page_size=2, page_token=token)
        )
        found += [one.payout_id for one in answer.debits]
        token = answer.next_page_token
        if not token:
            break
    assert found == [f"po_{number}" for number in range(5)]
    one = await payouts.server.operator.earnings.GetPayoutDebit(
        pb.GetPayoutDebitRequest(organization_id="org_x", payout_id="po_3")
    )
    assert (one.debit.amount, one.balance.available) == (usd(10), usd(950))


async def payable(
    payouts: Payouts, before: str = "", organization: str = "org_x"
) -> dict[str, tuple[int, int]]:
    """(payable, available) by currency, read page by page."""
    found: dict[str, tuple[int, int]] = {}
    request = pb.ListPayableEarningsRequest(organization_id=organization, earned_before=before, page_size=1)
    while True:
        answer = await payouts.server.operator.earnings.ListPayableEarnings(request)
        for one in answer.earnings:
            found[one.payable.currency_code] = (one.payable.amount_micros, one.available.amount_micros)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


async def test_what_was_earned_before_a_date_is_payable(payouts: Payouts) -> None:
    for day, amount in ((4, 100), (10, 700), (11, 300), (12, 500)):
        await payouts.earn(amount, f"run-{day}", day=day)
    # Monday to Sunday, the 5th to the 11th of January, are earned before the 12th.
    assert await payable(payouts, "2026-01-12") == {"USD": (1100, 1600)}
    assert await payable(payouts, "2026-01-04") == {"USD": (0, 1600)}
    assert await payable(payouts) == {"USD": (1600, 1600)}
    # Payouts take the oldest first.
    await payouts.debit("po_1", 900)
    assert await payable(payouts, "2026-01-12") == {"USD": (200, 700)}
    await payouts.debit("po_2", 400)
    assert await payable(payouts, "2026-01-12") == {"USD": (0, 300)}
    # The later days' money is gone: what comes back of the earlier ones is all there is.
    await payouts.put_back("po_1")
    await payouts.debit("po_3", 1200)
    assert await payable(payouts, "2026-01-12") == {"USD": (0, 0)}


async def test_of_payable_earnings_is_never_more_than_there_is(payouts: Payouts) -> None:
    await payouts.earn(1000, day=1)
    adjust = ledger.AdjustBalancesRequest(
        postings=[
            ledger.Posting(
                account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner_id, kind, amount in (
                ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, -900),
                ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 900),
            )
        ],
        reason="taken back today",
        idempotency_key="clawback",
    )
    await payouts.server.operator.ledger.AdjustBalances(adjust)
    assert await payable(payouts, "2026-01-12") == {"USD": (100, 100)}


async def test_what_is_held_or_not_collected_is_not_payable(payouts: Payouts) -> None:
    await payouts.server.create_organization("org_later", 0, 0, 1)
    await payouts.earn(1000, organization="org_later")
    assert await payable(payouts, organization="org_later") == {}
    for currency in ("EUR", "JPY"):
        money = money_pb2.Money(currency_code=currency, amount_micros=70)
        await payouts.server.operator.ledger.GrantCredits(
            ledger.GrantCreditsRequest(
                customer_id="cus_a",
                amount=money,
                source=ledger.CREDIT_SOURCE_PURCHASE,
                idempotency_key=currency,
            )
        )
        charge = intent(f"run-{currency}", 0)
        charge.gross.CopyFrom(money)
        await payouts.server.service.ledger.PostCharge(ledger.PostChargeRequest(intent=charge))
    assert await payable(payouts) == {"EUR": (70, 70), "JPY": (70, 70)}
    for date in ("yesterday", "2026-1-1", "20260101", "2026-02-30"):
        assert (await refused(payable(payouts, date))).reason == "INVALID_FIELD"
    assert (await refused(payable(payouts, organization="org_nobody"))).reason == "ORGANIZATION_NOT_FOUND"
