"""Payouts as payouts says, with their transactions as the journal says."""

from __future__ import annotations

import grpc
import pytest

from tallystick.common.v1 import money_pb2
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import LARK, WREN
from tests.support.reporting_books import Books
from tests.support.reports_server import ReportingServer
from tests.support.rpc_errors import refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _payout(payout_id: str, organization_id: str = LARK) -> payout_service_pb2.GetPayoutResponse:
    return payout_service_pb2.GetPayoutResponse(
        payout=payout_pb2.Payout(
            payout_id=payout_id,
            organization_id=organization_id,
            amount=money_pb2.Money(currency_code="USD", amount_micros=1000),
            bank_status=payout_pb2.BANK_STATUS_PAID,
        ),
        transitions=[payout_pb2.PayoutTransition(number=1, actor=f"who asked for {payout_id}")],
    )


async def test_payouts_have_their_steps_and_transactions(reporting: ReportingServer, books: Books) -> None:
    # The journal has not been read as far as po_9.
    reporting.payouts.payouts = [_payout(one) for one in ("po_9", "po_3", "po_2", "po_1")]
    reporting.payouts.payouts.append(_payout("po_4", WREN))
    owner = await reporting.caller(f"owner/{LARK}")
    found = await owner.ListPayoutHistory(pb.ListPayoutHistoryRequest())
    transactions: dict[str, str] = {
        one.type: one.transaction_id for one in books.movements(LARK) if one.type.startswith("payout")
    }
    assert [one.payout.payout_id for one in found.payouts] == ["po_9", "po_3", "po_2", "po_1"]
    last, taken, returned, completed = found.payouts
    assert (last.debit_transaction_id, last.end_transaction_id) == ("", "")
    assert (taken.debit_transaction_id, taken.end_transaction_id) == (transactions["payout"], "")
    assert returned.end_transaction_id == transactions["payout_return"]
    assert completed.end_transaction_id == transactions["payout_completion"]
    assert completed.debit_transaction_id not in ("", taken.debit_transaction_id)
    assert [one.actor for one in completed.transitions] == ["who asked for po_1"]
    assert found.as_of.journal_position == books.position
    assert reporting.payouts.asked_for == [LARK]


async def test_history_comes_in_pages(reporting: ReportingServer) -> None:
    reporting.payouts.payouts = [_payout(f"po_{number}") for number in range(130)]
    operator = await reporting.caller("operator")
    request = pb.ListPayoutHistoryRequest(organization_id=LARK, page_size=1000)
    first = await operator.ListPayoutHistory(request)
    assert len(first.payouts) == 100
    request.page_token = first.next_page_token
    second = await operator.ListPayoutHistory(request)
    assert len(second.payouts) == 30
    assert second.next_page_token == ""


@pytest.mark.parametrize("page_size", [-1])
async def test_a_negative_page_size_is_refused(reporting: ReportingServer, page_size: int) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    refused = await refusal(owner.ListPayoutHistory(pb.ListPayoutHistoryRequest(page_size=page_size)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_size"])


async def test_without_payouts_there_is_no_history(reporting: ReportingServer) -> None:
    reporting.payouts.away = True
    owner = await reporting.caller(f"owner/{LARK}")
    refused = await refusal(owner.ListPayoutHistory(pb.ListPayoutHistoryRequest()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
