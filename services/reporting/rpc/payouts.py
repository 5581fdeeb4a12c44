"""Payouts, as reporting reads them. What it refuses raises TallystickError, and so does its absence."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Final, TypeVar

import grpc

from services.kit.status import from_rpc_error
from tallystick.payouts.v1 import payout_service_pb2, payout_service_pb2_grpc

T = TypeVar("T")

_TIMEOUT_SECONDS: Final = 10.0
_AT_ONCE: Final = 8


class Payouts:
    """Calls of PayoutService with the key of this service, which sees everybody's.

    Whoever calls these has checked whom they are for.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._payouts = payout_service_pb2_grpc.PayoutServiceStub(channel)

    async def list_newest(
        self, organization_id: str, page_size: int, page_token: str
    ) -> payout_service_pb2.ListPayoutsResponse:
        """A page of an organization's payouts, the newest first."""
        return await _answer(
            self._payouts.ListPayouts(
                payout_service_pb2.ListPayoutsRequest(
                    organization_id=organization_id, page_size=page_size, page_token=page_token
                ),
                timeout=_TIMEOUT_SECONDS,
            )
        )

    async def get_all(self, payout_ids: Iterable[str]) -> list[payout_service_pb2.GetPayoutResponse]:
        """Payouts with their steps, in the order of the ids; a few at once."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def get(payout_id: str) -> payout_service_pb2.GetPayoutResponse:
            async with room:
                return await _answer(
                    self._payouts.GetPayout(
                        payout_service_pb2.GetPayoutRequest(payout_id=payout_id), timeout=_TIMEOUT_SECONDS
                    )
                )

        return await asyncio.gather(*map(get, payout_ids))


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
