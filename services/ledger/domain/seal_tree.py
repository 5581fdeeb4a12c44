"""The Merkle tree of a log as it grows, and which of its nodes a proof needs.

A node is (level, index): it covers the leaves from index × 2^level on, 2^level of them. Stored are leaf
hashes (level 0) and every eighth level above; whatever lies between is computed from at most 256 of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tallystick.seal.merkle import EMPTY_ROOT, fold, hash_node, peaks_of, perfect_root

TILE_LEVELS: Final = 8
TILE: Final = 1 << TILE_LEVELS

Node: TypeAlias = tuple[int, int]


def stored_ranges(size: int) -> list[tuple[int, int, int]]:
    """(level, first index, end) of the stored nodes that the frontier of a tree of this size consists of."""
    found = []
    level = 0
    while level == 0 or size >> level:
        end = size >> level
        found.append((level, end // TILE * TILE, end))
        level += TILE_LEVELS
    return found


@dataclass(slots=True)
class Frontier:
    """The right edge of a tree: on each stored level the nodes without a parent. With it, a tree grows."""

    size: int = 0
    # By stored level, from the leaves up.
    levels: list[list[bytes]] = field(default_factory=lambda: [[]])

    @classmethod
    def of(cls, size: int, levels: Sequence[Sequence[bytes]]) -> "Frontier":
        """That of a tree of this size, from the nodes that stored_ranges() names."""
        wanted = [end - first for _, first, end in stored_ranges(size)]
        if [len(level) for level in levels] != wanted:
            raise ValueError(f"a tree of {size} leaves has {wanted} nodes at its edge")
        return cls(size, [list(level) for level in levels])

    def append(self, leaf_hashes: Iterable[bytes]) -> dict[Node, bytes]:
        """Add leaves; answers the nodes of stored levels that are complete now."""
        made: dict[Node, bytes] = {}
        for leaf_hash in leaf_hashes:
            self.levels[0].append(leaf_hash)
            self.size += 1
            step = 0
            while len(self.levels[step]) == TILE:
                node = perfect_root(self.levels[step])
                self.levels[step] = []
                step += 1
                if step == len(self.levels):
                    self.levels.append([])
                self.levels[step].append(node)
                made[step * TILE_LEVELS, (self.size >> step * TILE_LEVELS) - 1] = node
        return made

    def root(self) -> bytes:
        """The root of the tree."""
        peaks = [peak for level in reversed(self.levels) for peak in peaks_of(level)]
        return fold(peaks) if peaks else EMPTY_ROOT


@dataclass(slots=True)
class RunningTree:
    """A tree that grows, and whose root is asked for at every size: it costs a hash or two per leaf, and per
    root as many as the tree has levels.

    A Frontier, which keeps what is stored, computes its right edge anew for each root: hundreds of hashes.
    """

    size: int = 0
    # (level, hash) of the perfect trees that it consists of, from the left: the levels only fall.
    _peaks: list[tuple[int, bytes]] = field(default_factory=list)

    def append(self, leaf_hashes: Iterable[bytes]) -> dict[Node, bytes]:
        """Add leaves; answers the nodes of stored levels that are complete now, in their order."""
        made: dict[Node, bytes] = {}
        for leaf_hash in leaf_hashes:
            self.size += 1
            level, node = 0, leaf_hash
            while self._peaks and self._peaks[-1][0] == level:
                node = hash_node(self._peaks.pop()[1], node)
                level += 1
                if level % TILE_LEVELS == 0:
                    made[level, (self.size >> level) - 1] = node
            self._peaks.append((level, node))
        return made

    def root(self) -> bytes:
        """The root of the tree."""
        return fold(peak for _, peak in self._peaks) if self._peaks else EMPTY_ROOT


def perfect_nodes(low: int, high: int) -> list[Node]:
    """The perfect subtrees that these leaves consist of, as in a tree that ends with `high`."""
    found = []
    while low < high:
        # As large as its place allows, and no larger than what is left.
        level = (high - low).bit_length() - 1
        if low:
            level = min(level, (low & -low).bit_length() - 1)
        found.append((level, low >> level))
        low += 1 << level
    return found


def stored_nodes(nodes: Iterable[Node]) -> list[tuple[int, int, int]]:
    """(level, first index, end) of the stored nodes that these can be computed from."""
    return sorted({_below(level, index) for level, index in nodes})


def hash_of_range(low: int, high: int, stored: Mapping[Node, bytes]) -> bytes:
    """The hash of a subtree, from stored nodes."""
    peaks = []
    for level, index in perfect_nodes(low, high):
        from_level, first, end = _below(level, index)
        peaks.append(perfect_root([stored[from_level, number] for number in range(first, end)]))
    return fold(peaks)


def _below(level: int, index: int) -> tuple[int, int, int]:
    up = level % TILE_LEVELS
    return level - up, index << up, index + 1 << up
