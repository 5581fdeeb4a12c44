"""What a charge adds to budgets."""

from collections.abc import Sequence

from services.metering.domain.budget import BudgetIndex, counter_key, period_of
from services.metering.domain.usage_record import IntendedCharge
from services.metering.store.budgets import Spend


def spends(index: BudgetIndex, charge: IntendedCharge, api_key_id: str) -> Sequence[Spend]:
    """What to add to which counters for a charge of work that this API key reported."""
    if not charge.amount_micros:
        return ()
    key = charge.key
    return [
        Spend(
            counter_key(budget, period_of(budget, charge.occur_time), key.workflow_id), charge.amount_micros
        )
        for budget in index.matching(key.customer_id, charge.agent_id, api_key_id, charge.currency_code)
    ]
