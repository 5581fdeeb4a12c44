"""Adjustments need four eyes: one operator proposes, another approves, and only then anything moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from services.ledger.audit import audit
from services.ledger.config import LedgerConfig
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tests.support.append_only import nobody_changes
from tests.support.ledger_adjustments import credit_request, move_request
from tests.support.ledger_corrections import Corrections
from tests.support.ledger_credits import intent, usd
from tests.support.ledger_server import Caller, LedgerServer, running_ledger
from tests.support.rpc_errors import Refusal, refusal

PROPOSED, POSTED = pb.ADJUSTMENT_STATE_PROPOSED, pb.ADJUSTMENT_STATE_POSTED
REJECTED, EXPIRED = pb.ADJUSTMENT_STATE_REJECTED, pb.ADJUSTMENT_STATE_EXPIRED
# As only somebody with the whole machine can.
A_WEEK_LATER = """
SET session_replication_role = replica;
UPDATE ledger.adjustment
SET create_time = create_time - interval '7 days', expire_time = expire_time - interval '7 days'
"""


@dataclass
class Desk:
    """Two operators at work."""

    server: LedgerServer
    proposer: Caller
    approver: Caller

    async def propose(self, request: pb.AdjustBalancesRequest) -> pb.Adjustment:
        return (await self.proposer.ledger.AdjustBalances(request)).adjustment

    async def approve(
        self, proposal: pb.Adjustment, by: Caller | None = None
    ) -> pb.ApproveAdjustmentResponse:
        return await (by or self.approver).ledger.ApproveAdjustment(
            pb.ApproveAdjustmentRequest(adjustment_id=proposal.adjustment_id)
        )

    async def reject(self, proposal: pb.Adjustment, by: Caller | None = None) -> pb.Adjustment:
        answer = await (by or self.approver).ledger.RejectAdjustment(
            pb.RejectAdjustmentRequest(adjustment_id=proposal.adjustment_id, reason="the wrong customer")
        )
        return answer.adjustment

    async def listed(
        self, state: pb.AdjustmentState.ValueType = pb.ADJUSTMENT_STATE_UNSPECIFIED
    ) -> list[str]:
        answer = await self.proposer.ledger.ListAdjustments(pb.ListAdjustmentsRequest(state=state))
        return [one.adjustment_id for one in answer.adjustments]

    async def available(self, customer_id: str = "cus_a") -> int:
        return (await Corrections(self.server).customer(customer_id))[0]

    async def journal(self) -> int:
        """How many adjustments are posted."""
        answer = await self.proposer.ledger.ListTransactions(pb.ListTransactionsRequest(owner_id="platform"))
        return len(answer.transactions)


@pytest.fixture
async def desk(database_url: str) -> AsyncIterator[Desk]:
    async with running_ledger(database_url, adjustment_approval="required") as server:
        await server.create_organization("org_x")
        await server.create_customer("cus_a")
        approver = await server.create_caller(access_pb2.ROLE_OPERATOR, "another")
        yield Desk(server, server.operator, approver)
        assert not await audit(database_url)


async def refused(call: Any) -> Refusal:
    """The refusal, without the id that every request has."""
    answer = await refusal(call)
    answer.metadata.pop("request_id", None)
    return answer


def test_four_eyes_are_the_default() -> None:
    assert LedgerConfig(database_url="postgresql://x@localhost/x").adjustment_approval == "required"
    assert LedgerConfig(database_url="postgresql://x@localhost/x", adjustment_approval="two").problems() == [
        "adjustment_approval: must be required or none"
    ]


async def test_a_proposal_moves_nothing_and_an_approval_posts_it(desk: Desk) -> None:
    answer = await desk.proposer.ledger.AdjustBalances(credit_request("cus_a", 500))
    proposal = answer.adjustment
    assert not answer.HasField("transaction")
    assert (proposal.state, proposal.transaction_id, proposal.decider_api_key_id) == (PROPOSED, "", "")
    assert (proposal.expire_time.ToDatetime() - proposal.create_time.ToDatetime()).days == 7
    assert (await desk.available(), await desk.journal()) == (0, 0)
    approved = await desk.approve(proposal)
    assert not approved.duplicate
    assert approved.adjustment.state == POSTED
    assert approved.adjustment.transaction_id == approved.transaction.transaction_id
    # Both are on record: who wanted it, and who let it happen.
    assert approved.adjustment.proposer_api_key_id == proposal.proposer_api_key_id
    assert approved.adjustment.decider_api_key_id == approved.transaction.actor_api_key_id
    assert approved.adjustment.decider_api_key_id != proposal.proposer_api_key_id
    assert approved.transaction.reason == "goodwill after the outage"
    assert (await desk.available(), await desk.journal()) == (500, 1)


async def test_who_proposed_it_cannot_approve_it(desk: Desk) -> None:
    proposal = await desk.propose(credit_request("cus_a", 500))
    alone = await refused(desk.approve(proposal, by=desk.proposer))
    assert alone.reason == "ADJUSTMENT_NEEDS_ANOTHER_APPROVER"
    assert alone.metadata == {"adjustment_id": proposal.adjustment_id}
    by_service = await refused(desk.approve(proposal, by=desk.server.service))
    assert by_service.reason == "ROLE_NOT_ALLOWED"
    assert (await desk.available(), await desk.journal()) == (0, 0)
    assert await desk.listed(PROPOSED) == [proposal.adjustment_id]


async def test_the_same_key_answers_how_it_stands(desk: Desk) -> None:
    request = credit_request("cus_a", 500)
    proposal = await desk.propose(request)
    assert await desk.propose(request) == proposal
    assert (await refused(desk.propose(credit_request("cus_a", 501)))).reason == "IDEMPOTENCY_KEY_REUSED"
    approved = await desk.approve(proposal)
    again = await desk.proposer.ledger.AdjustBalances(request)
    assert again.transaction == approved.transaction
    assert again.adjustment == approved.adjustment
    assert await desk.journal() == 1


async def test_an_approval_posts_once_however_often_and_at_once(desk: Desk) -> None:
    third = await desk.server.create_caller(access_pb2.ROLE_OPERATOR, "third")
    proposal = await desk.propose(credit_request("cus_a", 500))
    answers = await asyncio.gather(
        *[desk.approve(proposal, by=caller) for caller in (desk.approver, third) for _ in range(6)]
    )
    assert sum(not answer.duplicate for answer in answers) == 1
    assert len({answer.transaction.transaction_id for answer in answers}) == 1
    later = await desk.approve(proposal)
    assert later.duplicate
    assert later.adjustment == answers[0].adjustment
    assert (await desk.available(), await desk.journal()) == (500, 1)


async def test_of_approvals_and_rejections_at_once_one_decides(desk: Desk) -> None:
    proposals = [await desk.propose(credit_request("cus_a", 1, f"{number}")) for number in range(8)]
    calls = [(desk.approve(one), desk.reject(one, by=desk.proposer)) for one in proposals]
    answers = await asyncio.gather(*[call for pair in calls for call in pair], return_exceptions=True)
    posted = 0
    for approved, rejected in zip(answers[0::2], answers[1::2], strict=True):
        assert isinstance(approved, BaseException) != isinstance(rejected, BaseException)
        posted += not isinstance(approved, BaseException)
    assert await desk.available() == posted == await desk.journal()
    assert len(await desk.listed(POSTED)) == posted
    assert len(await desk.listed(REJECTED)) == 8 - posted


async def test_what_would_overdraw_by_now_is_refused_and_stays_proposed(desk: Desk) -> None:
    await desk.approve(await desk.propose(credit_request("cus_a", 1000, "first")))
    take = await desk.propose(credit_request("cus_a", -800, "take"))
    # Meanwhile it was spent.
    await desk.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=intent("run-1", 300)))
    short = await refused(desk.approve(take))
    assert short.reason == "INSUFFICIENT_BALANCE"
    assert (short.metadata["available_micros"], short.metadata["requested_micros"]) == ("700", "800")
    assert (await desk.available(), await desk.journal()) == (700, 1)
    assert await desk.listed(PROPOSED) == [take.adjustment_id]
    # Earnings as well: of 300 the net is 247.
    of_earnings = await desk.propose(
        move_request(
            ("org_x", account_pb2.ACCOUNT_KIND_ORGANIZATION_PAYABLE, -248),
            ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 248),
            key="earnings",
        )
    )
    assert (await refused(desk.approve(of_earnings))).reason == "INSUFFICIENT_BALANCE"
    # Once there is enough again, the same proposal can be approved.
    await desk.approve(await desk.propose(credit_request("cus_a", 100, "second")))
    await desk.approve(take)
    assert await desk.available() == 0


async def test_what_two_proposals_would_take_only_one_takes(desk: Desk) -> None:
    await desk.approve(await desk.propose(credit_request("cus_a", 1000, "first")))
    takes = [await desk.propose(credit_request("cus_a", -300, f"{number}")) for number in range(6)]
    answers = await asyncio.gather(*[desk.approve(one) for one in takes], return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 3
    assert await desk.available() == 100


async def test_a_rejection_is_final(desk: Desk) -> None:
    proposal = await desk.propose(credit_request("cus_a", 500))
    rejected = await desk.reject(proposal)
    assert (rejected.state, rejected.decision_reason) == (REJECTED, "the wrong customer")
    assert await desk.reject(proposal, by=desk.proposer) == rejected
    conflict = await refused(desk.approve(proposal))
    assert conflict.reason == "ADJUSTMENT_STATE_CONFLICT"
    assert conflict.metadata == {"adjustment_id": proposal.adjustment_id, "state": "rejected"}
    posted = await desk.propose(credit_request("cus_a", 1, "other"))
    await desk.approve(posted)
    late = await refused(desk.reject(posted))
    assert (late.reason, late.metadata["state"]) == ("ADJUSTMENT_STATE_CONFLICT", "posted")
    assert await desk.available() == 1


async def test_after_a_week_nobody_can_approve_it(desk: Desk) -> None:
    proposal = await desk.propose(credit_request("cus_a", 500))
    async with await psycopg.AsyncConnection.connect(desk.server.database_url) as superuser:
        await superuser.execute(A_WEEK_LATER.encode())
    assert await desk.listed(EXPIRED) == [proposal.adjustment_id]
    for call in (desk.approve(proposal), desk.reject(proposal)):
        conflict = await refused(call)
        assert (conflict.reason, conflict.metadata["state"]) == ("ADJUSTMENT_STATE_CONFLICT", "expired")
    assert (await desk.propose(credit_request("cus_a", 500))).state == EXPIRED
    assert (await desk.available(), await desk.journal()) == (0, 0)


async def test_credits_that_are_approved_pay_debts_first(desk: Desk) -> None:
    await desk.server.service.ledger.PostCharge(pb.PostChargeRequest(intent=intent("run-1", 300)))
    await desk.approve(await desk.propose(credit_request("cus_a", 500)))
    assert await Corrections(desk.server).customer() == (200, 0, 0)


async def test_what_cannot_be_an_adjustment_cannot_be_proposed(desk: Desk) -> None:
    unbalanced = move_request(
        ("cus_a", account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, 1),
        ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, 1),
    )
    assert (await refused(desk.propose(unbalanced))).reason == "INVALID_FIELD"
    assert (await refused(desk.propose(credit_request("cus_nobody", 1)))).reason == "CUSTOMER_NOT_FOUND"
    unknown = pb.Adjustment(adjustment_id="adj_nowhere")
    for call in (desk.approve(unknown), desk.reject(unknown)):
        assert (await refused(call)).reason == "ADJUSTMENT_NOT_FOUND"
    assert await desk.listed() == []


async def test_the_list_is_newest_first_in_pages(desk: Desk) -> None:
    made = [(await desk.propose(credit_request("cus_a", 1, f"{n}"))).adjustment_id for n in range(3)]
    first = await desk.proposer.ledger.ListAdjustments(pb.ListAdjustmentsRequest(page_size=2))
    second = await desk.proposer.ledger.ListAdjustments(
        pb.ListAdjustmentsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [one.adjustment_id for one in (*first.adjustments, *second.adjustments)] == made[::-1]
    assert not second.next_page_token


async def test_without_approval_it_is_posted_at_once_and_known_by_the_same_key(database_url: str) -> None:
    request = credit_request("cus_a", 500)
    async with running_ledger(database_url, adjustment_approval="none") as server:
        await server.create_customer("cus_a")
        posted = await server.operator.ledger.AdjustBalances(request)
        assert posted.adjustment.state == POSTED
        assert posted.adjustment.decider_api_key_id == posted.adjustment.proposer_api_key_id
        assert posted.transaction.entries[0].amount == usd(500)
    # Told otherwise afterwards, the ledger does not propose what is posted.
    async with running_ledger(database_url, adjustment_approval="required") as server:
        assert await server.operator.ledger.AdjustBalances(request) == posted
    assert not await audit(database_url)


async def test_what_was_posted_before_there_were_proposals_is_known_by_its_key(database_url: str) -> None:
    request = credit_request("cus_a", 500)
    async with running_ledger(database_url, adjustment_approval="none") as server:
        await server.create_customer("cus_a")
        posted = await server.operator.ledger.AdjustBalances(request)
        async with await psycopg.AsyncConnection.connect(database_url) as superuser:
            # As an earlier version left it.
            await superuser.execute(
                b"SET session_replication_role = replica; DELETE FROM ledger.decided_adjustment;"
                b"DELETE FROM ledger.adjustment;"
                b"UPDATE ledger.idempotency SET request_hash = (SELECT request_hash FROM ledger.idempotency"
                b" WHERE key LIKE 'adjustment-proposal/%'), key = 'adjustment/k'"
                b" WHERE key LIKE 'adjustment/%';"
                b"DELETE FROM ledger.idempotency WHERE key LIKE 'adjustment-proposal/%'"
            )
        again = await server.operator.ledger.AdjustBalances(request)
        assert again.transaction == posted.transaction
        assert not again.HasField("adjustment")
        other = await refused(server.operator.ledger.AdjustBalances(credit_request("cus_a", 1)))
        assert other.reason == "IDEMPOTENCY_KEY_REUSED"
    assert not await audit(database_url)


async def test_records_never_change(desk: Desk) -> None:
    await desk.approve(await desk.propose(credit_request("cus_a", 500)))
    async with await psycopg.AsyncConnection.connect(desk.server.database_url, autocommit=True) as database:
        await nobody_changes(database, [("ledger", "adjustment"), ("ledger", "decided_adjustment")])
