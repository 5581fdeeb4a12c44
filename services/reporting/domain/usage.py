"""What agents did, and what it cost. Amounts are micros of one currency, costs of models decimals of USD."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from decimal import Context, Decimal
from enum import StrEnum
from typing import Final, Self

from services.kit.money import MICROS_PER_UNIT
from services.reporting.domain.shares import share_bps

# The currency of price catalogues.
COST_CURRENCY: Final = "USD"
# Sums of int64 micros and of prices down to 1e-12 fit with room: nothing is rounded.
_EXACT: Final = Context(prec=60)


class UsageGrouping(StrEnum):
    """What usage is told apart by."""

    NONE = "none"
    AGENT = "agent"
    AGENT_VERSION = "agent_version"
    CUSTOMER = "customer"
    ACTION = "action"
    MODEL = "model"


class MarginGrouping(StrEnum):
    """What the costs of models are told apart by."""

    NONE = "none"
    AGENT = "agent"
    MODEL = "model"
    CUSTOMER = "customer"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was done in some time."""

    execution_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    success: int = 0
    failure: int = 0
    partial: int = 0
    unknown: int = 0
    pending: int = 0

    @property
    def success_rate_bps(self) -> int | None:
        """The part of the successes in what was decided and can be told; None if there is nothing of that."""
        decided = self.success + self.failure + self.partial
        return share_bps(self.success, decided) if decided else None

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """The usage of one agent, version, customer, action or model."""

    key: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class UsageRanking:
    """The groups that cost most, and the usage of all of them."""

    groups: Sequence[UsageGroup]
    total: Usage


@dataclass(frozen=True, slots=True)
class Margin:
    """What was charged for events, and what their models cost as far as that is known."""

    key: str = ""
    gross: int = 0
    gross_of_known: int = 0
    model_cost_usd: Decimal = Decimal(0)
    known_count: int = 0
    unknown_count: int = 0

    def cost(self) -> str:
        """What the models cost in USD, as an exact decimal; empty when nothing is known."""
        return plain(self.model_cost_usd) if self.known_count else ""

    def margin(self, currency_code: str) -> str:
        """What is left in USD, as an exact decimal; empty when nothing is known, or in another currency."""
        if not self.known_count or currency_code != COST_CURRENCY:
            return ""
        known = _EXACT.divide(Decimal(self.gross_of_known), Decimal(MICROS_PER_UNIT))
        return plain(_EXACT.subtract(known, self.model_cost_usd))


def plain(number: Decimal) -> str:
    """A decimal without an exponent, and without zeros at its end."""
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
