"""What the ledger does beside answering calls. Any number of replicas may run all of it."""

from services.kit import log
from services.kit.db import Database, retry_transaction
from services.kit.tenancy import PLATFORM, scope, scope_hot
from services.kit.worker import PeriodicWorker
from services.ledger.config import LedgerConfig
from services.ledger.sealer import note_new_log
from services.ledger.store import background, movements, seal

# Rows per transaction: enough to keep up, few enough to be over in milliseconds.
_FOLD_LIMIT = 5000
_SEQUENCE_LIMIT = 5000
_COLLECT_CUSTOMERS = 100
_COLLECT_CHARGES = 500
# Who collects when nobody asked: the ledger itself.
_ACTOR = "ledger"
_log = log.get_logger()


async def _collect(writer: Database, customer_id: str, currency_code: str) -> int:
    """Micros collected from one customer."""

    async def attempt() -> int:
        async with writer.hot() as connection:
            done = await movements.collect(connection, customer_id, currency_code, _COLLECT_CHARGES, _ACTOR)
            return done.amount

    # What was collected is no longer open, so a second attempt does not collect it again.
    return await retry_transaction(attempt, idempotent=True)


async def _begin_log(writer: Database, reader: Database) -> None:
    """Begin a new log: the database was restored or promoted, so the old one ends here."""
    async with reader.hot() as connection:
        await scope_hot(connection, PLATFORM)
        newest = await seal.newest_log(connection)

    async def begin() -> str | None:
        async with writer.hot() as connection:
            return await seal.begin_log(connection, newest.log_id, "cluster")

    note_new_log("cluster", newest.log_id, await retry_transaction(begin))


def workers(config: LedgerConfig, writer: Database, reader: Database) -> list[PeriodicWorker]:
    """The folder, the sequencer and the collector."""

    async def fold() -> bool:
        async def attempt() -> int:
            async with writer.call() as connection:
                return await background.fold(connection, _FOLD_LIMIT)

        # Here and below idempotent in that a second run goes on where the first one ended.
        return await retry_transaction(attempt, idempotent=True) == _FOLD_LIMIT

    async def sequence() -> bool:
        async def attempt() -> int:
            async with writer.call() as connection:
                return await background.sequence(connection, _SEQUENCE_LIMIT)

        sequenced = await retry_transaction(attempt, idempotent=True)
        if sequenced == background.OTHER_CLUSTER:
            await _begin_log(writer, reader)
        return sequenced == _SEQUENCE_LIMIT

    async def collect() -> bool:
        """Finish what a top-up began and could not end: long debts, and those a crash left."""
        async with reader.begin() as connection:
            await scope(connection, PLATFORM)
            owing = await background.collectable(connection, _COLLECT_CUSTOMERS)
        collected = 0
        for customer_id, currency_code in owing:
            try:
                collected += await _collect(writer, customer_id, currency_code)
            except Exception as error:  # noqa: BLE001 - one customer must not keep the others waiting
                _log.error("collect.failed", customer_id=customer_id, exc_info=error)
        return collected > 0

    return [
        PeriodicWorker("ledger.fold", config.fold_interval, fold),
        PeriodicWorker("ledger.sequence", config.sequence_interval, sequence),
        PeriodicWorker("ledger.collect", config.collect_interval, collect),
    ]
