"""Who takes part, and what must hold of them: organizations, customers, agents, members, API keys."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.kit import ids
from services.kit.auth import Principal, Role
from services.kit.errors import AlreadyExists, NotFound, PermissionDenied
from services.kit.money import MAX_AMOUNT_MICROS, Money, check_currency
from services.ledger.domain.violations import Violations

MAX_TEXT_LENGTH = 200
MAX_REASON_LENGTH = 500
MAX_AGENT_VERSION_LENGTH = 64
MAX_IDEMPOTENCY_KEY_LENGTH = 128
MAX_FEE_BPS = 10_000
MAX_HOLD_DAYS = 365
# Bounds what one key makes every service keep in memory.
MAX_KEY_RESTRICTIONS = 1000
# Bounds one LookupParties, of customers and agents each.
MAX_LOOKUPS = 1000

KEY_HASH_BYTES = 32

AGREEMENT = "rsa"
MEMBER_ROLES = frozenset({Role.OWNER, Role.BILLING_ADMIN, Role.MEMBER})
# Not host keys: whoever reports usage takes customers' money, so the platform says who may.
_CREATED_BY_OWNERS = MEMBER_ROLES

# Control characters, line and paragraph separators. Format characters stay: some scripts need them.
_REFUSED_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
# Reorder what follows, so that a name could read as another one.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True, slots=True)
class Freeze:
    """Since when somebody is frozen, and why."""

    reason: str
    freeze_time: datetime


@dataclass(frozen=True, slots=True)
class Organization:
    """Builds agents and earns from them."""

    organization_id: str
    display_name: str
    create_time: datetime
    # None unless its payouts are frozen.
    payouts_freeze: Freeze | None = None


@dataclass(frozen=True, slots=True)
class RevenueShareAgreement:
    """How an organization's gross is split from `effective_time` on; None is the beginning of time."""

    agreement_id: str
    organization_id: str
    platform_fee_bps: int
    processing_fee_bps: int
    settlement_hold_days: int
    effective_time: datetime | None
    create_time: datetime
    dispute_window_days: int = 0


@dataclass(frozen=True, slots=True)
class Customer:
    """Pays for runs. Its credit limits are one per currency, by currency, none of them zero."""

    customer_id: str
    create_time: datetime
    credit_limits: tuple[Money, ...] = ()
    freeze: Freeze | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """What an organization sells."""

    agent_id: str
    organization_id: str
    display_name: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """A release of an agent."""

    agent_id: str
    agent_version: str
    organization_id: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who acts for an organization, until `delete_time`."""

    member_id: str
    organization_id: str
    role: Role
    create_time: datetime
    delete_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without its secret: whose it is, what it may do, and how long."""

    api_key_id: str
    visible_prefix: str
    role: Role
    organization_id: str | None
    customer_id: str | None
    member_id: str | None
    agent_ids: tuple[str, ...]
    customer_ids: tuple[str, ...]
    description: str
    create_time: datetime
    expire_time: datetime | None = None
    revoke_time: datetime | None = None

    def principal(self) -> Principal:
        """Who the bearer of this key is."""
        return Principal(
            api_key_id=self.api_key_id,
            role=self.role,
            organization_id=self.organization_id,
            customer_id=self.customer_id,
            member_id=self.member_id,
            agent_ids=frozenset(self.agent_ids),
            customer_ids=frozenset(self.customer_ids),
            expires_at=self.expire_time,
        )


@dataclass(frozen=True, slots=True)
class Parties:
    """Those of some named customers and agents that exist, with all versions of the agents."""

    customer_ids: list[str]
    agents: list[Agent]
    versions: list[AgentVersion]


def check_text(violations: Violations, value: str, field: str, *, shortest: int = 0, longest: int) -> None:
    """Text for people: so many characters, none of which hides or moves the others."""
    violations.require(
        shortest <= len(value) <= longest,
        field,
        f"must have {shortest} to {longest} characters"
        if shortest
        else f"must have at most {longest} characters",
    )
    violations.require(
        not any(
            character in _BIDI_CONTROLS or unicodedata.category(character) in _REFUSED_CATEGORIES
            for character in value
        ),
        field,
        "must not have control characters",
    )


def check_id(violations: Violations, value: str, prefix: str, field: str) -> None:
    """An id that must be given."""
    violations.check(ids.check_id, value, prefix, field=field)


def check_optional_id(violations: Violations, value: str, prefix: str, field: str) -> None:
    """An id that may be left out."""
    if value:
        check_id(violations, value, prefix, field)


def check_idempotency_key(violations: Violations, key: str) -> None:
    check_text(violations, key, "idempotency_key", shortest=1, longest=MAX_IDEMPOTENCY_KEY_LENGTH)


def check_reason(violations: Violations, reason: str) -> None:
    check_text(violations, reason, "reason", shortest=1, longest=MAX_REASON_LENGTH)


def check_terms(
    violations: Violations,
    platform_fee_bps: int,
    processing_fee_bps: int,
    settlement_hold_days: int,
    dispute_window_days: int = 0,
) -> None:
    """What an agreement says must be possible: no organization pays more than it earns."""
    fees = {"platform_fee_bps": platform_fee_bps, "processing_fee_bps": processing_fee_bps}
    in_range = [
        violations.require(0 <= bps <= MAX_FEE_BPS, field, f"must be from 0 to {MAX_FEE_BPS}")
        for field, bps in fees.items()
    ]
    if all(in_range):
        violations.require(
            sum(fees.values()) <= MAX_FEE_BPS,
            "processing_fee_bps",
            f"must not exceed {MAX_FEE_BPS} together with platform_fee_bps",
        )
    for field, days in (
        ("settlement_hold_days", settlement_hold_days),
        ("dispute_window_days", dispute_window_days),
    ):
        violations.require(0 <= days <= MAX_HOLD_DAYS, field, f"must be from 0 to {MAX_HOLD_DAYS}")


