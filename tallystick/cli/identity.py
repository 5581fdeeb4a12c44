"""Whose key it is that a command is run with."""

from __future__ import annotations

from tallystick.cli.session import Session
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_pb2, directory_service_pb2
from tallystick.ledger.v1.directory_service_pb2_grpc import DirectoryServiceStub


def current_key(session: Session) -> directory_pb2.ApiKey:
    """The key of this session, as the ledger knows it."""
    stub = DirectoryServiceStub(session.channel("ledger"))
    request = directory_service_pb2.GetCurrentApiKeyRequest()
    return session.call(stub.GetCurrentApiKey, request).api_key


def role_name(role: access_pb2.Role.ValueType) -> str:
    """ROLE_BILLING_ADMIN as "billing_admin"; a role that is newer than we are as its number."""
    known = access_pb2.Role.DESCRIPTOR.values_by_number.get(role)
    return str(role) if known is None else known.name.removeprefix("ROLE_").lower()


def bearer(key: directory_pb2.ApiKey) -> str:
    """Whose a key is, in words: "role owner of org_lark"."""
    owner = key.organization_id or key.customer_id or "the platform"
    member = f", member {key.member_id}" if key.member_id else ""
    return f"role {role_name(key.role)} of {owner}{member}"
