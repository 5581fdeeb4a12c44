"""For every RPC, requests that touch what is bravo's, and who gets it.

An RPC without a case fails the test of the matrix.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from services.kit.auth import hash_api_key
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2 as directory
from tallystick.ledger.v1 import ledger_service_pb2 as ledger
from tallystick.metering.v1 import metering_service_pb2 as metering
from tallystick.metering.v1 import pricing_service_pb2 as pricing
from tests.integration.security.world import (
    PLATFORM,
    World,
    adjust_request,
    book_request,
    charge_intent,
    grant_request,
    publish_request,
    usage_event,
    usd,
)
from tests.support.metering_server import fee, price

OK = grpc.StatusCode.OK
NOT_FOUND = frozenset({grpc.StatusCode.NOT_FOUND})
DENIED = frozenset({grpc.StatusCode.PERMISSION_DENIED})
# That an id is taken cannot be hidden from those who choose ids.
TAKEN = frozenset({grpc.StatusCode.ALREADY_EXISTS})
# A list of what the caller may see, which is none of bravo's.
LISTED = frozenset({OK})
NOTHING = frozenset({grpc.StatusCode.NOT_FOUND, OK})

UNLIMITED_HOST = frozenset({"host"})
# Hosts that the contract lets reach every agent, or every customer.
HOSTS_OF_ANY_AGENT = UNLIMITED_HOST | {"host_of_customers"}
HOSTS_OF_ANY_CUSTOMER = UNLIMITED_HOST | {"host_of_agents"}
# SECURITY.md: "a host key without limits can report usage of any customer", with agents that it may use.
HOSTS_OF_ALPHA_FOR_ANY_CUSTOMER = HOSTS_OF_ANY_CUSTOMER | {"host_alpha"}


@dataclass(frozen=True)
class Case:
    """A request that touches what is bravo's. Those in `reach` get it; the others get one of `refusals`.

    `shared` is for what alpha and bravo share: everybody whose role may is answered, with their own part.
    """

    request: Message
    reach: frozenset[str] = PLATFORM
    refusals: frozenset[grpc.StatusCode] = NOT_FOUND
    shared: bool = False


CASES: dict[str, Callable[[World], Iterable[Case]]] = {}


def case_of(
    service: str, method: str
) -> Callable[[Callable[[World], Iterable[Case]]], Callable[[World], Iterable[Case]]]:
    def register(cases: Callable[[World], Iterable[Case]]) -> Callable[[World], Iterable[Case]]:
        name = f"tallystick.{service}.{method}"
        assert name not in CASES, f"{name} has its cases already"
        CASES[name] = cases
        return cases

    return register


def one(
    service: str, method: str, request: Callable[[World], Message], *, reach: frozenset[str] = PLATFORM
) -> None:
    """The common RPC: one case."""
    case_of(service, method)(lambda world: [Case(request(world), reach)])


LEDGER, DIRECTORY = "ledger.v1.LedgerService", "ledger.v1.DirectoryService"
METERING, PRICING = "metering.v1.MeteringService", "metering.v1.PricingService"


# LedgerService

one(
    LEDGER,
    "PostCharge",
    lambda w: ledger.PostChargeRequest(intent=charge_intent(w.bravo.customer, "wf-post", 7, w.bravo)),
)
one(
    LEDGER,
    "PostCharges",
    lambda w: ledger.PostChargesRequest(intents=[charge_intent(w.bravo.customer, "wf-posts", 7, w.bravo)]),
)
one(LEDGER, "GrantCredits", lambda w: grant_request(w.bravo))
one(LEDGER, "AdjustBalances", lambda w: adjust_request("matrix", w.bravo))
one(
    LEDGER,
    "GetCustomerBalance",
    lambda w: ledger.GetCustomerBalanceRequest(customer_id=w.bravo.customer),
    reach=PLATFORM | HOSTS_OF_ANY_CUSTOMER,
)
one(
    LEDGER,
    "GetEarningsBalance",
    lambda w: ledger.GetEarningsBalanceRequest(organization_id=w.bravo.organization),
)


@case_of(LEDGER, "GetCharge")
def _(world: World) -> Iterator[Case]:
    yield Case(ledger.GetChargeRequest(charge_id=world.bravo.charge))
    yield Case(ledger.GetChargeRequest(charge_id=world.shared_charge), shared=True)


@case_of(LEDGER, "GetTransaction")
def _(world: World) -> Iterator[Case]:
    for transaction_id in (world.bravo.transaction, world.bravo.grant):
        yield Case(ledger.GetTransactionRequest(transaction_id=transaction_id))
    yield Case(ledger.GetTransactionRequest(transaction_id=world.shared_transaction), shared=True)


def _owners(world: World) -> tuple[str, ...]:
    return (world.bravo.customer, world.bravo.organization, "platform")


@case_of(LEDGER, "ListAccounts")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListAccountsRequest(owner_id=owner_id))
    yield Case(ledger.ListAccountsRequest(), refusals=LISTED)


@case_of(LEDGER, "ListTransactions")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListTransactionsRequest(owner_id=owner_id))
    yield Case(ledger.ListTransactionsRequest(), refusals=LISTED)


@case_of(LEDGER, "ListEntries")
def _(world: World) -> Iterator[Case]:
    for owner_id in _owners(world):
        yield Case(ledger.ListEntriesRequest(owner_id=owner_id))
    yield Case(ledger.ListEntriesRequest(), refusals=LISTED)


@case_of(LEDGER, "ReadJournal")
def _(world: World) -> Iterator[Case]:
    yield Case(ledger.ReadJournalRequest())
    yield Case(ledger.ReadJournalRequest(owner_ids=[world.bravo.customer]))


# DirectoryService

one(
    DIRECTORY,
    "CreateOrganization",
    lambda w: directory.CreateOrganizationRequest(
        organization_id=w.bravo.organization,
        display_name=w.bravo.organization,
        platform_fee_bps=1500,
        processing_fee_bps=290,
    ),
)
one(
    DIRECTORY,
    "GetOrganization",
    lambda w: directory.GetOrganizationRequest(organization_id=w.bravo.organization),
)
case_of(DIRECTORY, "ListOrganizations")(
    lambda w: [Case(directory.ListOrganizationsRequest(), refusals=LISTED)]
)
one(
    DIRECTORY,
    "CreateRevenueShareAgreement",
    lambda w: directory.CreateRevenueShareAgreementRequest(
        organization_id=w.bravo.organization, platform_fee_bps=10_000, idempotency_key="matrix"
    ),
)
one(
    DIRECTORY,
    "ListRevenueShareAgreements",
    lambda w: directory.ListRevenueShareAgreementsRequest(organization_id=w.bravo.organization),
)
one(DIRECTORY, "CreateCustomer", lambda w: directory.CreateCustomerRequest(customer_id=w.bravo.customer))
one(DIRECTORY, "GetCustomer", lambda w: directory.GetCustomerRequest(customer_id=w.bravo.customer))
case_of(DIRECTORY, "ListCustomers")(lambda w: [Case(directory.ListCustomersRequest(), refusals=LISTED)])
one(
    DIRECTORY,
    "SetCreditLimit",
    lambda w: directory.SetCreditLimitRequest(customer_id=w.bravo.customer, credit_limit=usd(1)),
)


@case_of(DIRECTORY, "CreateAgent")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(
        directory.CreateAgentRequest(
            agent_id=bravo.agent, organization_id=bravo.organization, display_name=bravo.agent
        )
    )
    yield Case(
        directory.CreateAgentRequest(agent_id=bravo.agent, organization_id=alpha.organization),
        reach=frozenset(),
        refusals=TAKEN,
    )


one(
    DIRECTORY,
    "GetAgent",
    lambda w: directory.GetAgentRequest(agent_id=w.bravo.agent),
    reach=PLATFORM | HOSTS_OF_ANY_AGENT,
)


@case_of(DIRECTORY, "ListAgents")
def _(world: World) -> Iterator[Case]:
    reach = PLATFORM | HOSTS_OF_ANY_AGENT
    of_bravo = directory.ListAgentsRequest(organization_id=world.bravo.organization)
    yield Case(of_bravo, reach, refusals=NOTHING)
    yield Case(directory.ListAgentsRequest(), reach, refusals=LISTED)


one(
    DIRECTORY,
    "CreateAgentVersion",
    lambda w: directory.CreateAgentVersionRequest(agent_id=w.bravo.agent, agent_version="matrix"),
)
one(
    DIRECTORY,
    "ListAgentVersions",
    lambda w: directory.ListAgentVersionsRequest(agent_id=w.bravo.agent),
    reach=PLATFORM | HOSTS_OF_ANY_AGENT,
)


@case_of(DIRECTORY, "CreateMember")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(
        directory.CreateMemberRequest(
            member_id=bravo.member, organization_id=bravo.organization, role=access_pb2.ROLE_OWNER
        )
    )
    yield Case(
        directory.CreateMemberRequest(
            member_id=bravo.member, organization_id=alpha.organization, role=access_pb2.ROLE_OWNER
        ),
        reach=frozenset(),
        refusals=TAKEN,
    )


one(DIRECTORY, "ListMembers", lambda w: directory.ListMembersRequest(organization_id=w.bravo.organization))
one(DIRECTORY, "DeleteMember", lambda w: directory.DeleteMemberRequest(member_id=w.bravo.member))


@case_of(DIRECTORY, "CreateApiKey")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo

    def key(role: access_pb2.Role.ValueType, **fields: object) -> Message:
        fields["idempotency_key"] = f"matrix-{role}-{'-'.join(sorted(fields))}"
        return directory.CreateApiKeyRequest(role=role, **fields)  # type: ignore[arg-type]

    yield Case(key(access_pb2.ROLE_MEMBER, organization_id=bravo.organization))
    # What nobody may have, since it would be alpha's and reach what is bravo's.
    yield Case(
        key(access_pb2.ROLE_OWNER, organization_id=alpha.organization, member_id=bravo.member),
        reach=frozenset(),
    )
    # What only operators hand out.
    yield Case(
        key(access_pb2.ROLE_HOST, organization_id=alpha.organization, agent_ids=[bravo.agent]),
        refusals=DENIED | NOT_FOUND,
        reach=frozenset(),
    )
    yield Case(key(access_pb2.ROLE_CUSTOMER, customer_id=bravo.customer), refusals=DENIED)
    yield Case(key(access_pb2.ROLE_HOST, customer_ids=[bravo.customer]), refusals=DENIED)
    for role in (access_pb2.ROLE_OPERATOR, access_pb2.ROLE_SERVICE):
        yield Case(key(role), refusals=DENIED)


@case_of(DIRECTORY, "ListApiKeys")
def _(world: World) -> Iterator[Case]:
    yield Case(directory.ListApiKeysRequest(organization_id=world.bravo.organization))
    yield Case(directory.ListApiKeysRequest(), refusals=LISTED)


@case_of(DIRECTORY, "RevokeApiKey")
def _(world: World) -> Iterator[Case]:
    for api_key_id in (world.bravo.owner_key, world.bravo.host_key, world.bravo.customer_key):
        yield Case(directory.RevokeApiKeyRequest(api_key_id=api_key_id))


one(
    DIRECTORY,
    "ResolveApiKey",
    lambda w: directory.ResolveApiKeyRequest(key_hash=hash_api_key(w.principals["operator"].key)),
)
one(
    DIRECTORY,
    "LookupParties",
    lambda w: directory.LookupPartiesRequest(customer_ids=[w.bravo.customer], agent_ids=[w.bravo.agent]),
)


# MeteringService


@case_of(METERING, "Meter")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    for customer, agent, reach in (
        (bravo.customer, bravo.agent, UNLIMITED_HOST),
        (alpha.customer, bravo.agent, HOSTS_OF_ANY_AGENT),
        (bravo.customer, alpha.agent, HOSTS_OF_ALPHA_FOR_ANY_CUSTOMER),
    ):
        event = usage_event(customer, agent, f"wf-{agent}-one")
        yield Case(metering.MeterRequest(event=event), reach)


@case_of(METERING, "MeterBatch")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    for customer, agent, reach in (
        (bravo.customer, bravo.agent, UNLIMITED_HOST),
        (alpha.customer, bravo.agent, HOSTS_OF_ANY_AGENT),
        (bravo.customer, alpha.agent, HOSTS_OF_ALPHA_FOR_ANY_CUSTOMER),
    ):
        event = usage_event(customer, agent, f"wf-{agent}-batch")
        yield Case(metering.MeterBatchRequest(events=[event]), reach)


one(
    METERING,
    "GetUsageEvent",
    lambda w: metering.GetUsageEventRequest(customer_id=w.bravo.customer, workflow_id=w.bravo.workflow),
    reach=PLATFORM | UNLIMITED_HOST,
)


# PricingService


@case_of(PRICING, "CreatePriceBook")
def _(world: World) -> Iterator[Case]:
    alpha, bravo = world.alpha, world.bravo
    yield Case(book_request(bravo))
    yield Case(
        pricing.CreatePriceBookRequest(
            price_book_id=bravo.price_book, organization_id=alpha.organization, currency_code="JPY"
        ),
        reach=frozenset(),
        refusals=TAKEN,
    )
    yield Case(pricing.CreatePriceBookRequest(currency_code="USD"), refusals=DENIED)


@case_of(PRICING, "GetPriceBook")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(pricing.GetPriceBookRequest(price_book_id=price_book_id))


case_of(PRICING, "ListPriceBooks")(lambda w: [Case(pricing.ListPriceBooksRequest(), refusals=LISTED)])


@case_of(PRICING, "CreatePriceVersion")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(
            pricing.CreatePriceVersionRequest(
                price_book_id=price_book_id, prices=[price(fee("1"))], idempotency_key=price_book_id
            )
        )


one(
    PRICING,
    "UpdatePriceVersion",
    lambda w: pricing.UpdatePriceVersionRequest(price_version_id=w.bravo.draft, prices=[price(fee("0"))]),
)
one(PRICING, "PublishPriceVersion", lambda w: publish_request(w.bravo))


@case_of(PRICING, "GetPriceVersion")
def _(world: World) -> Iterator[Case]:
    for price_version_id in (world.bravo.published, world.bravo.draft):
        yield Case(pricing.GetPriceVersionRequest(price_version_id=price_version_id))


@case_of(PRICING, "ListPriceVersions")
def _(world: World) -> Iterator[Case]:
    for price_book_id in (world.bravo.price_book, world.platform_book):
        yield Case(pricing.ListPriceVersionsRequest(price_book_id=price_book_id))
