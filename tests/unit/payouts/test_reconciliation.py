"""The processor's books compared with the ledger, movement by movement."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.payouts.domain.reconciliation import (
    FEE,
    OTHER,
    PAYOUT,
    PURCHASE,
    DifferenceKind,
    Key,
    Movement,
    compare,
    with_fee,
)

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)

MOVEMENTS = st.builds(
    Movement,
    key=st.builds(
        Key, st.sampled_from([PAYOUT, PURCHASE, FEE, OTHER]), st.sampled_from("abcdefgh"), st.just("USD")
    ),
    amount_micros=st.integers(-(10**9), 10**9),
    time=st.integers(0, 7200).map(lambda seconds: NOON + timedelta(seconds=seconds)),
    type=st.just("transfer"),
)
BOOKS = st.lists(MOVEMENTS, unique_by=lambda movement: movement.key)


def moved(name: str, amount: int, kind: str = PAYOUT, type: str = "transfer") -> Movement:
    return Movement(Key(kind, name, "USD"), amount, NOON, type, f"tr_{name}", f"txn_{name}")


@given(BOOKS, st.randoms(use_true_random=False))
def test_the_same_books_differ_in_nothing(books: list[Movement], random: object) -> None:
    other = [replace(movement, transaction_id="txn") for movement in reversed(books)]
    found = compare(books, other, None, NOON + timedelta(days=1))
    assert found.differences == []
    assert sum(total.matched for total in found.totals.values()) == len(books)


@given(BOOKS, BOOKS)
def test_every_difference_is_found_and_they_explain_the_totals(
    processor: list[Movement], ledger: list[Movement]
) -> None:
    found = compare(processor, ledger, None, NOON + timedelta(days=1))
    left = {movement.key: movement.amount_micros for movement in processor}
    right = {movement.key: movement.amount_micros for movement in ledger}
    differing = {key for key in left | right if left.get(key) != right.get(key)}
    assert {(one.processor or one.ledger).key for one in found.differences} == differing  # type: ignore[union-attr]
    gap = sum(total.processor_micros - total.ledger_micros for total in found.totals.values())
    assert gap == sum(
        (one.processor.amount_micros if one.processor else 0)
        - (one.ledger.amount_micros if one.ledger else 0)
        for one in found.differences
    )
    assert all(one.explanation for one in found.differences)


def test_each_kind_of_difference_is_called_by_its_name() -> None:
    processor = [
        moved("equal", -5),
        moved("only-there", -6),
        moved("unequal", -7),
        *with_fee(moved("bought", 100, PURCHASE, "charge"), 3),
    ]
    ledger = [
        moved("equal", -5),
        moved("unequal", -8),
        moved("only-here", -9, type="payout_completion"),
        moved("bought", 100, PURCHASE),
    ]
    found = compare(processor, ledger, None, LATER)
    kinds = {(one.processor or one.ledger).key.name: one.kind for one in found.differences}  # type: ignore[union-attr]
    assert kinds == {
        "only-there": DifferenceKind.MISSING_IN_LEDGER,
        "unequal": DifferenceKind.AMOUNT_DIFFERS,
        "only-here": DifferenceKind.MISSING_AT_PROCESSOR,
        "txn_bought": DifferenceKind.FEE_DIFFERS,
    }
    total = found.totals["USD"]
    assert (total.processor_micros, total.ledger_micros, total.matched) == (79, 78, 2)


def test_what_the_ledger_heard_late_belongs_to_the_time_at_which_it_happened() -> None:
    heard_late = replace(moved("late", -5), time=NOON + timedelta(days=4))
    assert compare([moved("late", -5)], [heard_late], None, LATER).differences == []
    # And what is later than the end is left out on both sides.
    assert compare([moved("late", -5)], [heard_late], None, NOON).totals == {}
    assert compare([], [heard_late], None, LATER).totals == {}
    assert len(compare([], [heard_late], NOON, NOON + timedelta(days=5)).differences) == 1
