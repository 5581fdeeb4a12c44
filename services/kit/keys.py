"""API keys where they are kept: a `services.kit.auth.KeyResolver` that asks the ledger."""

from datetime import UTC
from typing import Final

import grpc

from services.kit.auth import Principal, Role
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_pb2, directory_service_pb2, directory_service_pb2_grpc

_TIMEOUT_SECONDS: Final = 10.0


class LedgerKeys:
    """Finds keys in the ledger's directory. A call that fails raises grpc.aio.AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._directory = directory_service_pb2_grpc.DirectoryServiceStub(channel)

    async def resolve(self, key_hash: bytes) -> Principal | None:
        """The bearer of an API key; None if there is none or it was revoked."""
        response = await self._directory.ResolveApiKey(
            directory_service_pb2.ResolveApiKeyRequest(key_hash=key_hash), timeout=_TIMEOUT_SECONDS
        )
        return _principal(response.api_key) if response.HasField("api_key") else None


def _principal(key: directory_pb2.ApiKey) -> Principal:
    return Principal(
        api_key_id=key.api_key_id,
        role=Role(access_pb2.Role.Name(key.role).removeprefix("ROLE_").lower()),
        organization_id=key.organization_id or None,
        customer_id=key.customer_id or None,
        member_id=key.member_id or None,
        agent_ids=frozenset(key.agent_ids),
        customer_ids=frozenset(key.customer_ids),
        expires_at=key.expire_time.ToDatetime(tzinfo=UTC) if key.HasField("expire_time") else None,
    )
