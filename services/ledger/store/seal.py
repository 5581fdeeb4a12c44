"""What is stored of the seal: leaves, nodes of their tree, checkpoints, and what opens commitments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from services.kit.db import single
from services.ledger.domain.seal_tree import TILE, Frontier, Node, stored_ranges
from tallystick.seal.merkle import HASH_SIZE

Connection = AsyncConnection[TupleRow]

_LOG: Final = """
    SELECT l.log_id, s.hashed_position, s.sealed_size, l.previous_log_id, l.lost_log_id
    FROM ledger.journal_log l JOIN ledger.seal_state s USING (log_id)
"""
_LEAVES: Final = """
    SELECT first_position, leaf_hashes FROM ledger.seal_block
    WHERE log_id = %s AND first_position > %s AND first_position <= %s
    ORDER BY first_position
"""
_CHECKPOINT: Final = (
    "SELECT size, root, origin, note FROM ledger.seal_checkpoint WHERE log_id = %s AND size >= %s"
)
_FIRST_CHECKPOINT: Final = f"{_CHECKPOINT} ORDER BY size LIMIT 1"
_NEWEST_CHECKPOINT: Final = f"{_CHECKPOINT} ORDER BY size DESC LIMIT 1"
_SEALED: Final = """
    SELECT position, leaf_hash, partition_id, type, charge_id, payout_id, external_id, correction_id,
           occur_time, create_time, actor, actor_salt, actor_commitment, reason, reason_salt,
           reason_commitment, evidence_hash, evidence_salt, evidence_commitment
    FROM ledger.sealed_transaction WHERE log_id = %s AND transaction_id = %s
"""
_SEALED_ENTRIES: Final = """
    SELECT entry_number, commitment, salt, owner_id, kind, currency_code, amount, collected, earned_on,
           available_on, account_version
    FROM ledger.sealed_entry WHERE log_id = %s AND transaction_id = %s
    ORDER BY entry_number
"""
# The age of what has waited longest for its checkpoint: the next position, or else what has none yet.
_LAG: Final = """
    SELECT coalesce(extract(epoch FROM clock_timestamp() - coalesce(
        (SELECT t.create_time
         FROM ledger.journal_position p JOIN ledger.transaction t USING (transaction_id, partition_id)
         WHERE p.log_id = %s AND p.position = %s),
        (SELECT t.create_time
         FROM ledger.unsequenced u JOIN ledger.transaction t USING (transaction_id, partition_id)
         ORDER BY u.unsequenced_id LIMIT 1))), 0)::double precision
"""


@dataclass(frozen=True, slots=True)
class Log:
    """A log, and how far it is hashed and sealed."""

    log_id: str
    hashed_position: int
    sealed_size: int
    previous_log_id: str | None = None
    lost_log_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint as it was signed."""

    size: int
    root: bytes
    origin: str
    note: str


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A sealed transaction as the caller may see it. A salt that is all zeros was erased."""

    position: int
    leaf_hash: bytes
    partition_id: str
    type: str
    charge_id: str
    payout_id: str
    external_id: str
    correction_id: str
    occur_time: datetime
    create_time: datetime
    actor: str | None
    actor_salt: bytes | None
    actor_commitment: bytes
    reason: str
    reason_salt: bytes | None
    reason_commitment: bytes | None
    evidence_hash: bytes | None
    evidence_salt: bytes | None
    evidence_commitment: bytes | None


@dataclass(frozen=True, slots=True)
class SealedEntryRow:
    """An entry of it; of another's only the number and the commitment."""

    entry_number: int
    commitment: bytes
    salt: bytes | None
    owner_id: str | None
    kind: str | None
    currency_code: str | None
    amount: int | None
    collected: bool | None
    earned_on: date | None
    available_on: date | None
    account_version: int | None


async def hash_leaves(connection: Connection, limit: int) -> int:
    """Make the leaves of up to `limit` positions of the newest log; how many."""
    count: int
    (count,) = await single(await connection.execute("SELECT ledger.hash_leaves(%s)", (limit,)))
    return count


async def newest_log(connection: Connection) -> Log:
    """The log that positions are given in."""
    found = await connection.execute(f"{_LOG} ORDER BY l.create_time DESC LIMIT 1")
    return Log(*await single(found))


async def find_log(connection: Connection, log_id: str) -> Log | None:
    """A log, old or new."""
    row = await (await connection.execute(f"{_LOG} WHERE l.log_id = %s", (log_id,))).fetchone()
    return None if row is None else Log(*row)


async def is_known(connection: Connection, log_id: str) -> bool:
    """Whether a log is one of this database, or one that it knows to have lost."""
    known: bool
    (known,) = await single(
        await connection.execute(
            "SELECT EXISTS (SELECT FROM ledger.journal_log WHERE %s IN (log_id, lost_log_id))", (log_id,)
        )
    )
    return known


