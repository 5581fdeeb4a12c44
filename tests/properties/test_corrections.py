"""What corrections take of a charge's legs: exact in all, never more than is there, close to the split."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.kit.db import Database
from tests.support import correction_oracle
from tests.support.correction_oracle import Shares, correct, largest_remainder, minus, split

AGREEMENTS = st.sampled_from([(0, 0), (1500, 290), (3333, 6667), (10_000, 0), (1, 1)])
PAYEES = st.lists(st.tuples(st.integers(1, 5), AGREEMENTS), min_size=1, max_size=4)
GROSS = st.one_of(st.integers(1, 300), st.integers(1, 10**14))


class Charge:
    """The legs of a charge in three parts, corrected as the ledger does it."""

    def __init__(self, gross: int, payees: list[tuple[int, Shares]], paid: int, owed: int) -> None:
        self.gross, self.corrected = gross, 0
        self.agreements = [agreement for _, agreement in payees]
        legs = split(gross, [weight for weight, _ in payees], self.agreements)
        self.shares = [sum(legs[start : start + 3]) for start in range(0, len(legs), 3)]
        collected = largest_remainder(paid, legs)
        uncollected = largest_remainder(owed, minus(legs, collected))
        self.parts = [minus(minus(legs, collected), uncollected), uncollected, collected]

    def target(self) -> list[int]:
        return split(self.gross - self.corrected, self.shares, self.agreements)

    def legs(self) -> list[int]:
        return [sum(leg) for leg in zip(*self.parts, strict=True)]

    def correct(self, amount: int) -> list[list[int]]:
        self.corrected += amount
        taken = correct(amount, self.parts, self.target())
        self.parts = [minus(part, of_part) for part, of_part in zip(self.parts, taken, strict=True)]
        return taken

    def collect(self, share: int) -> None:
        """An eighth or more of what is open is paid: first what is owed."""
        for number in (1, 0):
            amount = sum(self.parts[number]) * share // 8
            moved = largest_remainder(amount, self.parts[number])
            self.parts[number] = minus(self.parts[number], moved)
            self.parts[2] = minus(self.parts[2], [-part for part in moved])


def amounts(data: st.DataObject, gross: int) -> list[int]:
    """Amounts that add up to the gross amount."""
    cuts = data.draw(st.lists(st.integers(0, gross), max_size=12))
    edges = sorted({0, *cuts, gross})
    return [upper - lower for lower, upper in itertools.pairwise(edges)]


@given(gross=GROSS, payees=PAYEES, data=st.data())
@settings(max_examples=500)
def test_every_part_is_exact_monotone_and_never_negative(
    gross: int, payees: list[tuple[int, Shares]], data: st.DataObject
) -> None:
    paid = data.draw(st.integers(0, gross))
    charge = Charge(gross, payees, paid, data.draw(st.integers(0, gross - paid)))
    for amount in amounts(data, gross):
        before = [list(part) for part in charge.parts]
        taken = charge.correct(amount)
        assert sum(map(sum, taken)) == amount
        for part, of_part in zip(before, taken, strict=True):
            assert all(0 <= one <= leg for one, leg in zip(of_part, part, strict=True))
        # The first part first, and the next one only when that is empty.
        left = amount
        for part, of_part in zip(before, taken, strict=True):
            assert sum(of_part) == min(left, sum(part))
            left -= sum(of_part)
        charge.collect(data.draw(st.integers(0, 8)))
    assert charge.legs() == [0] * len(charge.legs())


@given(gross=GROSS, payees=PAYEES, data=st.data())
@settings(max_examples=500)
@example(gross=207, payees=[(1, (1500, 290))], data=None)
def test_of_a_paid_charge_each_leg_stays_by_the_split(
    gross: int, payees: list[tuple[int, Shares]], data: st.DataObject | None
) -> None:
    """However many corrections there are: by a micro or two for each payee, which do not add up."""
    charge = Charge(gross, payees, gross, 0)
    for amount in [1] * 50 if data is None else amounts(data, gross):
        charge.correct(amount)
        off = [abs(leg - wanted) for leg, wanted in zip(charge.legs(), charge.target(), strict=True)]
        assert max(off) <= 2 * len(payees), (charge.legs(), charge.target())


def test_one_micro_after_the_other_takes_of_all_legs() -> None:
    """What a plain division of each micro over the legs would not: the largest leg would pay for all."""
    charge = Charge(1000, [(1, (1500, 290))], 1000, 0)
    for _ in range(600):
        charge.correct(1)
    assert charge.legs() == [329, 60, 11]


def test_the_difference_of_two_splits_would_give_a_payee_money() -> None:
    """ADR 0015: of 207 micros the net leg is 170, of 206 it is 171."""
    agreements = [(1500, 290)]
    assert split(207, [1], agreements) == [170, 31, 6]
    assert split(206, [1], agreements) == [171, 30, 5]
    charge = Charge(207, [(1, (1500, 290))], 207, 0)
    charge.correct(1)
    assert charge.legs() == [170, 31, 5]
    charge.correct(1)
    assert charge.legs() == split(205, [1], agreements) == [170, 30, 5]


class Asking:
    """Calls functions of the database as their owner."""

    def __init__(self, runner: asyncio.Runner, database: Database) -> None:
        self._runner, self._database = runner, database

    def __call__(self, call: str, *values: object) -> list[int]:
        async def ask() -> Any:
            async with self._database.hot() as connection:
                row = await (await connection.execute(f"SELECT {call}".encode(), values)).fetchone()
                assert row is not None
                return row[0]

        found: list[int] = self._runner.run(ask())
        return found


@pytest.fixture
def asking(database_url: str) -> Iterator[Asking]:
    database = Database(database_url, role="ledger_owner", schema="ledger", pool_size=1)
    with asyncio.Runner() as runner:
        runner.run(database.open())
        try:
            yield Asking(runner, database)
        finally:
            runner.run(database.close())


@given(gross=GROSS, payees=PAYEES, data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_databases_parts_are_the_oracles(
    asking: Asking, gross: int, payees: list[tuple[int, Shares]], data: st.DataObject
) -> None:
    shares = [weight for weight, _ in payees]
    platform, processing = [list(bps) for bps in zip(*(agreement for _, agreement in payees), strict=True)]
    target = asking(
        "ledger.split(%s, %s::bigint[], %s::int[], %s::int[])", gross, shares, platform, processing
    )
    assert target == split(gross, shares, [agreement for _, agreement in payees])
    legs = data.draw(st.lists(st.integers(0, 10**14), min_size=len(target), max_size=len(target)))
    surplus = data.draw(st.lists(st.integers(-5, 10**14), min_size=len(target), max_size=len(target)))
    amount = data.draw(st.integers(0, sum(legs)))
    taken = asking("ledger.take_legs(%s, %s::bigint[], %s::bigint[])", amount, legs, surplus)
    assert taken == correction_oracle.take(amount, legs, surplus)
