"""Credits that are bought by themselves."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

DEFAULT_COOL_OFF_SECONDS: Final = 60
SHORTEST_COOL_OFF_SECONDS: Final = 10
LONGEST_COOL_OFF_SECONDS: Final = 31 * 86_400


@dataclass(frozen=True, slots=True)
class AutoRecharge:
    """A row of payouts.auto_recharge."""

    customer_id: str
    currency_code: str
    enabled: bool
    threshold_micros: int
    amount_micros: int
    ceiling_micros: int
    next_time: datetime
    update_time: datetime
    cool_off_seconds: int = DEFAULT_COOL_OFF_SECONDS
    payment_method_id: str = ""
    month: str = ""
    bought_micros: int = 0
    recharge_number: int = 0
    last_purchase_id: str | None = None
    stopped_reason: str = ""

    def bought_in(self, month: str) -> int:
        """What was bought in a month, in micros."""
        return self.bought_micros if month == self.month else 0

    def why_not(self, now: datetime) -> str:
        """Why it does not buy although it is enabled; "" if it does."""
        if not self.enabled or self.stopped_reason:
            return self.stopped_reason
        if self.bought_in(month_of(now)) + self.amount_micros > self.ceiling_micros:
            return "the monthly ceiling is reached"
        return ""

    def may_buy(self, now: datetime) -> bool:
        """Whether nothing is known to be in the way; who buys asks the table once more."""
        return self.enabled and not self.why_not(now) and self.next_time <= now


def month_of(moment: datetime) -> str:
    """The calendar month in UTC, as YYYY-MM."""
    return f"{moment:%Y-%m}"
