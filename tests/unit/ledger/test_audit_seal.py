"""The audit of a log's tree, without a database: every checkpoint is proven, at a cost that does not grow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from hashlib import sha256
from typing import Any

import pytest

from services.ledger.domain.seal_tree import RunningTree
from services.ledger.store.audit_seal import differences_of
from tallystick.seal import merkle
from tallystick.seal.checkpoints import Checkpoint
from tallystick.seal.notes import SignerKey

KEY = SignerKey.generate("ledger.test")
ORIGIN = "ledger.test/log_1"
# As long as a log is after a quarter of an hour, with a checkpoint at every size.
SIZE = 2_000
HASHES = [merkle.hash_leaf(number.to_bytes(4)) for number in range(SIZE)]


async def rows(of: Iterable[Any]) -> AsyncIterator[Any]:
    for row in of:
        yield row


def log() -> tuple[list[tuple[bytes]], list[tuple[int, int, bytes]], list[tuple[int, bytes, str, str]]]:
    """Blocks, nodes and checkpoints of a log that was sealed after each transaction."""
    tree = RunningTree()
    nodes, checkpoints = [], []
    for leaf in HASHES:
        nodes += [(level, index, node) for (level, index), node in tree.append([leaf]).items()]
        note = Checkpoint(ORIGIN, tree.size, tree.root()).signed([KEY])
        checkpoints.append((tree.size, tree.root(), ORIGIN, note))
    blocks = [(b"".join(HASHES[first : first + 256]),) for first in range(0, SIZE, 256)]
    return blocks, nodes, checkpoints


async def differences(blocks: Any, nodes: Any, checkpoints: Any) -> list[Mapping[str, Any]]:
    found = differences_of("log_1", blocks=rows(blocks), nodes=rows(nodes), checkpoints=rows(checkpoints))
    return [difference async for difference in found]


async def test_each_checkpoint_costs_a_few_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = log()
    hashed = 0

    def counting(data: bytes = b"") -> Any:
        nonlocal hashed
        hashed += 1
        return sha256(data)

    monkeypatch.setattr(merkle, "sha256", counting)
    assert await differences(*sealed) == []
    # One per leaf for all nodes of the tree, and per root at most one for each of its levels.
    assert SIZE < hashed <= SIZE * (1 + SIZE.bit_length())


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1_024, SIZE])
async def test_each_checkpoint_is_proven(size: int) -> None:
    blocks, nodes, checkpoints = log()
    _, _, origin, note = checkpoints[size - 1]
    checkpoints[size - 1] = (size, bytes(32), origin, note)
    found = await differences(blocks, nodes, checkpoints)
    assert [difference["size"] for difference in found] == [size, size]
    assert {*found[1]} == {"log_id", "size", "root"}


async def test_a_leaf_that_was_changed_is_seen_by_every_checkpoint_behind_it() -> None:
    blocks, nodes, checkpoints = log()
    first = blocks[3][0]
    blocks[3] = (bytes(32) + first[32:],)
    found = await differences(blocks, nodes, checkpoints)
    roots = [difference["size"] for difference in found if "root" in difference]
    assert roots == list(range(3 * 256 + 1, SIZE + 1))
    assert [difference["node_index"] for difference in found if "node" in difference] == [3]
