"""What no webhook brought is found in Stripe's list of events, at a bounded number of calls."""

import asyncio
from datetime import timedelta
from typing import Any

from sandbox.stripe.server import StripeStandIn
from tallystick.payouts.v1 import payout_pb2
from tests.integration.payouts.at_stripe import transfer_by_hand
from tests.integration.payouts.world import World
from tests.support.ledger_server import LedgerServer
from tests.support.payouts_server import MovedClock, PayoutsServer, running_payouts
from tests.support.waiting import eventually

PENDING = payout_pb2.BANK_STATUS_PENDING
FAST = timedelta(milliseconds=50)
NEVER = timedelta(days=300)


def _stored(payouts: PayoutsServer, where: str = "true") -> list[tuple[object, ...]]:
    return payouts.query(
        f"SELECT type, state, caught_up FROM payouts.processor_event WHERE {where} ORDER BY create_time, type"
    )


def _account(payouts: PayoutsServer) -> str:
    return str(payouts.query("SELECT stripe_account_id FROM payouts.connected_account")[0][0])


def _lists_read(stripe: StripeStandIn) -> list[str | None]:
    """The accounts whose lists were read so far; None is the platform."""
    return [one["account"] for one in stripe.control.requests("events.list")]


async def _run(stripe: StripeStandIn, words: str, **arguments: object) -> dict[str, Any]:
    return await asyncio.to_thread(stripe.control.run, words, **arguments)


async def test_what_a_webhook_brought_is_not_handled_again(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with running_payouts(database_url, ledger, stripe, catch_up_interval=FAST) as payouts:
        world = World(payouts)
        await world.organization("org_lark", 100)
        payout = (await world.request("org_lark", 40)).payout
        await world.until(payout.payout_id, lambda found: found.bank_status == PENDING)
        await _run(stripe, "webhooks settle")
        before = len(_lists_read(stripe))

        async def read_again() -> bool:
            return len(_lists_read(stripe)) > before + 3

        await eventually(read_again)
        events = stripe.control.state()["events"]
        transfers = _stored(payouts, "type LIKE 'transfer.%'")
        assert len(transfers) == 1
        assert len(_stored(payouts, "type LIKE 'payout.%'")) == 1
        assert len(_stored(payouts)) <= events
        assert len((await world.get(payout.payout_id)).transitions) == 4


async def test_an_event_that_comes_to_be_seen_late_is_found(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with running_payouts(
        database_url, ledger, stripe, webhooks=False, catch_up_interval=FAST
    ) as payouts:
        transfer_by_hand(stripe)
        await payouts.advance(timedelta(minutes=8))
        transfer_by_hand(stripe)

        async def both() -> bool:
            return [row[1] for row in _stored(payouts)] == ["quarantined", "quarantined"]

        await eventually(both)
        cursor = "SELECT read_until FROM payouts.event_cursor WHERE stripe_account_id = ''"
        newest = "SELECT max(create_time) FROM payouts.processor_event"

        async def passed() -> bool:
            return payouts.query(cursor) == payouts.query(newest)

        await eventually(passed)
        # As if the first one had not been listed until now.
        payouts.query_write(
            "DELETE FROM payouts.processor_event WHERE create_time < (SELECT max(create_time)"
            " FROM payouts.processor_event)"
        )
        await eventually(both)


async def test_the_cursor_waits_until_a_list_was_read_whole(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    for _ in range(60):
        await _run(stripe, "events send", type="transfer.updated", object=transfer_by_hand(stripe))
    # More than a page; the second one fails at first.
    stripe.control.fault("server_error", "events.list", skip=1, count=3)
    async with running_payouts(
        database_url, ledger, stripe, webhooks=False, catch_up_interval=FAST
    ) as payouts:

        async def everything() -> bool:
            return len(_stored(payouts, "state = 'quarantined'")) == 120

        await eventually(everything)


async def test_accounts_cost_a_call_an_hour_while_money_is_on_its_way_and_else_one_a_day(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with running_payouts(
        database_url, ledger, stripe, webhooks=False, catch_up_interval=FAST
    ) as payouts:
        world = World(payouts)
        await world.organization("org_lark", 100)
        account = _account(payouts)

        async def reads_within(by: timedelta) -> int:
            """How often the account's list is read because so much time passed."""
            before = _lists_read(stripe)
            await payouts.advance(by)

            async def rounds() -> bool:
                return _lists_read(stripe)[len(before) :].count(None) >= 3

            await eventually(rounds)
            return _lists_read(stripe)[len(before) :].count(account)

        # A new account is read at once.
        await reads_within(timedelta(0))
        assert _lists_read(stripe).count(account) == 1
        assert await reads_within(timedelta(hours=23)) == 0
        assert await reads_within(timedelta(hours=2)) == 1
        payout = (await world.request("org_lark", 40)).payout
        await world.until(payout.payout_id, lambda found: found.bank_status == PENDING)
        assert await reads_within(timedelta(minutes=10)) == 0
        assert await reads_within(timedelta(hours=1)) == 1
        assert await reads_within(timedelta(minutes=50)) == 0
        assert await reads_within(timedelta(minutes=15)) == 1


async def test_ten_thousand_accounts_do_not_cost_ten_thousand_calls_a_round(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> None:
    async with running_payouts(database_url, ledger, stripe, workers=False, webhooks=False) as payouts:
        # Last read at some moment of the day, as they are after the first one.
        payouts.query_write(
            "INSERT INTO payouts.connected_account (organization_id, country_code, stripe_account_id,"
            " create_attempt_time, create_time) SELECT 'org_' || n, 'US', 'acct_' || n, now(), now()"
            " FROM generate_series(1, 10000) n"
        )
        payouts.query_write(
            "INSERT INTO payouts.event_cursor SELECT 'acct_' || n, now() - interval '1 day',"
            " now() + n * interval '8.64 seconds' FROM generate_series(1, 10000) n"
        )
    clock = MovedClock()
    clock.advance(timedelta(minutes=5))
    async with running_payouts(
        database_url, ledger, stripe, clock=clock, webhooks=False, catch_up_interval=NEVER
    ) as payouts:

        async def one_round() -> bool:
            return len(_lists_read(stripe)) >= 35

        await eventually(one_round)
        await asyncio.sleep(0.5)
        # 300 of 86,400 seconds, and some for those that pass meanwhile.
        assert 35 <= len(_lists_read(stripe)) <= 60
        # Among them the platform's own.
        assert None in _lists_read(stripe)
