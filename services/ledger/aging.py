"""Age writes off what is open, if the ledger is told so. Any number of replicas may run it."""

import hashlib
from datetime import UTC, datetime, timedelta

from prometheus_client import Counter

from services.kit import log
from services.kit.db import Database, retry_transaction
from services.kit.errors import FailedPrecondition
from services.kit.tenancy import PLATFORM, scope
from services.kit.worker import PeriodicWorker
from services.ledger.config import LedgerConfig
from services.ledger.domain.write_offs import WriteOffKind
from services.ledger.store import write_offs

# Looked at in one search; each is written off in a short transaction of its own.
_LIMIT = 200
# Who writes off when nobody asked: the ledger itself.
_ACTOR = "ledger"
_WRITTEN_OFF = Counter("tallystick_written_off_charges", "Parts of charges that age wrote off.", ["kind"])
_log = log.get_logger()


def workers(config: LedgerConfig, writer: Database, reader: Database) -> list[PeriodicWorker]:
    """The one that writes off, unless that is turned off."""
    if config.write_off_after_days == 0:
        return []
    age = timedelta(days=config.write_off_after_days)
    reason = f"open for {config.write_off_after_days} days"

    async def write_off() -> bool:
        async with reader.begin() as connection:
            await scope(connection, PLATFORM)
            found = await write_offs.too_old(connection, datetime.now(UTC) - age, _LIMIT)
        written = 0
        for charge_id, kind in found:
            try:
                written += await _write_off(writer, charge_id, kind, reason)
            except Exception as error:  # noqa: BLE001 - one charge must not keep the others waiting
                _log.error("write_off.failed", charge_id=charge_id, kind=kind, exc_info=error)
        return written > 0

    return [PeriodicWorker("ledger.write_off", config.write_off_interval, write_off)]


async def _write_off(writer: Database, charge_id: str, kind: WriteOffKind, reason: str) -> bool:
    """Whether something was written off: somebody else may have paid it, or written it off, meanwhile."""
    key = write_offs.age_key(charge_id, kind)
    # All that is owed, whatever the age that somebody sets later: the key alone says what it is.
    request = write_offs.Request(None, reason, _ACTOR, key, hashlib.sha256(key.encode()).digest())

    async def attempt() -> write_offs.Written:
        async with writer.hot() as connection:
            return await write_offs.write_off_charge(connection, charge_id, kind, request)

    try:
        written = await retry_transaction(attempt, idempotent=True)
    except FailedPrecondition:
        return False
    if not written.duplicate:
        _WRITTEN_OFF.labels(kind).inc()
        _log.info("charge.written_off", charge_id=charge_id, kind=kind, amount_micros=written.amount)
    return not written.duplicate
