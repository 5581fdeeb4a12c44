"""Charges as their payer and as their payees see them."""

from __future__ import annotations

from datetime import UTC

import grpc
import pytest

from services.kit.runs import ChargeKind, kind_of, service_period
from tallystick.ledger.v1 import charge_pb2
from tallystick.metering.v1 import charge_line_pb2, usage_pb2
from tallystick.reporting.v1 import charge_report_pb2, period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import LARK, NOW, WREN
from tests.support.reporting_books import Books, Charge
from tests.support.reports_server import ReportingServer
from tests.support.rpc_errors import refusal, taken_apart

pytestmark = pytest.mark.asyncio(loop_scope="module")


_KINDS = {
    ChargeKind.USAGE: charge_report_pb2.CHARGE_KIND_USAGE,
    ChargeKind.SUBSCRIPTION: charge_report_pb2.CHARGE_KIND_SUBSCRIPTION,
    ChargeKind.PERIOD_CLOSE: charge_report_pb2.CHARGE_KIND_PERIOD_CLOSE,
}


def _newest(charges: list[Charge]) -> list[Charge]:
    return sorted(charges, key=lambda one: (one.occur_time, one.charge_id), reverse=True)


def _check(
    books: Books, found: charge_report_pb2.ReportedCharge, charge: Charge, organization_id: str = ""
) -> None:
    """`organization_id` is that of the reader, unless it is the payer."""
    own = [
        one
        for one in books.earned
        if one.charge is charge and (not organization_id or one.organization_id == organization_id)
    ]
    event = charge.event
    assert found.charge_id == charge.charge_id
    assert (found.customer_id, found.workflow_id, found.ordinal) == (
        charge.customer_id,
        charge.workflow_id,
        0,
    )
    assert charge_pb2.ChargeComponent.Name(found.component).lower().endswith(charge.component)
    assert found.gross.currency_code == charge.currency
    assert found.occur_time.ToDatetime(UTC) == charge.occur_time
    assert found.create_time.ToDatetime(UTC) == charge.post_time
    assert found.price_version_id == "pv_1"
    assert found.kind == _KINDS[kind_of(charge.workflow_id)]
    service = service_period(charge.workflow_id, charge.occur_time)
    assert found.HasField("service_start_time") == found.HasField("service_end_time") == (service is not None)
    if service is not None:
        assert found.service_start_time.ToDatetime(UTC) == service.start
        assert found.service_end_time.ToDatetime(UTC) == service.end
    billed = sum(one.billed for one in own if one.type == "charge")
    assert found.gross.amount_micros == (billed if organization_id else charge.gross)
    assert found.corrected.amount_micros == -sum(one.billed for one in own if one.type == "correction")
    if organization_id:
        assert found.net.amount_micros == sum(one.net for one in own)
        assert found.agent_id == own[0].agent_id
    else:
        assert not found.HasField("net")
    seen = event is not None and organization_id in ("", event.organization_id)
    assert bool(found.action_type) == seen
    if event is not None and seen:
        assert (found.action_type, found.agent_version) == (event.action, event.agent_version)
        assert (found.model, found.input_tokens, found.output_tokens) == (
            event.model,
            event.input_tokens,
            event.output_tokens,
        )
        assert usage_pb2.Outcome.Name(found.outcome) == f"OUTCOME_{event.outcome.upper()}"
        assert sum(line.amount.amount_micros for line in found.lines) == charge.gross
        # The last one is what a discount took off.
        assert (found.lines[0].tier, found.lines[-1].kind) == (
            2,
            charge_line_pb2.CHARGE_LINE_KIND_DISCOUNT,
        )
        assert found.lines[-1].amount.amount_micros < 0
    else:
        assert not found.lines


