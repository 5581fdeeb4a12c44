"""Budgets as the tests of their store make them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from services.kit.db import Database
from services.kit.tenancy import PLATFORM, scope
from services.metering.domain.budget import Budget, BudgetPeriod
from services.metering.store import budgets

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def a_budget(budget_id: str = "bud_1", **changes: Any) -> Budget:
    """The platform's hard budget of 1,000 micros of USD on all that cus_1 ever spends, unless changed."""
    budget = Budget(
        budget_id=budget_id,
        owner_id="platform",
        display_name="",
        customer_id="cus_1",
        agent_id="",
        api_key_id="",
        per_workflow=False,
        period=BudgetPeriod.TOTAL,
        time_zone="UTC",
        currency_code="USD",
        limit_micros=1_000,
        hard=True,
        alert_thresholds=(),
        create_time=NOW,
        update_time=NOW,
    )
    return replace(budget, **changes)


async def create(writer: Database, *new: Budget) -> Sequence[Budget]:
    async with writer.begin() as connection:
        await scope(connection, PLATFORM)
        for one in new:
            assert await budgets.create(connection, one)
    return new


async def change(writer: Database, changed: Budget) -> None:
    async with writer.begin() as connection:
        await scope(connection, PLATFORM)
        assert await budgets.change(connection, changed) is not None
