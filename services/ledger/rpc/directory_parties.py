"""RPCs about customers, agents and agent versions."""

from services.kit import ids
from services.kit.auth import current_principal
from services.kit.money import Money
from services.ledger.domain import directory as rules
from services.ledger.domain.directory import Agent, AgentVersion, Customer
from services.ledger.domain.violations import Violations
from services.ledger.rpc import directory_convert as convert
from services.ledger.rpc.directory_base import Context, DirectoryBase, after, page_of
from services.ledger.store import agents, customers, organizations
from services.ledger.store.directory_rows import Connection
from tallystick.ledger.v1 import directory_service_pb2 as pb


class PartyRpcs(DirectoryBase):
    """Part of DirectoryService."""

    async def CreateCustomer(
        self, request: pb.CreateCustomerRequest, context: Context
    ) -> pb.CreateCustomerResponse:
        violations = Violations()
        rules.check_optional_id(violations, request.customer_id, ids.CUSTOMER, "customer_id")
        limits = convert.limits_from_proto(request.credit_limits)
        rules.check_credit_limits(violations, limits)
        violations.raise_if_any()
        new = Customer(
            self._id(ids.CUSTOMER, request.customer_id), self._clock.now(), rules.active_limits(limits)
        )
        customer = await self._write(
            lambda connection: customers.create_customer(
                connection, new, convert.create_customer_hash(request)
            )
        )
        return pb.CreateCustomerResponse(customer=convert.customer_to_proto(customer))

    async def GetCustomer(self, request: pb.GetCustomerRequest, context: Context) -> pb.GetCustomerResponse:
        ids.check_id(request.customer_id, ids.CUSTOMER, field="customer_id")
        async with self._read() as connection:
            customer = await customers.get_customer(connection, request.customer_id)
        return pb.GetCustomerResponse(customer=convert.customer_to_proto(customer))

    async def ListCustomers(
        self, request: pb.ListCustomersRequest, context: Context
    ) -> pb.ListCustomersResponse:
        page = page_of(request, Violations())
        async with self._read() as connection:
            found = await customers.list_customers(
                connection, only=current_principal().customer_id, after=after(page), limit=page.limit
            )
        shown, next_page_token = page.cut(found, lambda one: (one.customer_id,))
        return pb.ListCustomersResponse(
            customers=map(convert.customer_to_proto, shown), next_page_token=next_page_token
        )

    async def SetCreditLimit(
        self, request: pb.SetCreditLimitRequest, context: Context
    ) -> pb.SetCreditLimitResponse:
        violations = Violations()
        rules.check_id(violations, request.customer_id, ids.CUSTOMER, "customer_id")
        wanted = request.credit_limit
        if violations.require(request.HasField("credit_limit"), "credit_limit", "is required"):
            rules.check_credit_limit(violations, wanted.currency_code, wanted.amount_micros, "credit_limit")
        violations.raise_if_any()
        limit = Money(wanted.currency_code, wanted.amount_micros)
        customer = await self._write(
            lambda connection: customers.set_credit_limit(connection, request.customer_id, limit)
        )
        return pb.SetCreditLimitResponse(customer=convert.customer_to_proto(customer))

    async def FreezeCustomer(
        self, request: pb.FreezeCustomerRequest, context: Context
    ) -> pb.FreezeCustomerResponse:
        customer = await self._freeze_customer(request, frozen=True)
        return pb.FreezeCustomerResponse(customer=convert.customer_to_proto(customer))

    async def UnfreezeCustomer(
        self, request: pb.UnfreezeCustomerRequest, context: Context
    ) -> pb.UnfreezeCustomerResponse:
        customer = await self._freeze_customer(request, frozen=False)
        return pb.UnfreezeCustomerResponse(customer=convert.customer_to_proto(customer))

    async def _freeze_customer(
        self, request: pb.FreezeCustomerRequest | pb.UnfreezeCustomerRequest, *, frozen: bool
    ) -> Customer:
        violations = Violations()
        rules.check_id(violations, request.customer_id, ids.CUSTOMER, "customer_id")
        rules.check_reason(violations, request.reason)
        violations.raise_if_any()
        actor = current_principal().api_key_id
        return await self._write(
            lambda connection: customers.freeze(
                connection,
                request.customer_id,
                frozen=frozen,
                reason=request.reason,
                actor_api_key_id=actor,
            )
        )

    async def CreateAgent(self, request: pb.CreateAgentRequest, context: Context) -> pb.CreateAgentResponse:
        violations = Violations()
        rules.check_optional_id(violations, request.agent_id, ids.AGENT, "agent_id")
        rules.check_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        rules.check_text(violations, request.display_name, "display_name", longest=rules.MAX_TEXT_LENGTH)
        violations.raise_if_any()
        new = Agent(
            self._id(ids.AGENT, request.agent_id),
            request.organization_id,
            request.display_name,
            self._clock.now(),
        )
        agent = await self._write(
            lambda connection: agents.create_agent(connection, new, convert.request_hash(request))
        )
        return pb.CreateAgentResponse(agent=convert.agent_to_proto(agent))

    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        ids.check_id(request.agent_id, ids.AGENT, field="agent_id")
        async with self._read() as connection:
            agent = await _reachable_agent(connection, request.agent_id)
        return pb.GetAgentResponse(agent=convert.agent_to_proto(agent))

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        principal = current_principal()
        violations = Violations()
        rules.check_optional_id(violations, request.organization_id, ids.ORGANIZATION, "organization_id")
        page = page_of(request, violations, organization_id=request.organization_id)
        async with self._read() as connection:
            if request.organization_id:
                await organizations.get_organization(connection, request.organization_id)
            found = await agents.list_agents(
                connection,
                organization_id=request.organization_id or principal.organization_id,
                only=principal.agent_ids,
                after=after(page),
                limit=page.limit,
            )
        shown, next_page_token = page.cut(found, lambda one: (one.agent_id,))
        return pb.ListAgentsResponse(
            agents=map(convert.agent_to_proto, shown), next_page_token=next_page_token
        )

    async def CreateAgentVersion(
        self, request: pb.CreateAgentVersionRequest, context: Context
    ) -> pb.CreateAgentVersionResponse:
        violations = Violations()
        rules.check_id(violations, request.agent_id, ids.AGENT, "agent_id")
        rules.check_text(
            violations,
            request.agent_version,
            "agent_version",
            shortest=1,
            longest=rules.MAX_AGENT_VERSION_LENGTH,
        )
        violations.raise_if_any()
        now = self._clock.now()

        async def create(connection: Connection) -> AgentVersion:
            agent = await agents.get_agent(connection, request.agent_id)
            return await agents.create_version(
                connection, AgentVersion(agent.agent_id, request.agent_version, agent.organization_id, now)
            )

        version = await self._write(create)
        return pb.CreateAgentVersionResponse(version=convert.version_to_proto(version))

    async def ListAgentVersions(
        self, request: pb.ListAgentVersionsRequest, context: Context
    ) -> pb.ListAgentVersionsResponse:
        violations = Violations()
        rules.check_id(violations, request.agent_id, ids.AGENT, "agent_id")
        page = page_of(request, violations, agent_id=request.agent_id)
        async with self._read() as connection:
            await _reachable_agent(connection, request.agent_id)
            found = await agents.list_versions(
                connection, request.agent_id, after=after(page), limit=page.limit
            )
        shown, next_page_token = page.cut(found, lambda one: (one.agent_version,))
        return pb.ListAgentVersionsResponse(
            versions=map(convert.version_to_proto, shown), next_page_token=next_page_token
        )

    async def LookupParties(
        self, request: pb.LookupPartiesRequest, context: Context
    ) -> pb.LookupPartiesResponse:
        violations = Violations()
        rules.check_ids(
            violations, request.customer_ids, ids.CUSTOMER, "customer_ids", most=rules.MAX_LOOKUPS
        )
        rules.check_ids(violations, request.agent_ids, ids.AGENT, "agent_ids", most=rules.MAX_LOOKUPS)
        violations.raise_if_any()
        async with self._read() as connection:
            parties = await agents.look_up_parties(connection, request.customer_ids, request.agent_ids)
        return pb.LookupPartiesResponse(
            customer_ids=parties.customer_ids,
            agents=map(convert.agent_to_proto, parties.agents),
            agent_versions=map(convert.version_to_proto, parties.versions),
        )


async def _reachable_agent(connection: Connection, agent_id: str) -> Agent:
    """An agent that the caller may see and its key is not restricted away from. Raises NotFound."""
    if not current_principal().may_use_agent(agent_id):
        raise rules.not_found("agent", agent_id)
    return await agents.get_agent(connection, agent_id)
