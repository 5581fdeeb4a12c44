"""What a case is, for whoever writes some."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from tests.integration.security.world import PLATFORM, World

OK = grpc.StatusCode.OK
NOT_FOUND = frozenset({grpc.StatusCode.NOT_FOUND})
DENIED = frozenset({grpc.StatusCode.PERMISSION_DENIED})
# That an id is taken cannot be hidden from those who choose ids.
TAKEN = frozenset({grpc.StatusCode.ALREADY_EXISTS})
# A list of what the caller may see, which is none of bravo's.
LISTED = frozenset({OK})
# A token that somebody else was given.
NO_TOKEN = frozenset({grpc.StatusCode.INVALID_ARGUMENT})
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


LEDGER, DIRECTORY, CREDIT = "ledger.v1.LedgerService", "ledger.v1.DirectoryService", "ledger.v1.CreditService"
EARNINGS, FUNDING = "ledger.v1.EarningsService", "ledger.v1.FundingService"
AUDIT = "ledger.v1.AuditService"
PROOFS = "ledger.v1.LedgerProofService"
METERING, PRICING = "metering.v1.MeteringService", "metering.v1.PricingService"
BUDGETS, RESERVATIONS = "metering.v1.BudgetService", "metering.v1.ReservationService"
SUBSCRIPTIONS = "metering.v1.SubscriptionService"
USAGE_FEED, CONTRACTS = "metering.v1.UsageFeedService", "metering.v1.ContractService"
RATING = "metering.v1.RatingService"
PERIODS = "metering.v1.PeriodService"
