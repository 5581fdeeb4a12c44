"""DirectoryService over real gRPC and PostgreSQL: organizations, agreements, customers, agents, look-ups."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import directory_service_pb2 as pb
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.rpc_errors import Refusal, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        yield running


def money(currency_code: str, amount_micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount_micros)


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def organization(suffix: str = "a", **changes: str | int) -> pb.CreateOrganizationRequest:
    request = pb.CreateOrganizationRequest(
        organization_id=f"org_{suffix}",
        display_name="Acme",
        platform_fee_bps=1500,
        processing_fee_bps=290,
        settlement_hold_days=7,
    )
    for field, value in changes.items():
        setattr(request, field, value)
    return request


def taken(resource_id: str) -> Refusal:
    return Refusal(ALREADY_EXISTS, "RESOURCE_ALREADY_EXISTS", {"resource_id": resource_id}, [])


def without_request_id(answer: Refusal) -> Refusal:
    metadata = {key: value for key, value in answer.metadata.items() if key != "request_id"}
    return Refusal(answer.code, answer.reason, metadata, answer.fields)


async def test_an_organization_has_an_agreement_from_the_beginning_of_time(server: LedgerServer) -> None:
    directory = server.operator.directory
    created = await directory.CreateOrganization(organization())
    assert created.organization.organization_id == "org_a"
    assert created.organization.display_name == "Acme"
    assert created.agreement.platform_fee_bps == 1500
    assert created.agreement.processing_fee_bps == 290
    assert created.agreement.settlement_hold_days == 7
    assert not created.agreement.HasField("effective_time")
    found = await directory.GetOrganization(pb.GetOrganizationRequest(organization_id="org_a"))
    assert found.organization == created.organization
    listed = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(organization_id="org_a")
    )
    assert list(listed.agreements) == [created.agreement]


async def test_an_id_is_made_where_none_is_chosen(server: LedgerServer) -> None:
    directory = server.operator.directory
    made = [await directory.CreateOrganization(organization(organization_id="")) for _ in range(2)]
    ids = [one.organization.organization_id for one in made]
    assert ids == sorted(set(ids))
    assert all(one.startswith("org_") and len(one) == 30 for one in ids)


async def test_repeating_a_creation_answers_what_exists(server: LedgerServer) -> None:
    directory = server.operator.directory
    first = await directory.CreateOrganization(organization())
    assert await directory.CreateOrganization(organization()) == first
    agent = pb.CreateAgentRequest(agent_id="agt_a", organization_id="org_a", display_name="Solver")
    assert await directory.CreateAgent(agent) == await directory.CreateAgent(agent)
    version = pb.CreateAgentVersionRequest(agent_id="agt_a", agent_version="2.4.1")
    assert await directory.CreateAgentVersion(version) == await directory.CreateAgentVersion(version)
    member = pb.CreateMemberRequest(
        member_id="mem_a", organization_id="org_a", role=access_pb2.ROLE_BILLING_ADMIN
    )
    assert await directory.CreateMember(member) == await directory.CreateMember(member)


async def test_an_id_that_exists_with_other_content_is_refused(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    await directory.CreateOrganization(organization("b"))
    await directory.CreateAgent(pb.CreateAgentRequest(agent_id="agt_a", organization_id="org_a"))
    await directory.CreateCustomer(pb.CreateCustomerRequest(customer_id="cus_a"))
    await directory.CreateMember(
        pb.CreateMemberRequest(member_id="mem_a", organization_id="org_a", role=access_pb2.ROLE_MEMBER)
    )
    for call, resource_id in (
        (directory.CreateOrganization(organization(display_name="Other")), "org_a"),
        (directory.CreateOrganization(organization(platform_fee_bps=1501)), "org_a"),
        (
            directory.CreateAgent(pb.CreateAgentRequest(agent_id="agt_a", organization_id="org_b")),
            "agt_a",
        ),
        (
            directory.CreateCustomer(
                pb.CreateCustomerRequest(customer_id="cus_a", credit_limits=[money("USD", 1)])
            ),
            "cus_a",
        ),
        (
            directory.CreateMember(
                pb.CreateMemberRequest(member_id="mem_a", organization_id="org_a", role=access_pb2.ROLE_OWNER)
            ),
            "mem_a",
        ),
    ):
        assert without_request_id(await refusal(call)) == taken(resource_id)


async def test_concurrent_creations_of_one_id_are_one(server: LedgerServer) -> None:
    directory = server.operator.directory
    answers = await asyncio.gather(*(directory.CreateOrganization(organization()) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    listed = await directory.ListOrganizations(pb.ListOrganizationsRequest())
    assert list(listed.organizations) == [answers[0].organization]


async def test_concurrent_creations_with_different_content_have_one_winner(server: LedgerServer) -> None:
    directory = server.operator.directory

    answers = await asyncio.gather(
        *(directory.CreateOrganization(organization(display_name=f"Acme {number}")) for number in range(20)),
        return_exceptions=True,
    )
    (winner,) = (one.organization.display_name for one in answers if not isinstance(one, BaseException))
    refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert [one.code() for one in refused] == [ALREADY_EXISTS] * 19
    found = await directory.GetOrganization(pb.GetOrganizationRequest(organization_id="org_a"))
    assert found.organization.display_name == winner


async def test_everything_wrong_with_a_request_is_told_together(server: LedgerServer) -> None:
    directory = server.operator.directory
    answer = await refusal(
        directory.CreateOrganization(
            pb.CreateOrganizationRequest(
                organization_id="org/a",
                display_name="a\tb",
                platform_fee_bps=-1,
                processing_fee_bps=10_001,
                settlement_hold_days=366,
            )
        )
    )
    assert (answer.code, answer.reason) == (INVALID, "INVALID_FIELD")
    assert answer.fields == [
        "organization_id",
        "display_name",
        "platform_fee_bps",
        "processing_fee_bps",
        "settlement_hold_days",
    ]
    answer = await refusal(
        directory.CreateRevenueShareAgreement(
            pb.CreateRevenueShareAgreementRequest(
                platform_fee_bps=9_000,
                processing_fee_bps=1_001,
                effective_time=timestamp(datetime(2020, 1, 1, tzinfo=UTC)),
            )
        )
    )
    assert answer.fields == ["organization_id", "processing_fee_bps", "idempotency_key", "effective_time"]
    answer = await refusal(
        directory.CreateCustomer(
            pb.CreateCustomerRequest(
                customer_id="org_a", credit_limits=[money("XXX", 1), money("USD", -1), money("USD", 10**15)]
            )
        )
    )
    assert answer.fields == [
        "customer_id",
        "credit_limits[0].currency_code",
        "credit_limits[1].amount_micros",
        "credit_limits[2].amount_micros",
        "credit_limits[2].currency_code",
    ]
    answer = await refusal(
        directory.CreateAgentVersion(pb.CreateAgentVersionRequest(agent_version="\x00" * 65))
    )
    assert answer.fields == ["agent_id", "agent_version", "agent_version"]
    answer = await refusal(directory.ListMembers(pb.ListMembersRequest(organization_id="acme", page_size=-1)))
    assert answer.fields == ["organization_id", "page_size"]
    assert not (await directory.ListOrganizations(pb.ListOrganizationsRequest())).organizations


async def test_a_time_that_is_none_is_refused(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    for seconds, nanos in ((2**62, 0), (-(2**62), 0), (1, -1), (1, 10**9)):
        answer = await refusal(
            directory.CreateRevenueShareAgreement(
                pb.CreateRevenueShareAgreementRequest(
                    organization_id="org_a",
                    effective_time=Timestamp(seconds=seconds, nanos=nanos),
                    idempotency_key="k",
                )
            )
        )
        assert (answer.code, answer.fields) == (INVALID, ["effective_time"])


async def test_agreements_follow_one_another(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    soon = datetime.now(UTC) + timedelta(days=1)

    def request(key: str, effective_time: datetime | None) -> pb.CreateRevenueShareAgreementRequest:
        return pb.CreateRevenueShareAgreementRequest(
            organization_id="org_a",
            platform_fee_bps=1000,
            processing_fee_bps=300,
            settlement_hold_days=3,
            effective_time=None if effective_time is None else timestamp(effective_time),
            idempotency_key=key,
        )

    now = (await directory.CreateRevenueShareAgreement(request("now", None))).agreement
    assert now.effective_time == now.create_time
    later = (await directory.CreateRevenueShareAgreement(request("later", soon))).agreement
    assert later.effective_time == timestamp(soon)
    for key, effective_time in (
        ("past", datetime.now(UTC) - timedelta(days=1)),
        ("same", soon),
        ("between", soon - timedelta(hours=1)),
        ("now again", None),
    ):
        answer = await refusal(directory.CreateRevenueShareAgreement(request(key, effective_time)))
        assert answer.code is INVALID
        assert set(answer.fields) == {"effective_time"}, key

    first_page = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(organization_id="org_a", page_size=2)
    )
    assert list(first_page.agreements) == [later, now]
    second_page = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(
            organization_id="org_a", page_size=2, page_token=first_page.next_page_token
        )
    )
    (beginning,) = second_page.agreements
    assert not beginning.HasField("effective_time")
    assert second_page.next_page_token == ""


async def test_an_agreement_is_recorded_once_per_key(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    request = pb.CreateRevenueShareAgreementRequest(
        organization_id="org_a", platform_fee_bps=1000, idempotency_key="k"
    )
    answers = await asyncio.gather(*(directory.CreateRevenueShareAgreement(request) for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    listed = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(organization_id="org_a")
    )
    assert len(listed.agreements) == 2
    request.platform_fee_bps = 1001
    answer = await refusal(directory.CreateRevenueShareAgreement(request))
    assert (answer.code, answer.reason) == (ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert answer.metadata["key"] == "k"


async def test_a_refused_request_leaves_its_key_unused(server: LedgerServer) -> None:
    directory = server.operator.directory
    request = pb.CreateRevenueShareAgreementRequest(organization_id="org_a", idempotency_key="k")
    assert (await refusal(directory.CreateRevenueShareAgreement(request))).reason == "ORGANIZATION_NOT_FOUND"
    await directory.CreateOrganization(organization())
    created = await directory.CreateRevenueShareAgreement(request)
    assert created.agreement.organization_id == "org_a"


async def test_concurrent_agreements_never_share_a_beginning(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    await asyncio.gather(
        *(
            directory.CreateRevenueShareAgreement(
                pb.CreateRevenueShareAgreementRequest(organization_id="org_a", idempotency_key=str(number))
            )
            for number in range(10)
        )
    )
    listed = await directory.ListRevenueShareAgreements(
        pb.ListRevenueShareAgreementsRequest(organization_id="org_a")
    )
    times = [one.effective_time.ToNanoseconds() for one in listed.agreements[:-1]]
    assert len(times) == 10
    assert times == sorted(set(times), reverse=True)


async def test_credit_limits_are_kept_per_currency(server: LedgerServer) -> None:
    directory = server.operator.directory
    created = await directory.CreateCustomer(
        pb.CreateCustomerRequest(
            customer_id="cus_a", credit_limits=[money("USD", 5_000_000), money("EUR", 1), money("JPY", 0)]
        )
    )
    assert list(created.customer.credit_limits) == [money("EUR", 1), money("USD", 5_000_000)]
    raised = await directory.SetCreditLimit(
        pb.SetCreditLimitRequest(customer_id="cus_a", credit_limit=money("JPY", 7_000_000))
    )
    assert list(raised.customer.credit_limits) == [
        money("EUR", 1),
        money("JPY", 7_000_000),
        money("USD", 5_000_000),
    ]
    lowered = await directory.SetCreditLimit(
        pb.SetCreditLimitRequest(customer_id="cus_a", credit_limit=money("EUR", 0))
    )
    assert list(lowered.customer.credit_limits) == [money("JPY", 7_000_000), money("USD", 5_000_000)]
    found = await directory.GetCustomer(pb.GetCustomerRequest(customer_id="cus_a"))
    listed = await directory.ListCustomers(pb.ListCustomersRequest())
    assert found.customer == lowered.customer
    assert list(listed.customers) == [lowered.customer]


async def test_repeating_the_creation_of_a_customer_does_not_undo_its_limits(server: LedgerServer) -> None:
    directory = server.operator.directory
    limits = [money("USD", 5), money("EUR", 6)]
    await directory.CreateCustomer(pb.CreateCustomerRequest(customer_id="cus_a", credit_limits=limits))
    changed = await directory.SetCreditLimit(
        pb.SetCreditLimitRequest(customer_id="cus_a", credit_limit=money("USD", 50))
    )
    again = await directory.CreateCustomer(
        pb.CreateCustomerRequest(customer_id="cus_a", credit_limits=reversed(limits))
    )
    assert again.customer == changed.customer


async def test_a_credit_limit_needs_a_customer_and_an_amount(server: LedgerServer) -> None:
    directory = server.operator.directory
    answer = await refusal(
        directory.SetCreditLimit(
            pb.SetCreditLimitRequest(customer_id="cus_nobody", credit_limit=money("USD", 1))
        )
    )
    assert (answer.code, answer.reason) == (NOT_FOUND, "CUSTOMER_NOT_FOUND")
    assert answer.metadata["customer_id"] == "cus_nobody"
    answer = await refusal(directory.SetCreditLimit(pb.SetCreditLimitRequest(customer_id="cus_a")))
    assert answer.fields == ["credit_limit"]
    answer = await refusal(directory.SetCreditLimit(pb.SetCreditLimitRequest(credit_limit=money("", -1))))
    assert answer.fields == ["customer_id", "credit_limit.currency_code", "credit_limit.amount_micros"]


async def test_pages_show_everything_once_in_order(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    await directory.CreateOrganization(organization("b"))
    # Bytewise: capitals before small letters, whatever the locale.
    wanted = [f"agt_{name}" for name in ("0", "A", "Z", "a", "b", "c", "z-1")]
    for agent_id in reversed(wanted):
        await directory.CreateAgent(pb.CreateAgentRequest(agent_id=agent_id, organization_id="org_a"))
    await directory.CreateAgent(pb.CreateAgentRequest(agent_id="agt_other", organization_id="org_b"))
    seen: list[str] = []
    token = ""
    while True:
        page = await directory.ListAgents(
            pb.ListAgentsRequest(organization_id="org_a", page_size=3, page_token=token)
        )
        seen += [agent.agent_id for agent in page.agents]
        assert len(page.agents) <= 3
        if not (token := page.next_page_token):
            break
        last_token = token
    assert seen == wanted
    everything = await directory.ListAgents(pb.ListAgentsRequest())
    assert [one.agent_id for one in everything.agents] == sorted([*wanted, "agt_other"])
    answer = await refusal(
        directory.ListAgents(pb.ListAgentsRequest(organization_id="org_b", page_token=last_token))
    )
    assert (answer.code, answer.reason) == (INVALID, "INVALID_PAGE_TOKEN")


async def test_a_forged_page_token_of_agreements_is_refused(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    # Of a list with the same filter, but whose keys are no times.
    await directory.CreateMember(
        pb.CreateMemberRequest(member_id="mem_a", organization_id="org_a", role=access_pb2.ROLE_MEMBER)
    )
    await directory.CreateMember(
        pb.CreateMemberRequest(member_id="mem_b", organization_id="org_a", role=access_pb2.ROLE_MEMBER)
    )
    members = await directory.ListMembers(pb.ListMembersRequest(organization_id="org_a", page_size=1))
    answer = await refusal(
        directory.ListRevenueShareAgreements(
            pb.ListRevenueShareAgreementsRequest(organization_id="org_a", page_token=members.next_page_token)
        )
    )
    assert (answer.code, answer.reason) == (INVALID, "INVALID_PAGE_TOKEN")


async def test_versions_of_an_agent_are_listed_by_name(server: LedgerServer) -> None:
    directory = server.operator.directory
    await directory.CreateOrganization(organization())
    await directory.CreateAgent(pb.CreateAgentRequest(agent_id="agt_a", organization_id="org_a"))
    for version in ("2.0", "1.0", "β 3"):
        await directory.CreateAgentVersion(
            pb.CreateAgentVersionRequest(agent_id="agt_a", agent_version=version)
        )
    listed = await directory.ListAgentVersions(pb.ListAgentVersionsRequest(agent_id="agt_a"))
    assert [one.agent_version for one in listed.versions] == ["1.0", "2.0", "β 3"]


async def test_what_does_not_exist_is_not_found_by_its_name(server: LedgerServer) -> None:
    directory = server.operator.directory
    for call, reason, metadata in (
        (
            directory.GetOrganization(pb.GetOrganizationRequest(organization_id="org_x")),
            "ORGANIZATION_NOT_FOUND",
            ("organization_id", "org_x"),
        ),
        (
            directory.GetCustomer(pb.GetCustomerRequest(customer_id="cus_x")),
            "CUSTOMER_NOT_FOUND",
            ("customer_id", "cus_x"),
        ),
        (directory.GetAgent(pb.GetAgentRequest(agent_id="agt_x")), "AGENT_NOT_FOUND", ("agent_id", "agt_x")),
        (
            directory.CreateAgent(pb.CreateAgentRequest(organization_id="org_x")),
            "ORGANIZATION_NOT_FOUND",
            ("organization_id", "org_x"),
        ),
        (
            directory.CreateAgentVersion(pb.CreateAgentVersionRequest(agent_id="agt_x", agent_version="1")),
            "AGENT_NOT_FOUND",
            ("agent_id", "agt_x"),
        ),
        (
            directory.ListAgents(pb.ListAgentsRequest(organization_id="org_x")),
            "ORGANIZATION_NOT_FOUND",
            ("organization_id", "org_x"),
        ),
        (
            directory.DeleteMember(pb.DeleteMemberRequest(member_id="mem_x")),
            "MEMBER_NOT_FOUND",
            ("member_id", "mem_x"),
        ),
        (
            directory.RevokeApiKey(pb.RevokeApiKeyRequest(api_key_id="key_x")),
            "API_KEY_NOT_FOUND",
            ("api_key_id", "key_x"),
        ),
    ):
        answer = await refusal(call)
        assert (answer.code, answer.reason) == (NOT_FOUND, reason)
        assert metadata in answer.metadata.items()


async def test_a_look_up_answers_those_who_exist(server: LedgerServer) -> None:
    directory, lookup = server.operator.directory, server.service.directory.LookupParties
    await directory.CreateOrganization(organization())
    agents = [
        (
            await directory.CreateAgent(
                pb.CreateAgentRequest(agent_id=agent_id, organization_id="org_a", display_name="Solver")
            )
        ).agent
        for agent_id in ("agt_a", "agt_b", "agt_c")
    ]
    version = await directory.CreateAgentVersion(
        pb.CreateAgentVersionRequest(agent_id="agt_a", agent_version="1")
    )
    await directory.CreateAgentVersion(pb.CreateAgentVersionRequest(agent_id="agt_c", agent_version="1"))
    for customer_id in ("cus_a", "cus_b"):
        await directory.CreateCustomer(pb.CreateCustomerRequest(customer_id=customer_id))

    found = await lookup(
        pb.LookupPartiesRequest(
            customer_ids=["cus_a", "cus_x", "cus_a"], agent_ids=["agt_b", "agt_a", "agt_x"]
        )
    )
    assert list(found.customer_ids) == ["cus_a"]
    assert sorted(found.agents, key=lambda one: one.agent_id) == agents[:2]
    assert list(found.agent_versions) == [version.version]
    assert await lookup(pb.LookupPartiesRequest()) == pb.LookupPartiesResponse()


async def test_a_look_up_is_bounded(server: LedgerServer) -> None:
    lookup = server.service.directory.LookupParties
    answer = await refusal(lookup(pb.LookupPartiesRequest(customer_ids=["cus_a"] * 1001, agent_ids=["a"])))
    assert (answer.code, answer.fields) == (INVALID, ["customer_ids", "agent_ids[0]"])
    full = await lookup(pb.LookupPartiesRequest(agent_ids=[f"agt_{number}" for number in range(1000)]))
    assert not full.agents
