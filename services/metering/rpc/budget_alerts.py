"""Telling operators of the thresholds that budgets have reached."""

from collections.abc import Iterable

from prometheus_client import Counter

from services.kit import log
from services.metering.domain.budget import Alert

_ALERTS = Counter(
    "tallystick_budget_alerts", "Thresholds that budgets reached, in per cent of the limit.", ["threshold"]
)
_log = log.get_logger()


def announce_alerts(alerts: Iterable[Alert]) -> None:
    """Count and log alerts, once the transaction that noted them was committed."""
    for alert in alerts:
        _ALERTS.labels(alert.threshold).inc()
        _log.warning(
            "budget.alert",
            budget_id=alert.budget_id,
            workflow_id=alert.workflow_id,
            period_start=None if alert.period_start is None else alert.period_start.isoformat(),
            threshold=alert.threshold,
            currency_code=alert.currency_code,
            spent_micros=alert.spent_micros,
            limit_micros=alert.limit_micros,
        )
