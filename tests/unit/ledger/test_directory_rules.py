"""What must hold of those who take part, without any database."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.auth import Principal, Role
from services.kit.errors import InvalidArgument, NotFound, PermissionDenied
from services.kit.money import MAX_AMOUNT_MICROS, Money
from services.ledger.domain import directory as rules
from services.ledger.domain.directory import ApiKey, RevenueShareAgreement
from services.ledger.domain.violations import Violations

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def fields(violations: Violations) -> list[str]:
    """The fields that are malformed, in order."""
    return [one.field for one in violations.error().field_violations]


def key(
    role: Role = Role.HOST, organization_id: str | None = "org_a", expire_time: datetime | None = None
) -> ApiKey:
    return ApiKey(
        api_key_id="key_1",
        visible_prefix="tsk_1",
        role=role,
        organization_id=organization_id,
        customer_id=None,
        member_id=None,
        agent_ids=(),
        customer_ids=(),
        description="",
        create_time=NOW,
        expire_time=expire_time,
    )


def agreement(effective_time: datetime | None) -> RevenueShareAgreement:
    return RevenueShareAgreement("rsa_1", "org_a", 0, 0, 0, effective_time, NOW)


def test_all_violations_are_told_at_once_and_in_order() -> None:
    violations = Violations()
    violations.require(True, "fine", "never said")
    violations.require(False, "first", "is wrong")
    rules.check_id(violations, "org_!", "org", "second")
    with pytest.raises(InvalidArgument) as caught:
        violations.raise_if_any()
    assert [one.field for one in caught.value.field_violations] == ["first", "second"]
    assert caught.value.message.startswith("first: is wrong; second: ")


def test_no_violation_is_no_error() -> None:
    violations = Violations()
    violations.raise_if_any()
    assert not violations


@pytest.mark.parametrize("text", ["", "Ärzte & Söhne", "エージェント", "👩‍🔬 lab", "می‌خواهم", "x" * 200])
def test_names_in_any_script_are_fine(text: str) -> None:
    violations = Violations()
    rules.check_text(violations, text, "display_name", longest=200)
    assert not violations


@pytest.mark.parametrize(
    "text", ["a\nb", "a\x00b", "\x7f", "a\u2028b", "pay\u202egpj", "a\u2066b", "x" * 201]
)
def test_texts_that_hide_something_or_never_end_are_refused(text: str) -> None:
    violations = Violations()
    rules.check_text(violations, text, "display_name", longest=200)
    assert fields(violations) == ["display_name"]


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_fees_never_exceed_what_is_earned(platform: int, processing: int) -> None:
    violations = Violations()
    rules.check_terms(violations, platform, processing, 0)
    possible = platform >= 0 and processing >= 0 and platform + processing <= 10_000
    assert bool(violations) is not possible


@pytest.mark.parametrize(("platform", "processing"), [(10_000, 0), (0, 10_000), (9_999, 1), (0, 0)])
def test_fees_may_take_everything(platform: int, processing: int) -> None:
    violations = Violations()
    rules.check_terms(violations, platform, processing, 365)
    assert not violations


def test_each_impossible_term_is_named() -> None:
    violations = Violations()
    rules.check_terms(violations, -1, 10_001, 366)
    assert fields(violations) == ["platform_fee_bps", "processing_fee_bps", "settlement_hold_days"]


@pytest.mark.parametrize("effective_time", [None, NOW, NOW + HOUR])
def test_an_agreement_may_start_now_or_later(effective_time: datetime | None) -> None:
    rules.check_succession(effective_time, NOW, agreement(None))
    rules.check_succession(effective_time, NOW, agreement(NOW - timedelta(microseconds=1)))


@pytest.mark.parametrize(
    ("effective_time", "newest"),
    [
        (NOW - timedelta(microseconds=1), None),
        (NOW, NOW),
        (None, NOW),
        (None, NOW + HOUR),
        (NOW + HOUR, NOW + HOUR),
        (NOW + HOUR, NOW + 2 * HOUR),
    ],
)
def test_an_agreement_changes_nothing_that_was_agreed(
    effective_time: datetime | None, newest: datetime | None
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rules.check_succession(effective_time, NOW, agreement(newest))
    assert {one.field for one in caught.value.field_violations} == {"effective_time"}


def test_credit_limits_come_once_per_currency_and_in_bounds() -> None:
    violations = Violations()
    rules.check_credit_limits(
        violations, [("USD", 0), ("EUR", MAX_AMOUNT_MICROS), ("USD", 1), ("usd", 1), ("JPY", -1)]
    )
    rules.check_credit_limits(violations, [("USD", MAX_AMOUNT_MICROS + 1)])
    assert fields(violations) == [
        "credit_limits[2].currency_code",
        "credit_limits[3].currency_code",
        "credit_limits[4].amount_micros",
        "credit_limits[0].amount_micros",
    ]


def test_a_limit_of_nothing_is_no_limit() -> None:
    assert rules.active_limits([("USD", 5), ("EUR", 0), ("CHF", 7)]) == (Money("CHF", 7), Money("USD", 5))


PLATFORM, ORGANIZATION, CUSTOMER, MEMBER = (
    ("", "", ""),
    ("org_a", "", ""),
    ("", "cus_a", ""),
    ("org_a", "", "mem_a"),
)
BELONGS = {
    Role.OPERATOR: {PLATFORM},
    Role.SERVICE: {PLATFORM},
    Role.CUSTOMER: {CUSTOMER},
    Role.OWNER: {ORGANIZATION, MEMBER},
    Role.BILLING_ADMIN: {ORGANIZATION, MEMBER},
    Role.MEMBER: {ORGANIZATION, MEMBER},
    Role.HOST: {PLATFORM, ORGANIZATION},
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("organization_id", ["", "org_a"])
@pytest.mark.parametrize("customer_id", ["", "cus_a"])
@pytest.mark.parametrize("member_id", ["", "mem_a"])
def test_whom_a_key_of_each_role_belongs_to(
    role: Role, organization_id: str, customer_id: str, member_id: str
) -> None:
    violations = Violations()
    rules.check_key_scope(violations, role, organization_id, customer_id, member_id)
    assert bool(violations) is ((organization_id, customer_id, member_id) not in BELONGS[role])


def test_only_hosts_are_restricted() -> None:
    violations = Violations()
    rules.check_key_restrictions(violations, Role.HOST, ["agt_a"], ["cus_a"])
    assert not violations
    rules.check_key_restrictions(violations, Role.OWNER, ["agt_a"], ["cus_a"])
    assert fields(violations) == ["agent_ids", "customer_ids"]


def test_restrictions_are_ids_and_bounded() -> None:
    violations = Violations()
    rules.check_key_restrictions(violations, Role.HOST, ["agt_a", "cus_a"], ["cus_a"] * 1001)
    assert fields(violations) == ["agent_ids[1]", "customer_ids"]


OWNER = Principal("key_owner", Role.OWNER, organization_id="org_a")
OPERATOR = Principal("key_operator", Role.OPERATOR)


@pytest.mark.parametrize("role", [Role.OWNER, Role.BILLING_ADMIN, Role.MEMBER])
def test_an_owner_creates_keys_of_its_organization(role: Role) -> None:
    rules.check_may_create_key(OWNER, key(role, "org_a"), method="/m")


@pytest.mark.parametrize(
    ("role", "organization_id"),
    [(Role.OPERATOR, None), (Role.SERVICE, None), (Role.CUSTOMER, None), (Role.HOST, "org_a")],
)
def test_an_owner_creates_no_key_beyond_its_organization(role: Role, organization_id: str | None) -> None:
    with pytest.raises(PermissionDenied) as caught:
        rules.check_may_create_key(OWNER, key(role, organization_id), method="/m")
    assert caught.value.metadata == {"role": "owner", "method": "/m"}


def test_an_owner_does_not_know_other_organizations() -> None:
    with pytest.raises(NotFound) as caught:
        rules.check_may_create_key(OWNER, key(Role.MEMBER, "org_b"), method="/m")
    assert caught.value.metadata == {"organization_id": "org_b"}


@pytest.mark.parametrize("role", Role)
def test_an_operator_creates_every_key(role: Role) -> None:
    rules.check_may_create_key(OPERATOR, key(role, None), method="/m")


def test_a_key_that_has_expired_is_not_made() -> None:
    rules.check_expiry(key(expire_time=None))
    rules.check_expiry(key(expire_time=NOW + HOUR))
    with pytest.raises(InvalidArgument):
        rules.check_expiry(key(expire_time=NOW - timedelta(microseconds=1)))
