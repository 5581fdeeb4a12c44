"""Payouts with its ledger and a stand-in for Stripe that has money."""

from collections.abc import AsyncIterator, Iterator

import pytest

from sandbox.stripe.server import StripeStandIn
from tests.integration.payouts.buyers import Buyers
from tests.integration.payouts.world import World
from tests.support.ledger_server import LedgerServer, running_ledger
from tests.support.payouts_server import running_payouts, running_stripe


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[LedgerServer]:
    async with running_ledger(database_url) as running:
        yield running


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    with running_stripe() as standin:
        standin.control.fund(1_000_000_00)
        yield standin


@pytest.fixture
async def world(database_url: str, ledger: LedgerServer, stripe: StripeStandIn) -> AsyncIterator[World]:
    async with running_payouts(database_url, ledger, stripe) as running:
        yield World(running)


@pytest.fixture
async def still_world(database_url: str, ledger: LedgerServer, stripe: StripeStandIn) -> AsyncIterator[World]:
    """The same, with nobody who works on payouts."""
    async with running_payouts(database_url, ledger, stripe, workers=False) as running:
        yield World(running)


@pytest.fixture
async def buyers(database_url: str, ledger: LedgerServer, stripe: StripeStandIn) -> AsyncIterator[Buyers]:
    """Payouts with a customer who has a card."""
    async with running_payouts(database_url, ledger, stripe, webhooks=False) as running:
        found = Buyers(running)
        await found.customer()
        yield found


@pytest.fixture
async def still_buyers(
    database_url: str, ledger: LedgerServer, stripe: StripeStandIn
) -> AsyncIterator[Buyers]:
    """The same, with nobody who works on what was left behind."""
    async with running_payouts(database_url, ledger, stripe, webhooks=False, workers=False) as running:
        found = Buyers(running)
        await found.customer()
        yield found
