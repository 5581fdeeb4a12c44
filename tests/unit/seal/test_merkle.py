"""The Merkle tree: the published vectors of RFC 6962's reference log, and proofs of every shape."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.domain.seal_tree import (
    TILE,
    Frontier,
    RunningTree,
    hash_of_range,
    perfect_nodes,
    stored_nodes,
    stored_ranges,
)
from tallystick.seal import merkle

# The test data of the reference log of RFC 6962: leaves, and the root of each prefix.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# Of the same data: (leaf from 0, size) and the path.
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
HASHES = [merkle.hash_leaf(leaf) for leaf in LEAVES]


def root_by_definition(hashes: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word."""
    if not hashes:
        return merkle.EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return merkle.hash_node(root_by_definition(hashes[:split]), root_by_definition(hashes[split:]))


def of_hashes(hashes: list[bytes], ranges: list[merkle.Range]) -> list[bytes]:
    return merkle.path(ranges, lambda low, high: root_by_definition(hashes[low:high]))


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert merkle.root_of(HASHES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_published_inclusion_paths(index: int, size: int) -> None:
    path = of_hashes(HASHES, merkle.inclusion_ranges(index, size))

    assert [hash.hex() for hash in path] == INCLUSION[index, size]
    assert merkle.root_of_inclusion(index, size, HASHES[index], path).hex() == ROOTS[size]


@pytest.mark.parametrize(("old", "size"), CONSISTENCY)
def test_published_consistency_paths(old: int, size: int) -> None:
    path = of_hashes(HASHES, merkle.consistency_ranges(old, size))

    assert [hash.hex() for hash in path] == CONSISTENCY[old, size]
    merkle.check_consistency(old, size, bytes.fromhex(ROOTS[old]), bytes.fromhex(ROOTS[size]), path)


def test_every_leaf_and_every_prefix_of_small_trees_is_proven() -> None:
    hashes = [merkle.hash_leaf(bytes([number])) for number in range(70)]
    for size in range(1, 70):
        root = root_by_definition(hashes[:size])
        for index in range(size):
            path = of_hashes(hashes[:size], merkle.inclusion_ranges(index, size))
            assert merkle.root_of_inclusion(index, size, hashes[index], path) == root
        for old in range(1, size + 1):
            path = of_hashes(hashes[:size], merkle.consistency_ranges(old, size))
            merkle.check_consistency(old, size, root_by_definition(hashes[:old]), root, path)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


@given(data=st.data(), size=st.integers(1, 600))
def test_no_proof_survives_a_changed_bit(data: st.DataObject, size: int) -> None:
    hashes = [merkle.hash_leaf(number.to_bytes(4)) for number in range(size)]
    root = merkle.root_of(hashes)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    bit = data.draw(st.integers(0, 255))
    path = of_hashes(hashes, merkle.inclusion_ranges(index, size))

    assert merkle.root_of_inclusion(index, size, hashes[index], path) == root
    assert merkle.root_of_inclusion(index, size, flipped(hashes[index], bit), path) != root
    for number, hash in enumerate(path):
        changed = [*path[:number], flipped(hash, bit), *path[number + 1 :]]
        assert merkle.root_of_inclusion(index, size, hashes[index], changed) != root
    for wrong in (path[:-1], [*path, root]):
        if len(wrong) != len(path):
            with pytest.raises(merkle.MerkleError):
                merkle.root_of_inclusion(index, size, hashes[index], wrong)

    old_root, path = merkle.root_of(hashes[:old]), of_hashes(hashes, merkle.consistency_ranges(old, size))
    merkle.check_consistency(old, size, old_root, root, path)
    attempts = [
        (flipped(old_root, bit), root, path),
        (old_root, flipped(root, bit), path),
        (old_root, root, [*path, root]),
    ]
    attempts += [
        (old_root, root, [*path[:number], flipped(hash, bit), *path[number + 1 :]])
        for number, hash in enumerate(path)
    ]
    attempts += [(old_root, root, path[:-1])] if path else []
    for attempt in attempts:
        with pytest.raises(merkle.MerkleError):
            merkle.check_consistency(old, size, *attempt)


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(merkle.MerkleError):
        merkle.root_of_inclusion(3, 3, HASHES[0], [])
    with pytest.raises(merkle.MerkleError):
        merkle.check_consistency(3, 2, HASHES[0], HASHES[1], [])
    with pytest.raises(merkle.MerkleError):
        merkle.check_consistency(0, 2, HASHES[0], HASHES[1], [])
    merkle.check_consistency(0, 2, merkle.EMPTY_ROOT, HASHES[1], [])
    for index, size in ((0, 0), (-1, 4), (4, 4)):
        with pytest.raises(ValueError, match="no leaf"):
            merkle.inclusion_ranges(index, size)
    for old, size in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="does not continue"):
            merkle.consistency_ranges(old, size)


