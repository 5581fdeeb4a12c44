"""A small world behind the dashboard: the services' contracts over real gRPC, with figures made up by rule.

Roles are checked by the interceptor of the kit, from the protos; tenants here, as the services do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.auth import Principal, Role, current_principal
from services.kit.client import connect
from services.kit.clock import FixedClock
from services.kit.errors import NotFound, TallystickError, Unauthenticated, Unavailable
from services.kit.server import RpcServer, ServiceBinding, bind, build_server
from services.reporting.web.app import make_dashboard
from services.reporting.web.backend import Channels
from services.reporting.web.headers import SecuredStarlette
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    correction_pb2,
    directory_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    transaction_pb2,
)
from tallystick.metering.v1 import (
    charge_line_pb2,
    metering_service_pb2,
    metering_service_pb2_grpc,
    price_book_pb2,
    reservation_pb2,
    usage_pb2,
)
from tallystick.payouts.v1 import (
    connect_service_pb2,
    connect_service_pb2_grpc,
    connected_account_pb2,
    payment_service_pb2,
    payment_service_pb2_grpc,
    payout_pb2,
    payout_service_pb2,
    payout_service_pb2_grpc,
    purchase_pb2,
    reconciliation_pb2,
    reconciliation_service_pb2,
    reconciliation_service_pb2_grpc,
)
from tallystick.reporting.v1 import (
    charge_report_pb2,
    period_pb2,
    projection_pb2,
    projection_service_pb2,
    projection_service_pb2_grpc,
    reporting_service_pb2,
    reporting_service_pb2_grpc,
    revenue_pb2,
    statement_pb2,
    usage_report_pb2,
)

NOW: Final = datetime(2026, 11, 29, 14, 3, 20, tzinfo=UTC)
SESSION_SECRET: Final = "a secret of thirty-two characters, or more"
PUBLIC_URL: Final = "http://127.0.0.1:8054"

SIERRA: Final = "org_sierra-research"
AZURE: Final = "org_azure"
ACME: Final = "cus_acme-support"
GLOBEX: Final = "cus_globex"


def key_of(name: str) -> str:
    """An API key as it is written, which tests can tell by its name."""
    return f"tsk_{name}_{name[0] * 43}"


PRINCIPALS: Final[dict[str, Principal]] = {
    "owner": Principal("key_owner", Role.OWNER, organization_id=SIERRA),
    "billing": Principal("key_billing", Role.BILLING_ADMIN, organization_id=SIERRA),
    "member": Principal("key_member", Role.MEMBER, organization_id=SIERRA),
    "stranger": Principal("key_stranger", Role.OWNER, organization_id=AZURE),
    "customer": Principal("key_customer", Role.CUSTOMER, customer_id=ACME),
    "other": Principal("key_other", Role.CUSTOMER, customer_id=GLOBEX),
    "operator": Principal("key_operator", Role.OPERATOR),
    "host": Principal("key_host", Role.HOST),
    "service": Principal("key_service", Role.SERVICE),
}
AGENTS: Final = (
    ("agt_resolver", "Ticket Resolver", 7),
    ("agt_researcher", "Deep Researcher", 4),
    ("agt_reviewer", "Contract Reviewer", 3),
    ("agt_scheduler", "Scheduler", 1),
)
CUSTOMERS: Final = (
    (ACME, 38),
    ("cus_northwind", 21),
    (GLOBEX, 16),
    ("cus_initech", 11),
    ("cus_umbrella", 7),
    ("cus_hooli", 4),
    ("cus_stark", 3),
)


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


def at(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def _noise(*numbers: int) -> int:
    """0 to 999, the same for the same numbers."""
    value = 2_166_136_261
    for number in numbers:
        value = ((value ^ number) * 16_777_619) & 0xFFFFFFFF
    return (value >> 7) % 1_000


def _gross(agent: int, day: date) -> int:
    weekend = 3 if day.weekday() >= 5 else 10
    growth = 400 + (day - date(2025, 11, 1)).days * 2
    return AGENTS[agent][2] * weekend * growth * (600 + _noise(agent, day.toordinal())) // 3 + _noise(
        day.day, agent
    )


def revenue(gross: int, charges: int) -> revenue_pb2.Revenue:
    platform, processing = gross * 1_500 // 10_000, gross * 290 // 10_000
    return revenue_pb2.Revenue(
        gross=usd(gross),
        platform_fees=usd(platform),
        processing_fees=usd(processing),
        net=usd(gross - platform - processing),
        charge_count=charges,
    )


def steps(period: period_pb2.Period, interval: int) -> Iterator[tuple[datetime, datetime]]:
    """The steps of a named period up to NOW."""
    zone = ZoneInfo(period.time_zone or "UTC")
    now = NOW.astimezone(zone)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if interval == period_pb2.INTERVAL_HOUR:
        hour = now.replace(minute=0, second=0, microsecond=0)
        for back in range(23, -1, -1):
            yield hour - timedelta(hours=back), hour - timedelta(hours=back - 1)
    elif interval == period_pb2.INTERVAL_MONTH:
        for back in range(11, -1, -1):
            yield _month(midnight, -back), _month(midnight, 1 - back)
    else:
        for back in range((7 if period.name == "7d" else 30) - 1, -1, -1):
            yield midnight - timedelta(days=back), midnight - timedelta(days=back - 1)


def _month(day: datetime, by: int) -> datetime:
    months = day.year * 12 + day.month - 1 + by
    return day.replace(year=months // 12, month=months % 12 + 1, day=1)


def earned(agent: int, start: datetime, end: datetime) -> int:
    """What an agent earned, gross, from `start` to `end` or NOW."""
    end = min(end, NOW.astimezone(end.tzinfo))
    if end - start <= timedelta(hours=1):
        return _gross(agent, start.date()) * (5 + _noise(agent, start.hour) // 100) // 200
    days = max(1, -(-(end - start) // timedelta(days=1)))
    return sum(_gross(agent, (start + timedelta(days=number)).date()) for number in range(days))


def reported(
    number: int, customer: str = ACME, agent: str = "agt_resolver"
) -> charge_report_pb2.ReportedCharge:
    """A charge of Sierra's for a customer."""
    tokens_in, tokens_out = 9_000 + _noise(number) * 31, 300 + _noise(number, 2) * 3
    won = _noise(number, 3) < 780
    lines = [("run", 1, "0.005", 1, 5_000)]
    lines += [("input", tokens_in, "0.60", 1_000_000, tokens_in * 600_000 // 1_000_000)]
    lines += [("output", tokens_out, "2.40", 1_000_000, tokens_out * 2_400_000 // 1_000_000)]
    lines += [("success", 1, "0.20", 1, 200_000)] if won else []
    gross = sum(line[4] for line in lines)
    work = NOW - timedelta(minutes=11 * number + _noise(number, 5) // 100)
    return charge_report_pb2.ReportedCharge(
        charge_id=f"ch_{number:04d}{_noise(number):03d}f52d94361df7c4a45f553",
        customer_id=customer,
        workflow_id=f"ticket-{4711 - number}",
        component=charge_pb2.CHARGE_COMPONENT_BASE,
        gross=usd(gross),
        corrected=usd(0),
        net=revenue(gross, 1).net,
        agent_id=agent,
        agent_version="2.4.1",
        action_type="ticket.resolve",
        model="gpt-4o-mini",
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        outcome=usage_pb2.OUTCOME_SUCCESS if won else usage_pb2.OUTCOME_FAILURE,
        lines=[
            charge_line_pb2.ChargeLine(
                component_name=name,
                quantity=quantity,
                unit_price=price_book_pb2.UnitPrice(amount=price, per_units=per),
                amount=usd(amount),
            )
            for name, quantity, price, per, amount in lines
        ],
        price_version_id="pv_01m7xj2ex96zkkhb2kskg39v87",
        occur_time=at(work),
        create_time=at(work + timedelta(milliseconds=40)),
    )


def _payouts() -> list[statement_pb2.PayoutRecord]:
    """A paid one, one that the bank sent back, and one that failed."""

    def record(number: int, micros: int, days: int, walk: list[Any], **more: Any) -> Any:
        begun = NOW - timedelta(days=days, hours=3)
        told = [
            payout_pb2.PayoutTransition(
                number=index + 1,
                state=state,
                bank_status=bank,
                create_time=at(begun + timedelta(hours=index * 7, minutes=index * index)),
                actor="stripe",
                reason=reason,
            )
            for index, (state, bank, reason) in enumerate(walk)
        ]
        state, bank, _ = walk[-1]
        return statement_pb2.PayoutRecord(
            payout=payout_pb2.Payout(
                payout_id=f"po_01m7xj2ex96zkkhb2kskg{number:05d}",
                organization_id=SIERRA,
                amount=usd(micros),
                state=state,
                bank_status=bank,
                create_time=at(begun),
                transfer_id=f"tr_1Qx{number}PayOut",
                **more,
            ),
            transitions=told,
            debit_transaction_id=f"txn_01a1fb213996e05f3eff27834c{number:02d}",
            end_transaction_id=f"txn_01a1fb213996e05f3eff27834d{number:02d}",
        )

    requested = (payout_pb2.PAYOUT_STATE_REQUESTED, payout_pb2.BANK_STATUS_UNSPECIFIED, "")
    sending = (payout_pb2.PAYOUT_STATE_PROCESSING, payout_pb2.BANK_STATUS_UNSPECIFIED, "")

    def done(bank: Any, reason: str = "") -> Any:
        return payout_pb2.PAYOUT_STATE_COMPLETED, bank, reason

    waiting, transit = done(payout_pb2.BANK_STATUS_WAITING), done(payout_pb2.BANK_STATUS_IN_TRANSIT)
    return [
        record(7, 310_000_000, 0, [requested, sending, waiting, transit]),
        record(
            6, 1_240_500_000, 6, [requested, sending, waiting, transit, done(payout_pb2.BANK_STATUS_PAID)]
        ),
        record(
            5,
            980_000_000,
            13,
            [requested, sending, waiting, transit, done(payout_pb2.BANK_STATUS_FAILED, "account_closed")],
            bank_failure_code="account_closed",
        ),
        record(
            4,
            75_250_000,
            20,
            [
                requested,
                sending,
                (payout_pb2.PAYOUT_STATE_FAILED, payout_pb2.BANK_STATUS_UNSPECIFIED, "account_invalid"),
            ],
            failure_code="account_invalid",
            failure_reason="The connected account was closed.",
        ),
        record(3, 864_120_000, 27, [requested, sending, waiting, transit, done(payout_pb2.BANK_STATUS_PAID)]),
    ]


@dataclass
class World:
    """What the services know. A test changes it, and looks at what they were asked."""

    keys: dict[str, Principal] = field(
        default_factory=lambda: {key_of(name): principal for name, principal in PRINCIPALS.items()}
    )
    organizations: dict[str, directory_pb2.Organization] = field(default_factory=dict)
    customers: dict[str, directory_pb2.Customer] = field(default_factory=dict)
    agents: list[directory_pb2.Agent] = field(default_factory=list)
    charges: list[charge_report_pb2.ReportedCharge] = field(default_factory=list)
    corrections: list[correction_pb2.Correction] = field(default_factory=list)
    payouts: list[statement_pb2.PayoutRecord] = field(default_factory=_payouts)
    purchases: list[purchase_pb2.Purchase] = field(default_factory=list)
    methods: list[purchase_pb2.PaymentMethod] = field(default_factory=list)
    account: connected_account_pb2.ConnectedAccount = field(
        default_factory=lambda: connected_account_pb2.ConnectedAccount(
            organization_id=SIERRA,
            stripe_account_id="acct_1QxSierraResearch",
            state=connected_account_pb2.CONNECTED_ACCOUNT_STATE_ACTIVE,
            bank_payouts_enabled=True,
            explanation="It can receive transfers, and sends them on to its bank.",
            country_code="US",
        )
    )
    onboarding_url: str = "https://connect.stripe.example/setup/s/acct_1Qx"
    action_url: str = ""
    purchase_state: int = purchase_pb2.PURCHASE_STATE_SUCCEEDED
    available: int = 1_482_377_184
    position: int = 30_067
    # Services that do not answer, and what services or methods raise when they are asked.
    away: set[str] = field(default_factory=set)
    refusing: dict[str, TallystickError] = field(default_factory=dict)
    failing: dict[str, TallystickError] = field(default_factory=dict)
    # Everything that was asked: the method, by whom, and what.
    asked: list[tuple[str, Principal, Message]] = field(default_factory=list)

    async def authenticate(self, api_key: str) -> Principal:
        if "ledger" in self.away:
            raise Unavailable("the ledger is away")
        if api_key not in self.keys:
            raise Unauthenticated("the API key is unknown, revoked or expired")
        return self.keys[api_key]

    def hear(self, service: str, request: Message) -> Principal:
        """Note a request, and fail as the test wants."""
        principal = current_principal()
        name = type(request).__name__.removesuffix("Request")
        self.asked.append((name, principal, request))
        if service in self.away:
            raise Unavailable(f"{service} is away")
        if service in self.refusing:
            raise self.refusing[service].fresh()
        if name in self.failing:
            raise self.failing[name].fresh()
        return principal

    def organization(self, principal: Principal, organization_id: str) -> directory_pb2.Organization:
        own = principal.organization_id
        found = self.organizations.get(organization_id)
        if found is None or (own is not None and own != organization_id) or principal.customer_id:
            raise NotFound("no such organization", reason="ORGANIZATION_NOT_FOUND")
        return found

    def customer(self, principal: Principal, customer_id: str) -> directory_pb2.Customer:
        own = principal.customer_id
        found = self.customers.get(customer_id)
        if found is None or (own is not None and own != customer_id) or principal.organization_id:
            raise NotFound("no such customer", reason="CUSTOMER_NOT_FOUND")
        return found

    def owner(self, principal: Principal, owner_id: str) -> None:
        if owner_id.startswith("cus_"):
            self.customer(principal, owner_id)
        else:
            self.organization(principal, owner_id)

    def charge(self, principal: Principal, charge_id: str) -> charge_report_pb2.ReportedCharge:
        for one in self.charges:
            mine = principal.is_platform or principal.organization_id == SIERRA
            if one.charge_id == charge_id and (mine or principal.customer_id == one.customer_id):
                return one
        raise NotFound("no such charge", reason="CHARGE_NOT_FOUND")

    def told(self, name: str) -> list[tuple[Principal, Any]]:
        """The requests of one method."""
        return [(principal, request) for method, principal, request in self.asked if method == name]


def populated() -> World:
    """Two organizations, customers of one of them, charges and purchases."""
    world = World()
    for organization_id, name in ((SIERRA, "Sierra Research"), (AZURE, "Azure Traces")):
        world.organizations[organization_id] = directory_pb2.Organization(
            organization_id=organization_id, display_name=name, create_time=at(NOW - timedelta(days=390))
        )
    for customer_id, _ in CUSTOMERS:
        world.customers[customer_id] = directory_pb2.Customer(
            customer_id=customer_id, create_time=at(NOW - timedelta(days=200))
        )
    world.agents = [
        directory_pb2.Agent(
            agent_id=agent_id,
            organization_id=SIERRA,
            display_name=name,
            create_time=at(NOW - timedelta(days=300 - 30 * index)),
        )
        for index, (agent_id, name, _) in enumerate(AGENTS)
    ]
    world.charges = [
        reported(
            number, CUSTOMERS[_noise(number) % 3][0] if number else ACME, AGENTS[_noise(number, 1) % 3][0]
        )
        for number in range(30)
    ]
    corrected = world.charges[0]
    corrected.corrected.CopyFrom(usd(20_000))
    world.corrections = [
        correction_pb2.Correction(
            charge_id=corrected.charge_id,
            correction_id="goodwill-1",
            amount=usd(20_000),
            reason="The answer came twice.",
            create_time=at(NOW - timedelta(minutes=2)),
        )
    ]
    world.methods = [
        purchase_pb2.PaymentMethod(
            payment_method_id="pm_1QxVisa",
            customer_id=ACME,
            type="card",
            brand="visa",
            last4="4242",
            expire_month="2028-04",
            is_default=True,
        ),
        purchase_pb2.PaymentMethod(
            payment_method_id="pm_1QxMastercard",
            customer_id=ACME,
            type="card",
            brand="mastercard",
            last4="4444",
            expire_month="2027-11",
        ),
    ]
    world.purchases = [
        _purchase(3, 100_000_000, 4, purchase_pb2.PURCHASE_STATE_SUCCEEDED),
        _purchase(
            2,
            250_000_000,
            11,
            purchase_pb2.PURCHASE_STATE_FAILED,
            failure_code="insufficient_funds",
            failure_reason="The card has insufficient funds.",
        ),
        _purchase(1, 50_000_000, 33, purchase_pb2.PURCHASE_STATE_SUCCEEDED, refunded=usd(10_000_000)),
    ]
    return world


def _purchase(number: int, micros: int, days: int, state: int, **more: Any) -> purchase_pb2.Purchase:
    return purchase_pb2.Purchase(
        purchase_id=f"pur_01m7xj2ex96zkkhb2kskg{number:05d}",
        customer_id=ACME,
        amount=usd(micros),
        state=state,  # type: ignore[arg-type]
        payment_method_id="pm_1QxVisa",
        create_time=at(NOW - timedelta(days=days)),
        **more,
    )


class _Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def GetOrganization(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        found = self._world.organization(principal, request.organization_id)
        return directory_service_pb2.GetOrganizationResponse(organization=found)

    async def ListOrganizations(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        return directory_service_pb2.ListOrganizationsResponse(
            organizations=list(self._world.organizations.values())
        )

    async def GetCustomer(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        found = self._world.customer(principal, request.customer_id)
        return directory_service_pb2.GetCustomerResponse(customer=found)

    async def ListCustomers(self, request: Any, context: Any) -> Any:
        self._world.hear("ledger", request)
        return directory_service_pb2.ListCustomersResponse(customers=list(self._world.customers.values()))

    async def ListAgents(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.organization(principal, request.organization_id)
        mine = [one for one in self._world.agents if one.organization_id == request.organization_id]
        return directory_service_pb2.ListAgentsResponse(agents=mine)


class _Ledger(ledger_service_pb2_grpc.LedgerServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def GetEarningsBalance(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.organization(principal, request.organization_id)
        return ledger_service_pb2.GetEarningsBalanceResponse(
            balance=account_pb2.EarningsBalance(
                organization_id=request.organization_id,
                available=usd(self._world.available),
                pending=usd(204_118_902),
                uncollected=usd(12_400_000),
            )
        )

    async def ListAccounts(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.owner(principal, request.owner_id)
        reference = account_pb2.AccountRef(
            owner_id=request.owner_id, kind=account_pb2.ACCOUNT_KIND_PAYOUTS_IN_TRANSIT, currency_code="USD"
        )
        return ledger_service_pb2.ListAccountsResponse(
            accounts=[ledger_service_pb2.Account(account=reference, balance=usd(310_000_000))]
        )

    async def GetCharge(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        return ledger_service_pb2.GetChargeResponse(
            charge=self._posted(self._world.charge(principal, request.charge_id), principal)
        )

    def _posted(self, one: charge_report_pb2.ReportedCharge, principal: Principal) -> charge_pb2.Charge:
        shares = revenue(one.gross.amount_micros, 1)
        charge = charge_pb2.Charge(
            charge_id=one.charge_id,
            customer_id=one.customer_id,
            workflow_id=one.workflow_id,
            component=one.component,
            gross=one.gross,
            corrected=one.corrected,
            occur_time=one.occur_time,
            create_time=one.create_time,
            price_version_id=one.price_version_id,
        )
        if principal.organization_id is None:
            charge.payment.from_credits.CopyFrom(one.gross)
            charge.captured.CopyFrom(one.gross)
        if principal.customer_id is None:
            charge.earnings.add(
                organization_id=SIERRA,
                agent_id=one.agent_id,
                gross=shares.gross,
                platform_fee=shares.platform_fees,
                processing_fee=shares.processing_fees,
                net=shares.net,
                platform_fee_bps=1_500,
                processing_fee_bps=290,
            )
        return charge

    async def ListCorrections(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("ledger", request)
        self._world.charge(principal, request.charge_id)
        found = [one for one in self._world.corrections if one.charge_id == request.charge_id]
        return ledger_service_pb2.ListCorrectionsResponse(corrections=found)

    async def ReadJournal(self, request: Any, context: Any) -> AsyncIterator[Any]:
        principal = self._world.hear("ledger", request)
        head = self._world.position
        count = min(request.batch_size, 20, len(self._world.charges))
        yield ledger_service_pb2.ReadJournalResponse(
            log_id="log_1",
            head_position=head,
            last_position=head if request.after_position else 1,
            transactions=[
                ledger_service_pb2.SequencedTransaction(
                    position=head - number,
                    transaction=transaction_pb2.Transaction(
                        create_time=at(NOW - timedelta(seconds=3 * number))
                    ),
                    charge=self._posted(self._world.charges[number], principal),
                )
                for number in range(count - 1, -1, -1)
                if request.include_charges
            ],
        )


class _Metering(metering_service_pb2_grpc.MeteringServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def GetBalance(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("metering", request)
        self._world.customer(principal, request.customer_id)
        return metering_service_pb2.GetBalanceResponse(
            balance=reservation_pb2.Balance(
                customer_id=request.customer_id,
                credits=usd(81_240_118),
                available=usd(78_518_106 if request.customer_id == ACME else 0),
                reserved=usd(2_122_012),
                held=usd(600_000),
                receivable=usd(0),
                unpaid=usd(0),
                credit_limit=usd(25_000_000),
                credit_room=usd(25_000_000),
                chargebacks=usd(0),
            )
        )


class _Payouts(payout_service_pb2_grpc.PayoutServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world
        self._by_key: dict[str, payout_pb2.Payout] = {}

    async def RequestPayout(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        known = self._by_key.get(request.idempotency_key)
        if known is None:
            known = payout_pb2.Payout(
                payout_id=f"po_new{len(self._by_key)}",
                organization_id=request.organization_id,
                amount=request.amount,
                state=payout_pb2.PAYOUT_STATE_REQUESTED,
                create_time=at(NOW),
            )
            self._by_key[request.idempotency_key] = known
            step = payout_pb2.PayoutTransition(number=1, state=known.state, create_time=at(NOW))
            self._world.payouts.insert(0, statement_pb2.PayoutRecord(payout=known, transitions=[step]))
            return payout_service_pb2.RequestPayoutResponse(payout=known)
        return payout_service_pb2.RequestPayoutResponse(payout=known, duplicate=True)


class _Connect(connect_service_pb2_grpc.ConnectServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def CreateOnboardingLink(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        return connect_service_pb2.CreateOnboardingLinkResponse(
            url=self._world.onboarding_url, account=self._world.account
        )

    async def GetConnectedAccount(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.organization(principal, request.organization_id)
        account = self._world.account
        if request.organization_id != account.organization_id:
            account = connected_account_pb2.ConnectedAccount(
                organization_id=request.organization_id,
                state=connected_account_pb2.CONNECTED_ACCOUNT_STATE_ONBOARDING,
                explanation="Open an onboarding link to be paid.",
            )
        return connect_service_pb2.GetConnectedAccountResponse(account=account)


class _Payments(payment_service_pb2_grpc.PaymentServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world
        self._by_key: dict[str, purchase_pb2.Purchase] = {}

    async def ListPaymentMethods(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        return payment_service_pb2.ListPaymentMethodsResponse(payment_methods=self._world.methods)

    async def ListPurchases(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        mine = [one for one in self._world.purchases if one.customer_id == request.customer_id]
        return payment_service_pb2.ListPurchasesResponse(purchases=mine)

    async def PurchaseCredits(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("payouts", request)
        self._world.customer(principal, request.customer_id)
        made = self._by_key.get(request.idempotency_key)
        if made is None:
            made = purchase_pb2.Purchase(
                purchase_id=f"pur_new{len(self._by_key)}",
                customer_id=request.customer_id,
                amount=request.amount,
                state=self._world.purchase_state,  # type: ignore[arg-type]
                create_time=at(NOW),
            )
            self._by_key[request.idempotency_key] = made
            self._world.purchases.insert(0, made)
        return payment_service_pb2.PurchaseCreditsResponse(purchase=made, action_url=self._world.action_url)


class _Reconciliation(reconciliation_service_pb2_grpc.ReconciliationServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def Reconcile(self, request: Any, context: Any) -> Any:
        self._world.hear("payouts", request)
        total = reconciliation_pb2.ReconciledTotal(
            processor=usd(36_783_760_000), ledger=usd(36_783_760_000), matched_count=1_204
        )
        return reconciliation_service_pb2.ReconcileResponse(totals=[total])


class _Reporting(reporting_service_pb2_grpc.ReportingServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    def _organization(self, request: Any) -> bool:
        """Whether it has earned anything: the other one has not."""
        principal = self._world.hear("reporting", request)
        self._world.organization(principal, request.organization_id)
        return bool(request.organization_id == SIERRA and self._world.charges)

    def _as_of(self) -> period_pb2.AsOf:
        return period_pb2.AsOf(journal_position=self._world.position, time=at(NOW))

    async def GetRevenueSummary(self, request: Any, context: Any) -> Any:
        active = self._organization(request)
        trend = self._points(period_pb2.Period(name="12m", time_zone=request.time_zone), None, active, 3)
        month = self._revenue(trend[-1].revenue.gross.amount_micros if active else 0)
        before = self._revenue(trend[-2].revenue.gross.amount_micros * 29 // 31 if active else 0)
        return reporting_service_pb2.GetRevenueSummaryResponse(
            organization_id=request.organization_id,
            month_to_date=month,
            previous_month_to_date=before,
            run_rate=revenue_pb2.RunRate(
                monthly_proxy=month.net, annual_proxy=usd(12 * month.net.amount_micros)
            ),
            standing=revenue_pb2.EarningsStanding(
                available=usd(self._world.available if active else 0),
                pending=usd(204_118_902 if active else 0),
                uncollected=usd(12_400_000 if active else 0),
                in_transit=usd(310_000_000 if active else 0),
            ),
            trend=trend,
            lifetime=self._revenue(sum(one.revenue.gross.amount_micros for one in trend)),
            as_of=self._as_of(),
        )

    def _revenue(self, gross: int) -> revenue_pb2.Revenue:
        return revenue(gross, gross // 190_000)

    def _points(
        self, period: period_pb2.Period, agent: int | None, active: bool, interval: int
    ) -> list[revenue_pb2.RevenuePoint]:
        agents = range(len(AGENTS)) if agent is None else [agent]
        return [
            revenue_pb2.RevenuePoint(
                start_time=at(start),
                revenue=self._revenue(sum(earned(one, start, end) for one in agents) if active else 0),
            )
            for start, end in steps(period, interval)
        ]

    def _series(self, request: Any, agent: int | None, active: bool) -> revenue_pb2.RevenueSeries:
        points = self._points(request.period, agent, active, request.interval)
        return revenue_pb2.RevenueSeries(
            key="" if agent is None else AGENTS[agent][0],
            points=points,
            total=self._revenue(sum(one.revenue.gross.amount_micros for one in points)),
        )

    async def GetRevenueSeries(self, request: Any, context: Any) -> Any:
        active = self._organization(request)
        if request.grouping == revenue_pb2.REVENUE_GROUPING_AGENT:
            series = [self._series(request, agent, active) for agent in range(len(AGENTS))]
        else:
            series = [self._series(request, None, active)]
        return reporting_service_pb2.GetRevenueSeriesResponse(
            series=series, interval=request.interval, as_of=self._as_of()
        )

    def _groups(self, request: Any, weights: list[tuple[str, int]]) -> tuple[list[Any], revenue_pb2.Revenue]:
        interval = {"24h": period_pb2.INTERVAL_HOUR, "12m": period_pb2.INTERVAL_MONTH}.get(
            request.period.name, period_pb2.INTERVAL_DAY
        )
        total = sum(
            one.revenue.gross.amount_micros for one in self._points(request.period, None, True, interval)
        )
        parts = sum(weight for _, weight in weights)
        groups = [
            revenue_pb2.RevenueGroup(
                key=key, revenue=self._revenue(total * weight // parts), share_bps=weight * 10_000 // parts
            )
            for key, weight in weights
        ]
        return groups, self._revenue(total)

    async def ListTopAgents(self, request: Any, context: Any) -> Any:
        if not self._organization(request):
            return reporting_service_pb2.ListTopAgentsResponse()
        weights = [(one.agent_id, AGENTS[index % 4][2]) for index, one in enumerate(self._world.agents)]
        agents, total = self._groups(request, weights)
        return reporting_service_pb2.ListTopAgentsResponse(agents=agents, total=total)

    async def ListTopCustomers(self, request: Any, context: Any) -> Any:
        if not self._organization(request):
            return reporting_service_pb2.ListTopCustomersResponse()
        customers, total = self._groups(request, list(CUSTOMERS))
        return reporting_service_pb2.ListTopCustomersResponse(
            customers=customers,
            total=total,
            customer_count=len(customers),
            top_five_share_bps=9_300,
            concentration_index=2_296,
        )

    async def GetUsage(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        self._world.customer(principal, request.customer_id)
        if request.customer_id != ACME:
            return reporting_service_pb2.GetUsageResponse(as_of=self._as_of())
        points = [
            usage_report_pb2.UsagePoint(
                start_time=at(start), totals=_usage(sum(earned(one, start, end) for one in range(3)) // 3)
            )
            for start, end in steps(request.period, request.interval)
        ]
        groups = [
            usage_report_pb2.UsageGroup(
                key=AGENTS[index][0],
                totals=_usage(sum(one.totals.cost.amount_micros for one in points) * weight // 14),
            )
            for index, weight in ((0, 7), (1, 4), (2, 3))
        ]
        total = _usage(sum(one.totals.cost.amount_micros for one in points))
        return reporting_service_pb2.GetUsageResponse(
            groups=groups, total=total, points=points, as_of=self._as_of()
        )

    async def ListCharges(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        if request.customer_id:
            self._world.customer(principal, request.customer_id)
            found = [one for one in self._world.charges if one.customer_id == request.customer_id]
        else:
            self._world.organization(principal, request.organization_id)
            found = self._world.charges if request.organization_id == SIERRA else []
        return reporting_service_pb2.ListChargesResponse(
            charges=found[: request.page_size or 50], as_of=self._as_of()
        )

    async def GetCharge(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        return reporting_service_pb2.GetChargeResponse(
            charge=self._world.charge(principal, request.charge_id), as_of=self._as_of()
        )

    async def ListPayoutHistory(self, request: Any, context: Any) -> Any:
        principal = self._world.hear("reporting", request)
        self._world.organization(principal, request.organization_id)
        mine = [one for one in self._world.payouts if one.payout.organization_id == request.organization_id]
        return reporting_service_pb2.ListPayoutHistoryResponse(payouts=mine[: request.page_size or 50])


def _usage(cost: int) -> usage_report_pb2.UsageTotals:
    executions = cost // 190_000
    success, failure = executions * 812 // 1_000, executions * 97 // 1_000
    totals = usage_report_pb2.UsageTotals(
        execution_count=executions,
        input_tokens=executions * 18_042,
        output_tokens=executions * 911,
        cost=usd(cost),
        outcomes=usage_report_pb2.OutcomeCounts(
            success=success, failure=failure, unknown=executions - success - failure
        ),
    )
    if success + failure:
        totals.success_rate_bps = success * 10_000 // (success + failure)
    return totals


class _Projections(projection_service_pb2_grpc.ProjectionServiceServicer):
    def __init__(self, world: World) -> None:
        self._world = world

    async def ListProjections(self, request: Any, context: Any) -> Any:
        self._world.hear("reporting", request)
        head = self._world.position

        def progress(feed: str, position: int, lag: Duration) -> projection_pb2.FeedProgress:
            return projection_pb2.FeedProgress(
                feed=feed, log_id="log_1", position=position, head_position=head, lag=lag, hear_time=at(NOW)
            )

        lag = Duration()
        lag.FromMilliseconds(180)
        return projection_service_pb2.ListProjectionsResponse(
            projections=[
                projection_pb2.Projection(
                    projection_id=2,
                    state=projection_pb2.PROJECTION_STATE_SERVING,
                    feeds=[progress("journal", head, Duration()), progress("usage", head - 12, lag)],
                    create_time=at(NOW - timedelta(days=3)),
                )
            ]
        )


def _bound(module: Any, name: str, register: Callable[..., None], kind: Any, world: World) -> ServiceBinding:
    # What a kind leaves out is answered UNIMPLEMENTED, by its base.
    return bind(module.DESCRIPTOR.services_by_name[name], register, kind(world))


def _bindings(world: World) -> dict[str, list[ServiceBinding]]:
    return {
        "ledger": [
            _bound(
                directory_service_pb2,
                "DirectoryService",
                directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server,
                _Directory,
                world,
            ),
            _bound(
                ledger_service_pb2,
                "LedgerService",
                ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server,
                _Ledger,
                world,
            ),
        ],
        "metering": [
            _bound(
                metering_service_pb2,
                "MeteringService",
                metering_service_pb2_grpc.add_MeteringServiceServicer_to_server,
                _Metering,
                world,
            )
        ],
        "payouts": [
            _bound(
                payout_service_pb2,
                "PayoutService",
                payout_service_pb2_grpc.add_PayoutServiceServicer_to_server,
                _Payouts,
                world,
            ),
            _bound(
                connect_service_pb2,
                "ConnectService",
                connect_service_pb2_grpc.add_ConnectServiceServicer_to_server,
                _Connect,
                world,
            ),
            _bound(
                payment_service_pb2,
                "PaymentService",
                payment_service_pb2_grpc.add_PaymentServiceServicer_to_server,
                _Payments,
                world,
            ),
            _bound(
                reconciliation_service_pb2,
                "ReconciliationService",
                reconciliation_service_pb2_grpc.add_ReconciliationServiceServicer_to_server,
                _Reconciliation,
                world,
            ),
        ],
        "reporting": [
            _bound(
                reporting_service_pb2,
                "ReportingService",
                reporting_service_pb2_grpc.add_ReportingServiceServicer_to_server,
                _Reporting,
                world,
            ),
            _bound(
                projection_service_pb2,
                "ProjectionService",
                projection_service_pb2_grpc.add_ProjectionServiceServicer_to_server,
                _Projections,
                world,
            ),
        ],
    }


@dataclass(frozen=True)
class Served:
    """The dashboard, with its world behind it."""

    app: SecuredStarlette
    world: World
    clock: FixedClock
    servers: dict[str, RpcServer]

    async def stop(self, service: str) -> None:
        """Let a service be away for good."""
        await self.servers[service].stop(timedelta(0))


@asynccontextmanager
async def dashboard(world: World, *, public_url: str = PUBLIC_URL) -> AsyncIterator[Served]:
    """The dashboard before the services of `world`."""
    async with AsyncExitStack() as cleanup:
        channels, servers = {}, {}
        for name, bindings in _bindings(world).items():
            server = build_server(services=bindings, authenticator=world)
            address = server.listen("127.0.0.1:0")
            await server.start()
            cleanup.push_async_callback(server.stop, timedelta(0))
            servers[name] = server
            channels[name] = await cleanup.enter_async_context(connect(address, None))
        clock = FixedClock(NOW)
        app = make_dashboard(
            channels=Channels(**channels),
            authenticator=world,
            session_secrets=[SESSION_SECRET],
            public_url=public_url,
            clock=clock,
        )
        yield Served(app, world, clock, servers)
