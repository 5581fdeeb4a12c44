"""What a batch of a feed says, as rows. Amounts are micros of the row's currency, times micros since 1970."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from services.reporting.domain.columns import Columns
from services.reporting.domain.projection import FeedGap


class PostedTransaction(NamedTuple):
    """A transaction of the journal, without its entries."""

    position: int
    transaction_id: str
    type: str
    charge_id: str
    correction_id: str
    payout_id: str
    reason: str
    occur_time: int
    create_time: int


class PostedCharge(NamedTuple):
    """The charge that a transaction posted."""

    position: int
    customer_id: str
    workflow_id: str
    component: str
    ordinal: int
    currency_code: str
    gross: int
    price_version_id: str


class Revenue(NamedTuple):
    """What a payee got by a charge or a collection, or gave back by a correction or a write-off."""

    position: int
    organization_id: str
    # Empty in what is done to a charge: it is that of the charge.
    agent_id: str
    currency_code: str
    billed: int
    platform_fee: int
    processing_fee: int
    net: int


class Movement(NamedTuple):
    """An entry of an account of a customer or an organization."""

    position: int
    entry_number: int
    owner_id: str
    currency_code: str
    kind: str
    amount: int
    # Of earnings, the bucket.
    collected: bool | None
    available_on: str | None


class RecordedEvent(NamedTuple):
    """A metered event."""

    customer_id: str
    workflow_id: str
    ordinal: int
    organization_id: str
    agent_id: str
    agent_version: str
    action_type: str
    model: str
    input_tokens: int
    output_tokens: int
    outcome: str
    currency_code: str
    price: int
    lines: bytes
    # By list price; None when the model is not in the catalogue.
    model_cost: Decimal | None
    occur_time: int


class DecidedOutcome(NamedTuple):
    """How an event ended that had been pending, and what that adds."""

    customer_id: str
    workflow_id: str
    ordinal: int
    outcome: str
    bonus: int
    lines: bytes


@dataclass(slots=True)
class Batch(ABC):
    """Neighbours of a feed: everything between two positions."""

    log_id: str
    # Everything up to `after` was read before, everything up to `last` is read with this.
    after: int
    last: int
    head: int = 0
    # When the last one had been posted or recorded.
    apply_time: int = 0
    # Whether nothing was behind it when the feed was asked.
    at_end: bool = False

    @property
    def count(self) -> int:
        """How many positions."""
        return self.last - self.after

    @property
    @abstractmethod
    def columns(self) -> Sequence[Columns]:
        """Its rows."""

    def write_out(self) -> None:
        """Keep the rows that are there as columns."""
        for rows in self.columns:
            rows.write_out()

    def follow(self, position: int) -> None:
        """Take the next position. Raises FeedGap if it is not the one behind the last."""
        if position != self.last + 1:
            raise FeedGap(f"position {position} came behind {self.last}")
        self.last = position


@dataclass(slots=True)
class JournalBatch(Batch):
    """Neighbours in the journal."""

    # Of PostedTransaction, PostedCharge, Revenue and Movement.
    transactions: Columns = field(default_factory=lambda: Columns("ittttttii"))
    charges: Columns = field(default_factory=lambda: Columns("itttitit"))
    # By charge.
    corrected: dict[str, int] = field(default_factory=dict)
    revenue: Columns = field(default_factory=lambda: Columns("itttiiii"))
    movements: Columns = field(default_factory=lambda: Columns("iitttinn"))

    @property
    def columns(self) -> Sequence[Columns]:
        return self.transactions, self.charges, self.revenue, self.movements


@dataclass(slots=True)
class UsageBatch(Batch):
    """Neighbours in the usage feed."""

    # Of RecordedEvent and DecidedOutcome.
    events: Columns = field(default_factory=lambda: Columns("ttitttttiittibni"))
    outcomes: Columns = field(default_factory=lambda: Columns("ttitib"))

    @property
    def columns(self) -> Sequence[Columns]:
        return self.events, self.outcomes
