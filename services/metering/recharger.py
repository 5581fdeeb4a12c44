"""Has payouts buy credits for customers who run low, behind everybody's back."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NamedTuple

import grpc
from prometheus_client import Counter

from services.kit import log
from services.kit.errors import TallystickError
from services.metering.rpc.convert import money_to_proto
from services.metering.rpc.credits import Credits
from services.metering.rpc.ledger import Ledger
from tallystick.payouts.v1 import payment_service_pb2, payment_service_pb2_grpc

# How long an answer of payouts is gone by. Who has no auto-recharge costs one call in this time.
_REMEMBERED_SECONDS: Final = 60.0
# What is bought comes within seconds; until then nothing is gained by asking again and again.
_PAUSE_SECONDS: Final = 5.0
_MAX_REMEMBERED: Final = 100_000
_MAX_UNDER_WAY: Final = 8
_MAX_WAITING: Final = 1_000
# Buying may take payouts a few calls to the payment processor.
_TIMEOUT_SECONDS: Final = 60.0

_ASKED: Final = Counter(
    "tallystick_recharges_asked", "Times that payouts was asked to buy credits.", ["answer"]
)
_log = log.get_logger()


class _Key(NamedTuple):
    customer_id: str
    currency_code: str


class _Known(NamedTuple):
    """What payouts answered: below what it buys, None if it does not."""

    threshold_micros: int | None
    # On the monotonic clock: not asked again before, and not gone by after.
    ask_from: float
    until: float


class Recharger:
    """Asks payouts to top up customers, each at most once at a time, and never while a caller waits.

    What is lost with this process, or because too many wait, is asked for again when the customer's balance
    is next seen.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        ledger: Ledger,
        credits: Credits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._payments = payment_service_pb2_grpc.PaymentServiceStub(channel)
        self._ledger = ledger
        self._credits = credits
        self._monotonic = monotonic
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_MAX_UNDER_WAY)

    def seen(self, customer_id: str, currency_code: str, available_micros: int) -> None:
        """A customer has so much left to spend: ask if that is too little, or if nothing is known of it."""
        key, now = _Key(customer_id, currency_code), self._monotonic()
        known = self._known.get(key)
        if known is not None and now < known.until:
            enough = known.threshold_micros is None or available_micros >= known.threshold_micros
            if enough or now < known.ask_from:
                return
        if key in self._tasks or len(self._tasks) >= _MAX_WAITING:
            return
        task = asyncio.create_task(self._ask(key))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self, grace: timedelta = timedelta(seconds=5)) -> None:
        """Wait for what is under way, and give up the rest."""
        tasks = list(self._tasks.values())
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace.total_seconds())
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _ask(self, key: _Key) -> None:
        async with self._turns:
            try:
                answer = await self._recharge(key)
            except (TallystickError, grpc.aio.AioRpcError) as error:
                _ASKED.labels("failed").inc()
                _log.warning("recharge.failed", customer_id=key.customer_id, detail=str(error))
                # Not at once again, while payouts is away; then whoever sees the balance asks.
                self._remember(key, None, _PAUSE_SECONDS)
                return
        _ASKED.labels("bought" if answer.HasField("purchase") else "none").inc()
        threshold = answer.threshold.amount_micros if answer.enabled else None
        self._remember(key, threshold, _REMEMBERED_SECONDS)

    def _remember(self, key: _Key, threshold_micros: int | None, seconds: float) -> None:
        now = self._monotonic()
        self._known[key] = _Known(threshold_micros, now + _PAUSE_SECONDS, now + seconds)
        self._known.move_to_end(key)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)

    async def _recharge(self, key: _Key) -> payment_service_pb2.RechargeCreditsResponse:
        balance = await self._ledger.get_balance(key.customer_id, key.currency_code)
        leased = balance.held_credits.leased.amount_micros
        free = leased - await self._credits.allocated(balance) if leased else 0
        return await self._payments.RechargeCredits(
            payment_service_pb2.RechargeCreditsRequest(
                customer_id=key.customer_id,
                currency_code=key.currency_code,
                lease_free=money_to_proto(key.currency_code, free),
            ),
            timeout=_TIMEOUT_SECONDS,
        )
