"""Between the contract and the domain: budgets, their counters and alerts."""

from datetime import datetime

from services.kit import ids
from services.kit.errors import InvalidArgument
from services.metering.domain.budget import (
    Alert,
    Budget,
    BudgetPeriod,
    Counter,
    Period,
    check_identity,
    check_terms,
)
from services.metering.rpc.convert import time_to_proto
from tallystick.common.v1 import money_pb2
from tallystick.metering.v1 import budget_pb2

_PERIODS = {
    budget_pb2.BUDGET_PERIOD_DAY: BudgetPeriod.DAY,
    budget_pb2.BUDGET_PERIOD_MONTH: BudgetPeriod.MONTH,
    budget_pb2.BUDGET_PERIOD_TOTAL: BudgetPeriod.TOTAL,
}
_PERIODS_TO_PROTO = {period: number for number, period in _PERIODS.items()}


def budget_from_proto(message: budget_pb2.Budget, *, budget_id: str, owner_id: str, now: datetime) -> Budget:
    """The new budget in a request, under this id. Raises InvalidArgument for what is malformed."""
    period = _PERIODS.get(message.period)
    if period is None:
        raise InvalidArgument.of("budget.period", "must be DAY, MONTH or TOTAL")
    for prefix, field, value in (
        (ids.BUDGET, "budget_id", message.budget_id),
        (ids.CUSTOMER, "customer_id", message.customer_id),
        (ids.AGENT, "agent_id", message.agent_id),
        (ids.API_KEY, "api_key_id", message.api_key_id),
    ):
        if value:
            ids.check_id(value, prefix, field=f"budget.{field}")
    budget = Budget(
        budget_id=budget_id,
        owner_id=owner_id,
        display_name=message.display_name,
        customer_id=message.customer_id,
        agent_id=message.agent_id,
        api_key_id=message.api_key_id,
        per_workflow=message.per_workflow,
        period=period,
        time_zone=message.time_zone or "UTC",
        currency_code=message.limit.currency_code,
        limit_micros=message.limit.amount_micros,
        hard=message.hard,
        alert_thresholds=check_terms(
            display_name=message.display_name,
            limit_currency_code=message.limit.currency_code,
            limit_micros=message.limit.amount_micros,
            alert_thresholds=message.alert_thresholds,
            within="budget.",
        ),
        create_time=now,
        update_time=now,
    )
    check_identity(budget)
    return budget


def budget_to_proto(budget: Budget) -> budget_pb2.Budget:
    """A budget as it travels."""
    return budget_pb2.Budget(
        budget_id=budget.budget_id,
        display_name=budget.display_name,
        customer_id=budget.customer_id,
        agent_id=budget.agent_id,
        api_key_id=budget.api_key_id,
        per_workflow=budget.per_workflow,
        period=_PERIODS_TO_PROTO[budget.period],
        time_zone=budget.time_zone,
        limit=_money(budget.currency_code, budget.limit_micros),
        hard=budget.hard,
        alert_thresholds=budget.alert_thresholds,
        create_time=time_to_proto(budget.create_time),
        update_time=time_to_proto(budget.update_time),
    )


def status_to_proto(budget: Budget, period: Period, counter: Counter) -> budget_pb2.BudgetStatus:
    """The counter of a budget as it travels."""
    currency_code = budget.currency_code
    remaining = max(budget.limit_micros - counter.spent - counter.reserved, 0)
    return budget_pb2.BudgetStatus(
        spent=_money(currency_code, counter.spent),
        reserved=_money(currency_code, counter.reserved),
        remaining=_money(currency_code, remaining),
        period_start_time=None if period.start is None else time_to_proto(period.start),
        reset_time=None if period.reset is None else time_to_proto(period.reset),
    )


def alert_to_proto(alert: Alert) -> budget_pb2.BudgetAlert:
    """An alert as it travels."""
    return budget_pb2.BudgetAlert(
        budget_id=alert.budget_id,
        period_start_time=None if alert.period_start is None else time_to_proto(alert.period_start),
        workflow_id=alert.workflow_id,
        threshold=alert.threshold,
        spent=_money(alert.currency_code, alert.spent_micros),
        limit=_money(alert.currency_code, alert.limit_micros),
        create_time=time_to_proto(alert.create_time),
    )


def _money(currency_code: str, amount_micros: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code=currency_code, amount_micros=amount_micros)
