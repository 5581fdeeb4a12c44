"""Metering asks payouts for credits: seldom, once at a time, and never for who does not want it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from services.kit.errors import Unavailable
from services.metering.recharger import Recharger
from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2
from tallystick.payouts.v1 import payment_service_pb2


@dataclass
class Payouts:
    """Stands in for payouts, the ledger and Redis at once, and counts."""

    answer: payment_service_pb2.RechargeCreditsResponse | Exception
    requests: list[payment_service_pb2.RechargeCreditsRequest] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    now: float = 0.0

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        async def call(
            request: payment_service_pb2.RechargeCreditsRequest, timeout: float
        ) -> payment_service_pb2.RechargeCreditsResponse:
            self.requests.append(request)
            await self.gate.wait()
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return call

    async def get_balance(self, customer_id: str, currency_code: str) -> account_pb2.CustomerBalance:
        leased = money_pb2.Money(currency_code=currency_code, amount_micros=70)
        return account_pb2.CustomerBalance(held_credits=account_pb2.HeldCredits(leased=leased))

    async def allocated(self, balance: account_pb2.CustomerBalance) -> int:
        return 30

    def recharger(self) -> Recharger:
        this = cast(Any, self)
        return Recharger(channel=this, ledger=this, credits=this, monotonic=lambda: self.now)


def enabled(threshold: int) -> payment_service_pb2.RechargeCreditsResponse:
    return payment_service_pb2.RechargeCreditsResponse(
        enabled=True, threshold=money_pb2.Money(currency_code="USD", amount_micros=threshold)
    )


NONE = payment_service_pb2.RechargeCreditsResponse()


async def test_who_has_none_costs_a_call_a_minute() -> None:
    payouts = Payouts(NONE)
    payouts.gate.set()
    recharger = payouts.recharger()
    for second in range(120):
        payouts.now = float(second)
        recharger.seen("cus_a", "USD", 0)
        await recharger.close()
    assert len(payouts.requests) == 2


async def test_who_has_enough_is_not_asked_about_and_who_has_not_is_soon() -> None:
    payouts = Payouts(enabled(100))
    payouts.gate.set()
    recharger = payouts.recharger()
    for now, available in ((0, 500), (1, 100), (2, 99), (6, 100), (7, 99), (8, 99), (13, 0)):
        payouts.now = float(now)
        recharger.seen("cus_a", "USD", available)
        await recharger.close()
    assert len(payouts.requests) == 3


async def test_a_customer_is_asked_about_once_at_a_time() -> None:
    payouts = Payouts(enabled(100))
    recharger = payouts.recharger()
    for _ in range(10):
        recharger.seen("cus_a", "USD", 0)
        recharger.seen("cus_b", "USD", 0)
        await asyncio.sleep(0)
    payouts.gate.set()
    await recharger.close()
    assert sorted(one.customer_id for one in payouts.requests) == ["cus_a", "cus_b"]
    # What the lease has free, which only metering knows.
    assert payouts.requests[0].lease_free.amount_micros == 40


async def test_few_are_asked_about_at_once_and_not_too_many_wait() -> None:
    payouts = Payouts(enabled(100))
    recharger = payouts.recharger()
    for number in range(1_500):
        recharger.seen(f"cus_{number}", "USD", 0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(payouts.requests) == 8
    assert len(recharger._tasks) == 1_000
    payouts.gate.set()
    await recharger.close()
    assert len(payouts.requests) == 1_000


@pytest.mark.parametrize("error", [Unavailable("away")])
async def test_while_payouts_is_away_it_is_left_alone_for_moments(error: Exception) -> None:
    payouts = Payouts(error)
    payouts.gate.set()
    recharger = payouts.recharger()
    for now in (0, 1, 4, 5, 6):
        payouts.now = float(now)
        recharger.seen("cus_a", "USD", 0)
        await recharger.close()
    assert len(payouts.requests) == 2
