"""Renews subscriptions whose period has ended, and posts fees to the ledger, however often it takes."""

from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Counter, Gauge

from services.kit import log
from services.kit.clock import Clock
from services.kit.db import Database, retry_transaction
from services.kit.errors import TallystickError
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.metering.domain.usage_event import EventKey
from services.metering.domain.usage_record import IntendedCharge
from services.metering.rpc.ledger import Ledger, is_passing
from services.metering.rpc.subscription_convert import subscription_from_stored
from services.metering.rpc.subscription_steps import catch_up
from services.metering.store import subscriptions
from services.metering.store.subscriptions import StoredFee

# Renewed in one transaction: few, since somebody may be waiting for one of them.
_RENEWED_AT_ONCE: Final = 20
_POSTED_AT_ONCE: Final = 200
_LONGEST_DELAY: Final = timedelta(minutes=2)
# Until the ledger is asked again for what it refused: it takes a person to mend the cause.
_REFUSED_DELAY: Final = timedelta(hours=1)
_POSTED = Counter("tallystick_subscription_fees", "Fees of subscriptions that were posted to the ledger.")
_FAILED = Counter("tallystick_failed_renewals", "Attempts to renew a subscription that failed.")
_REFUSED = Gauge(
    "tallystick_refused_subscription_fees", "Fees whose charge the ledger refuses: it is asked again."
)
_log = log.get_logger()


class SubscriptionFees:
    """Renews subscriptions and posts their fees. Any number of replicas do it at once.

    A renewal and its fee are one transaction, under the lock of the subscription. Its charge is posted
    afterwards: the run and the ordinal name it, so that the ledger posts it once, whoever asks how often.
    """

    def __init__(self, *, writer: Database, ledger: Ledger, clock: Clock, delay: timedelta) -> None:
        self._writer = writer
        self._ledger = ledger
        self._clock = clock
        self.delay = delay

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("subscription_fees", interval, self.step)

    async def step(self) -> bool:
        """Renew some subscriptions, post some fees; whether more may wait. Raises if the ledger is away."""
        renewed = await retry_transaction(self._renew, idempotent=True)
        posted = await self.post()
        return renewed == _RENEWED_AT_ONCE or posted == _POSTED_AT_ONCE

    async def _renew(self) -> int:
        now = self._clock.now()
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            due = await subscriptions.take_due(connection, now, _RENEWED_AT_ONCE)
            renewed = 0
            for subscription_id, content in due:
                try:
                    async with connection.begin_nested():
                        await catch_up(connection, subscription_from_stored(content), now=now)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is logged
                    # One that cannot be renewed keeps nobody else's from it.
                    _FAILED.inc()
                    _log.error("subscription.not_renewed", subscription_id=subscription_id, exc_info=error)
                else:
                    renewed += 1
        if renewed:
            _log.info("subscriptions.renewed", count=renewed)
        return renewed

    async def post(self) -> int:
        """Post some of the fees that are due; how many it tried."""
        # Taken in a transaction of its own, because none stays open during a call over the network.
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            fees = await subscriptions.take_fees(
                connection,
                _POSTED_AT_ONCE,
                first_delay=max(self.delay, timedelta(seconds=1)),
                longest_delay=_LONGEST_DELAY,
            )
            _REFUSED.set(await subscriptions.count_refused(connection))
        if not fees:
            return 0
        verdicts = await self._ledger.post_charges([_charge(fee) for fee in fees])
        posted: list[StoredFee] = []
        failed: dict[StoredFee, tuple[str, bool]] = {}
        for fee, verdict in zip(fees, verdicts, strict=True):
            if isinstance(verdict, TallystickError):
                failed[fee] = (f"{verdict.reason}: {verdict.message}", not is_passing(verdict))
            else:
                posted.append(fee)
        async with self._writer.begin() as connection:
            await scope(connection, PLATFORM)
            await subscriptions.note_posted(connection, posted)
            await subscriptions.note_failed(connection, failed, refused_delay=_REFUSED_DELAY)
        _POSTED.inc(len(posted))
        for fee, (error, refused) in failed.items():
            _log.error(
                "fee.failed", workflow_id=fee.workflow_id, ordinal=fee.ordinal, error=error, refused=refused
            )
        return len(fees)

    def now(self) -> datetime:
        """The time of this process, in whole seconds, as segments have it."""
        return self._clock.now().replace(microsecond=0)


def _charge(fee: StoredFee) -> IntendedCharge:
    return IntendedCharge(
        key=EventKey(fee.customer_id, fee.workflow_id, fee.ordinal),
        organization_id=fee.organization_id,
        agent_id=fee.agent_id,
        occur_time=fee.occur_time,
        currency_code=fee.currency_code,
        amount_micros=fee.amount_micros,
        price_version_id=fee.price_version_id,
        evidence_hash=b"",
    )
