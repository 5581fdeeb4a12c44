"""The audit of the seal: leaves recomputed from the journal, trees from leaves, and what was signed.

Whether the signatures are right, the database cannot tell: who has the ledger's public key checks that
(docs/seal.md).
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.domain.seal_tree import Frontier, Node
from services.ledger.store.audit_check import Check
from tallystick.seal import checkpoints
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


async def _tree_differences(connection: AsyncConnection) -> AsyncIterator[Mapping[str, Any]]:
    """Checkpoints and nodes that are not those of the leaves: a tree is not a query."""
    logs = await connection.execute(text("SELECT log_id FROM ledger.journal_log ORDER BY create_time"))
    for (log_id,) in logs.all():
        for difference in await _differences_of(connection, log_id):
            yield difference


async def _differences_of(connection: AsyncConnection, log_id: str) -> list[dict[str, Any]]:
    of_log = {"log_id": log_id}
    found = await connection.execute(
        text(
            "SELECT size, root, origin, note FROM ledger.seal_checkpoint WHERE log_id = :log_id ORDER BY size"
        ),
        of_log,
    )
    signed = list(found.all())
    differences = [
        {"log_id": log_id, "size": size, "note": "does not say what is stored of it"}
        for size, root, origin, note in signed
        if not _says(note, origin, size, bytes(root))
    ]
    tree, made = Frontier(), dict[Node, bytes]()
    blocks = await connection.stream(
        text("SELECT leaf_hashes FROM ledger.seal_block WHERE log_id = :log_id ORDER BY first_position"),
        of_log,
    )
    expected = iter(signed)
    checkpoint = next(expected, None)
    async for (block,) in blocks:
        for start in range(0, len(block), HASH_SIZE):
            made |= tree.append([bytes(block[start : start + HASH_SIZE])])
            while checkpoint is not None and checkpoint.size == tree.size:
                if tree.root() != bytes(checkpoint.root):
                    differences.append(
                        {"log_id": log_id, "size": tree.size, "root": "is not that of the leaves"}
                    )
                checkpoint = next(expected, None)
    if checkpoint is not None:
        differences.append({"log_id": log_id, "size": checkpoint.size, "leaves": tree.size})
    sealed = signed[-1].size if signed else 0
    return differences + await _node_differences(connection, log_id, sealed, made)


async def _node_differences(
    connection: AsyncConnection, log_id: str, sealed: int, made: dict[Node, bytes]
) -> list[dict[str, Any]]:
    found = await connection.execute(
        text("SELECT level, node_index, hash FROM ledger.seal_node WHERE log_id = :log_id"),
        {"log_id": log_id},
    )
    stored = {(level, index): bytes(hash) for level, index, hash in found.all()}
    # Nodes are stored with the checkpoint that completes them.
    wanted = {(level, index): hash for (level, index), hash in made.items() if (index + 1) << level <= sealed}
    return [
        {"log_id": log_id, "level": level, "node_index": index, "node": "is not that of the leaves"}
        for level, index in sorted(wanted.keys() | stored.keys())
        if wanted.get((level, index)) != stored.get((level, index))
    ]


def _says(note: str, origin: str, size: int, root: bytes) -> bool:
    """Whether a note is of this checkpoint, whoever signed it."""
    try:
        found = checkpoints.unverified(note)
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