def check_not_past(violations: Violations, time: datetime | None, now: datetime, field: str) -> None:
    if time is not None:
        violations.require(time >= now, field, f"must not be before now, {now.isoformat()}")


def check_succession(wanted: datetime | None, now: datetime, newest: RevenueShareAgreement) -> None:
    """A new agreement changes nothing that was charged: it starts now or later, and behind the newest one.

    `wanted` None is now. Raises InvalidArgument.
    """
    violations = Violations()
    check_not_past(violations, wanted, now, "effective_time")
    if newest.effective_time is not None:
        violations.require(
            (wanted or now) > newest.effective_time,
            "effective_time",
            f"must be after {newest.effective_time.isoformat()}, when the newest agreement starts",
        )
    violations.raise_if_any()


def check_expiry(key: ApiKey) -> None:
    """A key is of use when it is made. Raises InvalidArgument."""
    violations = Violations()
    check_not_past(violations, key.expire_time, key.create_time, "expire_time")
    violations.raise_if_any()


def check_credit_limit(violations: Violations, currency_code: str, amount_micros: int, field: str) -> None:
    violations.check(check_currency, currency_code, field=f"{field}.currency_code")
    violations.require(
        0 <= amount_micros <= MAX_AMOUNT_MICROS,
        f"{field}.amount_micros",
        f"must be from 0 to {MAX_AMOUNT_MICROS} micros",
    )


def check_credit_limits(violations: Violations, limits: Sequence[tuple[str, int]]) -> None:
    """Limits as (currency, micros), at most one per currency."""
    seen: set[str] = set()
    for number, (currency_code, amount_micros) in enumerate(limits):
        field = f"credit_limits[{number}]"
        check_credit_limit(violations, currency_code, amount_micros, field)
        violations.require(
            currency_code not in seen, f"{field}.currency_code", f"{currency_code[:16]!r} comes twice"
        )
        seen.add(currency_code)


def check_member_role(violations: Violations, role: Role | None) -> None:
    violations.require(role in MEMBER_ROLES, "role", "must be ROLE_OWNER, ROLE_BILLING_ADMIN or ROLE_MEMBER")


def check_key_scope(
    violations: Violations, role: Role, organization_id: str, customer_id: str, member_id: str
) -> None:
    """Whom a key of this role belongs to; "" stands for nobody.

    Operators and services belong to the platform, customers to a customer, owners, billing admins and members
    to an organization, hosts to the platform or an organization. Only a member's key is issued to a member.
    """
    may_have = {
        "organization_id": role in MEMBER_ROLES or role is Role.HOST,
        "customer_id": role is Role.CUSTOMER,
        "member_id": role in MEMBER_ROLES,
    }
    must_have = {
        "organization_id": role in MEMBER_ROLES,
        "customer_id": role is Role.CUSTOMER,
        "member_id": False,
    }
    for field, prefix, value in (
        ("organization_id", ids.ORGANIZATION, organization_id),
        ("customer_id", ids.CUSTOMER, customer_id),
        ("member_id", ids.MEMBER, member_id),
    ):
        violations.require(not value or may_have[field], field, f"must be empty for a key of role {role}")
        violations.require(
            bool(value) or not must_have[field], field, f"is required for a key of role {role}"
        )
        check_optional_id(violations, value, prefix, field)


def check_key_restrictions(
    violations: Violations, role: Role | None, agent_ids: Sequence[str], customer_ids: Sequence[str]
) -> None:
    """What a key may be restricted to; None is a role that is not known."""
    for field, prefix, values in (
        ("agent_ids", ids.AGENT, agent_ids),
        ("customer_ids", ids.CUSTOMER, customer_ids),
    ):
        violations.require(
            not values or role in (Role.HOST, None),
            field,
            "must be empty: only keys of role host are restricted",
        )
        check_ids(violations, values, prefix, field, most=MAX_KEY_RESTRICTIONS)


def check_ids(violations: Violations, values: Sequence[str], prefix: str, field: str, *, most: int) -> None:
    """Several ids of one kind."""
    if violations.require(len(values) <= most, field, f"must be at most {most}"):
        for number, value in enumerate(values):
            check_id(violations, value, prefix, f"{field}[{number}]")


def check_may_create_key(creator: Principal, key: ApiKey, *, method: str) -> None:
    """An owner hands out no more than it has: keys that belong to its own organization.

    Raises PermissionDenied, or NotFound for another organization.
    """
    if creator.role is Role.OPERATOR:
        return
    if key.role not in _CREATED_BY_OWNERS or key.organization_id is None:
        raise PermissionDenied(
            f"a key of role {creator.role} may not create this key",
            metadata={"role": creator.role.value, "method": method},
        )
    if key.organization_id != creator.organization_id:
        raise not_found("organization", key.organization_id)


def active_limits(limits: Sequence[tuple[str, int]]) -> tuple[Money, ...]:
    """Limits as a customer shows them: by currency, and without those that allow nothing."""
    return tuple(Money(currency, amount) for currency, amount in sorted(limits) if amount > 0)


def not_found(kind: str, resource_id: str) -> NotFound:
    """There is no such `kind` ("organization", "customer", "agent", "member", "api_key") for this caller."""
    return NotFound(
        f"{kind} {resource_id} does not exist",
        reason=f"{kind.upper()}_NOT_FOUND",
        metadata={f"{kind}_id": resource_id},
    )


def already_exists(resource_id: str) -> AlreadyExists:
    """The id is taken, with other content or by another tenant."""
    return AlreadyExists(f"{resource_id} exists with other content", metadata={"resource_id": resource_id})