# Around the sizes at which a stored node becomes complete, on both of the stored levels above the leaves.
SIZES = [0, 1, 2, 255, 256, 257, 511, 512, 1000, 65_535, 65_536, 65_537, 66_000]


def test_a_frontier_grows_as_the_tree_that_it_is_the_edge_of() -> None:
    hashes = [merkle.hash_leaf(number.to_bytes(4)) for number in range(SIZES[-1])]
    made = {(0, index): hash for index, hash in enumerate(hashes)}
    tree = Frontier()
    for size in SIZES:
        made |= tree.append(hashes[tree.size : size])

        assert tree.root() == merkle.root_of(hashes[:size])
        # From what is stored the same one comes back.
        levels = [
            [made[level, index] for index in range(first, end)] for level, first, end in stored_ranges(size)
        ]
        assert Frontier.of(size, levels).levels == tree.levels
    assert {level for level, _ in made} == {0, 8, 16}
    assert sum(level == 8 for level, _ in made) == SIZES[-1] // TILE
    with pytest.raises(ValueError, match="at its edge"):
        Frontier.of(257, [[hashes[0]], []])


def test_a_running_tree_is_the_same_tree_and_makes_the_same_nodes_in_their_order() -> None:
    hashes = [merkle.hash_leaf(number.to_bytes(4)) for number in range(SIZES[-1])]
    tree, frontier = RunningTree(), Frontier()
    for size in SIZES:
        made = tree.append(hashes[tree.size : size])
        assert list(made.items()) == list(frontier.append(hashes[frontier.size : size]).items())
        assert tree.root() == frontier.root()
    for size in range(600):
        tree = RunningTree()
        tree.append(hashes[:size])
        assert tree.root() == merkle.root_of(hashes[:size])


def test_proofs_come_from_stored_nodes_alone() -> None:
    size = 70_123
    hashes = [merkle.hash_leaf(number.to_bytes(4)) for number in range(size)]
    stored = {(0, index): hash for index, hash in enumerate(hashes)} | Frontier().append(hashes)
    root = merkle.root_of(hashes)
    rng = random.Random(7)

    def path(ranges: list[merkle.Range]) -> list[bytes]:
        nodes = [node for low, high in ranges for node in perfect_nodes(low, high)]
        wanted = stored_nodes(nodes)
        # A few hundred of seventy thousand.
        assert sum(end - first for _, first, end in wanted) < 2 * 3 * TILE
        read = {
            (level, index): stored[level, index]
            for level, first, end in wanted
            for index in range(first, end)
        }
        return merkle.path(ranges, lambda low, high: hash_of_range(low, high, read))

    for index in [0, 255, 256, 65_535, 65_536, size - 1, *(rng.randrange(size) for _ in range(20))]:
        inclusion = path(merkle.inclusion_ranges(index, size))
        assert merkle.root_of_inclusion(index, size, hashes[index], inclusion) == root
        old = index + 1
        consistency = path(merkle.consistency_ranges(old, size))
        merkle.check_consistency(old, size, merkle.root_of(hashes[:old]), root, consistency)
