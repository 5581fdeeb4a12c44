"""Requests about what is one organization's in payouts, and who may ask them of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tallystick.common.v1 import access_pb2, money_pb2
from tallystick.payouts.v1 import (
    connect_service_pb2,
    payment_service_pb2,
    payout_schedule_pb2,
    payout_service_pb2,
    reconciliation_service_pb2,
    schedule_service_pb2,
)

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"],
    schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
    connect_service_pb2.DESCRIPTOR.services_by_name["ConnectService"],
    reconciliation_service_pb2.DESCRIPTOR.services_by_name["ReconciliationService"],
    payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
)
METHODS: Final[dict[str, MethodDescriptor]] = {
    method.name: method for service in SERVICES for method in service.methods
}
STAFF: Final = frozenset({"owner", "billing_admin"})
READERS: Final = STAFF | {"operator", "service"}
STAFF_AND_OPERATOR: Final = STAFF | {"operator"}
OPERATOR: Final = frozenset({"operator"})
LARK: Final = "org_lark"


class Case(NamedTuple):
    """A method, a request about org_lark and its payout, and whose roles may ask it."""

    method: str
    request: Callable[[str], Message]
    may: frozenset[str]


def usd(units: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=units * 1_000_000)


CASES: Final[tuple[Case, ...]] = (
    Case(
        "RequestPayout",
        lambda _: payout_service_pb2.RequestPayoutRequest(
            organization_id=LARK, amount=usd(5), idempotency_key="again"
        ),
        STAFF,
    ),
    Case("GetPayout", lambda payout: payout_service_pb2.GetPayoutRequest(payout_id=payout), READERS),
    Case("ListPayouts", lambda _: payout_service_pb2.ListPayoutsRequest(organization_id=LARK), READERS),
    Case(
        "ExportPayouts",
        lambda _: payout_service_pb2.ExportPayoutsRequest(organization_id=LARK),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "RetryBankPayout",
        lambda payout: payout_service_pb2.RetryBankPayoutRequest(payout_id=payout),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "ResolvePayout",
        lambda payout: payout_service_pb2.ResolvePayoutRequest(
            payout_id=payout,
            resolution=payout_service_pb2.PAYOUT_RESOLUTION_FAIL,
            reason="A test of tenants.",
        ),
        OPERATOR,
    ),
    Case(
        "CancelPayout",
        lambda payout: payout_service_pb2.CancelPayoutRequest(payout_id=payout, reason="A test of tenants."),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "GetPayoutSchedule",
        lambda _: schedule_service_pb2.GetPayoutScheduleRequest(organization_id=LARK),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "SetPayoutSchedule",
        lambda _: schedule_service_pb2.SetPayoutScheduleRequest(
            schedule=payout_schedule_pb2.PayoutSchedule(
                organization_id=LARK, interval=payout_schedule_pb2.PAYOUT_INTERVAL_MANUAL
            )
        ),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "PreviewPayoutSchedule",
        lambda _: schedule_service_pb2.PreviewPayoutScheduleRequest(organization_id=LARK),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "CreateOnboardingLink",
        lambda _: connect_service_pb2.CreateOnboardingLinkRequest(organization_id=LARK),
        STAFF,
    ),
    Case(
        "GetConnectedAccount",
        lambda _: connect_service_pb2.GetConnectedAccountRequest(organization_id=LARK),
        STAFF_AND_OPERATOR,
    ),
    Case(
        "RefreshConnectedAccount",
        lambda _: connect_service_pb2.RefreshConnectedAccountRequest(organization_id=LARK),
        STAFF_AND_OPERATOR,
    ),
    Case("ListConnectedAccounts", lambda _: connect_service_pb2.ListConnectedAccountsRequest(), OPERATOR),
    Case("Reconcile", lambda _: reconciliation_service_pb2.ReconcileRequest(), OPERATOR),
    Case("ListProcessorEvents", lambda _: reconciliation_service_pb2.ListProcessorEventsRequest(), OPERATOR),
    Case(
        "RetryProcessorEvent",
        lambda _: reconciliation_service_pb2.RetryProcessorEventRequest(event_id="evt_unknown"),
        OPERATOR,
    ),
)


class Answer(NamedTuple):
    """How a call ended, and everything it said."""

    code: grpc.StatusCode
    text: str


def roles_of(method: MethodDescriptor) -> frozenset[int]:
    """The roles that the proto declares for a method."""
    return frozenset(method.GetOptions().Extensions[access_pb2.access].roles)


async def ask(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message) -> Answer:
    """Call any RPC; a stream is read to its end."""
    shape: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    rpc = shape(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    try:
        call = rpc(request, timeout=20)
        responses = [one async for one in call] if method.server_streaming else [await call]
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), f"{error.details()} {error.trailing_metadata()}")
    return Answer(grpc.StatusCode.OK, "\n".join(map(text_format.MessageToString, responses)))
