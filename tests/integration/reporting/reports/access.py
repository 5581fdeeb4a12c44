"""Requests of every RPC of reporting about some owner, and how to ask them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tallystick.reporting.v1 import period_pb2
from tallystick.reporting.v1 import reporting_service_pb2 as pb
from tests.integration.reporting.reports.facts import LARK, WREN
from tests.support.reports_server import REPORTING
from tests.support.rpc_errors import taken_apart

METHODS: Final[dict[str, MethodDescriptor]] = {method.name: method for method in REPORTING.methods}
YEAR: Final = period_pb2.Period(name="12m")
OF_ORGANIZATIONS: Final[dict[str, Callable[[str], Message]]] = {
    "GetRevenueSummary": lambda owner: pb.GetRevenueSummaryRequest(organization_id=owner),
    "GetRevenueSeries": lambda owner: pb.GetRevenueSeriesRequest(organization_id=owner, period=YEAR),
    "ListTopCustomers": lambda owner: pb.ListTopCustomersRequest(organization_id=owner, period=YEAR),
    "ListTopAgents": lambda owner: pb.ListTopAgentsRequest(organization_id=owner, period=YEAR),
    "GetMargin": lambda owner: pb.GetMarginRequest(organization_id=owner, period=YEAR),
    "ListPayoutHistory": lambda owner: pb.ListPayoutHistoryRequest(organization_id=owner),
}
OF_BOTH: Final[dict[str, Callable[..., Message]]] = {
    "GetUsage": lambda **owner: pb.GetUsageRequest(period=YEAR, include_series=True, **owner),
    "ListCharges": lambda **owner: pb.ListChargesRequest(**owner),
    "GetStatement": lambda **owner: pb.GetStatementRequest(period=YEAR, **owner),
    "ExportTransactions": lambda **owner: pb.ExportTransactionsRequest(period=YEAR, **owner),
}


class Answer(NamedTuple):
    """How a call ended, and everything it said."""

    code: grpc.StatusCode
    reason: str
    said: str


def requests_of(name: str) -> list[tuple[str, Message]]:
    """Requests of a method, each with whom it names."""
    if name in OF_ORGANIZATIONS:
        return [(owner, OF_ORGANIZATIONS[name](owner)) for owner in ("", LARK, WREN, "org_nobody")]
    request = OF_BOTH[name]
    return [
        ("", request()),
        *((owner, request(organization_id=owner)) for owner in (LARK, WREN, "org_nobody")),
        *((owner, request(customer_id=owner)) for owner in ("cus_ada", "cus_bob", "cus_nobody")),
    ]


async def ask(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message) -> Answer:
    """Call any RPC; a stream is read to its end."""
    shape: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    rpc = shape(
        f"/{REPORTING.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    try:
        call = rpc(request, timeout=60)
        responses = [one async for one in call] if method.server_streaming else [await call]
    except grpc.aio.AioRpcError as error:
        said = f"{error.details()} {error.trailing_metadata()}"
        return Answer(error.code(), taken_apart(error).reason, said)
    return Answer(grpc.StatusCode.OK, "", "\n".join(map(text_format.MessageToString, responses)))
