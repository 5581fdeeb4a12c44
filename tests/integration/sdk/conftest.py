"""A metering with its ledger, as its own tests have it, and clients that call them."""

import pytest

from tallystick import RetryPolicy
from tests.integration.metering.conftest import host_key, ledger, world
from tests.integration.metering.world import World

__all__ = ["host_key", "ledger", "world"]


@pytest.fixture
def options(world: World, host_key: str) -> dict[str, object]:
    """How a client reaches them. Waits are short; the time for a call is far above what it needs."""
    return {
        "api_key": host_key,
        "metering": world.server.address,
        "ledger": world.server.ledger.address,
        "retry": RetryPolicy(timeout=30, first_backoff=0.01, max_backoff=0.1),
    }
