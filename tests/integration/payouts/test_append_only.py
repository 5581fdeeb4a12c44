"""The history of payouts and purchases never changes, whoever tries."""

import psycopg

from tests.integration.payouts.buyers import Buyers
from tests.integration.payouts.world import World
from tests.support.append_only import nobody_changes


async def test_nobody_changes_the_past(still_world: World) -> None:
    payouts = still_world.payouts
    await still_world.organization("org_lark", earned=100)
    await still_world.request("org_lark", 33)
    buyers = Buyers(payouts)
    await buyers.customer()
    await buyers.buy(20)
    async with await psycopg.AsyncConnection.connect(payouts.database_url, autocommit=True) as database:
        await nobody_changes(database, [("payouts", "payout_transition"), ("payouts", "purchase_step")])
