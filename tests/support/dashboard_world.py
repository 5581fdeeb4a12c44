"""A small world behind the dashboard: two organizations and their customers, with figures made up by rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.auth import Principal, Role, current_principal
from services.kit.errors import NotFound, TallystickError, Unauthenticated, Unavailable
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import (
    audit_pb2,
    charge_pb2,
    correction_pb2,
    directory_pb2,
)
from tallystick.metering.v1 import (
    charge_line_pb2,
    price_book_pb2,
    usage_pb2,
)
from tallystick.payouts.v1 import (
    connected_account_pb2,
    payout_pb2,
    purchase_pb2,
)
from tallystick.reporting.v1 import (
    charge_report_pb2,
    period_pb2,
    revenue_pb2,
    statement_pb2,
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


def audit_of(audit_id: str, position: int, **found: int) -> audit_pb2.Audit:
    """An audit an hour ago; `found` is how many differences checks found."""
    names = ["transactions_balance", "accounts_match_entries", "buckets_match_entries", "nothing_overdrawn"]
    started = NOW - timedelta(hours=1)
    return audit_pb2.Audit(
        audit_id=audit_id,
        log_id="log_1",
        position=position,
        snapshot_time=at(started),
        end_time=at(started + timedelta(seconds=41)),
        sound=not found,
        failed_check_count=len(found),
        checks=[
            audit_pb2.AuditCheck(
                name=name,
                promise="the credits and debits of every account are those of its entries",
                difference_count=found.get(name, 0),
                differences=[
                    f'{{"owner_id": "cus_acme-support", "off_by": {one}}}'
                    for one in range(found.get(name, 0))
                ],
            )
            for name in [*names, *(name for name in found if name not in names)]
        ],
        actor_api_key_id="ledger",
    )


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


def unit_price(amount: str, per_units: int = 0) -> price_book_pb2.UnitPrice:
    return price_book_pb2.UnitPrice(amount=amount, per_units=per_units)


def _ticket_price(bonus: str) -> price_book_pb2.Price:
    """One of everything that a price can say."""
    tiers = [
        price_book_pb2.Tier(up_to=1_000, price=unit_price("0.02")),
        price_book_pb2.Tier(price=unit_price("0.01"), fee=unit_price("5.00")),
    ]
    return price_book_pb2.Price(
        name="tickets",
        selector=price_book_pb2.PriceSelector(action_types=["ticket.resolve"], agent_ids=["agt_resolver"]),
        components=[
            price_book_pb2.PriceComponent(
                name="run", base_fee=price_book_pb2.BaseFee(price=unit_price("0.005"))
            ),
            price_book_pb2.PriceComponent(
                name="input",
                token_rate=price_book_pb2.TokenRate(
                    token_kind=price_book_pb2.TOKEN_KIND_INPUT, price=unit_price("0.60", 1_000_000)
                ),
            ),
            price_book_pb2.PriceComponent(
                name="success",
                outcome_bonus=price_book_pb2.OutcomeBonus(
                    outcome=usage_pb2.OUTCOME_SUCCESS, price=unit_price(bonus)
                ),
                condition="result.reopened == false",
            ),
            price_book_pb2.PriceComponent(
                name="units",
                meter_rate=price_book_pb2.MeterRate(
                    meter="compute_units",
                    tier_mode=price_book_pb2.TIER_MODE_GRADUATED,
                    tier_scope=price_book_pb2.TIER_SCOPE_BILLING_PERIOD,
                    tiers=tiers,
                ),
            ),
            price_book_pb2.PriceComponent(
                name="reasoning",
                meter_rate=price_book_pb2.MeterRate(
                    meter="reasoning_tokens",
                    models=["gpt-*"],
                    tiers=[price_book_pb2.Tier(price=unit_price("4", 1_000_000))],
                ),
            ),
        ],
        outcome_factors=[price_book_pb2.OutcomeFactor(outcome=usage_pb2.OUTCOME_PARTIAL, basis_points=5_000)],
        discounts=[
            price_book_pb2.Discount(
                name="launch", basis_points=1_250, end_time=at(datetime(2026, 12, 24, tzinfo=UTC))
            ),
            price_book_pb2.Discount(
                name="volume",
                volume=price_book_pb2.VolumeDiscount(
                    steps=[
                        price_book_pb2.VolumeDiscountStep(from_amount=unit_price("1000"), basis_points=1_000)
                    ]
                ),
            ),
        ],
        minimum=unit_price("0.01"),
        maximum=unit_price("2.50"),
        period_maximum=unit_price("5000"),
    )


def _versions() -> list[price_book_pb2.PriceVersion]:
    """Of Sierra's book: a draft, one to come, the one in force and the one before; and the platform's."""

    def version(
        number: int, days: int | None, prices: list[Any], book: str = "pb_sierra", **more: Any
    ) -> Any:
        found = price_book_pb2.PriceVersion(
            price_version_id=f"pv_{book.removeprefix('pb_')}-{number}",
            price_book_id=book,
            version_number=number,
            state=price_book_pb2.PRICE_VERSION_STATE_DRAFT,
            prices=prices,
            create_time=at(NOW - timedelta(days=40)),
            **more,
        )
        if days is not None:
            found.state = price_book_pb2.PRICE_VERSION_STATE_PUBLISHED
            found.effective_time.CopyFrom(at(NOW - timedelta(days=days)))
            found.publish_time.CopyFrom(at(NOW - timedelta(days=max(days, 1))))
            found.publisher_api_key_id = "key_owner"
        return found

    flat = price_book_pb2.Price(
        name="anything",
        components=[
            price_book_pb2.PriceComponent(
                name="run", base_fee=price_book_pb2.BaseFee(price=unit_price("0.05"))
            )
        ],
    )
    meters = [
        price_book_pb2.MeterFormula(
            meter="compute_units",
            terms=[
                price_book_pb2.MeterTerm(meter="cpu_milliseconds", units="1", per_units=1_000),
                price_book_pb2.MeterTerm(meter="inference_calls", units="2.5"),
            ],
        )
    ]
    plans = [
        price_book_pb2.Plan(
            name="team",
            fee=unit_price("99.00"),
            seat_fee=unit_price("12.00"),
            allowances=[
                price_book_pb2.Allowance(meter="compute_units", quantity=5_000, quantity_per_seat=250)
            ],
        )
    ]
    return [
        version(4, None, [flat]),
        version(3, -10, [_ticket_price("0.30"), flat], meters=meters),
        version(2, 3, [_ticket_price("0.20"), flat], meters=meters, plans=plans),
        version(1, 40, [flat]),
        version(1, 40, [flat], "pb_platform"),
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
    price_versions: list[price_book_pb2.PriceVersion] = field(default_factory=_versions)
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
    audit: audit_pb2.Audit | None = field(default_factory=lambda: audit_of("aud_first", 29_812))
    running: audit_pb2.AuditProgress | None = None
    checks_per_look: int = 19
    # Of lists of charges.
    next_page_token: str = ""
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
