"""Who may ask what of payouts, and whose: everybody with a key × every RPC × what is org_lark's."""

from __future__ import annotations

import grpc
import pytest

from services.kit.client import connect
from tallystick.common.v1 import access_pb2
from tallystick.payouts.v1 import payout_service_pb2 as pb
from tests.integration.payouts.access import CASES, LARK, METHODS, SERVICES, ask, roles_of
from tests.integration.payouts.world import World
from tests.support.rpc_errors import taken_apart

OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED
# No such thing, or not in its present state.
NO_SUCH, NOT_NOW = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
OF_WREN = frozenset({"owner_of_wren", "billing_admin_of_wren"})


async def _keys(world: World) -> dict[str, tuple[access_pb2.Role.ValueType | None, str]]:
    ledger = world.payouts.ledger
    await ledger.create_customer("cus_ada")
    everybody = {
        "owner": (access_pb2.ROLE_OWNER, LARK, ""),
        "billing_admin": (access_pb2.ROLE_BILLING_ADMIN, LARK, ""),
        "member": (access_pb2.ROLE_MEMBER, LARK, ""),
        "owner_of_wren": (access_pb2.ROLE_OWNER, "org_wren", ""),
        "billing_admin_of_wren": (access_pb2.ROLE_BILLING_ADMIN, "org_wren", ""),
        "host": (access_pb2.ROLE_HOST, "", ""),
        "customer": (access_pb2.ROLE_CUSTOMER, "", "cus_ada"),
    }
    keys: dict[str, tuple[access_pb2.Role.ValueType | None, str]] = {"nobody": (None, "")}
    for name, (role, organization_id, customer_id) in everybody.items():
        caller = await ledger.create_caller(
            role, f"access-{name}", organization_id=organization_id, customer_id=customer_id
        )
        keys[name] = (role, caller.key)
    keys["operator"] = (access_pb2.ROLE_OPERATOR, ledger.operator.key)
    keys["service"] = (access_pb2.ROLE_SERVICE, ledger.service.key)
    return keys


def _rows(world: World) -> list[tuple[object, ...]]:
    tables = world.payouts.query("SELECT tablename FROM pg_tables WHERE schemaname = 'payouts' ORDER BY 1")
    digest = "md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), ''))"
    digests = " UNION ALL ".join(f"SELECT '{table}', {digest} FROM payouts.{table} t" for (table,) in tables)
    return world.payouts.query(f"{digests} ORDER BY 1")


def test_every_method_has_a_case() -> None:
    with_cases = {case.method for case in CASES}
    payments = {method.name for method in SERVICES[-1].methods}
    assert with_cases | payments == set(METHODS)
    assert not with_cases & payments


async def test_nobody_reaches_what_is_another_organizations(still_world: World) -> None:
    world = still_world
    await world.organization(LARK, earned=77)
    await world.organization("org_wren")
    payout = (await world.request(LARK, 33)).payout
    markers = (LARK, payout.payout_id, "33000000", "77000000")
    wrong: list[str] = []
    for name, (role, key) in sorted((await _keys(world)).items(), key=lambda one: one[0] == "operator"):
        async with connect(world.payouts.address, key) as channel:
            for case in CASES:
                method, request = METHODS[case.method], case.request(payout.payout_id)
                before = _rows(world)
                answer = await ask(channel, method, request)
                if name in case.may:
                    if answer.code not in (OK, NO_SUCH if case.method == "RetryProcessorEvent" else NOT_NOW):
                        wrong.append(f"{name} {case.method}: {answer}")
                    continue
                if role is None:
                    wanted = {grpc.StatusCode.UNAUTHENTICATED}
                elif role not in roles_of(method):
                    wanted = {DENIED}
                else:
                    assert name in OF_WREN, (name, case.method)
                    wanted = {NO_SUCH}
                if answer.code not in wanted or _rows(world) != before:
                    wrong.append(f"{name} {case.method}: {answer}")
                asked = str(request)
                wrong += [
                    f"{name} {case.method} shows {marker}: {answer}"
                    for marker in markers
                    if marker in answer.text and marker not in asked
                ]
    assert wrong == []


async def test_who_asks_without_naming_an_organization_sees_its_own(still_world: World) -> None:
    world = still_world
    await world.organization(LARK, earned=77)
    wren = await world.organization("org_wren", earned=10)
    await world.request(LARK, 33)
    own = (await world.request("org_wren", 7)).payout
    listed = await wren.payouts.ListPayouts(pb.ListPayoutsRequest())
    assert [one.payout_id for one in listed.payouts] == [own.payout_id]
    exported = b"".join([part.csv async for part in wren.payouts.ExportPayouts(pb.ExportPayoutsRequest())])
    assert own.payout_id.encode() in exported
    assert LARK.encode() not in exported


@pytest.mark.parametrize("token", ["x", "eyJrIjpbIm5vIHRpbWUiLCJwb19fMSJdLCJmIjoiIn0", "\U0001f600"])
async def test_a_forged_page_token_is_refused(still_world: World, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await still_world.payouts.operator.payouts.ListPayouts(pb.ListPayoutsRequest(page_token=token))
    assert taken_apart(caught.value).reason == "INVALID_PAGE_TOKEN"