async def begin_log(
    connection: Connection, old_log_id: str, reason: str, lost_log_id: str | None = None
) -> str | None:
    """Begin a log that continues the newest one. None if another one has begun since."""
    # Every position is copied: a ledger of many millions needs more time than a statement is given.
    await connection.execute("SET LOCAL statement_timeout = 0")
    log_id: str | None
    (log_id,) = await single(
        await connection.execute("SELECT ledger.begin_log(%s, %s, %s)", (old_log_id, reason, lost_log_id))
    )
    return log_id


async def leaf_hashes(connection: Connection, log_id: str, first: int, end: int) -> list[bytes]:
    """The hashes of the leaves from index `first` on, and before `end`."""
    # A block never reaches over a multiple of TILE, so those of the first tile begin in it.
    found = await connection.execute(_LEAVES, (log_id, first // TILE * TILE, end), binary=True)
    hashes = [
        (position - 1 + number, block[number * HASH_SIZE : (number + 1) * HASH_SIZE])
        for position, block in await found.fetchall()
        for number in range(len(block) // HASH_SIZE)
    ]
    wanted = [hash for index, hash in hashes if first <= index < end]
    if len(wanted) != end - first:
        raise LookupError(f"{log_id} has {len(wanted)} leaves from {first} to {end}")
    return wanted


async def nodes(
    connection: Connection, log_id: str, ranges: Sequence[tuple[int, int, int]]
) -> dict[Node, bytes]:
    """The stored nodes of these (level, first index, end)."""
    found: dict[Node, bytes] = {}
    above = [one for one in ranges if one[0]]
    for _, first, end in (one for one in ranges if not one[0]):
        for index, leaf_hash in enumerate(await leaf_hashes(connection, log_id, first, end), first):
            found[0, index] = leaf_hash
    if above:
        levels, firsts, ends = zip(*above, strict=True)
        rows = await connection.execute(
            "SELECT n.level, n.node_index, n.hash"
            " FROM unnest(%s::smallint[], %s::bigint[], %s::bigint[]) AS wanted (level, first, above)"
            " JOIN ledger.seal_node n ON n.log_id = %s AND n.level = wanted.level"
            " AND n.node_index >= wanted.first AND n.node_index < wanted.above",
            (list(levels), list(firsts), list(ends), log_id),
            binary=True,
        )
        found |= {(level, index): hash for level, index, hash in await rows.fetchall()}
    return found


async def frontier(connection: Connection, log_id: str, size: int) -> Frontier:
    """The right edge of a log's tree as it was sealed at this size."""
    ranges = stored_ranges(size)
    found = await nodes(connection, log_id, ranges)
    return Frontier.of(
        size, [[found[level, index] for index in range(first, end)] for level, first, end in ranges]
    )


async def checkpoint(connection: Connection, log_id: str, min_size: int = 0) -> StoredCheckpoint | None:
    """The newest checkpoint of a log, or the first of at least a size."""
    found = await connection.execute(
        _FIRST_CHECKPOINT if min_size else _NEWEST_CHECKPOINT,
        (log_id, min_size),
        binary=True,
    )
    row = await found.fetchone()
    return None if row is None else StoredCheckpoint(*row)


async def store_checkpoint(
    connection: Connection,
    log_id: str,
    from_size: int,
    stored: StoredCheckpoint,
    made: Mapping[Node, bytes],
) -> bool:
    """Store a checkpoint and the nodes it completed; False if another sealer was there first."""
    kept: bool
    (kept,) = await single(
        await connection.execute(
            "SELECT ledger.store_checkpoint("
            "%s, %s, %s, %s, %s, %s, %s::smallint[], %s::bigint[], %s::bytea[])",
            (
                log_id,
                from_size,
                stored.size,
                stored.root,
                stored.origin,
                stored.note,
                [level for level, _ in made],
                [index for _, index in made],
                list(made.values()),
            ),
        )
    )
    return kept


async def lag_seconds(connection: Connection, log: Log) -> float:
    """For how long the oldest transaction waits that no checkpoint covers; 0 if there is none."""
    lag: float
    (lag,) = await single(await connection.execute(_LAG, (log.log_id, log.sealed_size + 1)))
    return max(lag, 0.0)


async def sealed_transaction(
    connection: Connection, log_id: str, transaction_id: str
) -> tuple[SealedRow, list[SealedEntryRow]] | None:
    """A transaction as it was sealed, as far as the connection's tenants may see it; None if they may not, or
    if it is not hashed yet.
    """
    cursor = connection.cursor(binary=True)
    await cursor.execute(_SEALED, (log_id, transaction_id))
    row = await cursor.fetchone()
    if row is None:
        return None
    await cursor.execute(_SEALED_ENTRIES, (log_id, transaction_id))
    return SealedRow(*row), [SealedEntryRow(*entry) for entry in await cursor.fetchall()]
