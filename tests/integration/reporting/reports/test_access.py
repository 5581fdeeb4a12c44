"""Whose reports a key reaches: every role × every RPC × its own, another's and no id. Nothing leaks."""

from __future__ import annotations

from typing import Final

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from services.kit.auth import Principal, Role, as_principal
from services.kit.errors import PermissionDenied
from services.reporting.rpc.access import owner_of
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import payout_pb2, payout_service_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.access import METHODS, OF_BOTH, OF_ORGANIZATIONS, ask, requests_of
from tests.integration.reporting.reports.facts import LARK, WREN
from tests.support.reach import Reach, RecordProperty
from tests.support.reporting_books import Books
from tests.support.reports_server import ReportingServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
    reporting: ReportingServer, books: Books, key: str, record_property: RecordProperty
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
    reach = Reach()
    for name in (*OF_ORGANIZATIONS, *OF_BOTH):
        for named, request in requests_of(name):
            code, reason, said = await ask(channel, METHODS[name], request)
            if (code, reason) != _wanted(key, METHODS[name], named):
                wrong.append(f"{name}({named}): {code} {reason} {said[:200]}")
            shown = [f"{name}({named}) shows {one}" for one in secrets - {named} if one in said]
            wrong += shown
            reach.count(key, name, answered=code is grpc.StatusCode.OK)
            reach.leaks += bool(shown)
    reach.record(record_property, "RPCs of reporting")
    assert wrong == []


@pytest.mark.parametrize("key", KEYS)
async def test_a_charge_is_shown_to_whom_it_concerns(
    reporting: ReportingServer, books: Books, key: str, record_property: RecordProperty
) -> None:
    reach = Reach()
    channel, wrong = await reporting.channel(key), []
    role, _, own = key.partition("/")
    for charge in books.charges[:40]:
        code, reason, _ = await ask(
            channel, METHODS["GetCharge"], pb.GetChargeRequest(charge_id=charge.charge_id)
        )
        wanted = _wanted(key, METHODS["GetCharge"], charge.charge_id)
        if wanted[0] in (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND):
            parties = (charge.customer_id, *(payee.organization_id for payee in charge.payees))
            seen = role in PLATFORM or own in parties
            wanted = (grpc.StatusCode.OK, "") if seen else (grpc.StatusCode.NOT_FOUND, "CHARGE_NOT_FOUND")
        if (code, reason) != wanted:
            wrong.append(f"{charge.charge_id}: {code} {reason}")
        answered = code is grpc.StatusCode.OK
        reach.count(key, "GetCharge", answered=answered)
        reach.leaks += answered and wanted[0] is not code
    reach.record(record_property, "RPCs of reporting")
    assert wrong == []


async def test_who_names_both_is_told_to_choose(reporting: ReportingServer) -> None:
    request = pb.GetUsageRequest(organization_id=LARK, customer_id="cus_ada")
    for key in ("operator", f"owner/{LARK}", "customer/cus_ada"):
        code, reason, _ = await ask(await reporting.channel(key), METHODS["GetUsage"], request)
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_restricted_key_gets_no_report() -> None:
    for principal in (
        Principal("key_x", Role.OWNER, organization_id=LARK, agent_ids=frozenset({"agt_x"})),
        Principal("key_x", Role.OWNER, organization_id=LARK, customer_ids=frozenset({"cus_x"})),
    ):
        with as_principal(principal), pytest.raises(PermissionDenied):
            owner_of(pb.GetUsageRequest())
