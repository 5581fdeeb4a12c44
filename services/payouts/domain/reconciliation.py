"""The payment processor's books compared with the ledger, movement by movement.

Each movement has a key that both sides know: the payout of a transfer, the purchase of a charge, the
processor's own id of whatever came back, and the balance transaction of a fee. Amounts are signed micros of
the platform's money at the processor: positive came in, negative left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from services.kit.money import Money


class Key(NamedTuple):
    """What both sides call one movement."""

    kind: str
    name: str
    currency_code: str


PAYOUT: Final = "payout"
PURCHASE: Final = "purchase"
FEE: Final = "fee"
# Reversals of transfers, refunds, disputes, and what came again of these: by the processor's own ids.
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Movement:
    """One movement as one side has it."""

    key: Key
    amount_micros: int
    time: datetime
    # What it is, as its side says: "transfer", "charge", "purchase_refund", …
    type: str
    # The object at the processor, and its balance transaction; "" on the ledger's side.
    stripe_id: str = ""
    balance_transaction_id: str = ""
    # "" on the processor's side.
    transaction_id: str = ""


class DifferenceKind(StrEnum):
    """How the sides differ about a movement."""

    MISSING_IN_LEDGER = "missing_in_ledger"
    MISSING_AT_PROCESSOR = "missing_at_processor"
    AMOUNT_DIFFERS = "amount_differs"
    FEE_DIFFERS = "fee_differs"


@dataclass(frozen=True, slots=True)
class Difference:
    """A movement about which the sides differ; one of the two may be missing."""

    kind: DifferenceKind
    processor: Movement | None
    ledger: Movement | None

    @property
    def time(self) -> datetime:
        return _either(self.processor, self.ledger).time

    @property
    def explanation(self) -> str:
        """What it is about, the likely cause, and what to do."""
        if self.processor is not None and self.ledger is not None:
            what = "The fee" if self.kind is DifferenceKind.FEE_DIFFERS else f"The {self.processor.type}"
            return f"{what} has another amount in the ledger. Correct the ledger with AdjustBalances."
        if self.processor is not None:
            return _MISSING_IN_LEDGER.get(self.processor.type, _UNKNOWN_AT_PROCESSOR).format(
                type=self.processor.type
            )
        return _MISSING_AT_PROCESSOR.get(_either(None, self.ledger).type, _UNKNOWN_IN_LEDGER)


_MISSING_IN_LEDGER: Final = {
    "transfer": (
        "A transfer left that the ledger has no completed payout for: made by hand, or its payout is not"
        " completed yet. GetPayout says how it stands; a transfer made by hand needs an adjustment."
    ),
    "charge": (
        "A payment came in that bought nobody credits: made outside of PaymentService, or its purchase is not"
        " finished yet."
    ),
    "refund": (
        "A payment was refunded, and its customer still has the credits: the refund's event was not handled"
        " yet."
    ),
    "adjustment": "A dispute moved money, and the ledger has not heard of it: its event was not handled yet.",
    "transfer_refund": (
        "A transfer was reversed, and its organization has not got the money back in the ledger yet."
    ),
    "refund_failure": "A refund failed, and the ledger has not taken the money in again yet.",
    "payout": "The platform withdrew money from its own balance. Record it with AdjustBalances.",
    "topup": "The platform added money to its own balance. Record it with AdjustBalances.",
    FEE: "The processor took a fee that the ledger has not recorded yet.",
}
_UNKNOWN_AT_PROCESSOR: Final = (
    "Money moved at the processor as {type!r}, of which no service knows. Record it with AdjustBalances."
)
_MISSING_AT_PROCESSOR: Final = {
    "payout_completion": "A payout is completed in the ledger, and the processor made no transfer for it.",
    "purchase": (
        "Credits were granted as bought, and no payment came in: granted by hand with GrantCredits, perhaps."
    ),
    "adjustment": "An operator adjusted what is at the processor, and nothing moved there.",
    FEE: "The ledger recorded a fee that the processor did not take.",
}
_UNKNOWN_IN_LEDGER: Final = "The ledger recorded a movement that the processor does not have."


@dataclass(slots=True)
class Total:
    """One currency compared."""

    processor_micros: int = 0
    ledger_micros: int = 0
    matched: int = 0


@dataclass(slots=True)
class Comparison:
    """Everything compared. Differences are in no order."""

    totals: dict[str, Total] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def _count(self, processor: Movement | None, ledger: Movement | None) -> None:
        total = self.totals.setdefault(_either(processor, ledger).key.currency_code, Total())
        total.processor_micros += 0 if processor is None else processor.amount_micros
        total.ledger_micros += 0 if ledger is None else ledger.amount_micros
        total.matched += _same(processor, ledger)

    def add(self, processor: Movement | None, ledger: Movement | None) -> None:
        """Take a movement into account, of which one side may be missing."""
        self._count(processor, ledger)
        if not _same(processor, ledger):
            self.differences.append(Difference(_kind(processor, ledger), processor, ledger))


def compare(
    processor: Iterable[Movement],
    ledger: Iterable[Movement],
    start: datetime | None,
    end: datetime,
) -> Comparison:
    """Compare what happened from `start` on and before `end`.

    Both sides may have more: the ledger may hear of a movement days after it happened. A movement belongs to
    the time at which the processor has it, and one that only the ledger has to the ledger's.
    """
    found = Comparison()
    by_key: dict[Key, Movement] = {}
    for movement in ledger:
        by_key[movement.key] = _added(by_key.get(movement.key), movement)
    seen: dict[Key, Movement] = {}
    for movement in processor:
        seen[movement.key] = _added(seen.get(movement.key), movement)
    for movement in seen.values():
        other = by_key.pop(movement.key, None)
        if _is_within(movement, start, end):
            found.add(movement, other)
    for movement in by_key.values():
        if _is_within(movement, start, end):
            found.add(None, movement)
    return found


def with_fee(movement: Movement, fee_micros: int) -> Iterator[Movement]:
    """A movement at the processor, and its fee as a movement of its own."""
    yield movement
    if fee_micros:
        key = Key(FEE, movement.balance_transaction_id, movement.key.currency_code)
        yield Movement(
            key, -fee_micros, movement.time, FEE, movement.stripe_id, movement.balance_transaction_id
        )


def money(movement: Movement | None, currency_code: str) -> Money:
    """The amount of a side; zero if it has none."""
    return Money(currency_code, 0 if movement is None else movement.amount_micros)


def _added(known: Movement | None, more: Movement) -> Movement:
    """Two movements under one key count together; the first one names them."""
    if known is None:
        return more
    return Movement(
        known.key,
        known.amount_micros + more.amount_micros,
        known.time,
        known.type,
        known.stripe_id,
        known.balance_transaction_id,
        known.transaction_id,
    )


def _is_within(movement: Movement, start: datetime | None, end: datetime) -> bool:
    return (start is None or start <= movement.time) and movement.time < end


def _same(processor: Movement | None, ledger: Movement | None) -> bool:
    return processor is not None and ledger is not None and processor.amount_micros == ledger.amount_micros


def _kind(processor: Movement | None, ledger: Movement | None) -> DifferenceKind:
    if _either(processor, ledger).key.kind == FEE:
        return DifferenceKind.FEE_DIFFERS
    if ledger is None:
        return DifferenceKind.MISSING_IN_LEDGER
    return DifferenceKind.MISSING_AT_PROCESSOR if processor is None else DifferenceKind.AMOUNT_DIFFERS


def _either(processor: Movement | None, ledger: Movement | None) -> Movement:
    one = processor or ledger
    if one is None:
        raise ValueError("a difference has at least one side")
    return one
