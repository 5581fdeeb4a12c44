"""What an organization earned. Amounts are micros of one currency."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from services.reporting.domain import shares

# The customers of the share that says how much hangs on few of them.
FEW: Final = 5


class RevenueGrouping(StrEnum):
    """What earnings are told apart by."""

    NONE = "none"
    AGENT = "agent"
    AGENT_VERSION = "agent_version"
    CUSTOMER = "customer"
    ACTION = "action"


@dataclass(frozen=True, slots=True)
class Revenue:
    """What was earned in some time; negative where more was taken back."""

    platform_fees: int = 0
    processing_fees: int = 0
    net: int = 0
    charge_count: int = 0

    @property
    def gross(self) -> int:
        """What customers paid or owe for it."""
        return self.platform_fees + self.processing_fees + self.net

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.platform_fees + other.platform_fees,
            self.processing_fees + other.processing_fees,
            self.net + other.net,
            self.charge_count + other.charge_count,
        )

    def __sub__(self, other: Self) -> Self:
        return type(self)(
            self.platform_fees - other.platform_fees,
            self.processing_fees - other.processing_fees,
            self.net - other.net,
            self.charge_count - other.charge_count,
        )


@dataclass(frozen=True, slots=True)
class RevenueParts:
    """Revenue by what it was charged for."""

    usage: Revenue
    subscriptions: Revenue
    period_closings: Revenue


@dataclass(frozen=True, slots=True)
class RevenueGroup:
    """The revenue of one agent, version, customer or action."""

    key: str
    revenue: Revenue


@dataclass(frozen=True, slots=True)
class Ranking:
    """The groups that earned most, and what is known of all of them."""

    # In order, the highest gross revenue first.
    groups: Sequence[RevenueGroup]
    total: Revenue
    group_count: int
    # Of the groups whose gross revenue is above zero: its sum, and the sum of its squares.
    positive_sum: int
    square_sum: int

    @property
    def few_share_bps(self) -> int:
        """The part of the first five in the gross revenue."""
        return shares.share_bps(sum(group.revenue.gross for group in self.groups[:FEW]), self.total.gross)

    @property
    def concentration_index(self) -> int:
        """Herfindahl-Hirschman index of the groups' shares."""
        return shares.concentration_of(self.positive_sum, self.square_sum)


@dataclass(frozen=True, slots=True)
class Standing:
    """What was earned and not paid out."""

    available: int
    pending: int
    uncollected: int
    in_transit: int
