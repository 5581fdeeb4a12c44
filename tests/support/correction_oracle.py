"""What a correction takes of the legs of a charge: small and obviously right, in exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

# Platform and processing basis points.
Shares = tuple[int, int]


def largest_remainder(amount: int, weights: Sequence[int]) -> list[int]:
    """amount in proportion to the weights; what is left goes to the largest fractions, in order."""
    total = sum(weights)
    if total == 0:
        return [0] * len(weights)
    exact = [Fraction(amount * weight, total) for weight in weights]
    shares = [floor(share) for share in exact]
    by_fraction = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_fraction[: amount - sum(shares)]:
        shares[i] += 1
    return shares


def split(amount: int, weights: Sequence[int], agreements: Sequence[Shares]) -> list[int]:
    """The legs of a charge: net, platform fee and processing fee of each payee."""
    legs = []
    for share, (platform, processing) in zip(largest_remainder(amount, weights), agreements, strict=True):
        fees = [floor(Fraction(share * bps, 10_000)) for bps in (platform, processing)]
        legs += [share - sum(fees), *fees]
    return legs


def take(amount: int, legs: Sequence[int], surplus: Sequence[int]) -> list[int]:
    """Of each leg its surplus; what is then lacking, or too much, by largest remainder."""
    taken = [min(max(over, 0), leg) for leg, over in zip(legs, surplus, strict=True)]
    lacking = amount - sum(taken)
    if lacking < 0:
        return minus(taken, largest_remainder(-lacking, taken))
    return minus(taken, [-part for part in largest_remainder(lacking, minus(legs, taken))])


def minus(legs: Sequence[int], taken: Sequence[int]) -> list[int]:
    return [leg - part for leg, part in zip(legs, taken, strict=True)]


def correct(amount: int, parts: Sequence[Sequence[int]], target: Sequence[int]) -> list[list[int]]:
    """What an amount takes of each part of a charge, the first ones first.

    `target` is what the split leaves of the legs in all.
    """
    surplus = minus([sum(leg) for leg in zip(*parts, strict=True)], target)
    taken = []
    for part in parts:
        of_part = min(amount, sum(part))
        taken.append(take(of_part, part, surplus))
        surplus = minus(surplus, taken[-1])
        amount -= of_part
    return taken
