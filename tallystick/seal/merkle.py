"""The Merkle tree of RFC 9162 (and RFC 6962): hashes, roots, and what proves that a tree holds a leaf or
another tree.

A subtree is named by the leaves that it covers, as a half-open range. Hashes are 32 bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = sha256().digest()

Range: TypeAlias = tuple[int, int]


class MerkleError(ValueError):
    """A proof does not prove what it should; the message says what is wrong with it."""


def hash_leaf(data: bytes) -> bytes:
    """The hash of a leaf, which no inner node can have."""
    return sha256(b"\x00" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


def root_of(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root of a tree of these leaves."""
    return fold(peaks_of(leaf_hashes)) if leaf_hashes else EMPTY_ROOT


def peaks_of(hashes: Sequence[bytes]) -> list[bytes]:
    """The roots of the perfect trees that a tree of these consists of, from the left, the largest first.

    The hashes may be of leaves, or of perfect subtrees of one size.
    """
    peaks = []
    start = 0
    for level in range(len(hashes).bit_length() - 1, -1, -1):
        if len(hashes) >> level & 1:
            peaks.append(perfect_root(hashes[start : start + (1 << level)]))
            start += 1 << level
    return peaks


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """The root above so many hashes as are a power of two."""
    level = list(hashes)
    while len(level) > 1:
        level = [
            sha256(b"\x01" + level[place] + level[place + 1]).digest() for place in range(0, len(level), 2)
        ]
    return level[0]


def fold(peaks: Iterable[bytes]) -> bytes:
    """The root above perfect trees that stand from the left to the right, the largest first."""
    root = b""
    for peak in reversed(list(peaks)):
        root = hash_node(peak, root) if root else peak
    return root


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose hashes prove that a tree of `size` holds the leaf `index`, from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    found: list[Range] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _left_size(high - low)
        if index < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_ranges(old_size: int, size: int) -> list[Range]:
    """The subtrees whose hashes prove that a tree of `size` leaves begins with one of `old_size` leaves."""
    if not 0 < old_size <= size:
        raise ValueError(f"a tree of {size} leaves does not continue one of {old_size}")
    found: list[Range] = []
    low, high = 0, size
    while old_size != high:
        middle = low + _left_size(high - low)
        if old_size <= middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    # The part that both trees have in common. The whole old tree needs no saying.
    return [*([(low, high)] if low else []), *found[::-1]]


def path(ranges: Iterable[Range], hash_of: Callable[[int, int], bytes]) -> list[bytes]:
    """The hashes of these subtrees."""
    return [hash_of(low, high) for low, high in ranges]


def root_of_inclusion(index: int, size: int, leaf_hash: bytes, proof: Sequence[bytes]) -> bytes:
    """The root of the tree that holds this leaf there, as the proof has it (RFC 9162, 2.1.3.2).

    Raises MerkleError for a proof of another shape.
    """
    if not 0 <= index < size:
        raise MerkleError(f"a log of {size} has no place {index + 1}")
    place, last, root = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise MerkleError("the inclusion proof is too long")
        if place & 1 or place == last:
            root = hash_node(sibling, root)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            root = hash_node(root, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise MerkleError("the inclusion proof is too short")
    return root


def check_consistency(old_size: int, size: int, old_root: bytes, root: bytes, proof: Sequence[bytes]) -> None:
    """Raises MerkleError unless the tree of `size` begins with that of `old_size` (RFC 9162, 2.1.4.2)."""
    if old_size > size:
        raise MerkleError(f"a log of {size} cannot continue one of {old_size}")
    if old_size == size:
        if proof:
            raise MerkleError("a consistency proof between equal sizes is empty")
        if old_root != root:
            raise MerkleError(f"there are two logs of size {size}")
        return
    if old_size == 0:
        if proof:
            raise MerkleError("a consistency proof from an empty log is empty")
        if old_root != EMPTY_ROOT:
            raise MerkleError("this is not the root of an empty log")
        return
    hashes = list(proof)
    if old_size & (old_size - 1) == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise MerkleError("the consistency proof is too short")
    place, last = old_size - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise MerkleError("the consistency proof is too long")
        if place & 1 or place == last:
            old, new = hash_node(sibling, old), hash_node(sibling, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = hash_node(new, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise MerkleError("the consistency proof is too short")
    if old != old_root or new != root:
        raise MerkleError(f"the log of {size} does not begin with that log of {old_size}")


def _left_size(size: int) -> int:
    """How many leaves are in the left subtree of a tree: the largest power of two below its size."""
    return 1 << (size - 1).bit_length() - 1