@pytest.mark.parametrize("key", [f"owner/{LARK}", f"owner/{WREN}", "customer/cus_ada"])
async def test_pages_hold_every_charge_once(reporting: ReportingServer, books: Books, key: str) -> None:
    owner_id = key.partition("/")[2]
    caller = await reporting.caller(key)
    wanted = _newest(
        [
            one
            for one in books.charges
            if owner_id in (one.customer_id, *(payee.organization_id for payee in one.payees))
        ]
    )
    found: list[charge_report_pb2.ReportedCharge] = []
    request = pb.ListChargesRequest(page_size=33)
    while True:
        page = await caller.ListCharges(request)
        found += page.charges
        assert page.as_of.journal_position == books.position
        if not page.next_page_token:
            break
        assert len(page.charges) == 33
        request.page_token = page.next_page_token
    assert len(found) == len(wanted)
    for one, charge in zip(found, wanted, strict=True):
        _check(books, one, charge, owner_id if owner_id.startswith("org_") else "")


async def test_lists_are_filtered(reporting: ReportingServer, books: Books) -> None:
    operator = await reporting.caller("operator")
    found = await operator.ListCharges(
        pb.ListChargesRequest(
            organization_id=LARK,
            currency_code="USD",
            agent_id="agt_lark_scribe",
            period=period_pb2.Period(name="7d"),
            page_size=1000,
        )
    )
    wanted = [
        one.charge_id
        for one in _newest(books.charges)
        if one.currency == "USD"
        and one.payees[0].agent_id == "agt_lark_scribe"
        and (NOW.date() - one.occur_time.date()).days < 7
    ]
    assert [one.charge_id for one in found.charges] == wanted
    assert wanted
    of_customer = await operator.ListCharges(
        pb.ListChargesRequest(customer_id="cus_ada", agent_id="agt_lark_scribe", page_size=1000)
    )
    assert [one.charge_id for one in of_customer.charges] == [
        one.charge_id
        for one in _newest(books.charges)
        if one.customer_id == "cus_ada" and one.event and one.event.agent_id == "agt_lark_scribe"
    ]


async def test_a_charge_is_seen_by_its_payer_its_payees_and_the_platform(
    reporting: ReportingServer, books: Books
) -> None:
    shared = next(one for one in books.charges if len(one.payees) == 2 and one.event and one.gross)
    for key, organization_id in ((f"owner/{LARK}", LARK), (f"owner/{WREN}", WREN)):
        found = await (await reporting.caller(key)).GetCharge(pb.GetChargeRequest(charge_id=shared.charge_id))
        _check(books, found.charge, shared, organization_id)
    for key in (f"customer/{shared.customer_id}", "operator", "service"):
        found = await (await reporting.caller(key)).GetCharge(pb.GetChargeRequest(charge_id=shared.charge_id))
        _check(books, found.charge, shared)
        assert found.charge.agent_id == shared.payees[0].agent_id
    for key in ("owner/org_new", "customer/cus_new"):
        refused = await refusal(
            (await reporting.caller(key)).GetCharge(pb.GetChargeRequest(charge_id=shared.charge_id))
        )
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
        assert refused.metadata["charge_id"] == shared.charge_id


async def test_the_platform_sees_the_agent_of_a_charge_that_was_not_metered(
    reporting: ReportingServer, books: Books
) -> None:
    charge = next(one for one in books.charges if one.event is None)
    found = await (await reporting.caller("operator")).GetCharge(
        pb.GetChargeRequest(charge_id=charge.charge_id)
    )
    assert found.charge.agent_id == charge.payees[0].agent_id
    assert found.charge.action_type == ""


async def test_a_page_token_of_another_list_is_refused(reporting: ReportingServer) -> None:
    owner = await reporting.caller(f"owner/{LARK}")
    page = await owner.ListCharges(pb.ListChargesRequest(page_size=1))
    for request in (
        pb.ListChargesRequest(page_token=page.next_page_token, currency_code="EUR"),
        pb.ListChargesRequest(page_token=page.next_page_token, period=period_pb2.Period(name="30d")),
        pb.ListChargesRequest(page_token="nonsense"),
        # Well-formed, and no time in it.
        pb.ListChargesRequest(page_token="eyJrIjpbIm5vIHRpbWUiLCJjaF8xIl0sImYiOiIifQ"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await owner.ListCharges(request)
        assert taken_apart(caught.value).reason == "INVALID_PAGE_TOKEN"
    operator = await reporting.caller("operator")
    refused = await refusal(
        operator.ListCharges(pb.ListChargesRequest(organization_id=WREN, page_token=page.next_page_token))
    )
    assert refused.reason == "INVALID_PAGE_TOKEN"
