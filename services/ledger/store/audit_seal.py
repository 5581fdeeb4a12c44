"""The audit of the seal: leaves recomputed from the journal, trees from leaves, and what was signed.

Whether the signatures are right, the database cannot tell: who has the ledger's public key checks that
(docs/seal.md).
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.domain.seal_tree import Node, RunningTree
from services.ledger.store.audit_check import Check
from tallystick.seal.checkpoints import unverified
from tallystick.seal.merkle import HASH_SIZE
from tallystick.seal.notes import NoteError

# As ledger.hash_leaves makes them, with the salts that were kept; of an erased one the commitment was.
_LEAVES: Final = """
    SELECT b.log_id, p.position, p.transaction_id
    FROM ledger.seal_block b
    LEFT JOIN ledger.seal_salt k USING (log_id, first_position)
    CROSS JOIN LATERAL generate_series(
        b.first_position, b.first_position + octet_length(b.leaf_hashes) / 32 - 1) AS at (position)
    LEFT JOIN ledger.journal_position p ON p.log_id = b.log_id AND p.position = at.position
    LEFT JOIN ledger.transaction t USING (transaction_id, partition_id)
    LEFT JOIN ledger.charge c
      ON t.type = 'charge' AND c.charge_id = t.charge_id AND c.customer_id = t.partition_id
    CROSS JOIN LATERAL (SELECT k.salts[at.position - b.first_position + 1] AS salts) AS s
    LEFT JOIN LATERAL (
        SELECT count(*) AS entries, coalesce(string_agg(
            coalesce(x.commitment, ledger.entry_commitment(
                substring(s.salts, (e.entry_number + 2) * 16 + 1, 16), e.entry_number, e.owner_id, e.kind,
                e.currency_code, e.amount, e.collected, e.earned_on, e.available_on, e.account_version)),
            '' ORDER BY e.entry_number), '') AS commitments
        FROM ledger.entry e
        LEFT JOIN ledger.erased_salt x
          ON x.log_id = p.log_id AND x.position = p.position AND x.item = e.entry_number
        WHERE e.transaction_id = t.transaction_id AND e.partition_id = t.partition_id
    ) AS e ON true
    LEFT JOIN ledger.erased_salt xa ON xa.log_id = p.log_id AND xa.position = p.position AND xa.item = 0
    LEFT JOIN ledger.erased_salt xr ON xr.log_id = p.log_id AND xr.position = p.position AND xr.item = -1
    LEFT JOIN ledger.erased_salt xe ON xe.log_id = p.log_id AND xe.position = p.position AND xe.item = -2
    WHERE substring(b.leaf_hashes, ((at.position - b.first_position) * 32 + 1)::integer, 32) IS DISTINCT FROM
        sha256('\\x00' || record_send(ROW(
            'tallystick/transaction/v1'::text, b.log_id, p.position, p.transaction_id, p.partition_id,
            t.type::text, coalesce(t.charge_id, ''), coalesce(t.payout_id, ''), coalesce(t.external_id, ''),
            coalesce(t.correction_id, ''), t.occur_time, t.create_time, e.entries, e.commitments,
            coalesce(xa.commitment, ledger.detail_commitment(
                substring(s.salts, 1, 16), 'actor', convert_to(t.actor_api_key_id, 'UTF8'))),
            CASE WHEN t.reason <> '' THEN coalesce(xr.commitment, ledger.detail_commitment(
                substring(s.salts, 17, 16), 'reason', convert_to(t.reason, 'UTF8'))) END,
            CASE WHEN c.evidence_hash <> '' THEN coalesce(xe.commitment, ledger.detail_commitment(
                substring(s.salts, 33, 16), 'evidence', c.evidence_hash)) END
        )))
"""

_CHECKPOINTS: Final = (
    "SELECT size, root, origin, note FROM ledger.seal_checkpoint WHERE log_id = :log_id ORDER BY size"
)
_BLOCKS: Final = "SELECT leaf_hashes FROM ledger.seal_block WHERE log_id = :log_id ORDER BY first_position"
# In the order in which a tree that grows makes them.
_NODES: Final = """
    SELECT level, node_index, hash FROM ledger.seal_node WHERE log_id = :log_id
    ORDER BY (node_index + 1) << level, level
