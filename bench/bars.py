"""What each benchmark must reach, with two cores shared by client, services and PostgreSQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bar:
    """Bounds on a result; None where there is none."""

    min_ratio: float | None = None
    max_ratio: float | None = None
    min_value: float | None = None
    max_value: float | None = None

    def is_met(self, value: float, ratio: float | None) -> bool:
        """Whether a result is within all bounds. A ratio that is wanted and missing is not."""
        return (
            (self.min_ratio is None or (ratio is not None and ratio >= self.min_ratio))
            and (self.max_ratio is None or (ratio is not None and ratio <= self.max_ratio))
            and (self.min_value is None or value >= self.min_value)
            and (self.max_value is None or value <= self.max_value)
        )

    def __str__(self) -> str:
        bounds = []
        if self.min_ratio is not None:
            bounds.append(f"ratio ≥ {self.min_ratio:g}")
        if self.max_ratio is not None:
            bounds.append(f"ratio ≤ {self.max_ratio:g}")
        if self.min_value is not None:
            bounds.append(f"≥ {self.min_value:,g}")
        if self.max_value is not None:
            bounds.append(f"≤ {self.max_value:,g}")
        return ", ".join(bounds)


BARS: Final[Mapping[str, Bar]] = {
    "ledger_batch": Bar(min_ratio=0.6, min_value=12_000),
    "ledger_single": Bar(min_ratio=0.4),
    "ledger_hot_payer": Bar(min_ratio=0.8),
    "ledger_hot_org": Bar(min_ratio=0.9),
    "meter_unary": Bar(min_ratio=0.3, min_value=2_400),
    "meter_unary_alone": Bar(max_value=4.0),
    "meter_batch": Bar(min_value=10_000),
    "reserve": Bar(min_ratio=0.35),
    "reserve_alone": Bar(max_value=2.0),
    "reserve_contended": Bar(min_ratio=0.8),
    "reserve_settle": Bar(min_value=1_200),
    "lease_overhead": Bar(max_value=20),
    # On two cores a second process finds nobody idle; it must not make calls much dearer.
    "two_processes_ledger": Bar(min_ratio=0.85),
    "two_processes_metering": Bar(min_ratio=0.85),
    # Of the ratio on an empty ledger.
    "ledger_growth": Bar(min_value=0.9),
    "feed": Bar(min_value=100_000),
    "webhook_ack": Bar(min_value=1_000),
    "webhook_ack_paced": Bar(max_value=50),
    "payout_gate": Bar(min_ratio=0.4),
    "payout_gate_hot": Bar(min_ratio=0.4),
    # Bounded by its concurrency, and not by how many are paid.
    "payout_run": Bar(max_ratio=1.25),
    "payout_run_growth": Bar(max_value=10),
    "feed_catchup": Bar(min_value=20_000),
    # A hundred times the history must not make them much dearer.
    "report_summary": Bar(max_ratio=1.5, max_value=50),
    "report_top_customers": Bar(max_ratio=1.5, max_value=50),
    "page_dashboard": Bar(max_value=80),
    "export": Bar(min_ratio=0.1),
    "export_growth": Bar(max_value=10),
    "rate_pure": Bar(min_value=150_000),
    "rate_cel": Bar(min_value=60_000),
    "ledger_memory": Bar(max_value=200),
    "metering_memory": Bar(max_value=200),
    "payouts_memory": Bar(max_value=200),
    "reporting_memory": Bar(max_value=200),
}
