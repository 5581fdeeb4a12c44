"""Alerts are counted and logged, each by itself."""

from datetime import UTC, datetime

from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.metering.domain.budget import Alert
from services.metering.rpc.budget_alerts import announce_alerts

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def counted(threshold: int) -> float:
    labels = {"threshold": str(threshold)}
    return REGISTRY.get_sample_value("tallystick_budget_alerts_total", labels) or 0.0


def test_alerts_are_counted_by_threshold_and_logged() -> None:
    before = counted(80), counted(100)
    alerts = [Alert(f"bud_{number}", NOON, "", 80, "USD", 8, 10, NOON) for number in range(2)]
    alerts.append(Alert("bud_3", None, "wf", 100, "USD", 10, 10, NOON))

    with capture_logs() as lines:
        announce_alerts(alerts)

    assert (counted(80) - before[0], counted(100) - before[1]) == (2, 1)
    assert [(line["event"], line["budget_id"], line["threshold"]) for line in lines] == [
        ("budget.alert", "bud_0", 80),
        ("budget.alert", "bud_1", 80),
        ("budget.alert", "bud_3", 100),
    ]
    assert lines[0]["period_start"] == "2026-11-20T12:00:00+00:00"
    assert (lines[2]["period_start"], lines[2]["workflow_id"]) == (None, "wf")


def test_no_alerts_are_no_lines() -> None:
    with capture_logs() as lines:
        announce_alerts(())
    assert lines == []
