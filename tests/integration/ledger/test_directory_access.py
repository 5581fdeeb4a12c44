"""Who may do what in the directory: roles, tenants, members, and API keys from creation to their end."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1.access_pb2 import (
    ROLE_BILLING_ADMIN,
    ROLE_CUSTOMER,
    ROLE_HOST,
    ROLE_MEMBER,
    ROLE_OPERATOR,
    ROLE_OWNER,
    ROLE_SERVICE,
)
from tallystick.common.v1.access_pb2 import Role as ProtoRole
from tallystick.ledger.v1 import directory_pb2
from tallystick.ledger.v1 import directory_service_pb2 as pb
from tests.support.ledger_server import Caller, LedgerServer, running_ledger
from tests.support.rpc_errors import refusal
from tests.support.waiting import eventually

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    """A ledger with org_a (agent agt_a, member mem_a), org_b (agt_b, mem_b); cus_a and cus_b."""
    async with running_ledger(database_url) as running:
        for name in ("a", "b"):
            await running.create_organization(f"org_{name}")
            await running.create_customer(f"cus_{name}")
            await running.operator.directory.CreateMember(
                pb.CreateMemberRequest(
                    member_id=f"mem_{name}", organization_id=f"org_{name}", role=ROLE_OWNER
                )
            )
        yield running


@pytest.fixture
async def owner(server: LedgerServer) -> Caller:
    """An owner of org_a."""
    return await server.create_caller(ROLE_OWNER, "owner", organization_id="org_a")


def key_request(role: ProtoRole.ValueType, name: str = "k", **fields: str) -> pb.CreateApiKeyRequest:
    return pb.CreateApiKeyRequest(role=role, idempotency_key=name, **fields)  # type: ignore[arg-type]


async def create_host(
    server: LedgerServer, *, organization_id: str = "", agent_ids: tuple[str, ...] = ()
) -> Caller:
    created = await server.operator.directory.CreateApiKey(
        pb.CreateApiKeyRequest(
            role=ROLE_HOST, organization_id=organization_id, agent_ids=agent_ids, idempotency_key="host"
        )
    )
    return server.caller(created.secret)


async def test_each_rpc_admits_the_roles_that_it_declares(server: LedgerServer) -> None:
    callers = {
        "host": await create_host(server),
        "customer": await server.create_caller(ROLE_CUSTOMER, "c", customer_id="cus_a"),
        "owner": await server.create_caller(ROLE_OWNER, "o", organization_id="org_a"),
        "billing_admin": await server.create_caller(ROLE_BILLING_ADMIN, "b", organization_id="org_a"),
        "member": await server.create_caller(ROLE_MEMBER, "m", organization_id="org_a"),
        "operator": server.operator,
        "service": server.service,
    }
    organization = {"owner", "billing_admin", "member", "operator", "service"}
    for method, request, admitted in (
        ("CreateOrganization", pb.CreateOrganizationRequest(), {"operator"}),
        ("GetOrganization", pb.GetOrganizationRequest(organization_id="org_a"), organization),
        (
            "ListRevenueShareAgreements",
            pb.ListRevenueShareAgreementsRequest(organization_id="org_a"),
            organization - {"member"},
        ),
        ("GetCustomer", pb.GetCustomerRequest(customer_id="cus_a"), {"customer", "operator", "service"}),
        ("CreateCustomer", pb.CreateCustomerRequest(), {"operator"}),
        ("GetAgent", pb.GetAgentRequest(agent_id="agt_a"), organization | {"host"}),
        (
            "CreateAgent",
            pb.CreateAgentRequest(agent_id="agt_new", organization_id="org_a"),
            {"owner", "operator"},
        ),
        ("ListMembers", pb.ListMembersRequest(organization_id="org_a"), {"owner", "operator"}),
        ("ListApiKeys", pb.ListApiKeysRequest(), {"owner", "operator"}),
        ("GetCurrentApiKey", pb.GetCurrentApiKeyRequest(), set(callers)),
        ("ResolveApiKey", pb.ResolveApiKeyRequest(key_hash=bytes(32)), {"service"}),
        ("LookupParties", pb.LookupPartiesRequest(), {"service"}),
    ):
        for role, caller in callers.items():
            call = getattr(caller.directory, method)(request)
            if role in admitted:
                await call
                continue
            answer = await refusal(call)
            assert (answer.code, answer.reason) == (DENIED, "ROLE_NOT_ALLOWED"), f"{role} calls {method}"
            assert answer.metadata["role"] == role


async def test_everybody_may_ask_whose_their_key_is(server: LedgerServer) -> None:
    created = await server.operator.directory.CreateApiKey(
        key_request(ROLE_CUSTOMER, "c", customer_id="cus_a")
    )
    customer = server.caller(created.secret)
    host = await create_host(server, organization_id="org_a", agent_ids=("agt_a",))
    own = (await customer.directory.GetCurrentApiKey(pb.GetCurrentApiKeyRequest())).api_key
    assert own == created.api_key
    its = (await host.directory.GetCurrentApiKey(pb.GetCurrentApiKeyRequest())).api_key
    assert (its.role, its.organization_id, list(its.agent_ids)) == (ROLE_HOST, "org_a", ["agt_a"])


async def test_nobody_without_a_key_is_answered(server: LedgerServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            "/tallystick.ledger.v1.DirectoryService/ListOrganizations",
            request_serializer=pb.ListOrganizationsRequest.SerializeToString,
            response_deserializer=pb.ListOrganizationsResponse.FromString,
        )
        assert (await refusal(call(pb.ListOrganizationsRequest()))).reason == "API_KEY_MISSING"


async def test_an_organization_sees_only_itself(server: LedgerServer, owner: Caller) -> None:
    directory = owner.directory
    organizations = await directory.ListOrganizations(pb.ListOrganizationsRequest())
    assert [one.organization_id for one in organizations.organizations] == ["org_a"]
    agents = await directory.ListAgents(pb.ListAgentsRequest())
    assert [one.agent_id for one in agents.agents] == ["agt_a"]
    keys = await directory.ListApiKeys(pb.ListApiKeysRequest())
    assert [one.organization_id for one in keys.api_keys] == ["org_a"]
    everything = await server.operator.directory.ListApiKeys(pb.ListApiKeysRequest())
    assert len(everything.api_keys) == 3


async def test_another_tenants_ids_do_not_exist(server: LedgerServer, owner: Caller) -> None:
    other_key = await server.operator.directory.CreateApiKey(
        key_request(ROLE_MEMBER, "other", organization_id="org_b")
    )
    directory = owner.directory
    for call, reason in (
        (directory.GetOrganization(pb.GetOrganizationRequest(organization_id="org_b")), "ORGANIZATION"),
        (
            directory.ListRevenueShareAgreements(
                pb.ListRevenueShareAgreementsRequest(organization_id="org_b")
            ),
            "ORGANIZATION",
        ),
        (directory.GetAgent(pb.GetAgentRequest(agent_id="agt_b")), "AGENT"),
        (directory.ListAgents(pb.ListAgentsRequest(organization_id="org_b")), "ORGANIZATION"),
        (directory.CreateAgent(pb.CreateAgentRequest(organization_id="org_b")), "ORGANIZATION"),
        (
            directory.CreateAgentVersion(pb.CreateAgentVersionRequest(agent_id="agt_b", agent_version="1")),
            "AGENT",
        ),
        (directory.ListAgentVersions(pb.ListAgentVersionsRequest(agent_id="agt_b")), "AGENT"),
        (
            directory.CreateMember(pb.CreateMemberRequest(organization_id="org_b", role=ROLE_MEMBER)),
            "ORGANIZATION",
        ),
        (directory.ListMembers(pb.ListMembersRequest(organization_id="org_b")), "ORGANIZATION"),
        (directory.DeleteMember(pb.DeleteMemberRequest(member_id="mem_b")), "MEMBER"),
        (directory.ListApiKeys(pb.ListApiKeysRequest(organization_id="org_b")), "ORGANIZATION"),
        (
            directory.RevokeApiKey(pb.RevokeApiKeyRequest(api_key_id=other_key.api_key.api_key_id)),
            "API_KEY",
        ),
        (directory.CreateApiKey(key_request(ROLE_MEMBER, organization_id="org_b")), "ORGANIZATION"),
        (
            directory.CreateApiKey(key_request(ROLE_OWNER, organization_id="org_a", member_id="mem_b")),
            "MEMBER",
        ),
    ):
        answer = await refusal(call)
        assert (answer.code, answer.reason) == (NOT_FOUND, f"{reason}_NOT_FOUND")
    members = await server.operator.directory.ListMembers(pb.ListMembersRequest(organization_id="org_b"))
    assert [one.HasField("delete_time") for one in members.members] == [False]


async def test_an_id_of_another_tenant_is_taken_but_not_shown(server: LedgerServer, owner: Caller) -> None:
    answer = await refusal(
        owner.directory.CreateAgent(
            pb.CreateAgentRequest(agent_id="agt_b", organization_id="org_a", display_name="agt_b")
        )
    )
    assert (answer.code, answer.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "RESOURCE_ALREADY_EXISTS",
    )


async def test_a_customer_sees_only_itself(server: LedgerServer) -> None:
    customer = await server.create_caller(ROLE_CUSTOMER, "c", customer_id="cus_a")
    listed = await customer.directory.ListCustomers(pb.ListCustomersRequest())
    assert [one.customer_id for one in listed.customers] == ["cus_a"]
    answer = await refusal(customer.directory.GetCustomer(pb.GetCustomerRequest(customer_id="cus_b")))
    assert (answer.code, answer.reason) == (NOT_FOUND, "CUSTOMER_NOT_FOUND")


async def test_the_database_refuses_rows_of_another_tenant(database_url: str, server: LedgerServer) -> None:
    """The second wall: had the service forgotten a check, this is what would hold."""
    insert = (
        "INSERT INTO ledger.agent (agent_id, organization_id, display_name, request_hash, create_time)"
        " VALUES (%s, %s, '', %s, now())"
    )
    with psycopg.connect(database_url) as connection:
        connection.execute("SET LOCAL ROLE ledger_writer")
        connection.execute("SELECT set_config('tallystick.tenants', '{org_a}', true)")
        connection.execute(insert, ("agt_new", "org_a", bytes(32)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute(insert, ("agt_newer", "org_b", bytes(32)))


async def test_an_owner_hands_out_no_more_than_it_has(owner: Caller) -> None:
    for request in (
        key_request(ROLE_OPERATOR),
        key_request(ROLE_SERVICE),
        key_request(ROLE_CUSTOMER, customer_id="cus_a"),
        key_request(ROLE_HOST),
        key_request(ROLE_HOST, "own", organization_id="org_a"),
    ):
        answer = await refusal(owner.directory.CreateApiKey(request))
        assert (answer.code, answer.reason) == (DENIED, "ROLE_NOT_ALLOWED")
        assert answer.metadata["role"] == "owner"
        assert answer.metadata["method"] == "/tallystick.ledger.v1.DirectoryService/CreateApiKey"


async def test_a_key_works_and_shows_its_secret_once(server: LedgerServer) -> None:
    request = pb.CreateApiKeyRequest(
        role=ROLE_HOST,
        organization_id="org_a",
        agent_ids=["agt_a", "agt_a"],
        customer_ids=["cus_b", "cus_a"],
        description="Runtime in Frankfurt",
        idempotency_key="k",
    )
    operator = server.operator
    created = await operator.directory.CreateApiKey(request)
    assert created.secret.startswith(created.api_key.visible_prefix)
    assert len(created.api_key.visible_prefix) == 12
    assert list(created.api_key.agent_ids) == ["agt_a"]
    assert list(created.api_key.customer_ids) == ["cus_a", "cus_b"]
    host = server.caller(created.secret)
    assert (await host.directory.GetAgent(pb.GetAgentRequest(agent_id="agt_a"))).agent.agent_id == "agt_a"

    repeated = await operator.directory.CreateApiKey(request)
    assert repeated.api_key == created.api_key
    assert repeated.secret == ""
    request.description = "Runtime in Paris"
    answer = await refusal(operator.directory.CreateApiKey(request))
    assert (answer.reason, answer.metadata["key"]) == ("IDEMPOTENCY_KEY_REUSED", "k")


async def test_tenants_do_not_share_idempotency_keys(server: LedgerServer, owner: Caller) -> None:
    other = await server.create_caller(ROLE_OWNER, "k", organization_id="org_b")
    ours = await owner.directory.CreateApiKey(key_request(ROLE_MEMBER, organization_id="org_a"))
    theirs = await other.directory.CreateApiKey(key_request(ROLE_MEMBER, organization_id="org_b"))
    assert ours.secret
    assert theirs.secret
    assert ours.api_key.api_key_id != theirs.api_key.api_key_id


async def test_of_concurrent_creations_one_shows_the_secret(owner: Caller) -> None:
    request = key_request(ROLE_MEMBER, organization_id="org_a")
    answers = await asyncio.gather(*(owner.directory.CreateApiKey(request) for _ in range(10)))
    assert len({answer.api_key.api_key_id for answer in answers}) == 1
    assert sum(bool(answer.secret) for answer in answers) == 1


async def test_no_secret_is_stored(database_url: str, owner: Caller) -> None:
    created = await owner.directory.CreateApiKey(key_request(ROLE_MEMBER, organization_id="org_a"))
    with psycopg.connect(database_url) as connection:
        stored = connection.execute(
            "SELECT k.key_hash, k::text, i::text FROM ledger.api_key k, ledger.idempotency i"
            " WHERE k.api_key_id = %s AND i.outcome = k.api_key_id",
            (created.api_key.api_key_id,),
        ).fetchone()
    assert stored is not None
    key_hash, *texts = stored
    assert key_hash == hashlib.sha256(created.secret.encode()).digest()
    assert not any(created.secret[-20:] in text for text in texts)


async def test_everything_wrong_with_a_key_is_told_together(server: LedgerServer) -> None:
    directory = server.operator.directory
    answer = await refusal(
        directory.CreateApiKey(
            pb.CreateApiKeyRequest(
                role=ROLE_SERVICE,
                organization_id="org_a",
                agent_ids=["agt_a"],
                description="\r",
                expire_time=Timestamp(seconds=1),
            )
        )
    )
    assert answer.code is INVALID
    assert answer.fields == ["organization_id", "agent_ids", "description", "idempotency_key", "expire_time"]
    for request, fields in (
        (pb.CreateApiKeyRequest(idempotency_key="k"), ["role"]),
        (key_request(ROLE_OWNER), ["organization_id"]),
        (key_request(ROLE_CUSTOMER, organization_id="org_a"), ["organization_id", "customer_id"]),
        (key_request(ROLE_MEMBER, organization_id="org_a", member_id="mem_a"), ["role"]),
        (
            pb.CreateApiKeyRequest(role=ROLE_OPERATOR, idempotency_key="k", expire_time=Timestamp(seconds=1)),
            ["expire_time"],
        ),
    ):
        answer = await refusal(directory.CreateApiKey(request))
        assert (answer.code, answer.fields) == (INVALID, fields)


async def test_a_key_is_made_only_for_those_who_exist(server: LedgerServer) -> None:
    directory = server.operator.directory
    for request, reason in (
        (key_request(ROLE_OWNER, organization_id="org_x"), "ORGANIZATION"),
        (key_request(ROLE_CUSTOMER, customer_id="cus_x"), "CUSTOMER"),
        (key_request(ROLE_OWNER, organization_id="org_a", member_id="mem_b"), "MEMBER"),
        (pb.CreateApiKeyRequest(role=ROLE_HOST, agent_ids=["agt_x"], idempotency_key="k"), "AGENT"),
        (
            pb.CreateApiKeyRequest(
                role=ROLE_HOST, organization_id="org_a", agent_ids=["agt_b"], idempotency_key="k"
            ),
            "AGENT",
        ),
        (pb.CreateApiKeyRequest(role=ROLE_HOST, customer_ids=["cus_x"], idempotency_key="k"), "CUSTOMER"),
    ):
        answer = await refusal(directory.CreateApiKey(request))
        assert (answer.code, answer.reason) == (NOT_FOUND, f"{reason}_NOT_FOUND")


async def test_a_restricted_host_reaches_its_agents_only(server: LedgerServer) -> None:
    await server.operator.directory.CreateAgent(
        pb.CreateAgentRequest(agent_id="agt_a2", organization_id="org_a")
    )
    host = (await create_host(server, organization_id="org_a", agent_ids=("agt_a2",))).directory
    listed = await host.ListAgents(pb.ListAgentsRequest())
    assert [one.agent_id for one in listed.agents] == ["agt_a2"]
    await host.ListAgentVersions(pb.ListAgentVersionsRequest(agent_id="agt_a2"))
    for call in (
        host.GetAgent(pb.GetAgentRequest(agent_id="agt_a")),
        host.ListAgentVersions(pb.ListAgentVersionsRequest(agent_id="agt_a")),
    ):
        assert (await refusal(call)).reason == "AGENT_NOT_FOUND"


async def test_a_revocation_is_felt(server: LedgerServer, owner: Caller) -> None:
    created = await owner.directory.CreateApiKey(key_request(ROLE_MEMBER, organization_id="org_a"))
    member = server.caller(created.secret)
    await member.directory.ListAgents(pb.ListAgentsRequest())
    request = pb.RevokeApiKeyRequest(api_key_id=created.api_key.api_key_id)
    revoked = await owner.directory.RevokeApiKey(request)
    assert revoked.api_key.HasField("revoke_time")
    assert await owner.directory.RevokeApiKey(request) == revoked

    await eventually(lambda: _is_refused(member))
    answer = await refusal(member.directory.ListAgents(pb.ListAgentsRequest()))
    assert (answer.code, answer.reason) == (UNAUTHENTICATED, "API_KEY_INVALID")
    assert not (await _resolve(server, created.secret)).HasField("api_key")


async def _is_refused(caller: Caller) -> bool:
    try:
        await caller.directory.ListAgents(pb.ListAgentsRequest())
    except grpc.aio.AioRpcError as error:
        return error.code() is UNAUTHENTICATED
    return False


async def _resolve(server: LedgerServer, secret: str) -> pb.ResolveApiKeyResponse:
    return await server.service.directory.ResolveApiKey(
        pb.ResolveApiKeyRequest(key_hash=hashlib.sha256(secret.encode()).digest())
    )


async def test_another_service_learns_who_a_bearer_is(server: LedgerServer) -> None:
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    created = await server.operator.directory.CreateApiKey(
        pb.CreateApiKeyRequest(
            role=ROLE_HOST,
            organization_id="org_a",
            agent_ids=["agt_a"],
            customer_ids=["cus_a"],
            expire_time=ends,
            idempotency_key="k",
        )
    )
    resolved = await _resolve(server, created.secret)
    assert resolved.api_key == created.api_key
    assert resolved.api_key.expire_time == ends
    assert not (await _resolve(server, created.secret + "x")).HasField("api_key")
    answer = await refusal(
        server.service.directory.ResolveApiKey(pb.ResolveApiKeyRequest(key_hash=bytes(31)))
    )
    assert (answer.code, answer.fields) == (INVALID, ["key_hash"])


async def test_a_key_ends_with_its_member(server: LedgerServer, owner: Caller) -> None:
    created = await owner.directory.CreateApiKey(
        key_request(ROLE_OWNER, organization_id="org_a", member_id="mem_a")
    )
    unaffected = await owner.directory.CreateApiKey(key_request(ROLE_OWNER, "k2", organization_id="org_a"))
    request = pb.DeleteMemberRequest(member_id="mem_a")
    deleted = await owner.directory.DeleteMember(request)
    assert deleted.member.HasField("delete_time")
    assert await owner.directory.DeleteMember(request) == deleted
    keys = await _keys(owner)
    assert keys[created.api_key.api_key_id].revoke_time == deleted.member.delete_time
    assert not keys[unaffected.api_key.api_key_id].HasField("revoke_time")
    assert not (await _resolve(server, created.secret)).HasField("api_key")
    answer = await refusal(
        owner.directory.CreateApiKey(
            key_request(ROLE_OWNER, "k3", organization_id="org_a", member_id="mem_a")
        )
    )
    assert (answer.code, answer.reason) == (NOT_FOUND, "MEMBER_NOT_FOUND")


async def test_no_key_outlives_a_member_that_is_removed_meanwhile(
    server: LedgerServer, owner: Caller
) -> None:
    """Keys are made while their member is removed: each is either refused, or revoked with the others."""

    async def create(number: int) -> None:
        await owner.directory.CreateApiKey(
            key_request(ROLE_OWNER, f"key {number}", organization_id="org_a", member_id="mem_a")
        )

    creations = [asyncio.create_task(create(number)) for number in range(15)]
    await asyncio.wait(creations, return_when=asyncio.FIRST_COMPLETED)
    await owner.directory.DeleteMember(pb.DeleteMemberRequest(member_id="mem_a"))
    await asyncio.wait(creations)
    failed = [error for task in creations if (error := task.exception()) is not None]
    assert all(isinstance(error, grpc.aio.AioRpcError) and error.code() is NOT_FOUND for error in failed)
    of_member = [key for key in (await _keys(owner)).values() if key.member_id == "mem_a"]
    assert len(of_member) == 15 - len(failed)
    assert of_member
    assert all(key.HasField("revoke_time") for key in of_member)


async def _keys(caller: Caller) -> dict[str, directory_pb2.ApiKey]:
    listed = await caller.directory.ListApiKeys(pb.ListApiKeysRequest(page_size=1000))
    return {key.api_key_id: key for key in listed.api_keys}
