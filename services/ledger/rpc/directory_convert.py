"""Between the contract of the directory and its domain."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.auth import Role
from services.kit.times import timestamp
from services.ledger.domain.directory import (
    Agent,
    AgentVersion,
    ApiKey,
    Customer,
    Member,
    Organization,
    RevenueShareAgreement,
)
from services.ledger.domain.violations import Violations
from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.ledger.v1 import directory_pb2, directory_service_pb2

_ROLE_TO_PROTO = {role: access_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
_ROLE_FROM_PROTO = {number: role for role, number in _ROLE_TO_PROTO.items()}


def role_from_proto(number: access_pb2.Role.ValueType) -> Role | None:
    """None for a number that is no role."""
    return _ROLE_FROM_PROTO.get(number)


def time_from_proto(violations: Violations, time: Timestamp, field: str) -> datetime | None:
    """The time of a field that is set, to the microsecond, in UTC; None, and noted, if it is malformed."""
    try:
        return time.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violations.require(False, field, "is not a valid time")
        return None


def _timestamp(time: datetime | None) -> Timestamp | None:
    """A time for a field, None for one that stays unset."""
    return None if time is None else timestamp(time)


def limits_from_proto(limits: Sequence[money_pb2.Money]) -> list[tuple[str, int]]:
    """Amounts of money that nobody has checked yet, as (currency, micros)."""
    return [(limit.currency_code, limit.amount_micros) for limit in limits]


def request_hash(request: Message) -> bytes:
    """What must be equal for a request to be the same one again."""
    name = request.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(name + b"\0" + request.SerializeToString(deterministic=True)).digest()


def create_customer_hash(request: directory_service_pb2.CreateCustomerRequest) -> bytes:
    """The same, whatever the order of the limits."""
    canonical = directory_service_pb2.CreateCustomerRequest(
        customer_id=request.customer_id,
        credit_limits=sorted(request.credit_limits, key=lambda limit: limit.currency_code),
    )
    return request_hash(canonical)


def organization_to_proto(organization: Organization) -> directory_pb2.Organization:
    freeze = organization.payouts_freeze
    return directory_pb2.Organization(
        organization_id=organization.organization_id,
        display_name=organization.display_name,
        create_time=_timestamp(organization.create_time),
        payouts_frozen=freeze is not None,
        payouts_freeze_reason="" if freeze is None else freeze.reason,
        payouts_freeze_time=None if freeze is None else timestamp(freeze.freeze_time),
    )


def agreement_to_proto(agreement: RevenueShareAgreement) -> directory_pb2.RevenueShareAgreement:
    return directory_pb2.RevenueShareAgreement(
        organization_id=agreement.organization_id,
        platform_fee_bps=agreement.platform_fee_bps,
        processing_fee_bps=agreement.processing_fee_bps,
        settlement_hold_days=agreement.settlement_hold_days,
        dispute_window_days=agreement.dispute_window_days,
        effective_time=_timestamp(agreement.effective_time),
        create_time=_timestamp(agreement.create_time),
    )


def customer_to_proto(customer: Customer) -> directory_pb2.Customer:
    freeze = customer.freeze
    return directory_pb2.Customer(
        customer_id=customer.customer_id,
        create_time=_timestamp(customer.create_time),
        credit_limits=[
            money_pb2.Money(currency_code=limit.currency_code, amount_micros=limit.amount_micros)
            for limit in customer.credit_limits
        ],
        frozen=freeze is not None,
        freeze_reason="" if freeze is None else freeze.reason,
        freeze_time=None if freeze is None else timestamp(freeze.freeze_time),
    )


def agent_to_proto(agent: Agent) -> directory_pb2.Agent:
    return directory_pb2.Agent(
        agent_id=agent.agent_id,
        organization_id=agent.organization_id,
        display_name=agent.display_name,
        create_time=_timestamp(agent.create_time),
    )


def version_to_proto(version: AgentVersion) -> directory_pb2.AgentVersion:
    return directory_pb2.AgentVersion(
        agent_id=version.agent_id,
        agent_version=version.agent_version,
        create_time=_timestamp(version.create_time),
    )


def member_to_proto(member: Member) -> directory_pb2.Member:
    return directory_pb2.Member(
        member_id=member.member_id,
        organization_id=member.organization_id,
        role=_ROLE_TO_PROTO[member.role],
        create_time=_timestamp(member.create_time),
        delete_time=_timestamp(member.delete_time),
    )


def api_key_to_proto(key: ApiKey) -> directory_pb2.ApiKey:
    return directory_pb2.ApiKey(
        api_key_id=key.api_key_id,
        visible_prefix=key.visible_prefix,
        role=_ROLE_TO_PROTO[key.role],
        organization_id=key.organization_id or "",
        customer_id=key.customer_id or "",
        member_id=key.member_id or "",
        agent_ids=key.agent_ids,
        customer_ids=key.customer_ids,
        description=key.description,
        create_time=_timestamp(key.create_time),
        expire_time=_timestamp(key.expire_time),
        revoke_time=_timestamp(key.revoke_time),
    )
