"""Callers that do not give up: they repeat a call under the same key until it is answered for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import grpc

from tallystick.common.v1 import money_pb2
from tallystick.ledger.v1 import account_pb2, directory_service_pb2, ledger_service_pb2
from tallystick.metering.v1 import metering_service_pb2, price_book_pb2, reservation_service_pb2
from tests.faults.services import Services
from tests.support.ledger_server import LedgerServer
from tests.support.metering_server import Caller, MeteringServer, bonus, price, tokens
from tests.support.rpc_errors import Refusal, taken_apart

T = TypeVar("T")

# What one token costs, and what success adds.
UNIT: Final = 10_000
BONUS: Final = 5 * UNIT
PRICE: Final = price(tokens(price_book_pb2.TOKEN_KIND_INPUT, "0.01", "input", per_units=1), bonus("0.05"))
AGENT_ID: Final = "agt_host"

# The answer may be another one when the call is repeated.
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
_FINAL: Final = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS})
_PAUSE_SECONDS: Final = 0.05
# Longer than any fault lasts.
_LONGEST_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 4.0


def usd(micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="USD", amount_micros=micros)


async def answered(call: Callable[[], Awaitable[T]]) -> T | Refusal:
    """The answer of a call, or why it was refused for good."""
    async with asyncio.timeout(_LONGEST_SECONDS):
        while True:
            try:
                return await asyncio.wait_for(call(), _CALL_SECONDS)
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    return taken_apart(error)
                # A defect of ours is never an answer.
                if error.code() not in _PASSING:
                    raise AssertionError(f"{error.code().name}: {error.details()}") from error
            await asyncio.sleep(_PAUSE_SECONDS)


async def granted(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call that must not be refused."""
    answer = await answered(call)
    assert not isinstance(answer, Refusal), answer
    return answer


@dataclass(frozen=True)
class Balance:
    """The amounts of GetBalance in micros."""

    credits: int
    available: int
    reserved: int
    held: int
    receivable: int
    unpaid: int
    credit_limit: int
    credit_room: int

    @property
    def kept(self) -> int:
        """What is reserved for runs, and what is reserved or held of the room under the credit limit."""
        return self.reserved + max(self.credit_limit - self.receivable, 0) - self.credit_room


class Clients:
    """A host and an operator."""

    def __init__(self, services: Services, database_url: str) -> None:
        ledger = LedgerServer(services.ledger, database_url, None, None, [])  # type: ignore[arg-type]
        ledger.operator, ledger.service = (
            ledger.caller(services.keys["operator"]),
            ledger.caller(services.keys["service"]),
        )
        self.ledger = ledger
        self.server = MeteringServer(services.metering, database_url, ledger)
        self.host: Caller = self.server.caller(services.keys["host"])
        self.operator: Caller = self.server.caller(services.keys["operator"])

    async def close(self) -> None:
        for channel in (*self.ledger._channels, *self.server._channels):
            await channel.close()

    async def set_up(self) -> None:
        """An agent, and a price for its work."""
        await self.ledger.create_organization("org_host")
        await self.server.publish(PRICE, caller=self.operator)

    async def create_customer(self, customer_id: str, credit_limit: int) -> None:
        await self.ledger.operator.directory.CreateCustomer(
            directory_service_pb2.CreateCustomerRequest(
                customer_id=customer_id, credit_limits=[usd(credit_limit)] if credit_limit else []
            )
        )

    def grant(self, customer_id: str, micros: int, key: str) -> Awaitable[object]:
        return self.ledger.operator.ledger.GrantCredits(
            ledger_service_pb2.GrantCreditsRequest(
                customer_id=customer_id,
                amount=usd(micros),
                source=ledger_service_pb2.CREDIT_SOURCE_PURCHASE,
                idempotency_key=key,
            )
        )

    def debit(self, customer_id: str, micros: int, key: str) -> Awaitable[object]:
        """An operator takes credits away."""
        postings = [
            ledger_service_pb2.Posting(
                account=account_pb2.AccountRef(owner_id=owner_id, kind=kind, currency_code="USD"),
                amount=usd(amount),
            )
            for owner_id, kind, amount in (
                (customer_id, account_pb2.ACCOUNT_KIND_CUSTOMER_CREDITS, -micros),
                ("platform", account_pb2.ACCOUNT_KIND_ADJUSTMENTS, micros),
            )
        ]
        return self.ledger.operator.ledger.AdjustBalances(
            ledger_service_pb2.AdjustBalancesRequest(
                postings=postings, reason="granted by mistake", idempotency_key=f"{customer_id}/{key}"
            )
        )

    async def balance(self, customer_id: str) -> Balance:
        """What the customer has; checked to add up."""
        answer = await granted(
            lambda: self.operator.metering.GetBalance(
                metering_service_pb2.GetBalanceRequest(customer_id=customer_id, currency_code="USD")
            )
        )
        balance = Balance(
            *(getattr(answer.balance, name).amount_micros for name in Balance.__dataclass_fields__)
        )
        assert balance.credits == balance.available + balance.reserved + balance.held, balance
        assert min(vars(balance).values()) >= 0, balance
        return balance

    async def reconcile(self, *, dry_run: bool) -> list[reservation_service_pb2.Drift]:
        answer = await granted(
            lambda: self.operator.reservations.Reconcile(
                reservation_service_pb2.ReconcileRequest(dry_run=dry_run)
            )
        )
        return list(answer.drifts)
