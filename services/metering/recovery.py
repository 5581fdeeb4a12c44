"""Recovery: posts the charges that a crash, or a ledger that was away, left in the queue."""

from datetime import timedelta
from typing import Final

from prometheus_client import Counter, Gauge

from services.kit import log
from services.kit.db import Database
from services.kit.errors import TallystickError
from services.kit.worker import PeriodicWorker
from services.metering.domain.usage_record import ChargeKey
from services.metering.rpc.ledger import Ledger, is_passing
from services.metering.store import pending_charges
from services.metering.store.pending_charges import FailedCharge

_BATCH: Final = 500
_LONGEST_DELAY: Final = timedelta(minutes=2)
_RECOVERED = Counter("tallystick_recovered_charges", "Charges that recovery posted.")
_REFUSED = Gauge(
    "tallystick_refused_charges", "Recorded usage whose charge the ledger refuses: each needs an operator."
)
_log = log.get_logger()


class Recovery:
    """Posts pending charges, however often it takes: the ledger knows each by its id, and posts it once. What
    is held for an outcome that adds nothing is released instead.
    """

    def __init__(self, *, writer: Database, ledger: Ledger, delay: timedelta) -> None:
        self._writer = writer
        self._ledger = ledger
        self._delay = delay

    def worker(self, interval: timedelta) -> PeriodicWorker:
        """The worker that does this for as long as the process lives."""
        return PeriodicWorker("recovery", interval, self.step)

    async def step(self) -> bool:
        """Try some of the charges that are due; whether more may be. Raises if the ledger is away."""
        # Taken in a transaction of its own, because none stays open during a call over the network. If we do
        # not come back from the call, whoever looks after the next attempt time takes them again.
        async with self._writer.hot() as connection:
            charges = await pending_charges.take(
                connection, _BATCH, first_delay=self._delay, longest_delay=_LONGEST_DELAY
            )
            _REFUSED.set(await pending_charges.count_refused(connection))
        if not charges:
            return False
        verdicts = await self._ledger.settle_charges(charges)
        posted: list[ChargeKey] = []
        failed: list[FailedCharge] = []
        for charge, verdict in zip(charges, verdicts, strict=True):
            if isinstance(verdict, TallystickError):
                failed.append(_failed(charge.charge_key, verdict))
            else:
                posted.append(charge.charge_key)
        async with self._writer.hot() as connection:
            await pending_charges.confirm(connection, posted)
            await pending_charges.note_failed(connection, failed)
        _RECOVERED.inc(len(posted))
        _log.info("charges.recovered", posted=len(posted), failed=len(failed))
        return len(charges) == _BATCH


def _failed(key: ChargeKey, error: TallystickError) -> FailedCharge:
    refused = not is_passing(error)
    if refused:
        _log.error(
            "charge.refused",
            charge_id=key.charge_id,
            reason=error.reason,
            message=error.message,
            **key._asdict(),
        )
    return FailedCharge(key, f"{error.reason}: {error.message}", refused)
