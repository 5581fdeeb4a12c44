"""Whose reports a key reaches: every role × every RPC × its own, another's and no id. Nothing leaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
import pytest
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from services.kit.auth import Principal, Role, as_principal
from services.kit.errors import PermissionDenied
from services.reporting.rpc.access import owner_of
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import LARK, WREN
from tests.support.reporting_books import Books
from tests.support.reports_server import REPORTING, ReportingServer
from tests.support.rpc_errors import taken_apart

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS: Final[dict[str, MethodDescriptor]] = {method.name: method for method in REPORTING.methods}
YEAR: Final = period_pb2.Period(name="12m")
OF_ORGANIZATIONS: Final[dict[str, Callable[[str], Message]]] = {
    "GetRevenueSummary": lambda owner: pb.GetRevenueSummaryRequest(organization_id=owner),
    "GetRevenueSeries": lambda owner: pb.GetRevenueSeriesRequest(organization_id=owner, period=YEAR),
    "ListTopCustomers": lambda owner: pb.ListTopCustomersRequest(organization_id=owner, period=YEAR),
    "ListTopAgents": lambda owner: pb.ListTopAgentsRequest(organization_id=owner, period=YEAR),
    "GetMargin": lambda owner: pb.GetMarginRequest(organization_id=owner, period=YEAR),
    "ListPayoutHistory": lambda owner: pb.ListPayoutHistoryRequest(organization_id=owner),
}
OF_BOTH: Final[dict[str, Callable[..., Message]]] = {
    "GetUsage": lambda **owner: pb.GetUsageRequest(period=YEAR, include_series=True, **owner),
    "ListCharges": lambda **owner: pb.ListChargesRequest(**owner),
    "GetStatement": lambda **owner: pb.GetStatementRequest(period=YEAR, **owner),
    "ExportTransactions": lambda **owner: pb.ExportTransactionsRequest(period=YEAR, **owner),
}
KEYS: Final = (
    "nobody",
    "host",
    f"host/{LARK}",
    f"member/{LARK}",
    f"owner/{LARK}",
    f"billing_admin/{LARK}",
    f"owner/{WREN}",
    "customer/cus_ada",
    "customer/cus_bob",
    "operator",
    "service",
)
PLATFORM: Final = ("operator", "service")


def _requests(name: str) -> list[tuple[str, Message]]:
    """Requests of a method, each with whom it names."""
    if name in OF_ORGANIZATIONS:
        return [(owner, OF_ORGANIZATIONS[name](owner)) for owner in ("", LARK, WREN, "org_nobody")]
    request = OF_BOTH[name]
    return [
        ("", request()),
        *((owner, request(organization_id=owner)) for owner in (LARK, WREN, "org_nobody")),
        *((owner, request(customer_id=owner)) for owner in ("cus_ada", "cus_bob", "cus_nobody")),
    ]


def _wanted(key: str, method: MethodDescriptor, named: str) -> tuple[grpc.StatusCode, str]:
    """How a call must end: its code and reason."""
    role, _, own = key.partition("/")
    if role == "nobody":
        return grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID"
    admitted = method.GetOptions().Extensions[access_pb2.access].roles
    if access_pb2.Role.Value(f"ROLE_{role.upper()}") not in admitted:
        return grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED"
    if role in PLATFORM:
        return (grpc.StatusCode.OK, "") if named else (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    if named in ("", own):
        return grpc.StatusCode.OK, ""
    kind = "ORGANIZATION" if named.startswith("org_") else "CUSTOMER"
    return grpc.StatusCode.NOT_FOUND, f"{kind}_NOT_FOUND"


async def _ask(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Message
) -> tuple[grpc.StatusCode, str, str]:
    """The code, the reason, and all that was said."""
    shape: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    rpc = shape(
        f"/{REPORTING.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    try:
        call = rpc(request, timeout=60)
        responses = [one async for one in call] if method.server_streaming else [await call]
    except grpc.aio.AioRpcError as error:
        return error.code(), taken_apart(error).reason, f"{error.details()} {error.trailing_metadata()}"
    return grpc.StatusCode.OK, "", "\n".join(map(text_format.MessageToString, responses))


def _secrets(books: Books, key: str) -> set[str]:
    """What a key must never be told: ids of charges and transactions that are not its owner's."""
    _, _, own = key.partition("/")
    visible = {
        one.charge_id
        for one in books.charges
        if own in (one.customer_id, *(payee.organization_id for payee in one.payees))
    }
    organizations = {LARK, WREN, "cus_ada", "cus_bob"} - {own}
    return {one.charge_id for one in books.charges} - visible | organizations


async def test_every_method_is_asked() -> None:
    assert {*OF_ORGANIZATIONS, *OF_BOTH, "GetCharge"} == set(METHODS)


@pytest.mark.parametrize("key", KEYS)
async def test_a_key_reaches_its_own_and_nothing_else(
    reporting: ReportingServer, books: Books, key: str
) -> None:
    reporting.payouts.payouts = [
        payout_service_pb2.GetPayoutResponse(payout=payout_pb2.Payout(payout_id=one, organization_id=owner))
        for one, owner in (("po_1", LARK), ("po_4", WREN))
    ]
    channel, wrong = await reporting.channel(key), []
    own = key.partition("/")[2]
    # Whom an organization serves and who serves a customer is theirs to know.
    known = {"cus_ada", "cus_bob"} if own.startswith("org_") else {LARK, WREN}
    secrets = set() if key in PLATFORM else _secrets(books, key) - known
    for name in (*OF_ORGANIZATIONS, *OF_BOTH):
        for named, request in _requests(name):
            code, reason, said = await _ask(channel, METHODS[name], request)
            if (code, reason) != _wanted(key, METHODS[name], named):
                wrong.append(f"{name}({named}): {code} {reason} {said[:200]}")
            wrong += [f"{name}({named}) shows {one}" for one in secrets - {named} if one in said]
    assert wrong == []


@pytest.mark.parametrize("key", KEYS)
async def test_a_charge_is_shown_to_whom_it_concerns(
    reporting: ReportingServer, books: Books, key: str
) -> None:
    channel, wrong = await reporting.channel(key), []
    role, _, own = key.partition("/")
    for charge in books.charges[:40]:
        code, reason, _ = await _ask(
            channel, METHODS["GetCharge"], pb.GetChargeRequest(charge_id=charge.charge_id)
        )
        wanted = _wanted(key, METHODS["GetCharge"], charge.charge_id)
        if wanted[0] in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND):
            parties = (charge.customer_id, *(payee.organization_id for payee in charge.payees))
            seen = role in PLATFORM or own in parties
            wanted = (grpc.StatusCode.OK, "") if seen else (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
        if (code, reason) != wanted:
            wrong.append(f"{charge.charge_id}: {code} {reason}")
    assert wrong == []


async def test_who_names_both_is_told_to_choose(reporting: ReportingServer) -> None:
    request = pb.GetUsageRequest(organization_id=LARK, customer_id="cus_ada")
    for key in ("operator", f"owner/{LARK}", "customer/cus_ada"):
        code, reason, _ = await _ask(await reporting.channel(key), METHODS["GetUsage"], request)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_restricted_key_gets_no_report() -> None:
    for principal in (
        Principal("key_x", Role.OWNER, organization_id=LARK, agent_ids=frozenset({"agt_x"})),
        Principal("key_x", Role.OWNER, organization_id=LARK, customer_ids=frozenset({"cus_x"})),
    ):
        with as_principal(principal), pytest.raises(PermissionDenied):
            owner_of(pb.GetUsageRequest())
