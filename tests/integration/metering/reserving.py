"""What the tests of reservations do all the time."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import metering_service_pb2 as pb
from tallystick.metering.v1 import reservation_pb2, usage_pb2
from tests.integration.metering.world import World
from tests.support.metering_server import Caller


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


@dataclass
class Reserving(World):
    """A running metering whose reservations are kept in one way: `kind`."""

    kind: reservation_pb2.ReservationKind.ValueType

    async def authorize(
        self,
        workflow_id: str,
        micros: int,
        *,
        customer_id: str = "cus_1",
        key: str = "",
        ttl: float | None = None,
        host: Caller | None = None,
        agent_id: str = "agt_a",
    ) -> pb.AuthorizeResponse:
        request = pb.AuthorizeRequest(
            customer_id=customer_id,
            workflow_id=workflow_id,
            agent_id=agent_id,
            action_type="run",
            max_cost=usd(micros),
            idempotency_key=key,
        )
        if ttl is not None:
            request.ttl.CopyFrom(Duration(seconds=int(ttl), nanos=int(ttl % 1 * 1e9)))
        return await (host or self.host).metering.Authorize(request)

    async def settle(self, token: str, event: usage_pb2.UsageEvent | None = None) -> pb.SettleResponse:
        return await self.host.metering.Settle(pb.SettleRequest(token=token, event=event or outcome_of_run()))

    async def release(self, token: str) -> pb.ReleaseResponse:
        return await self.host.metering.Release(pb.ReleaseRequest(token=token))

    async def balance(self, customer_id: str = "cus_1") -> Mapping[str, int]:
        """The amounts of a balance in micros; they add up."""
        response = await self.server.operator.metering.GetBalance(
            pb.GetBalanceRequest(customer_id=customer_id, currency_code="USD")
        )
        found = {
            name: getattr(response.balance, name).amount_micros
            for name in (
                "credits",
                "available",
                "reserved",
                "held",
                "receivable",
                "unpaid",
                "credit_limit",
                "credit_room",
                "chargebacks",
            )
        }
        assert found["credits"] == found["available"] + found["reserved"] + found["held"], found
        assert min(found.values()) >= 0, found
        return found


def outcome_of_run(**changes: object) -> usage_pb2.UsageEvent:
    """What is reported of a run at its end, which costs RUN_MICROS: its reservation says the rest."""
    fields: dict[str, object] = {
        "usage": usage_pb2.Usage(model="gpt", input_tokens=1_000, output_tokens=500),
        "outcome": usage_pb2.OUTCOME_SUCCESS,
    }
    return usage_pb2.UsageEvent(**{**fields, **changes})  # type: ignore[arg-type]
