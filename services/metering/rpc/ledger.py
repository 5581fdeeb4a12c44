"""The ledger, as metering uses it."""

from collections.abc import Sequence
from datetime import UTC
from typing import Final

import grpc

from services.kit.auth import Principal, Role
from services.kit.errors import Code, TallystickError
from services.kit.status import from_item_error
from services.metering.domain.usage_record import IntendedCharge
from services.metering.rpc.convert import intent_to_proto
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import (
    account_pb2,
    charge_pb2,
    directory_pb2,
    directory_service_pb2,
    directory_service_pb2_grpc,
    ledger_service_pb2,
    ledger_service_pb2_grpc,
)

# Calls of the hot path, where a batch of callers waits for one answer.
_TIMEOUT_SECONDS: Final = 10.0

_PASSING: Final = frozenset(
    {
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
    }
)

PostVerdict = ledger_service_pb2.PostedCharge | TallystickError


def is_passing(error: TallystickError) -> bool:
    """Whether the same charge may be posted later: the ledger did not judge it, or failed at it."""
    return error.code in _PASSING


class Ledger:
    """Calls of the ledger's two services. A call that fails raises grpc.aio.AioRpcError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        self._directory = directory_service_pb2_grpc.DirectoryServiceStub(channel)

    async def post_charges(self, charges: Sequence[IntendedCharge]) -> list[PostVerdict]:
        """Post up to 1,000 charges; a verdict for each, in their order."""
        request = ledger_service_pb2.PostChargesRequest(intents=map(intent_to_proto, charges))
        response = await self._ledger.PostCharges(request, timeout=_TIMEOUT_SECONDS)
        return [
            verdict.posted if verdict.HasField("posted") else from_item_error(verdict.error)
            for verdict in response.verdicts
        ]

    async def get_charge(self, charge_id: str) -> charge_pb2.Charge:
        """A posted charge."""
        response = await self._ledger.GetCharge(ledger_service_pb2.GetChargeRequest(charge_id=charge_id))
        return response.charge

    async def get_balance(self, customer_id: str, currency_code: str) -> account_pb2.CustomerBalance:
        """What a customer has and owes."""
        response = await self._ledger.GetCustomerBalance(
            ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id, currency_code=currency_code)
        )
        return response.balance

    async def get_organization(self, organization_id: str) -> directory_pb2.Organization:
        """An organization; NOT_FOUND if there is none."""
        response = await self._directory.GetOrganization(
            directory_service_pb2.GetOrganizationRequest(organization_id=organization_id)
        )
        return response.organization

    async def look_up(
        self, customer_ids: Sequence[str], agent_ids: Sequence[str]
    ) -> directory_service_pb2.LookupPartiesResponse:
        """Which of up to 1,000 customers and 1,000 agents exist."""
        return await self._directory.LookupParties(
            directory_service_pb2.LookupPartiesRequest(customer_ids=customer_ids, agent_ids=agent_ids),
            timeout=_TIMEOUT_SECONDS,
        )

    async def resolve(self, key_hash: bytes) -> Principal | None:
        """The bearer of an API key: makes this a `services.kit.auth.KeyResolver`."""
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