"""
# A block has 8 KiB.
_FEW: Final = {"max_row_buffer": 100}


async def _tree_differences(connection: AsyncConnection) -> AsyncIterator[Mapping[str, Any]]:
    """Checkpoints and nodes that are not those of the leaves: a tree is not a query."""
    logs = await connection.execute(text("SELECT log_id FROM ledger.journal_log ORDER BY create_time"))
    for (log_id,) in logs.all():
        async for difference in differences_of(
            log_id,
            blocks=await _stream(connection, _BLOCKS, log_id),
            nodes=await _stream(connection, _NODES, log_id),
            checkpoints=await _stream(connection, _CHECKPOINTS, log_id),
        ):
            yield difference


async def differences_of(
    log_id: str, *, blocks: AsyncIterator[Any], nodes: AsyncIterator[Any], checkpoints: AsyncIterator[Any]
) -> AsyncIterator[Mapping[str, Any]]:
    """Grow the tree of a log from checkpoint to checkpoint, over one pass of its leaves.

    Blocks (leaf hashes), nodes (level, index, hash) and checkpoints (size, root, origin, note), each in their
    order, are streamed beside each other, and none of them is held: there are a few checkpoints for every
    second that the ledger ever ran. So each of them costs a few hashes, and not a tree.
    """
    tree = RunningTree()
    leaves = _Leaves(blocks)
    stored = _Nodes(log_id, nodes)
    lacking = False
    async for size, root, origin, note in checkpoints:
        if not _says(note, origin, size, bytes(root)):
            yield {"log_id": log_id, "size": size, "note": "does not say what is stored of it"}
        while not lacking and tree.size < size:
            some = await leaves.take(size - tree.size)
            lacking = not some
            for difference in await stored.compare(tree.append(some)):
                yield difference
            # Calls get their turn: rows come many at once, and the rest of this is computing.
            await asyncio.sleep(0)
        if tree.size == size:
            if tree.root() != bytes(root):
                yield {"log_id": log_id, "size": size, "root": "is not that of the leaves"}
        else:
            yield {"log_id": log_id, "size": size, "leaves": tree.size}
        await asyncio.sleep(0)
    async for difference in stored.rest():
        yield difference


async def _stream(connection: AsyncConnection, query: str, log_id: str) -> AsyncIterator[Any]:
    found = await connection.stream(text(query), {"log_id": log_id}, execution_options=_FEW)
    return aiter(found)


class _Leaves:
    """Leaf hashes, in whatever blocks they are stored."""

    def __init__(self, blocks: AsyncIterator[Any]) -> None:
        self._blocks = blocks
        self._read = b""

    async def take(self, count: int) -> list[bytes]:
        """The next, at least one and at most so many; none at the end."""
        if not self._read:
            row = await anext(self._blocks, None)
            self._read = b"" if row is None else bytes(row[0])
        taken, self._read = self._read[: count * HASH_SIZE], self._read[count * HASH_SIZE :]
        return [taken[start : start + HASH_SIZE] for start in range(0, len(taken), HASH_SIZE)]


class _Nodes:
    """The stored nodes of a log, compared with those that its tree makes as it grows, in the same order."""

    def __init__(self, log_id: str, stored: AsyncIterator[Any]) -> None:
        self._log_id = log_id
        self._stored = stored
        self._next: tuple[Node, bytes] | None = None
        self._begun = False

    async def compare(self, made: Mapping[Node, bytes]) -> list[Mapping[str, Any]]:
        """Those of these that are not stored as they were made, and those that are stored before them."""
        differences: list[Mapping[str, Any]] = []
        for node, hash in made.items():
            if not self._begun:
                self._begun = True
                await self._advance()
            while self._next is not None and _completed(self._next[0]) < _completed(node):
                differences.append(self._difference(self._next[0]))
                await self._advance()
            if self._next == (node, hash):
                await self._advance()
                continue
            differences.append(self._difference(node))
            if self._next is not None and self._next[0] == node:
                await self._advance()
        return differences

    async def rest(self) -> AsyncIterator[Mapping[str, Any]]:
        """Those that no tree of this size has."""
        if not self._begun:
            await self._advance()
        while self._next is not None:
            yield self._difference(self._next[0])
            await self._advance()

    async def _advance(self) -> None:
        row = await anext(self._stored, None)
        self._next = None if row is None else ((row[0], row[1]), bytes(row[2]))

    def _difference(self, node: Node) -> Mapping[str, Any]:
        level, index = node
        return {
            "log_id": self._log_id,
            "level": level,
            "node_index": index,
            "node": "is not that of the leaves",
        }


def _completed(node: Node) -> tuple[int, int]:
    """Where a node comes in the order in which they are made: by its last leaf, then from below."""
    level, index = node
    return index + 1 << level, level


def _says(note: str, origin: str, size: int, root: bytes) -> bool:
    """Whether a note is of this checkpoint, whoever signed it."""
    try:
        found = unverified(note)
    except NoteError:
        return False
    return (found.origin, found.size, found.root) == (origin, size, root)


SEAL_CHECKS: Final = (
    Check(
        "logs_go_on_from_each_other",
        "a log that continues another begins with all its positions, in their order",
        """
        SELECT l.log_id, o.position, o.transaction_id
        FROM ledger.journal_log l
        JOIN ledger.journal_position o ON o.log_id = l.previous_log_id
        LEFT JOIN ledger.journal_position n ON n.log_id = l.log_id AND n.position = o.position
        WHERE n.transaction_id IS DISTINCT FROM o.transaction_id
           OR n.partition_id IS DISTINCT FROM o.partition_id
        """,
    ),
    Check(
        "leaves_are_gap_free",
        "every position up to the last hashed one has one leaf and the salts of its commitments",
        """
        SELECT s.log_id, s.hashed_position, b.leaves, b.first, b.last, b.without_salts, b.overlaps
        FROM ledger.seal_state s
        LEFT JOIN (
            SELECT log_id, sum(leaves) AS leaves, min(first_position) AS first, max(last_position) AS last,
                   count(*) FILTER (WHERE cardinality(salts) IS DISTINCT FROM leaves) AS without_salts,
                   count(*) FILTER (WHERE first_position <> following) AS overlaps
            FROM (
                SELECT log_id, first_position, octet_length(leaf_hashes) / 32 AS leaves, salts,
                       first_position + octet_length(leaf_hashes) / 32 - 1 AS last_position,
                       1 + coalesce(sum(octet_length(leaf_hashes) / 32) OVER (
                           PARTITION BY log_id ORDER BY first_position
                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS following
                FROM ledger.seal_block LEFT JOIN ledger.seal_salt USING (log_id, first_position)
            ) AS block
            GROUP BY log_id
        ) AS b USING (log_id)
        WHERE s.hashed_position <> coalesce(b.leaves, 0) OR s.hashed_position <> coalesce(b.last, 0)
           OR coalesce(b.first, 1) <> 1 OR b.without_salts <> 0 OR b.overlaps <> 0
        """,
    ),
    Check("leaves_match_journal", "every leaf is that of its transaction, entries and evidence", _LEAVES),
    Check(
        "sealed_sizes_match_checkpoints",
        "a log is sealed up to its newest checkpoint, and holds more than that",
        """
        SELECT s.log_id, s.sealed_size, c.size, s.hashed_position, l.last_position
        FROM ledger.seal_state s
        JOIN ledger.journal_log l USING (log_id)
        LEFT JOIN (
            SELECT log_id, max(size) AS size FROM ledger.seal_checkpoint GROUP BY log_id
        ) AS c USING (log_id)
        WHERE s.sealed_size <> coalesce(c.size, 0) OR s.hashed_position > l.last_position
        """,
    ),
    Check(
        "trees_match_checkpoints",
        "the tree of the leaves has the nodes that are stored, and at every signed size the signed root",
        code=_tree_differences,
    ),
)
