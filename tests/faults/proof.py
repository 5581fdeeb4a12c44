"""What must hold between Stripe's books, ours and the ledger's, whatever went wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sandbox.stripe.calling import call
from services.ledger.audit import audit
from tallystick.ledger.v1 import earnings_service_pb2, payout_debit_pb2
from tests.integration.payouts.world import World
from tests.support.waiting import eventually

# Micros in a minor unit of Stripe's, which writes forint with two decimals and yen with none.
MICROS_PER_MINOR = {"usd": 10_000, "huf": 10_000, "jpy": 1_000_000}


def transfers(world: World) -> list[dict[str, Any]]:
    """Every transfer that Stripe made, the newest first."""
    stripe = world.payouts.stripe
    found: list[dict[str, Any]] = []
    pairs = [("limit", "100")]
    while True:
        status, page = call(
            stripe.url.removeprefix("http://"), "GET", "/v1/transfers", pairs, key=stripe.api_key
        )
        assert status == 200, page
        found += page["data"]
        if not page["has_more"]:
            return found
        pairs = [("limit", "100"), ("starting_after", str(found[-1]["id"]))]


async def prove(world: World) -> None:
    """Raise AssertionError unless the books agree.

    What left Stripe's balance is what the ledger has completed, less what came back; no payout left twice;
    what is not at its end says why, or when it goes on; and the ledger is sound.
    """

    async def told() -> bool:
        """Whether the ledger has heard of everything that it is owed now."""
        return not world.payouts.query(
            "SELECT FROM payouts.payout WHERE owed IN ('complete', 'return') AND hold = ''"
            " UNION ALL SELECT FROM payouts.payout_reversal WHERE NOT posted"
        )

    await eventually(told)
    made = transfers(world)
    per_payout = Counter(one["metadata"].get("payout_id") for one in made)
    assert all(count == 1 for count in per_payout.values()), per_payout

    debits = await _debits(world)
    completed = [d for d in debits if d.state == payout_debit_pb2.PAYOUT_DEBIT_STATE_COMPLETED]
    assert {d.payout_id for d in completed} == set(per_payout)
    assert {one["currency"] for one in made} <= MICROS_PER_MINOR.keys()
    for currency, micros in MICROS_PER_MINOR.items():
        sent = [one for one in made if one["currency"] == currency]
        ours = [d for d in completed if d.amount.currency_code.lower() == currency]
        assert sum(one["amount"] for one in sent) * micros == sum(d.amount.amount_micros for d in ours)
        assert sum(one["amount_reversed"] for one in sent) * micros == sum(
            d.reversed.amount_micros for d in ours
        )

    stuck = world.payouts.query(
        "SELECT payout_id, state, last_error FROM payouts.payout"
        " WHERE (state IN ('opening', 'requested', 'processing') OR owed IS NOT NULL"
        "        OR bank_status = 'waiting')"
        " AND next_attempt_time IS NULL AND hold = ''"
    )
    assert stuck == []
    unattended = world.payouts.query(
        "SELECT payout_id FROM payouts.payout p WHERE next_attempt_time IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM payouts.payout_work w WHERE w.organization_id = p.organization_id)"
    )
    assert unattended == []
    assert await audit(world.payouts.database_url) == 0


async def _debits(world: World) -> list[payout_debit_pb2.PayoutDebit]:
    found: list[payout_debit_pb2.PayoutDebit] = []
    request = earnings_service_pb2.ListPayoutDebitsRequest(page_size=1000)
    while True:
        page = await world.payouts.ledger.operator.earnings.ListPayoutDebits(request)
        found += page.debits
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
