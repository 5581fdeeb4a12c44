"""What the tests of metering do all the time."""

from collections.abc import Awaitable
from dataclasses import dataclass

import grpc
import pytest

from services.kit.errors import TallystickError
from services.kit.status import from_item_error, from_rpc_error
from tallystick.common.v1 import access_pb2
from tallystick.ledger.v1 import directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, usage_pb2
from tests.support.metering_server import Caller, MeteringServer

# What `run` costs under AGENT_RUN: 5,000 + 1,000 × 0.6 + 500 × 2.4 + 200,000 micros.
RUN_MICROS = 206_800
# The part of it that is for its success.
BONUS_MICROS = 200_000


@dataclass
class World:
    """A running metering, and a host that reports to it."""

    server: MeteringServer
    host: Caller

    async def meter(
        self, event: usage_pb2.UsageEvent, host: Caller | None = None
    ) -> metering_service_pb2.MeteredEvent:
        caller = host or self.host
        response = await caller.metering.Meter(metering_service_pb2.MeterRequest(event=event))
        return response.metered

    async def meter_batch(
        self, *events: usage_pb2.UsageEvent, host: Caller | None = None
    ) -> list[metering_service_pb2.MeteredEvent | TallystickError]:
        caller = host or self.host
        response = await caller.metering.MeterBatch(metering_service_pb2.MeterBatchRequest(events=events))
        return [
            from_item_error(verdict.error) if verdict.HasField("error") else verdict.metered
            for verdict in response.verdicts
        ]

    async def find(
        self, event: usage_pb2.UsageEvent, host: Caller | None = None
    ) -> metering_service_pb2.GetUsageEventResponse:
        caller = host or self.host
        return await caller.metering.GetUsageEvent(
            metering_service_pb2.GetUsageEventRequest(
                customer_id=event.customer_id, workflow_id=event.workflow_id, ordinal=event.ordinal
            )
        )

    async def is_answered(self, call: Awaitable[object]) -> bool:
        """Whether a call succeeds; False if it is answered UNAVAILABLE."""
        try:
            await call
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True

    async def available(self, customer_id: str = "cus_1") -> int:
        """What the ledger says that a customer has left, in micros of USD."""
        response = await self.server.ledger.operator.ledger.GetCustomerBalance(
            ledger_service_pb2.GetCustomerBalanceRequest(customer_id=customer_id, currency_code="USD")
        )
        return response.balance.available.amount_micros

    async def new_host(
        self,
        name: str,
        *,
        organization_id: str = "",
        agent_ids: tuple[str, ...] = (),
        customer_ids: tuple[str, ...] = (),
    ) -> Caller:
        """A host with a key of an organization, or one that is restricted."""
        created = await self.server.ledger.operator.directory.CreateApiKey(
            directory_service_pb2.CreateApiKeyRequest(
                role=access_pb2.ROLE_HOST,
                organization_id=organization_id,
                agent_ids=agent_ids,
                customer_ids=customer_ids,
                idempotency_key=name,
            )
        )
        return self.server.caller(created.secret)

    async def new_owner(self, organization_id: str) -> Caller:
        """An owner of an organization."""
        caller = await self.server.ledger.create_caller(
            access_pb2.ROLE_OWNER, f"owner-{organization_id}", organization_id=organization_id
        )
        return self.server.caller(caller.key)

    def event_count(self) -> int:
        ((count,),) = self.server.query("SELECT count(*) FROM metering.usage_event")
        assert isinstance(count, int)
        return count

    def pending_count(self) -> int:
        ((count,),) = self.server.query("SELECT count(*) FROM metering.pending_charge")
        assert isinstance(count, int)
        return count

    def charge_count(self) -> int:
        ((count,),) = self.server.query("SELECT count(*) FROM ledger.charge")
        assert isinstance(count, int)
        return count

    async def nothing_is_pending(self) -> bool:
        return self.pending_count() == 0


def run(workflow_id: str, customer_id: str = "cus_1", /, **changes: object) -> usage_pb2.UsageEvent:
    """A successful run of agt_a, with 1,000 input and 500 output tokens, unless changed."""
    fields: dict[str, object] = {
        "agent_id": "agt_a",
        "action_type": "run",
        "usage": usage_pb2.Usage(model="gpt", input_tokens=1_000, output_tokens=500),
        "outcome": usage_pb2.OUTCOME_SUCCESS,
    }
    fields |= {"customer_id": customer_id, "workflow_id": workflow_id, **changes}
    return usage_pb2.UsageEvent(**fields)  # type: ignore[arg-type]


async def refused(call: Awaitable[object]) -> TallystickError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


def fields_of(error: TallystickError) -> list[str]:
    return [violation.field for violation in error.field_violations]
